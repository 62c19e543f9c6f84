"""Wind: a steady part, and gusts that come and go."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]

GUST_TIME = 1.0
"""Seconds after which a gust has lost all but 1/e of itself."""
VERTICAL_SHARE = 0.5
"""Of the gusts' deviation; the steady part is level."""


class Wind:
    """The air's velocity at the drone: a steady one through an episode, and gusts: Ornstein-Uhlenbeck on each axis.

    Args:
        speed: largest steady wind, in m/s; each episode has between half of it and all of it, from any side.
        gusts: standard deviation of the gusts along each level axis, in m/s.
        period: seconds between two steps.
    """

    def __init__(self, speed: float, gusts: float, period: float) -> None:
        self._speed = speed
        self._deviation = gusts * np.array([1.0, 1.0, VERTICAL_SHARE])
        self._kept = math.exp(-period / GUST_TIME)
        self._pushed = math.sqrt(1 - self._kept**2)
        self.steady: NDArray[np.float64] = np.zeros(3)
        self.gust: NDArray[np.float64] = np.zeros(3)

    def reset(self, generator: np.random.Generator) -> Vector:
        """Draw another steady wind, and a gust as any moment could have it; give the sum."""
        side = generator.uniform(-math.pi, math.pi)
        speed = self._speed * generator.uniform(0.5, 1.0)
        self.steady = speed * np.array([math.cos(side), math.sin(side), 0.0])
        self.gust = self._deviation * generator.standard_normal(3)
        return self._sum()

    def step(self, generator: np.random.Generator) -> Vector:
        """Go on by one period, exactly as the continuous process does; give the wind."""
        self.gust = self._kept * self.gust + self._pushed * self._deviation * generator.standard_normal(3)
        return self._sum()

    def _sum(self) -> Vector:
        x, y, z = (self.steady + self.gust).tolist()
        return x, y, z
