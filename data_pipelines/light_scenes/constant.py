"""`constant`: the camera pans past a wall and things move, under an overcast sky that never changes.

In the variant `truck` the camera travels past things in a sun that stands still, with their shadows.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.light_scenes.camera import Camera
from data_pipelines.light_scenes.colour import albedo, black_body
from data_pipelines.light_scenes.geometry import Box, Cylinder, Plane
from data_pipelines.light_scenes.parameters import ClipSize, Draw
from data_pipelines.light_scenes.world import Light, Material, Thing, Wave, World

DISTANCE = 4.0  # meters from the camera to the wall
LONGEST_PAN = 0.9  # frame widths; long clips pan more slowly rather than end at a grazing wall


def world(draw: Draw, size: ClipSize, pan: int) -> World:
    """One scene; ``pan`` +1 turns the camera to the right (the picture moves to the left), -1 to the left."""
    half_width = 0.6 * np.sqrt(size.wideness)
    rate = draw.value("pan_rate", 0.15, 0.21)  # frame widths per second
    rate = min(rate, LONGEST_PAN / size.duration)
    per_width = 2 * half_width  # radians a frame width takes up at the middle of the picture
    yaw = pan * rate * per_width * (size.times() - size.duration / 2)

    kelvin = np.full(size.frames, draw.value("kelvin", 5200, 7200))
    color = black_body(kelvin)
    level = draw.value("level", 0.8, 1.05)
    light = Light(
        toward_sun=np.tile([0.0, 0.0, 1.0], (size.frames, 1)),
        direct=np.zeros((size.frames, 3)),
        sky=color * level,
        ground=color * level * 0.75,
        kelvin=kelvin,
        sun_radius=0.0,
    )

    hue = draw.value("wall_hue", 0.0, 1.0)
    k = 1 / draw.value("wall_wavelength", 1.5, 2.1)
    value = draw.value("wall_albedo", 0.38, 0.48)
    wall = Material(
        low=albedo(hue, 0.3, value * 0.55),
        high=albedo(hue + 0.08, 0.3, value * 1.45),
        waves=(Wave(k, 0.0, draw.free(0, 1), 0.65), Wave(0.4 * k, 0.6 * k, draw.free(0, 1), 0.35)),
        axes=(0, 2),
    )
    floor_hue = draw.value("floor_hue", 0.0, 1.0)
    k = 1 / draw.value("floor_wavelength", 1.3, 1.8)
    floor = Material(
        low=albedo(floor_hue, 0.3, value * 0.6),
        high=albedo(floor_hue + 0.08, 0.3, value * 1.4),
        waves=(Wave(k, 0.0, draw.free(0, 1), 0.7), Wave(0.3 * k, 0.4 * k, draw.free(0, 1), 0.3)),
    )
    things = [
        Thing(Plane(axis=1, offset=DISTANCE, sign=-1.0), wall),
        Thing(Plane(axis=2, offset=0.0, sign=1.0), floor),
    ]
    # Against the camera's turn: what moved along with it could stand still in the frame.
    way = -float(pan)
    speed = draw.value("speed", 0.35, 0.6)
    middle = draw.free(-0.5, 0.5)
    depth = draw.value("depth", 2.8, 3.3)
    x = middle + way * speed * (size.times() - size.duration / 2)
    paint_hue = draw.value("object_hue", 0.0, 1.0)
    paint = Material(low=albedo(paint_hue, 0.5, 0.34), high=albedo(paint_hue, 0.5, 0.34))
    row = np.ones_like(x)
    if draw.chance(0.5):
        half, top = draw.value("box_half", 0.24, 0.34), draw.value("box_height", 0.5, 0.8)
        shape: Box | Cylinder = Box(np.stack([x, depth * row, top / 2 * row]), (half, half, top / 2))
    else:
        radius, top = draw.value("post_radius", 0.2, 0.28), draw.value("post_height", 0.6, 0.9)
        shape = Cylinder(np.stack([x, depth * row, 0 * row]), radius, top)
    things.append(Thing(shape, paint))
    camera = Camera(
        position=(0.0, 0.0, draw.value("camera_height", 1.35, 1.6)),
        yaw=yaw,
        pitch=np.radians(draw.value("camera_pitch", 4, 9)),
        half_width=half_width,
    )
    return World(tuple(things), camera, light, None, dict(draw.log))


def truck(draw: Draw, size: ClipSize, pan: int) -> World:
    """The wall in sunlight; ``pan`` +1 moves the camera to the right, -1 to the left, past things that stand still."""
    panning = world(draw, size, pan)
    width = 2 * panning.camera.half_width * DISTANCE  # meters of the wall that the camera sees
    rate = min(draw.value("truck_rate", 0.15, 0.21), LONGEST_PAN / size.duration)
    _, y, z = panning.camera.position
    track = pan * rate * width * (size.times() - size.duration / 2)
    camera = replace(panning.camera, position=np.stack([track, 0 * track + y, 0 * track + z]), yaw=np.zeros(1))

    side = 1.0 if draw.chance(0.5) else -1.0
    azimuth = side * np.radians(draw.value("azimuth", 30, 60))
    elevation = np.radians(draw.value("elevation", 35, 50))
    # From behind the viewer, so that wall and floor are lit and shadows fall on both.
    toward = [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
    color = black_body(panning.light.kelvin)
    level = draw.value("sun_level", 1.0, 1.3)
    light = replace(
        panning.light,
        toward_sun=np.tile(toward, (size.frames, 1)),
        direct=color * level,
        sky=color * 0.24,
        ground=color * 0.18,
        sun_radius=0.01,
    )
    things = list(panning.things[:2])
    for index in range(3):
        hue = draw.value(f"thing_hue_{index}", 0.0, 1.0)
        paint = Material(low=albedo(hue, 0.5, 0.36), high=albedo(hue, 0.5, 0.36))
        x = (index - 1) * 0.42 * width + draw.free(-0.3, 0.3)
        place = np.array([[x], [draw.value(f"depth_{index}", 2.7, 3.3)], [0.0]])
        if draw.chance(0.5):
            half, top = draw.value(f"box_half_{index}", 0.2, 0.32), draw.free(0.5, 1.1)
            place[2] = top / 2
            things.append(Thing(Box(place, (half, half, top / 2)), paint))
        else:
            radius = draw.value(f"post_radius_{index}", 0.12, 0.24)
            things.append(Thing(Cylinder(place, radius, draw.free(0.7, 1.4)), paint))
    return World(tuple(things), camera, light, None, dict(draw.log))
