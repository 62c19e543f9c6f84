"""The obstacles of a world as arrays: which are nearest to a point, in which direction, and how they move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.drone.quadrotor import Vector, rotate_by
from envs.drone.shapes import ShapeKind
from envs.drone.world import Obstacle, World, gather_primitives

Floats = NDArray[np.float64]
_LEAST = 1e-12
"""Metres below which a way has no direction."""


@dataclass(frozen=True)
class Neighbours:
    """Some obstacles as seen from a point, the nearest first; world frame, SI units.

    Attributes:
        distances: (n,), to the nearest point of each; 0 inside.
        ways: (n, 3), to that point.
        radii: (n,), of an upright cylinder about the centre that just holds each.
        velocities: (n, 3).
    """

    distances: Floats
    ways: Floats
    radii: Floats
    velocities: Floats


class Surroundings:
    """What is around any point of one world, walls and ground left out.

    Args:
        world: whose obstacles they are.
    """

    def __init__(self, world: World) -> None:
        scene, count = gather_primitives(world), len(world.obstacles)
        kinds, sizes = scene.kinds[:count], scene.sizes[:count]
        self._positions, self._rotations = scene.positions[:count], scene.rotations[:count]
        self._moving = [(index, one.motion) for index, one in enumerate(world.obstacles) if one.motion is not None]
        # A solid is a core that is rounded off: in all directions, or about its axis alone.
        self._upright = kinds == ShapeKind.CYLINDER
        self._rounding = np.where(kinds == ShapeKind.BOX, 0.0, sizes[:, 0])
        self._cores = np.where((kinds == ShapeKind.BOX)[:, None], sizes, 0.0)
        self._cores[:, 2] += np.where((kinds == ShapeKind.CAPSULE) | self._upright, sizes[:, 1], 0.0)
        self._radii = np.array([measure_radius(one) for one in world.obstacles])

    def find_nearest(self, point: Vector, time: float, count: int) -> Neighbours:
        """Give up to `count` obstacles; of two that are equally near, the one that comes first in the world.

        Args:
            point: in metres.
            time: since the flight began, in seconds.
            count: how many at most.
        """
        places, velocities = self._positions.copy(), np.zeros_like(self._positions)
        for index, motion in self._moving:
            places[index] += motion.displace(time)
            velocities[index] = motion.find_velocity(time)
        away = np.einsum("nij,ni->nj", self._rotations, point - places)
        beyond = away - np.clip(away, -self._cores, self._cores)
        across = beyond[:, 0] * beyond[:, 0] + beyond[:, 1] * beyond[:, 1]
        lengths = np.sqrt(across + np.where(self._upright, 0.0, beyond[:, 2] * beyond[:, 2]))
        left = np.maximum(lengths - self._rounding, 0.0) / np.maximum(lengths, _LEAST)
        gaps = beyond * left[:, None]
        gaps[:, 2] = np.where(self._upright, beyond[:, 2], gaps[:, 2])
        distances = np.sqrt(np.einsum("ni,ni->n", gaps, gaps))
        chosen = np.argsort(distances, kind="stable")[:count]
        ways = -np.einsum("nij,nj->ni", self._rotations[chosen], gaps[chosen])
        return Neighbours(distances[chosen], ways, self._radii[chosen], velocities[chosen])


def measure_radius(obstacle: Obstacle) -> float:
    """Give the radius of an upright cylinder about an obstacle's centre that just holds it, however it is turned."""
    if obstacle.shape == "sphere":
        return obstacle.size[0]
    rotation = np.reshape(rotate_by(*obstacle.quaternion), (3, 3))
    if obstacle.shape == "box":
        signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]])
        corners = (signs * obstacle.size) @ rotation.T
        return float(np.hypot(corners[:, 0], corners[:, 1]).max())
    radius, half = obstacle.size
    lean, rise = math.hypot(rotation[0, 2], rotation[1, 2]), abs(float(rotation[2, 2]))
    if obstacle.shape == "capsule":
        return radius + half * lean
    # The rim's point that is farthest: `part` of the way from the widest to the one that leans out most.
    part = min(half * rise / (radius * lean), 1.0) if lean > _LEAST else 0.0
    return math.hypot(half * lean + radius * rise * part, radius * math.sqrt(1 - part * part))
