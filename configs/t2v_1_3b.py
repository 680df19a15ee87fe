"""Wan2.1-T2V-1.3B: the small one, one expert of 1,418,996,800 parameters, 832×480×81 frames at 16 frames/s.

    python -m experiments.train --config configs/t2v_1_3b.py --workdir gs://bucket/run

Weights, averaged weights and optimizer state take 23 GB in float32. It needs the published checkpoint on disk; 32,760
tokens per clip. It has not been trained at full size here; cut down by overrides it takes a real step in the tests.
"""
import ml_collections

from configs import t2v_14b

CHECKPOINT = "checkpoints/Wan2.1-T2V-1.3B-Diffusers"


def get_config() -> ml_collections.ConfigDict:
    config = t2v_14b.get_config(CHECKPOINT)
    config.name = "t2v_1_3b"
    config.model.width, config.model.heads, config.model.layers, config.model.ffn = 1536, 12, 30, 8960
    config.data.cache_dir = "cache/t2v_1_3b"
    config.data.height, config.data.width = 480, 832
    return config
