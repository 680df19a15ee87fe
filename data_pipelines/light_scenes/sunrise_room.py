"""`sunrise_room`: low sun through a window behind the viewer; its patch of light slides over wall and floor.

At sunrise the exposure rises and the light goes from blue to warm; a sunset is the same scene played the
other way round. Which way the patch slides is independent of that. Behind blinds the patch is cut into stripes.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.colour import albedo, black_body
from data_pipelines.light_scenes.geometry import Plane, Window
from data_pipelines.light_scenes.parameters import ClipSize, Draw
from data_pipelines.light_scenes.world import Light, Material, Thing, Wave, World

SUN_RADIUS = 0.022
BLINDS_SUN_RADIUS = 0.008  # a softer sun would wash out the stripes
DEPTH = 4.0  # meters from the window to the wall opposite
CAMERA_Y = 0.4
PEAK = 0.62  # linear luminance of the patch at its brightest


def world(draw: Draw, size: ClipSize, exposure_change: int, sweep: int) -> World:
    """One scene; ``exposure_change`` +1 is a sunrise, -1 a sunset; ``sweep`` +1 slides right, -1 left."""
    half_width = 0.6 * np.sqrt(size.wideness)
    picture = 2 * half_width * (DEPTH - CAMERA_Y)  # width in meters that the camera sees of the wall
    travel = draw.value("travel", 0.42, 0.58) * picture
    middle = draw.value("patch_middle", -0.06, 0.06) * picture
    width = draw.value("patch_width", 0.25, 0.33) * picture
    height = draw.value("patch_height", 0.36, 0.48) * picture / size.wideness
    bottom = draw.value("patch_bottom", -0.35, 0.55)  # below 0 the patch folds onto the floor
    u = size.times() / size.duration  # 0 to 1 over the clip
    progress = u if exposure_change > 0 else 1 - u  # how far the day has come
    patch_x = middle + sweep * travel * (u - 0.5)

    # The sun's rays carry the window onto the wall unchanged in size, so the patch moves by tan(azimuth).
    low_sun, climb = draw.value("low_sun", 0.16, 0.22), draw.value("climb", 0.03, 0.06)
    slope = low_sun + climb * progress
    window_low = bottom + DEPTH * (low_sun + climb / 2)
    window = Window(
        offset=0.0,
        x=(-width / 2, width / 2),
        z=(window_low, window_low + height),
        bars=((0.0, 0.16 * width),) if draw.chance(0.5) else (),
    )
    ray = np.stack([-patch_x / DEPTH, -np.ones_like(u), slope], -1)
    toward = ray / np.sqrt((ray**2).sum(-1, keepdims=True))

    wall_value = draw.value("wall_albedo", 0.42, 0.56)
    contrast = draw.value("patch_contrast", 3.2, 4.6)  # patch over surround, linear
    stops = draw.value("stops", 1.3, 2.3)
    exposure = 2.0 ** (stops * (progress - 1))
    surround = PEAK / wall_value / contrast
    mired = draw.value("night_mired", 112, 132) + draw.value("warming", 85, 125) * progress
    kelvin = 1e6 / mired
    color = black_body(kelvin) * exposure[:, None]
    light = Light(
        toward_sun=toward,
        direct=color * (surround * (contrast - 1)),
        sky=color * surround * 1.1,
        ground=color * surround * 0.9,
        kelvin=kelvin,
        sun_radius=SUN_RADIUS,
    )

    wall_hue = draw.value("wall_hue", 0.0, 1.0)
    floor_hue = draw.value("floor_hue", 0.02, 0.14)
    floor_value = draw.value("floor_albedo", 0.26, 0.38)
    boards = 1 / draw.value("board_width", 0.9, 1.3)
    panels = 1 / draw.value("panel_width", 1.0, 1.4)
    wall = Material(
        low=albedo(wall_hue, 0.2, wall_value * 0.7),
        high=albedo(wall_hue, 0.2, wall_value * 1.3),
        waves=(
            Wave(panels, 0.0, draw.free(0, 1), 0.7),
            Wave(0.3 * panels, 0.7 * panels, draw.free(0, 1), 0.3),
        ),
        axes=(0, 2),
    )
    floor = Material(
        low=albedo(floor_hue, 0.35, floor_value * 0.7),
        high=albedo(floor_hue, 0.35, floor_value * 1.3),
        waves=(Wave(boards, 0.0, draw.free(0, 1), 1.0),),
    )
    things = (
        Thing(Plane(axis=1, offset=DEPTH, sign=-1.0), wall),
        Thing(Plane(axis=2, offset=0.0, sign=1.0), floor),
    )
    camera = Camera(
        position=(0.0, CAMERA_Y, draw.value("camera_height", 1.3, 1.6)),
        yaw=np.zeros(1),
        pitch=np.radians(draw.value("camera_pitch", 6, 12)),
        half_width=half_width,
    )
    return World(things, camera, light, window, dict(draw.log))


def with_blinds(draw: Draw, size: ClipSize, exposure_change: int, sweep: int) -> World:
    """The room behind blinds: their slats, level or upright, cut the patch into stripes."""
    room = world(draw, size, exposure_change, sweep)
    assert room.window is not None
    low, high = room.window.x
    # Wider than a bare window: stripes have to stay apart at 64 pixels.
    stretch = draw.value("blind_width", 1.25, 1.5)
    middle, half = (low + high) / 2, (high - low) / 2 * stretch
    upright = draw.chance(0.5)
    count = 5 if draw.chance(0.5) else 6
    share = draw.value("slat_share", 0.42, 0.54)
    x, z = (middle - half, middle + half), room.window.z
    start, length = (x[0], x[1] - x[0]) if upright else (z[0], z[1] - z[0])
    # Light at both ends: a slat, a gap, a slat between the first and the last gap.
    period = length / (count - share)
    slats = tuple((start + period * (i + 1 - share / 2), period * share) for i in range(count - 1))
    window = Window(room.window.offset, x, z, bars=slats if upright else (), slats=() if upright else slats)
    light = replace(room.light, sun_radius=BLINDS_SUN_RADIUS)
    return replace(room, window=window, light=light, parameters=dict(draw.log))
