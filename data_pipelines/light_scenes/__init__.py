"""`light_scenes`: rendered clips whose light is known exactly; see docs/data.md."""

from data_pipelines.light_scenes.builder import LightScenes, LightScenesConfig, open_split, prepare
from data_pipelines.light_scenes.captions import all_captions, captions
from data_pipelines.light_scenes.clip import Clip, ClipSpec, build_world, render_clip
from data_pipelines.light_scenes.controls import rendered_checks, wrong_shadows
from data_pipelines.light_scenes.families import ALL, FAMILIES, parse_families, signs_of
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize
from data_pipelines.light_scenes.passes import Passes
from data_pipelines.light_scenes.showcase import SCENARIOS, showcase_prompts
from data_pipelines.light_scenes.splits import heldout_prompts, plan

__all__ = [
    "ALL",
    "FAMILIES",
    "SCENARIOS",
    "SPLITS",
    "Clip",
    "ClipSize",
    "ClipSpec",
    "LightScenes",
    "LightScenesConfig",
    "Passes",
    "all_captions",
    "build_world",
    "captions",
    "heldout_prompts",
    "open_split",
    "parse_families",
    "plan",
    "prepare",
    "render_clip",
    "rendered_checks",
    "showcase_prompts",
    "signs_of",
    "wrong_shadows",
]
