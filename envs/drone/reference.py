"""What a quadrotor follows: smooth random trajectories whose speed and acceleration have limits by construction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_WAVES = 3
"""Sines that are summed on each axis."""
FREQUENCIES = (0.6, 3.5)
"""Lowest and highest angular frequency of a sine, in rad/s."""
VERTICAL_SHARE = 0.5
"""How much a reference moves up and down, as part of how much it moves along each other axis."""


class Point(NamedTuple):
    """Where a reference is at a moment, and how it moves: arrays of shape (3,)."""

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    acceleration: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """A trajectory: on each axis a sum of sines around a centre. Arrays are (3, waves), the centre is (3,)."""

    centre: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    phases: NDArray[np.float64]

    def locate(self, time: float) -> Point:
        """Give where it is after so many seconds."""
        angles = self.frequencies * time + self.phases
        waves = self.amplitudes * np.sin(angles)
        speeds = self.amplitudes * self.frequencies * np.cos(angles)
        return Point(self.centre + waves.sum(1), speeds.sum(1), -(self.frequencies**2 * waves).sum(1))


def draw_reference(
    generator: np.random.Generator, max_speed: float, max_acceleration: float, clearance: float
) -> Reference:
    """Give a random trajectory that keeps its limits at all times.

    With amplitudes `a` and frequencies `w`, the speed along an axis is at most the sum of its `a * w`, and acceleration
    that of its `a * w**2`; amplitudes are scaled until the length of neither vector of bounds is over its limit.

    Args:
        max_speed: in m/s.
        max_acceleration: in m/s^2.
        clearance: least height above the ground, in metres.
    """
    shape = (3, NUM_WAVES)
    frequencies = np.exp(generator.uniform(math.log(FREQUENCIES[0]), math.log(FREQUENCIES[1]), shape))
    phases = generator.uniform(-math.pi, math.pi, shape)
    # Drawn as speeds: slow waves are wide, and fast ones don't take all of the acceleration.
    amplitudes = generator.uniform(0.5, 1.0, shape) / frequencies
    amplitudes[2] *= VERTICAL_SHARE
    speed = np.linalg.norm((amplitudes * frequencies).sum(1))
    acceleration = np.linalg.norm((amplitudes * frequencies**2).sum(1))
    amplitudes *= min(max_speed / speed, max_acceleration / acceleration)
    centre = np.array([0.0, 0.0, clearance + amplitudes[2].sum()])
    return Reference(centre, amplitudes, frequencies, phases)
