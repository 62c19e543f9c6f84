"""Controllers that are there already, for residual control: from an observation to an action in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.drone.pid import control_drone_track

Controller: TypeAlias = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Gives the base action, of shape (action_dim,) and in [-1, 1], for one observation. Holds no state."""

GRAVITY, MASS, LENGTH, MAX_TORQUE = 10.0, 1.0, 1.0, 2.0
INERTIA = MASS * LENGTH**2 / 3
CATCH_COSINE = 0.9
ENERGY_GAIN, ANGLE_GAIN, SPEED_GAIN = 5.0, 12.0, 3.0


def control_pendulum_energy(obs: NDArray[Any]) -> NDArray[np.float32]:
    """Swing Pendulum-v1 up by its energy and catch it by feedback near the top.

    Energy shaping after Astrom and Furuta 2000, "Swinging up a pendulum by energy control": push along the speed while
    the energy is below that of standing upright. The constants are those of gymnasium's Pendulum-v1.

    Args:
        obs: (cosine, sine, angular speed), the angle counted from upright.
    """
    cosine, sine, speed = float(obs[0]), float(obs[1]), float(obs[2])
    if cosine > CATCH_COSINE:
        torque = -ANGLE_GAIN * np.arctan2(sine, cosine) - SPEED_GAIN * speed
    else:
        missing = MASS * GRAVITY * LENGTH / 2 * (1 - cosine) - INERTIA * speed**2 / 2
        torque = ENERGY_GAIN * missing * (1.0 if speed >= 0 else -1.0)
    return np.array([np.clip(torque / MAX_TORQUE, -1, 1)], dtype=np.float32)


CONTROLLERS: dict[str, tuple[tuple[str, ...], Controller]] = {
    "pendulum_energy": (("Pendulum-v1",), control_pendulum_energy),
    "drone_track_pid": (("DroneTrack-v0",), control_drone_track),
}
"""Base controllers by name, each with the ids of the environments that it controls."""
