"""Wan2.2-T2V-A14B itself: two experts of 14,288,491,584 parameters each, 832×480×81 frames at 16 frames/s.

    python -m experiments.train --config configs/t2v_a14b.py --workdir gs://bucket/run \\
        --config.train.init_from=checkpoints/Wan2.2-T2V-A14B-Diffusers --config.train.expert=high

It needs the published checkpoint on disk (codec, text encoder, tokenizer; weights to start from where ``init_from``
names it) and a cluster. ``config.data.source`` is any TFDS builder with the features of docs/data.md; ``light_scenes``
renders at this config's size. Per clip 32,760 tokens; shapes, shardings and the parameter count are built without
allocating, and with width and size cut down by overrides it takes a real step in the tests. It has not been trained at
full size here.
"""
import ml_collections

CHECKPOINT = "checkpoints/Wan2.2-T2V-A14B-Diffusers"


def get_config(checkpoint: str = CHECKPOINT) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "t2v_a14b"
    config.seed = 0
    config.codec = f"{checkpoint}/vae"
    config.codec_strides = (4, 8, 8)

    config.model = ml_collections.ConfigDict(dict(
        width=5120, heads=40, layers=40, ffn=13824, in_channels=16, out_channels=16, freq_dim=256, text_dim=4096,
        dtype="bfloat16", remat="offload", chunk_tokens=4096, grad_reduce_dtype="auto",
        attention="auto", sequence="auto",
    ))
    config.text = ml_collections.ConfigDict(dict(
        tokenizer=f"{checkpoint}/tokenizer", encoder=f"{checkpoint}/text_encoder", length=512, seed=0,
        model=dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24),
    ))
    config.data = ml_collections.ConfigDict(dict(
        source="light_scenes", data_dir="data", cache_dir="cache/t2v_a14b",
        frames=81, height=480, width=832, fps=16.0, batch=64, caption_dropout=0.1, visibility_cell=4,
    ))
    config.objective = ml_collections.ConfigDict(dict(
        velocity=dict(weight=1.0),
        light=dict(weight=0.0, pools=("frame", 4), orders=(1, 2)),  # needs luminance.json beside the codec: fit it once
        # off; docs/objectives.md says what each costs and whether it has the minimum of velocity
        light_consistency=dict(weight=0.0, mode="relative", threshold=0.1),
        temporal_luminance=dict(weight=0.0, every=4, clips=0, cut=0.5),
        shadow=dict(weight=0.0, head=dict(depths=(1 / 3, 1 / 2, 2 / 3), width=32, kernel=3)),
        change_weight=dict(weight=0.0, strength=1.0, limit=4.0),
    ))
    config.optimizer = ml_collections.ConfigDict(dict(
        learning_rate=1e-5, warmup_steps=500, decay="constant", final_fraction=0.0, b1=0.9, b2=0.99, eps=1e-8,
        weight_decay=0.01, clip_norm=1.0, ema_decay=0.999, state_memory="device",
    ))
    config.lora = ml_collections.ConfigDict(dict(  # off; docs/lora.md
        rank=0, alpha=16.0, targets=("blocks/*_attention/*/kernel", "blocks/ffn/*/kernel"), base_dtype="bfloat16",
    ))
    config.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=-1, seq=1, tensor=1))
    config.train = ml_collections.ConfigDict(dict(
        expert="both", steps_high=10000, steps_low=10000, boundary=0.875, shift=12.0, first_frame=0.0, accumulate=1,
        log_every=10, checkpoint_every=500, keep=3, validate_every=500, validation_bins=4, preview_every=0,
        init_from=checkpoint, batch_timeout=300.0, profile_from=0, profile_steps=0,
    ))
    config.sample = ml_collections.ConfigDict(dict(
        solver="unipc", steps=40, shift=12.0, guidance_high=4.0, guidance_low=3.0, boundary=0.875, negative_prompt="",
    ))
    return config
