"""The showcase with larger networks, for a night: 0.51 steps/s on two CPU cores. What it reaches is not known.

    python -m experiments.train --config configs/showcase_overnight.py --workdir runs/overnight
"""
import ml_collections

from configs import showcase


def get_config() -> ml_collections.ConfigDict:
    config = showcase.get_config()
    config.name = "showcase_overnight"
    config.model.width, config.model.heads, config.model.layers, config.model.ffn = 256, 4, 8, 1024
    config.data.train_clips = 4800
    config.data.cache_dir = "runs/cache/showcase_overnight"
    config.data.batch = 32
    config.train.steps_high, config.train.steps_low = 8000, 3500
    return config
