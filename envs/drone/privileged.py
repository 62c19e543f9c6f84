"""What the simulator knows of a flight and the camera doesn't show: one flat vector, for who learns in simulation only.

An actor that shall fly by its camera must not see it; a critic, which is needed in training alone, may. Pinto et al.
2017, arXiv:1710.06542.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.drone.flight import Flight
from envs.drone.quadrotor import MAX_RATES
from envs.drone.surroundings import Neighbours, Surroundings
from envs.drone.world import World

HEIGHT_SCALE, SPEED_SCALE, WIND_SCALE = 5.0, 5.0, 10.0
"""What heights (m), speeds and the wind (m/s) are divided by."""
NUM_NEIGHBOURS = 8
REACH = 10.0
"""Metres beyond which an obstacle isn't told of."""
RADIUS_SCALE = 2.0
OWN_DIM, NEIGHBOUR_DIM = 26, 8
"""Numbers of the drone itself, and of each obstacle."""
PRIVILEGED_DIM = OWN_DIM + NUM_NEIGHBOURS * NEIGHBOUR_DIM


class Insight:
    """Makes the vector of `docs/envs.md` for the flights of one world after the other."""

    def __init__(self) -> None:
        self._world: World | None = None  # that the surroundings are of, which are made once for each
        self._surroundings: Surroundings | None = None

    def describe(self, flight: Flight) -> NDArray[np.float32]:
        """Give (PRIVILEGED_DIM,) numbers in [-1, 1] for the moment that a flight is at."""
        assert flight.pose is not None
        assert flight.world is not None
        if self._surroundings is None or self._world is not flight.world:
            self._world, self._surroundings = flight.world, Surroundings(flight.world)
        near = self._surroundings.find_nearest(flight.pose.position, flight.time, NUM_NEIGHBOURS)
        heading = turn_level(*flight.pose.rotation[:2, 0].tolist())
        numbers = np.concatenate([describe_drone(flight), describe_neighbours(near, heading).ravel()])
        told: NDArray[np.float32] = np.clip(numbers, -1, 1).astype(np.float32)
        return told


def describe_drone(flight: Flight) -> NDArray[np.float64]:
    """Give the first OWN_DIM numbers, not clipped yet: of the drone, its goal, the air and the last action."""
    pose, world = flight.pose, flight.world
    assert pose is not None
    assert world is not None
    frame = turn_level(world.goal[0] - world.start[0], world.goal[1] - world.start[1])
    x, y, z = pose.position
    diagonal = math.hypot(world.length, world.width)
    return np.concatenate(
        [
            (2 * x / world.length - 1, 2 * y / world.width, z / HEIGHT_SCALE),
            frame @ np.subtract(world.goal, pose.position) / (diagonal, diagonal, HEIGHT_SCALE),
            frame @ pose.velocity / SPEED_SCALE,
            (frame @ pose.rotation).ravel(),
            np.divide(pose.rates, MAX_RATES),
            (frame @ flight.wind)[:2] / WIND_SCALE,
            flight.action,
        ]
    )


def describe_neighbours(near: Neighbours, heading: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give (NUM_NEIGHBOURS, NEIGHBOUR_DIM) numbers, not clipped yet; rows that are over say that nothing is near.

    Args:
        near: the nearest obstacles.
        heading: from the world to the level frame that looks along the heading, (3, 3).
    """
    rows = np.zeros((NUM_NEIGHBOURS, NEIGHBOUR_DIM))
    rows[:, 0] = 1
    count = int((near.distances < REACH).sum())  # they are sorted
    distances = near.distances[:count, None]
    rows[:count, :1] = distances / REACH
    rows[:count, 1:4] = near.ways[:count] @ heading.T / np.maximum(distances, 1e-9)
    rows[:count, 4] = near.radii[:count] / RADIUS_SCALE
    rows[:count, 5:] = near.velocities[:count] @ heading.T / SPEED_SCALE
    return rows


def turn_level(x: float, y: float) -> NDArray[np.float64]:
    """Give the rotation, (3, 3), from the world to the level frame whose x points along (x, y); the world's for (0, 0).

    Its y points to the left, its z up.
    """
    length = math.hypot(x, y)
    cosine, sine = (x / length, y / length) if length > 1e-9 else (1.0, 0.0)
    return np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
