"""Captions in English and Chinese: family, time of day, how the light changes, its color and which way it goes."""

import numpy as np

from data_pipelines.light_scenes.clip import ClipSpec
from data_pipelines.light_scenes.families import signs_of

LANGUAGES = ("en", "zh")
LONGEST = 63
"""UTF-8 bytes; with the end token a caption takes at most 64 tokens of a byte tokenizer."""

# An opening, a colon, a clause. Openings and clauses are met in training, but not every pair of them: see _is_held_out.
# Variants have words of their own where they look different.
_OPENINGS = {
    ("sunrise_room", "en"): ("{time} in a room", "A room at {lower}", "{time} indoors", "Indoors, {lower}"),
    ("sunrise_room", "zh"): ("{time},房间", "{time}时分,室内", "房间里,{time}", "室内{time}"),
    ("sundial", "en"): ("A sundial at noon", "Midday sundial", "A post at midday", "Noon, a sundial"),
    ("sundial", "zh"): ("正午的日晷", "日晷,正午", "正午,柱子", "中午的日晷"),
    ("constant", "en"): ("A cloudy day", "Cloudy weather", "Under clouds", "An overcast day"),
    ("constant", "zh"): ("阴天", "多云", "云层下", "天阴"),
    ("sunrise_room/blinds", "en"): ("{time}, blinds", "Blinds at {lower}", "{time} by blinds", "Blinds, {lower}"),
    ("sunrise_room/blinds", "zh"): ("{time},百叶窗", "百叶窗,{time}", "{time}的百叶窗", "百叶窗前{time}"),
    ("sundial/moving", "en"): ("Noon, moving camera", "Midday, camera drifts", "Drifting view, noon",
                               "Moving view at midday"),
    ("sundial/moving", "zh"): ("正午,镜头缓移", "镜头缓移,正午", "中午,移动镜头", "移动镜头,中午"),
    ("constant/truck", "en"): ("A sunny day", "Bright sun", "In sunshine", "Sunny weather"),
    ("constant/truck", "zh"): ("晴天", "阳光下", "日光里", "天晴"),
    ("street_lamp", "en"): ("A lamp at night", "Night, street lamp", "A walker, night", "Night walk, lamp"),
    ("street_lamp", "zh"): ("夜晚路灯", "路灯下,夜里", "夜里行人", "深夜街灯下"),
    ("street_lamp/moving", "en"): ("Night lamp, camera drifts", "Drifting view of a lamp", "Moving view, night lamp",
                                   "Night walk, moving camera"),
    ("street_lamp/moving", "zh"): ("夜灯,镜头缓移", "镜头缓移,路灯", "移动镜头,夜灯", "夜行,移动镜头"),
    ("water_glitter", "en"): ("{time} at sea", "Water at {lower}", "Sea, {lower}", "{time} on water"),
    ("water_glitter", "zh"): ("{time},海面", "{time}的水面", "水面,{time}", "海上{time}"),
}
_CLAUSES = {
    ("sunrise_room", "en"): (
        "it {change}, the light slides {way}.",
        "it {change}, the sun patch slides {way}.",
        "{colors}, {change}, light slides {way}.",
        "light {change} and slides {way}.",
    ),
    ("sunrise_room", "zh"): (
        "{change},光斑向{way}移。",
        "光线{change},光斑{way}移。",
        "{colors},{change},光斑{way}移。",
        "光{change},向{way}移动。",
    ),
    ("sundial", "en"): (
        "steady light, the shadow sweeps {way}.",
        "steady sun, its shadow turns {way}.",
        "the light is steady, shadow sweeps {way}.",
        "shadow sweeps {way} in steady light.",
    ),
    ("sundial", "zh"): (
        "阳光稳定,影子向{way}转。",
        "光线稳定,影子{way}转。",
        "亮度不变,影子向{way}移。",
        "影子向{way}转,光线稳定。",
    ),
    ("constant", "en"): (
        "constant light, the camera pans {way}.",
        "camera pans {way}, light constant.",
        "constant light, camera pans {way} past a wall.",
        "the camera pans {way} in constant light.",
    ),
    ("constant", "zh"): (
        "光照不变,镜头{way}摇。",
        "镜头向{way}摇,光照不变。",
        "光照恒定,镜头沿墙{way}摇。",
        "镜头{way}摇,光照恒定。",
    ),
    ("sunrise_room/blinds", "en"): (
        "{colors}, {change}, stripes go {way}.",
        "it {change}, stripes of sun slide {way}.",
        "light {change}, its stripes slide {way}.",
        "stripes slide {way}, it {change}.",
    ),
    ("sunrise_room/blinds", "zh"): (
        "{colors},{change},光纹{way}移。",
        "{change},光的条纹向{way}移。",
        "光线{change},条纹{way}移。",
        "条纹向{way}移,光{change}。",
    ),
    ("sundial/moving", "en"): (
        "steady sun, shadows sweep {way}.",
        "shadows turn {way} in steady light.",
        "steady light, shadows turn {way}.",
        "sun steady, all shadows sweep {way}.",
    ),
    ("sundial/moving", "zh"): (
        "阳光稳定,影子{way}转。",
        "影子向{way}转,光稳定。",
        "亮度不变,影子{way}转。",
        "光线稳定,众影向{way}转。",
    ),
    ("constant/truck", "en"): (
        "steady light, the camera slides {way}.",
        "camera travels {way}, shadows stay.",
        "constant light, camera moves {way}.",
        "the camera slides {way} in steady light.",
    ),
    ("constant/truck", "zh"): (
        "光照不变,镜头{way}移。",
        "镜头向{way}移,影子不动。",
        "光照恒定,镜头向{way}移。",
        "镜头{way}移,光照稳定。",
    ),
    ("street_lamp", "en"): (
        "warm steady light, his shadow runs {way}.",
        "his shadow swings {way} in warm light.",
        "light warm and steady, shadow goes {way}.",
        "shadow passes {way}, the light is warm.",
    ),
    ("street_lamp", "zh"): (
        "暖光稳定,影子向{way}移。",
        "影子跟脚{way}移,灯光暖。",
        "灯光暖而稳,影子{way}移。",
        "人影向{way}转,暖光不变。",
    ),
    ("street_lamp/moving", "en"): (
        "warm light, shadow runs {way}.",
        "shadow swings {way}, warm light.",
        "steady light, shadow goes {way}.",
        "shadow passes {way}, steady lamp.",
    ),
    ("street_lamp/moving", "zh"): (
        "暖光稳定,影子{way}移。",
        "影子向{way}移,灯光暖。",
        "灯光不变,影子{way}移。",
        "人影向{way}转,暖光。",
    ),
    ("water_glitter", "en"): (
        "{colors}, {change}, glints run {way}.",
        "it {change}, the glitter runs {way}.",
        "light {change}, glints drift {way}.",
        "glints run {way}, {change}, {colors}.",
    ),
    ("water_glitter", "zh"): (
        "{colors},{change},闪光{way}移。",
        "{change},波光向{way}流。",
        "光线{change},闪光向{way}移。",
        "波光{way}流,{change},{colors}。",
    ),
}
_COLONS = {"en": ": ", "zh": ":"}


