"""The default experiment: both experts of a tiny Wan2.2 on rendered scenes whose light moves, on a laptop CPU.

    python -m experiments.train --config configs/light_scenes_tiny.py --workdir runs/tiny

The same architecture, trainer and file formats as the 14 B model, at 64×64×17 frames and 8 frames/s: ByT5 bytes → a
frozen, seeded umT5 → a small causal codec shipped with wanjax → two experts. ``make demo`` runs it, samples 32
held-out captions and measures them. Two quiet CPU cores take about a quarter of an hour for both experts; the velocity
loss on held-out clips falls to about 0.32 (high) and patches of light follow their captions from step 1,500 or so.
"""
import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "light_scenes_tiny"
    config.seed = 0
    config.codec = "light_scenes_tiny"
    config.codec_strides = (4, 8, 8)

    config.model = ml_collections.ConfigDict(dict(
        width=128, heads=2, layers=6, ffn=512, in_channels=16, out_channels=16, freq_dim=256, text_dim=64,
        dtype="float32", remat="full",  # recomputing is cheaper here than touching new memory
    ))
    config.text = ml_collections.ConfigDict(dict(
        tokenizer="byt5", encoder="seeded", length=64, seed=2,
        model=dict(vocab_size=384, d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2),
    ))
    config.data = ml_collections.ConfigDict(dict(
        source="light_scenes", train_clips=0, data_dir="runs/data", cache_dir="runs/cache/light_scenes_tiny",
        frames=17, height=64, width=64, fps=8.0, batch=16, caption_dropout=0.1, visibility_cell=4,
    ))
    config.objective = ml_collections.ConfigDict(dict(
        velocity=dict(weight=1.0),
        light=dict(weight=0.1, pools=("frame", 4), orders=(1, 2)),
        # off; docs/objectives.md says what each costs and whether it has the minimum of velocity
        light_consistency=dict(weight=0.0, mode="relative", threshold=0.1),
        temporal_luminance=dict(weight=0.0, every=4, clips=0, cut=0.5),
        shadow=dict(weight=0.0, head=dict(depths=(1 / 3, 1 / 2, 2 / 3), width=32, kernel=3)),
        change_weight=dict(weight=0.0, strength=1.0, limit=4.0),
    ))
    config.optimizer = ml_collections.ConfigDict(dict(
        name="muon", muon_rms=1.0, learning_rate=2e-3, warmup_steps=100, decay="cosine", final_fraction=0.05,
        b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip_norm=1.0, ema_decay=0.99,
        state_memory="device",
    ))
    config.lora = ml_collections.ConfigDict(dict(  # off; docs/lora.md
        rank=0, alpha=16.0, targets=("blocks/*_attention/*/kernel", "blocks/ffn/*/kernel"), base_dtype="bfloat16",
    ))
    config.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=-1, seq=1, tensor=1))
    config.train = ml_collections.ConfigDict(dict(
        expert="both", steps_high=2200, steps_low=800, boundary=0.5, shift=3.0, first_frame=0.0, accumulate=1,
        log_every=20, checkpoint_every=200, keep=2, validate_every=800, validation_bins=4, preview_every=800,
        init_from="", batch_timeout=300.0, profile_from=0, profile_steps=0,
    ))
    config.sample = ml_collections.ConfigDict(dict(
        solver="unipc", steps=24, shift=4.0, guidance_high=3.0, guidance_low=1.5, boundary=0.5, negative_prompt="",
    ))
    return config
