"""The families of scenes and their variants: what builds each, and which signs a clip of it takes."""

from collections.abc import Callable

from data_pipelines.light_scenes import constant, street_lamp, sundial, sunrise_room, water_glitter
from data_pipelines.light_scenes.world import World

FAMILIES = ("sunrise_room", "sundial", "constant")
"""The families of the default data set, in their plain variants."""

# The order is part of every scene's seed: add families and variants at the end.
TABLE: dict[str, dict[str, Callable[..., World]]] = {
    "sunrise_room": {"": sunrise_room.world, "blinds": sunrise_room.with_blinds},
    "sundial": {"": sundial.world, "moving": sundial.moving},
    "constant": {"": constant.world, "truck": constant.truck},
    "street_lamp": {"": street_lamp.world, "moving": street_lamp.moving},
    "water_glitter": {"": water_glitter.world},
}
"""What builds the world of each family and variant; "" is the plain variant."""

ALL = tuple(f"{family}/{variant}" if variant else family for family, variants in TABLE.items() for variant in variants)
"""Every family and variant, as named in ``LightScenesConfig.families``."""

_SIGNS = {
    "sunrise_room": ("exposure_change", "sweep"),
    "sundial": ("sweep",),
    "constant": ("pan",),
    "street_lamp": ("sweep",),
    "water_glitter": ("exposure_change", "glints"),
}


def signs_of(family: str) -> tuple[str, ...]:
    """Which signs of a ``ClipSpec`` are +1 or -1 in this family; the others are 0."""
    return _SIGNS[family]


def variants_of(family: str) -> tuple[str, ...]:
    """The variants of a family, the plain one "" first."""
    return tuple(TABLE[family])


def parse_families(names: str) -> tuple[str, ...]:
    """``"all"`` or names separated by commas, such as ``"street_lamp,sunrise_room/blinds"``, as a tuple.

    Raises ValueError for an unknown or repeated name.
    """
    return check_families(ALL if names == "all" else tuple(name.strip() for name in names.split(",")))


def check_families(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` themselves; ValueError if there are none, or one is unknown or repeated."""
    unknown = [name for name in names if name not in ALL]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"families {', '.join(names) or '(none)'}: expected different names of: {', '.join(ALL)}")
    return names