def _is_held_out(opening: int, clause: int) -> bool:
    """Whether only the test split uses this pair: its captions are sentences that training never saw."""
    return (opening + clause) % 4 == 3


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
    """Every caption that ``spec`` may get in one language, ``en`` or ``zh``; none is common to test and training."""
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: expected one of {', '.join(LANGUAGES)}")
    words = _WORDS[language]
    fill = {"way": words["way"][spec.pan or spec.glints or spec.sweep]}
    if spec.exposure_change:
        fill.update({key: words[key][spec.exposure_change] for key in ("time", "change", "colors")})
        fill["lower"] = fill["time"].lower()
    openings, clauses = _OPENINGS[spec.kind, language], _CLAUSES[spec.kind, language]
    pairs = [(o, c) for o in range(len(openings)) for c in range(len(clauses))]
    return tuple((openings[o] + _COLONS[language] + clauses[c]).format(**fill)
                 for o, c in pairs if _is_held_out(o, c) == (spec.split == "test"))


def states_color(text: str) -> bool:
    """Whether a caption says how the color of the light changes, and not only what color it has."""
    return any(change in text for words in _WORDS.values() for change in words["colors"].values())


def captions(spec: ClipSpec) -> dict[str, str]:
    """One caption per language, ``{"en": ..., "zh": ...}``, picked by the clip's own seed."""
    signs: tuple[int, ...] = (spec.exposure_change + 1, spec.sweep + 1, spec.pan + 1)
    if "glints" in signs_of(spec.family):
        signs = (*signs, spec.glints + 1)
    rng = np.random.default_rng(spec.key(*signs))
    choices = {language: all_captions(spec, language) for language in LANGUAGES}
    return {language: texts[rng.integers(len(texts))] for language, texts in choices.items()}
