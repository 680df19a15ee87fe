"""Wan2.2-TI2V-5B: one expert of 4,999,787,712 parameters on the 4×16×16 codec, with or without a given first frame.

    python -m experiments.train --config configs/ti2v_5b.py --workdir gs://bucket/run

1280×704×121 frames at 24 frames/s, 27,280 tokens per clip. A clip is trained with its first frame given at probability
``train.first_frame``, here one half (how the published weights were trained is not known): its first latent frame is
then clean, and its tokens have timestep 0. It needs the published checkpoint on disk and a cluster. It has not been
trained at full size here; cut down by overrides it takes a real step in the tests.
"""
import ml_collections

from configs import t2v_14b

CHECKPOINT = "checkpoints/Wan2.2-TI2V-5B-Diffusers"


def get_config() -> ml_collections.ConfigDict:
    config = t2v_14b.get_config(CHECKPOINT)
    config.name = "ti2v_5b"
    config.codec_strides = (4, 16, 16)
    config.model.width, config.model.heads, config.model.layers, config.model.ffn = 3072, 24, 30, 14336
    config.model.in_channels = config.model.out_channels = 48
    config.data.cache_dir = "cache/ti2v_5b"
    config.data.frames, config.data.height, config.data.width, config.data.fps = 121, 704, 1280, 24.0
    config.train.first_frame = 0.5
    return config
