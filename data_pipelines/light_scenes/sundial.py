"""`sundial`: posts and boxes on the ground; the sun sweeps, their shadows rotate and stretch together.

The variant `moving` has more things on the ground and a camera that slowly travels past them.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.colour import albedo, black_body
from data_pipelines.light_scenes.geometry import Box, Cylinder, Plane, Sphere
from data_pipelines.light_scenes.parameters import ClipSize, Draw
from data_pipelines.light_scenes.world import Light, Material, Thing, Wave, World

SUN_RADIUS = 0.03
LONGEST_TRAVEL = 2.0  # seconds at its rate; in a long clip the camera is slower, so that shadows go farther than it


def sun_direction(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Unit vectors ``[T, 3]`` to the sun; azimuth in radians from straight ahead, positive to the right."""
    return np.stack(
        [np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], -1
    )


def world(draw: Draw, size: ClipSize, sweep: int) -> World:
    """One scene; ``sweep`` +1 moves the shadows to the right in the frame, -1 to the left."""
    # Where the sun goes. It stands beyond the objects, so their shadows fall toward the viewer.
    half_sweep = np.radians(draw.value("half_sweep", 34, 50))
    center = np.radians(draw.value("noon_azimuth", -8, 8))
    noon = np.radians(draw.value("noon_elevation", 35, 44))
    u = size.times() / size.duration * 2 - 1  # -1 to 1 over the clip
    azimuth = center - sweep * half_sweep * u
    elevation = noon - np.radians(6.0) * (azimuth / np.radians(50.0)) ** 2
    # A lower sun would dim the ground; the exposure of this family is steady, as a camera would hold it.
    strength = np.sin(noon) / np.sin(elevation)
    kelvin = np.full(size.frames, draw.value("kelvin", 4600, 6400))
    color = black_body(kelvin)
    light = Light(
        toward_sun=sun_direction(azimuth, elevation),
        direct=color * (strength * 1.0)[:, None],
        sky=color * 0.2,
        ground=color * 0.14,
        kelvin=kelvin,
        sun_radius=SUN_RADIUS,
    )

    hue = draw.value("ground_hue", 0.0, 1.0)
    value = draw.value("ground_albedo", 0.42, 0.6)
    wavelength = draw.value("ground_wavelength", 1.1, 1.9)
    turn = draw.free(0, np.pi)
    k = 1 / wavelength
    ground = Material(
        low=albedo(hue, 0.25, value * 0.9),
        high=albedo(hue + 0.06, 0.25, value * 1.1),
        waves=(
            Wave(k * np.cos(turn), k * np.sin(turn), draw.free(0, 1), 0.6),
            Wave(-k * np.sin(turn), k * np.cos(turn), draw.free(0, 1), 0.4),
        ),
    )
    object_hue = draw.value("object_hue", 0.0, 1.0)
    paint = Material(low=albedo(object_hue, 0.45, 0.4), high=albedo(object_hue, 0.45, 0.4), specular=0.08)
    things = [Thing(Plane(axis=2, offset=0.0, sign=1.0), ground)]
    height = draw.value("post_height", 0.85, 1.15)
    x, y = draw.free(-0.3, 0.3), draw.free(0.4, 0.65)
    radius = draw.value("post_radius", 0.2, 0.27)
    post = Cylinder(np.array([[x], [y], [0.0]]), radius, height)
    things.append(Thing(post, paint))
    if draw.chance(0.5):
        side = 1.0 if draw.chance(0.5) else -1.0
        half = draw.value("box_half", 0.2, 0.28)
        box_height = draw.value("box_height", 0.4, 0.6)
        place = np.array([[x + side * draw.free(1.0, 1.25)], [y + draw.free(-0.1, 0.35)], [box_height / 2]])
        things.append(Thing(Box(place, (half, half, box_height / 2)), paint))

    pitch = np.radians(draw.value("camera_pitch", 42, 50))
    distance = 5.0
    camera = Camera(
        position=(0.0, -distance * np.cos(pitch), distance * np.sin(pitch)),
        yaw=np.zeros(1),
        pitch=pitch,
        half_width=0.36 * size.wideness,
    )
    return World(tuple(things), camera, light, None, dict(draw.log), foot=post.center)


def moving(draw: Draw, size: ClipSize, sweep: int) -> World:
    """The sundial among other things, seen by a camera that travels sideways, the same way for both sweeps."""
    still = world(draw, size, sweep)
    assert still.foot is not None
    x, y = float(still.foot[0, 0]), float(still.foot[1, 0])
    things = list(still.things)
    for side in (-1.0, 1.0):
        hue = draw.value(f"thing_hue_{side:+.0f}", 0.0, 1.0)
        place = x + side * draw.free(1.1, 1.35), y + draw.free(0.75, 1.15)
        paint = Material(low=albedo(hue, 0.5, 0.4), high=albedo(hue, 0.5, 0.4), specular=0.05)
        if draw.chance(0.5):
            ball = draw.value(f"ball_radius_{side:+.0f}", 0.17, 0.25)
            things.append(Thing(Sphere(np.array([[place[0]], [place[1]], [ball]]), ball), paint))
        else:
            thin, tall = draw.value(f"pole_radius_{side:+.0f}", 0.07, 0.11), draw.free(0.5, 0.8)
            things.append(Thing(Cylinder(np.array([[place[0]], [place[1]], [0.0]]), thin, tall), paint))
    way = 1.0 if draw.chance(0.5) else -1.0
    # Slow enough that a surface counts as still (below half a pixel per frame at 64 pixels and 8 frames per second).
    width = 2 * still.camera.half_width * 5.0
    travel = way * draw.value("camera_rate", 0.012, 0.02) * width * min(size.duration, LONGEST_TRAVEL)
    track = travel * (size.times() / size.duration - 0.5)
    position = np.stack([track, *(np.full(size.frames, still.camera.position[axis]) for axis in (1, 2))])
    return replace(still, things=tuple(things), camera=replace(still.camera, position=position),
                   parameters=dict(draw.log))
