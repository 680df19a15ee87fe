"""Every family of rendered scenes: the street lamp, blinds at sunrise and glittering water among them.

    make showcase

The networks of ``light_scenes_tiny``, more scenes and more steps. docs/showcase.md has its figures and what they cost.
"""
import ml_collections

from configs import light_scenes_tiny


def get_config() -> ml_collections.ConfigDict:
    config = light_scenes_tiny.get_config()
    config.name = "showcase"
    config.codec = "light_scenes_all"
    config.data.source = "light_scenes:all"
    config.data.train_clips = 2400
    config.data.cache_dir = "runs/cache/showcase"
    config.train.steps_high, config.train.steps_low = 5000, 2000
    config.train.checkpoint_every = 500
    config.train.preview_every = config.train.validate_every = 2000
    return config
