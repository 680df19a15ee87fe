"""Wan2.2-I2V-A14B: clips that continue a given first frame; two experts of 14,288,901,184 parameters each.

    python -m experiments.train --config configs/i2v_a14b.py --workdir gs://bucket/run \\
        --config.train.init_from=checkpoints/Wan2.2-I2V-A14B-Diffusers --config.train.expert=high

As ``t2v_a14b``, with 20 more channels of input: 4 that say which frames are given, 16 of the latents of (first frame,
grey). Both are made from each training clip itself; the latent cache holds the second latents beside the first, and is
twice as large. It has not been trained at full size here; cut down by overrides it takes a real step in the tests.
"""
import ml_collections

from configs import t2v_a14b

CHECKPOINT = "checkpoints/Wan2.2-I2V-A14B-Diffusers"


def get_config() -> ml_collections.ConfigDict:
    config = t2v_a14b.get_config(CHECKPOINT)
    config.name = "i2v_a14b"
    config.model.in_channels = 16 + 4 + 16
    config.data.cache_dir = "cache/i2v_a14b"
    config.train.boundary = config.sample.boundary = 0.9
    config.train.shift = config.sample.shift = 5.0
    config.train.first_frame = 1.0
    config.sample.guidance_high = config.sample.guidance_low = 3.5
    return config
