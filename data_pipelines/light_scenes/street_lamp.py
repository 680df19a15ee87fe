"""`street_lamp`: at night a walker passes under a lamp; the shadow stays at the feet, swings round and outruns him.

With the lamp at height H, the walker's height h and his distance d from the point under the lamp, the shadow of his
crown lies h·d / (H - h) beyond his feet. ``moving`` is the same scene from a camera that slowly travels.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.colour import albedo, black_body
from data_pipelines.light_scenes.geometry import Box, Cylinder, Plane, Sphere
from data_pipelines.light_scenes.parameters import ClipSize, Draw
from data_pipelines.light_scenes.world import Light, Material, Thing, Wave, World

LONGEST_WALK = 0.55  # picture widths; long clips walk more slowly rather than leave the picture
LONGEST_STEP = 0.17  # meters that a foot swings to either side of the body
LONGEST_TRAVEL = 2.0  # seconds at its rate; in a long clip the camera is slower, so that shadows go farther than it
HOUSE = 5.0  # y of the wall behind the street, meters


def world(draw: Draw, size: ClipSize, sweep: int) -> World:
    """One scene; ``sweep`` +1 has the walker and his shadow go to the right in the frame, -1 to the left."""
    lamp_height = draw.value("lamp_height", 3.2, 4.2)
    beyond = draw.chance(0.8)  # lamp beyond the walker: his shadow falls toward the viewer
    lamp_x = draw.value("lamp_x", -0.35, 0.35)
    lamp_y = draw.value("lamp_y", 0.9, 1.5) if beyond else -draw.value("lamp_before", 0.7, 1.2)
    kelvin = np.full(size.frames, draw.value("kelvin", 2400, 3900))
    level = draw.value("level", 0.75, 1.0)  # irradiance on the ground under the lamp
    dusk = black_body(np.full(size.frames, 9500.0)) * draw.value("dusk", 0.035, 0.06)
    camera = _camera(draw, size)
    picture = 2 * camera.half_width * -camera.position[1]

    walker_height = draw.value("walker_height", 1.5, 1.86)
    travel = min(draw.value("pace", 1.15, 1.6) * size.duration, LONGEST_WALK * picture)
    center_x = draw.value("passing", -0.2, 0.2) + lamp_x
    along = sweep * travel * (size.times() / size.duration - 0.5)
    foot = np.stack([center_x + along, np.zeros(size.frames), np.zeros(size.frames)])
    lamp = np.array([lamp_x, lamp_y, lamp_height])
    toward = lamp[:, None] - foot
    light = Light(
        toward_sun=(toward / np.sqrt((toward**2).sum(0))).T,
        direct=black_body(kelvin) * (level * lamp_height**2),
        sky=dusk,
        ground=dusk * 0.6,
        kelvin=kelvin,
        sun_radius=draw.value("lamp_radius", 0.06, 0.12),
        position=np.tile(lamp, (size.frames, 1)),
    )
    things = _street(draw)
    if beyond:
        things += _lamp_post(lamp, light.direct[0])
    things += _walker(draw, foot, walker_height, travel / size.duration, size)
    things += _furniture(draw, picture, center_x)
    return World(tuple(things), camera, light, None, dict(draw.log), foot=foot)


def moving(draw: Draw, size: ClipSize, sweep: int) -> World:
    """The scene from a camera that travels sideways, the same way for both sweeps."""
    still = world(draw, size, sweep)
    x, y, z = still.camera.position
    way = 1.0 if draw.chance(0.5) else -1.0
    # Slow enough that a surface counts as still (below half a pixel per frame at 64 pixels and 8 frames per second).
    width = 2 * still.camera.half_width * -y
    travel = way * draw.value("camera_rate", 0.015, 0.03) * width * min(size.duration, LONGEST_TRAVEL)
    track = x + travel * (size.times() / size.duration - 0.5)
    position = np.stack([track, 0 * track + y, 0 * track + z])
    return replace(still, camera=replace(still.camera, position=position), parameters=dict(draw.log))


def _camera(draw: Draw, size: ClipSize) -> Camera:
    return Camera(
        position=(0.0, -draw.value("camera_distance", 5.6, 6.4), draw.value("camera_height", 2.3, 3.0)),
        yaw=np.zeros(1),
        pitch=np.radians(draw.value("camera_pitch", 7, 11)),
        half_width=0.45 * np.sqrt(size.wideness),
    )


def _street(draw: Draw) -> list[Thing]:
    """Ground and the wall of a house behind it."""
    hue, value = draw.value("ground_hue", 0.0, 1.0), draw.value("ground_albedo", 0.34, 0.46)
    k, turn = 1 / draw.value("ground_wavelength", 0.9, 1.6), draw.free(0, np.pi)
    ground = Material(
        low=albedo(hue, 0.12, value * 0.85),
        high=albedo(hue, 0.12, value * 1.15),
        waves=(
            Wave(k * np.cos(turn), k * np.sin(turn), draw.free(0, 1), 0.5),
            Wave(-k * np.sin(turn), k * np.cos(turn), draw.free(0, 1), 0.5),
        ),
    )
    hue, value = draw.value("wall_hue", 0.0, 1.0), draw.value("wall_albedo", 0.25, 0.4)
    k = 1 / draw.value("wall_wavelength", 1.0, 1.6)
    wall = Material(
        low=albedo(hue, 0.3, value * 0.75),
        high=albedo(hue, 0.3, value * 1.25),
        waves=(Wave(k, 0.0, draw.free(0, 1), 0.6), Wave(0.0, 0.8 * k, draw.free(0, 1), 0.4)),
        axes=(0, 2),
    )
    return [Thing(Plane(2, 0.0, 1.0), ground), Thing(Plane(1, HOUSE, -1.0), wall)]


def _lamp_post(lamp: np.ndarray, light: np.ndarray) -> list[Thing]:
    """The post and the glowing lamp; neither casts a shadow, for a lamp hangs clear of its post."""
    dark = Material(low=albedo(0.6, 0.1, 0.06), high=albedo(0.6, 0.1, 0.06))
    post = Cylinder(np.array([[lamp[0]], [lamp[1]], [0.0]]), 0.05, lamp[2] - 0.1)
    glow = np.minimum(light / light.max() * 1.6, 1.6)
    return [
        Thing(post, dark, casts=False),
        Thing(Sphere(lamp[:, None], 0.15), Material(low=np.ones(3), high=np.ones(3)), casts=False, glow=glow),
    ]


def _walker(draw: Draw, foot: np.ndarray, height: float, pace: float, size: ClipSize) -> list[Thing]:
    """A body, a head and two legs that swing; the crown is ``height`` above the feet."""
    coat_hue, leg_hue = draw.value("coat_hue", 0.0, 1.0), draw.value("leg_hue", 0.0, 1.0)
    coat, legs, skin = (
        Material(low=color, high=color)
        for color in (albedo(coat_hue, 0.5, 0.3), albedo(leg_hue, 0.3, 0.14), albedo(0.05, 0.35, 0.42))
    )
    head = 0.075 * height
    waist, shoulder = 0.45 * height, height - 2.05 * head
    rate = draw.value("stride_rate", 0.75, 0.95)  # strides of both feet per second
    swing = min(pace / rate / 4, LONGEST_STEP)
    phase = 2 * np.pi * (rate * size.times() + draw.free(0, 1))

    def part(dx: np.ndarray | float, dy: float, z: float) -> np.ndarray:
        return np.stack([foot[0] + dx, foot[1] + dy, foot[2] + z])

    return [
        Thing(Cylinder(part(0.0, 0.0, waist), 0.115 * height, shoulder - waist), coat),
        Thing(Sphere(part(0.0, 0.0, height - head), head), skin),
        Thing(Cylinder(part(swing * np.sin(phase), 0.05 * height, 0.0), 0.05 * height, waist), legs),
        Thing(Cylinder(part(-swing * np.sin(phase), -0.05 * height, 0.0), 0.05 * height, waist), legs),
    ]


def _furniture(draw: Draw, picture: float, passing: float) -> list[Thing]:
    """One or two things by the wall, out of the walker's way."""
    things = []
    for side in (-1.0, 1.0)[: 2 if draw.chance(0.5) else 1]:
        hue = draw.value(f"thing_hue_{side:+.0f}", 0.0, 1.0)
        paint = Material(low=albedo(hue, 0.4, 0.3), high=albedo(hue, 0.4, 0.3), specular=0.06)
        x, y = passing + side * draw.free(0.28, 0.4) * picture, draw.free(1.9, 2.6)
        if draw.chance(0.5):
            half, tall = draw.value(f"box_half_{side:+.0f}", 0.25, 0.4), draw.free(0.4, 0.9)
            things.append(Thing(Box(np.array([[x], [y], [tall / 2]]), (half, 0.25, tall / 2)), paint))
        else:
            radius = draw.value(f"bollard_radius_{side:+.0f}", 0.1, 0.18)
            things.append(Thing(Cylinder(np.array([[x], [y], [0.0]]), radius, draw.free(0.6, 1.0)), paint))
    return things
