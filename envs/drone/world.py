"""Worlds to fly in: a walled field of obstacles with a start and a goal. `world_file.py` reads and checks them.

World coordinates: x along the field from 0 to its length, y across from -width/2 to width/2, z up from the ground. SI
units. Walls stand around the field, as high as one can see; the ground is z = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.drone.quadrotor import Vector, rotate_by
from envs.drone.shapes import Primitives, ShapeKind

FORMAT = 1
SIZES: dict[str, tuple[str, ...]] = {
    "sphere": ("radius",),
    "capsule": ("radius", "half length"),
    "cylinder": ("radius", "half length"),
    "box": ("half length", "half width", "half height"),
}
"""What the sizes of each shape are, as in MuJoCo; capsules and cylinders lie along their own z."""
WALL_HEIGHT = 1_000.0
Quaternion: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Motion:
    """A swing about the place of rest: `place + sin(2 pi (time / period + phase)) * reach`.

    Attributes:
        reach: largest displacement, in metres.
        period: of a whole swing, in seconds.
        phase: in periods.
    """

    reach: Vector
    period: float
    phase: float = 0.0

    def displace(self, time: float) -> Vector:
        """Give the displacement at a time, in metres."""
        part = math.sin(2 * math.pi * (time / self.period + self.phase))
        return (part * self.reach[0], part * self.reach[1], part * self.reach[2])

    def find_velocity(self, time: float) -> Vector:
        """Give the velocity at a time, in m/s."""
        turns = 2 * math.pi / self.period
        part = turns * math.cos(2 * math.pi * (time / self.period + self.phase))
        return (part * self.reach[0], part * self.reach[1], part * self.reach[2])


@dataclass(frozen=True)
class Obstacle:
    """One primitive.

    Attributes:
        shape: a key of `SIZES`.
        size: as many numbers as `SIZES` names, in metres.
        position: of its centre; of the place of rest where it moves.
        quaternion: (w, x, y, z), of length 1.
        motion: None where it stands still.
    """

    shape: str
    size: tuple[float, ...]
    position: Vector
    quaternion: Quaternion = (1.0, 0.0, 0.0, 0.0)
    motion: Motion | None = None

    @property
    def reach(self) -> float:
        """Give the radius of a sphere about its centre that holds it."""
        if self.shape == "box":
            return math.hypot(*self.size)
        if self.shape == "cylinder":
            return math.hypot(*self.size)
        return sum(self.size)

    def find_distances(self, points: NDArray[np.float64], time: float = 0.0) -> NDArray[np.float64]:
        """Give the distances (...,) from points (..., 3) to the surface in metres, negative inside."""
        shift = (0.0, 0.0, 0.0) if self.motion is None else self.motion.displace(time)
        away = points - np.add(self.position, shift)
        if self.shape == "sphere":
            return np.asarray(np.sqrt((away * away).sum(-1)) - self.size[0])
        x, y, z = np.moveaxis(away @ np.reshape(rotate_by(*self.quaternion), (3, 3)), -1, 0)
        if self.shape == "capsule":
            beyond = z - np.clip(z, -self.size[1], self.size[1])
            return np.asarray(np.sqrt(x * x + y * y + beyond * beyond) - self.size[0])
        if self.shape == "cylinder":
            sides = [np.hypot(x, y) - self.size[0], np.abs(z) - self.size[1]]
        else:
            sides = [np.abs(part) - size for part, size in zip((x, y, z), self.size, strict=True)]
        outside = np.sqrt(sum(np.maximum(side, 0) ** 2 for side in sides))
        return np.asarray(outside + np.minimum(np.maximum.reduce(sides), 0))


@dataclass(frozen=True)
class World:
    """Everything about a place to fly in, but for wind and noise.

    Attributes:
        length: of the field along x, in metres.
        width: across, in metres.
        altitude: lowest and highest that a drone may fly, in metres.
        start: where a flight begins.
        start_yaw: where the drone looks then, in rad from x towards y.
        goal: where it ends.
        obstacles: in any order.
    """

    length: float
    width: float
    altitude: tuple[float, float]
    start: Vector
    start_yaw: float
    goal: Vector
    obstacles: tuple[Obstacle, ...]

    def find_clearance(self, point: Vector, time: float, reach: float) -> float:
        """Give the distance from a point to the nearest obstacle, wall or the ground, at most `reach`, in metres."""
        x, y, z = point
        nearest = min(reach, x, self.length - x, self.width / 2 - abs(y), z)
        centres, radii = self._bounds
        away = centres - point
        close = np.einsum("ij,ij->i", away, away) < (nearest + radii) ** 2
        for index in np.flatnonzero(close).tolist():
            nearest = min(nearest, float(self.obstacles[index].find_distances(np.array(point), time)))
        return nearest

    @cached_property
    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give centres (n, 3) and radii (n,) of spheres that hold each obstacle wherever it swings."""
        swings = [0.0 if one.motion is None else math.hypot(*one.motion.reach) for one in self.obstacles]
        radii = [one.reach + swing for one, swing in zip(self.obstacles, swings, strict=True)]
        return np.array([one.position for one in self.obstacles]).reshape(-1, 3), np.array(radii)

    def to_json(self) -> dict[str, Any]:
        """Give the world as plain data, which `read_world` takes."""
        obstacles = []
        for obstacle in self.obstacles:
            entry: dict[str, Any] = {
                "shape": obstacle.shape,
                "size": list(obstacle.size),
                "position": list(obstacle.position),
                "quaternion": list(obstacle.quaternion),
            }
            if obstacle.motion is not None:
                motion = obstacle.motion
                entry["motion"] = {"reach": list(motion.reach), "period": motion.period, "phase": motion.phase}
            obstacles.append(entry)
        return {
            "format": FORMAT,
            "length": self.length,
            "width": self.width,
            "altitude": list(self.altitude),
            "start": list(self.start),
            "start_yaw": self.start_yaw,
            "goal": list(self.goal),
            "obstacles": obstacles,
        }


def gather_primitives(world: World) -> Primitives:
    """Give what a ray can hit, the ground left out: the obstacles in their order, at rest, then the walls.

    The walls are one box about the field, seen from inside.
    """
    boxes = [*world.obstacles, describe_walls(world)]
    count = len(boxes)
    kinds = np.array([ShapeKind[box.shape.upper()] for box in boxes], dtype=np.int32)
    positions, rotations, sizes = np.empty((count, 3)), np.empty((count, 3, 3)), np.zeros((count, 3))
    for index, box in enumerate(boxes):
        positions[index] = box.position
        rotations[index] = np.reshape(rotate_by(*box.quaternion), (3, 3))
        sizes[index, : len(box.size)] = box.size
    return Primitives(kinds, positions, rotations, sizes)


def describe_walls(world: World) -> Obstacle:
    """Give the box whose sides are the walls."""
    return Obstacle("box", (world.length / 2, world.width / 2, WALL_HEIGHT), (world.length / 2, 0.0, 0.0))
