"""Layouts of obstacles, drawn so that there is always a way through."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from envs.drone.options import DENSITIES, NavigationOptions
from envs.drone.quadrotor import Vector
from envs.drone.world import Motion, Obstacle, Quaternion, World

ALTITUDE = (0.5, 4.5)
"""Lowest and highest that a drone may fly, in metres."""
GAPS = {"easy": 1.4, "medium": 1.2, "hard": 1.0}
"""Free metres between any two obstacles, seen from above; the drone is 0.5 m wide."""
APPROACH = 4.0
"""Metres at both ends of the field without obstacles."""
MAX_TRIES = 200
"""So often an obstacle is drawn anew until it finds a place."""
FIRST_HELD_OUT = 2**31
"""Layout seeds below are for training, those from here to 2**32 are held out."""
SHAPES = ("pillar", "pillar", "pillar", "tower", "tower", "crate", "ball", "beam")
"""What obstacles are drawn from, each alike."""


def draw_layout_seed(generator: np.random.Generator, layouts: str) -> int:
    """Give the seed of a layout to train on, or of one that is held out."""
    seed = int(generator.integers(FIRST_HELD_OUT))
    return seed + FIRST_HELD_OUT if layouts == "held_out" else seed


def draw_world(options: NavigationOptions, seed: int) -> World:
    """Give the world of a layout seed: the same one for the same options, on every machine.

    Any two obstacles, and any obstacle and a wall, leave a gap that the drone fits through with room to spare; so each
    can be flown around, and no layout is closed.

    Raises:
        ValueError: so many obstacles don't fit into the field.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    length, width = options.field
    count = options.num_obstacles
    if count is None:
        count = round(DENSITIES[options.density] * length * width / 1_000)
    gap = GAPS[options.density]
    start = (1.5, generator.uniform(-0.4, 0.4) * width, generator.uniform(1.2, 2.8))
    goal = (length - 1.5, generator.uniform(-0.4, 0.4) * width, generator.uniform(1.2, 2.8))
    yaw = math.atan2(goal[1] - start[1], goal[0] - start[0]) + generator.uniform(-0.5, 0.5)
    obstacles: list[Obstacle] = []
    places = np.empty((count, 3))  # x, y, radius as seen from above
    for index in range(count):
        obstacles.append(_place(generator, options, places[:index], gap))
        places[index] = (*obstacles[-1].position[:2], measure_footprint(obstacles[-1]))
    return World(length, width, ALTITUDE, start, yaw, goal, tuple(obstacles))


def _place(generator: np.random.Generator, options: NavigationOptions, places: np.ndarray, gap: float) -> Obstacle:
    """Draw obstacles until one has its gap to all that are there."""
    length, width = options.field
    for _ in range(MAX_TRIES):
        x = generator.uniform(APPROACH, length - APPROACH)
        y = generator.uniform(-0.5, 0.5) * width
        obstacle = _SHAPES[SHAPES[int(generator.integers(len(SHAPES)))]](generator, x, y)
        if generator.uniform() < options.moving:
            obstacle = _set_swinging(generator, obstacle)
        radius = measure_footprint(obstacle)
        if abs(y) + radius + 0.6 * gap > width / 2:
            continue
        distances = np.hypot(places[:, 0] - x, places[:, 1] - y) - places[:, 2] - radius
        if not (distances < gap).any():
            return obstacle
    raise ValueError(
        f"num_obstacles: only {len(places)} obstacles found a place in a field of {length:g} x {width:g} m with gaps "
        f"of {gap} m; ask for fewer, or make `field` larger"
    )


def measure_footprint(obstacle: Obstacle) -> float:
    """Give the radius of a circle about the centre that holds an obstacle and its swing, seen from above.

    Of obstacles as drawn here: upright cylinders and boxes, level capsules, spheres.
    """
    swing = 0.0 if obstacle.motion is None else math.hypot(*obstacle.motion.reach)
    if obstacle.shape == "box":
        return math.hypot(*obstacle.size[:2]) + swing
    if obstacle.shape == "capsule":
        return sum(obstacle.size) + swing
    return obstacle.size[0] + swing


def _turn_level(yaw: float) -> Quaternion:
    """Give the rotation that lays an upright shape down, its axis along `yaw`."""
    half = math.sqrt(0.5)
    return (half * math.cos(yaw / 2), -half * math.sin(yaw / 2), half * math.cos(yaw / 2), half * math.sin(yaw / 2))


def _draw_pillar(generator: np.random.Generator, x: float, y: float) -> Obstacle:
    return Obstacle("cylinder", (generator.uniform(0.25, 0.7), 3.0), (x, y, 3.0))


def _draw_tower(generator: np.random.Generator, x: float, y: float) -> Obstacle:
    height = generator.uniform(1.8, 3.0)
    return _draw_box(generator, x, y, height)


def _draw_crate(generator: np.random.Generator, x: float, y: float) -> Obstacle:
    return _draw_box(generator, x, y, generator.uniform(0.4, 1.0))


def _draw_box(generator: np.random.Generator, x: float, y: float, half_height: float) -> Obstacle:
    yaw = generator.uniform(0, math.pi)
    size = (generator.uniform(0.25, 0.7), generator.uniform(0.25, 0.7), half_height)
    return Obstacle("box", size, (x, y, half_height), (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)))


def _draw_ball(generator: np.random.Generator, x: float, y: float) -> Obstacle:
    radius = generator.uniform(0.4, 0.9)
    return Obstacle("sphere", (radius,), (x, y, generator.uniform(radius, 3.0)))


def _draw_beam(generator: np.random.Generator, x: float, y: float) -> Obstacle:
    radius, yaw = generator.uniform(0.1, 0.3), generator.uniform(0, math.pi)
    size = (radius, generator.uniform(0.4, 1.0))
    return Obstacle("capsule", size, (x, y, generator.uniform(1.0, 3.0)), _turn_level(yaw))


def _set_swinging(generator: np.random.Generator, obstacle: Obstacle) -> Obstacle:
    direction, reach = generator.uniform(0, 2 * math.pi), generator.uniform(0.4, 1.0)
    swing: Vector = (reach * math.cos(direction), reach * math.sin(direction), 0.0)
    motion = Motion(swing, generator.uniform(4.0, 10.0), generator.uniform())
    return Obstacle(obstacle.shape, obstacle.size, obstacle.position, obstacle.quaternion, motion)


_SHAPES: dict[str, Callable[[np.random.Generator, float, float], Obstacle]] = {
    "pillar": _draw_pillar,
    "tower": _draw_tower,
    "crate": _draw_crate,
    "ball": _draw_ball,
    "beam": _draw_beam,
}
