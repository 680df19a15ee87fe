"""The showcase in a minute: every stage of it, with networks too small and trained too little to show anything.

    python -m experiments.train --config configs/showcase_ci.py --workdir runs/showcase_ci
"""
import ml_collections

from configs import showcase


def get_config() -> ml_collections.ConfigDict:
    config = showcase.get_config()
    config.name = "showcase_ci"
    config.model.width, config.model.heads, config.model.layers, config.model.ffn = 64, 1, 2, 128
    config.data.train_clips = 24
    config.data.cache_dir = "runs/cache/showcase_ci"
    config.data.batch = 8
    config.optimizer.warmup_steps = 1
    config.train.steps_high = config.train.steps_low = 4
    config.train.checkpoint_every = config.train.preview_every = config.train.validate_every = 4
    config.sample.steps = 4
    return config
