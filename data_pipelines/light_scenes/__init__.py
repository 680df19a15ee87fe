"""`light_scenes`: rendered clips whose light is known exactly; see docs/data.md."""

from data_pipelines.light_scenes.clip import FAMILIES, Clip, ClipSpec, build_world, render_clip
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize

__all__ = ["FAMILIES", "SPLITS", "Clip", "ClipSize", "ClipSpec", "build_world", "render_clip"]
