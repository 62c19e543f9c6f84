"""What `DroneTrack-v0` observes: which numbers, in which order, in which units. Imports no simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OFFSET_SCALE = 2.0
VELOCITY_SCALE = 10.0
ACCELERATION_SCALE = 20.0
RATE_SCALE = 10.0
INTEGRAL_SCALE = 1.0
PREVIEW_TIMES = (0.1, 0.2)
"""How far ahead the reference's acceleration is told beside that of now, in seconds."""

ACTION_DIM = 4
COMMANDED_RATES = (6.0, 6.0, 3.0)
"""Body rates that actions of 1 ask for: roll, pitch and yaw, in rad/s. A thrust of 1 is the weight once more."""
DELAYS = (1, 3)
"""Least and largest number of steps after which an action is carried out; each episode has one of its own."""


@dataclass(frozen=True)
class Part:
    """Some neighbouring numbers of an observation.

    Attributes:
        first: index of the first of them.
        size: how many there are.
        scale: what an observed 1 is, in the part's own unit; what lies beyond it is cut off.
    """

    first: int
    size: int
    scale: float

    def read(self, obs: NDArray[Any]) -> NDArray[np.float64]:
        """Give the part in its own unit, in memory of its own."""
        return self.scale * np.asarray(obs[self.first : self.first + self.size], dtype=np.float64)


def _lay_out(*sizes: tuple[str, int, float]) -> dict[str, Part]:
    parts, first = {}, 0
    for name, size, scale in sizes:
        parts[name] = Part(first, size, scale)
        first += size
    return parts


LAYOUT = _lay_out(
    ("position_error", 3, OFFSET_SCALE),
    ("velocity_error", 3, VELOCITY_SCALE),
    ("integral", 3, INTEGRAL_SCALE),
    ("rotation", 9, 1.0),
    ("rates", 3, RATE_SCALE),
    ("specific_force", 3, ACCELERATION_SCALE),
    ("reference_velocity", 3, VELOCITY_SCALE),
    ("reference_acceleration", 3 * (1 + len(PREVIEW_TIMES)), ACCELERATION_SCALE),
    ("commands", ACTION_DIM * DELAYS[1], 1.0),
)
"""The parts of an observation by name, in their order. docs/envs.md says what each is."""

OBS_DIM = sum(part.size for part in LAYOUT.values())
SCALES: NDArray[np.float64] = np.concatenate([np.full(part.size, part.scale) for part in LAYOUT.values()])
