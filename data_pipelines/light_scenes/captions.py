"""Captions in English and Chinese: family, time of day, how the light changes and which way it goes."""

import numpy as np

from data_pipelines.light_scenes.clip import FAMILIES, ClipSpec
from data_pipelines.light_scenes.parameters import SPLITS

LANGUAGES = ("en", "zh")
LONGEST = 63
"""UTF-8 bytes; with the end token a caption takes at most 64 tokens of a byte tokenizer."""

_TEMPLATES = {
    ("sunrise_room", "en"): (
        "{time} in a room: it {change}, the light slides {way}.",
        "A room {change} at {lower}, the sun patch slides {way}.",
        "{time}: the room {change}, {colors}, light slides {way}.",
    ),
    ("sunrise_room", "zh"): (
        "{time},房间{change},光斑向{way}移。",
        "{time}时分,室内{change},{colors},光斑{way}移。",
        "房间里的{time},光线{change},向{way}移动。",
    ),
    ("sundial", "en"): (
        "A sundial in steady sun, the shadow sweeps {way}.",
        "Midday, steady light: the shadow of a post sweeps {way}.",
        "Sundial at noon, light steady, shadow sweeps {way}.",
    ),
    ("sundial", "zh"): (
        "日晷,阳光稳定,影子向{way}转。",
        "正午阳光稳定,日晷的影子{way}转。",
        "正午,柱子的影子向{way}转,光线稳定。",
    ),
    ("constant", "en"): (
        "Constant cloudy light, the camera pans {way}.",
        "Cloudy day, constant light: camera pans {way} past a wall.",
        "The camera pans {way} along a wall in constant light.",
    ),
    ("constant", "zh"): (
        "阴天,光照不变,镜头{way}摇。",
        "光照不变,镜头沿墙{way}摇。",
        "多云,镜头{way}摇,光照恒定不变。",
    ),
}

_WORDS = {
    "en": {
        "way": {1: "right", -1: "left"},
        "time": {1: "Sunrise", -1: "Sunset"},
        "change": {1: "brightens", -1: "darkens"},
        "colors": {1: "blue to warm", -1: "warm to blue"},
    },
    "zh": {
        "way": {1: "右", -1: "左"},
        "time": {1: "日出", -1: "日落"},
        "change": {1: "变亮", -1: "变暗"},
        "colors": {1: "由冷变暖", -1: "由暖变冷"},
    },
}


def all_captions(spec: ClipSpec, language: str) -> tuple[str, ...]:
    """Every caption of ``spec`` in one language, ``en`` or ``zh``."""
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: expected one of {', '.join(LANGUAGES)}")
    words = _WORDS[language]
    fill = {"way": words["way"][spec.pan if spec.family == "constant" else spec.sweep]}
    if spec.family == "sunrise_room":
        fill.update({key: words[key][spec.exposure_change] for key in ("time", "change", "colors")})
        fill["lower"] = fill["time"].lower()
    return tuple(template.format(**fill) for template in _TEMPLATES[spec.family, language])


def captions(spec: ClipSpec) -> dict[str, str]:
    """One caption per language, ``{"en": ..., "zh": ...}``, picked by the clip's own seed."""
    signs = (spec.exposure_change + 1, spec.sweep + 1, spec.pan + 1)
    key = (spec.seed, SPLITS.index(spec.split), FAMILIES.index(spec.family), spec.scene, *signs)
    rng = np.random.default_rng(key)
    choices = {language: all_captions(spec, language) for language in LANGUAGES}
    return {language: texts[rng.integers(len(texts))] for language, texts in choices.items()}
