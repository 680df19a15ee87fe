"""Wan2.1-T2V-14B: one expert of 14,288,491,584 parameters for every noise level, 1280×720×81 frames at 16 frames/s.

    python -m experiments.train --config configs/t2v_14b.py --workdir gs://bucket/run

It needs the published checkpoint on disk and a cluster; 75,600 tokens per clip. A single expert is called "high", and
its ``boundary`` is 0. 480p goes with shift 3: ``--config.data.height=480 --config.data.width=832
--config.train.shift=3.0 --config.sample.shift=3.0``. It has not been trained at full size here; cut down by overrides
it takes a real step in the tests.
"""
import ml_collections

from configs import t2v_a14b

CHECKPOINT = "checkpoints/Wan2.1-T2V-14B-Diffusers"


def get_config(checkpoint: str = CHECKPOINT) -> ml_collections.ConfigDict:
    config = t2v_a14b.get_config(checkpoint)
    config.name = "t2v_14b"
    config.data.cache_dir = "cache/t2v_14b"
    config.data.height, config.data.width = 720, 1280
    config.train.expert = "high"
    del config.train.steps_low
    config.train.boundary = config.sample.boundary = 0.0
    config.train.shift = config.sample.shift = 5.0
    config.sample.steps = 50
    config.sample.guidance_high = config.sample.guidance_low = 5.0
    return config
