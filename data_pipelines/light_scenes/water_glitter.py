"""`water_glitter`: low sun over moving water; its glints run with the waves whose normals mirror it.

At sunrise the picture brightens and turns from blue to warm; a sunset is the same scene played the other way round,
with the waves still running the same way. Which way the waves run is independent of that.
"""

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.colour import albedo, black_body
from data_pipelines.light_scenes.geometry import Cylinder, Plane
from data_pipelines.light_scenes.parameters import ClipSize, Draw
from data_pipelines.light_scenes.sundial import sun_direction
from data_pipelines.light_scenes.water import Ripples, Sky
from data_pipelines.light_scenes.world import Light, Material, Thing, World

WAVES = 12
SUN_RADIUS = 0.01


def world(draw: Draw, size: ClipSize, exposure_change: int, glints: int) -> World:
    """One scene; ``exposure_change`` +1 is a sunrise, -1 a sunset; ``glints`` +1 run to the right, -1 to the left."""
    u = size.times() / size.duration
    progress = u if exposure_change > 0 else 1 - u  # how far the day has come
    azimuth = np.radians(draw.value("azimuth", -9, 9))
    elevation = np.radians(draw.value("elevation", 17, 25) + draw.value("climb", 1.0, 2.5) * (progress - 0.5))
    toward = sun_direction(np.full(size.frames, azimuth), elevation)

    exposure = 2.0 ** (draw.value("stops", 1.3, 2.0) * (progress - 1))
    mired = draw.value("night_mired", 120, 140) + draw.value("warming", 110, 150) * progress
    kelvin = 1e6 / mired
    sun = black_body(kelvin) * exposure[:, None]
    # The sky is bluer than the sun, and warms with it.
    blue = black_body(1e6 / (mired * 0.55 + 40)) * exposure[:, None]
    glow = draw.value("sky_level", 0.34, 0.46)
    sky = Sky(horizon=(0.6 * blue + 0.4 * sun) * glow * 1.5, zenith=blue * glow * 0.55, aureole=sun * glow * 0.9,
              toward_sun=toward)
    light = Light(
        toward_sun=toward,
        direct=sun * draw.value("sun_level", 0.32, 0.42),
        sky=blue * glow,
        ground=blue * glow * 0.4,
        kelvin=kelvin,
        sun_radius=SUN_RADIUS,
    )
    hue = draw.value("water_hue", 0.42, 0.6)
    deep = Material(low=albedo(hue, 0.6, 0.05), high=albedo(hue, 0.6, 0.05))
    things = [Thing(Plane(2, 0.0, 1.0), deep, ripples=_ripples(draw, size, glints))]
    for index in range(2):
        shade = draw.value(f"stake_hue_{index}", 0.0, 0.2)
        wood = Material(low=albedo(shade, 0.3, 0.12), high=albedo(shade, 0.3, 0.12))
        x, y = (index * 2 - 1) * draw.free(0.9, 2.6), draw.free(4.5, 7.5)
        stake = Cylinder(np.array([[x], [y], [-0.5]]), draw.value(f"stake_radius_{index}", 0.07, 0.12),
                         draw.free(1.1, 1.6))
        if draw.chance(0.4):
            things.append(Thing(stake, wood))
    camera = Camera(
        position=(0.0, 0.0, draw.value("camera_height", 2.2, 3.0)),
        yaw=np.zeros(1),
        pitch=np.radians(draw.value("camera_pitch", 15, 20)),
        half_width=0.5 * np.sqrt(size.wideness),
    )
    return World(tuple(things), camera, light, None, dict(draw.log), sky=sky)


def _ripples(draw: Draw, size: ClipSize, glints: int) -> Ripples:
    """Waves from a swell of a few meters down to ripples, all running within a fan around the glints' way."""
    longest = draw.value("longest_wave", 1.8, 2.8)
    shortest = draw.value("shortest_wave", 0.36, 0.46)
    steep = draw.value("steepness", 0.09, 0.13)  # root of the sum of the waves' mean square slopes
    lengths = longest * (shortest / longest) ** ((np.arange(WAVES) + draw.free(0.2, 0.8)) / WAVES)
    fan = np.radians([draw.free(-28, 28) for _ in range(WAVES)])
    number = 2 * np.pi / lengths
    share = np.array([draw.free(0.7, 1.3) for _ in range(WAVES)])
    slopes = steep * np.sqrt(2) * share / np.sqrt((share**2).sum())
    return Ripples(
        vectors=np.stack([glints * number * np.cos(fan), number * np.sin(fan)], -1),
        slopes=slopes,
        phases=np.array([draw.free(0, 2 * np.pi) for _ in range(WAVES)]),
        roughness=draw.value("roughness", 0.034, 0.044) ** 2,
        seconds=size.times(),
        shutter=1 / size.fps,
    )
