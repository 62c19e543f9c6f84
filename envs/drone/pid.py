"""A cascaded PID for `DroneTrack-v0`: position, velocity, attitude, then body rates and thrust."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.drone.track_obs import COMMANDED_RATES, LAYOUT

GRAVITY = 9.81
MAX_TILT = math.radians(50)
MAX_CLIMB_ACCELERATION = 7.0
HEADING_GAIN = 2.0
"""Yaw rate per angle off the heading, which is the world's x, in 1/s."""


@dataclass(frozen=True)
class Gains:
    """Of the loops, from the outside in.

    Attributes:
        position: wanted velocity per position error, in 1/s.
        integral: wanted velocity per integral of the position error, in 1/s^2.
        velocity: wanted acceleration per velocity error, in 1/s.
        attitude: body rate per angle, in 1/s.
        feed_forward: share of the reference's acceleration that is added to the wanted one. `PID` has none.
    """

    position: float
    integral: float
    velocity: float
    attitude: float
    feed_forward: float = 0.0


PID = Gains(position=8.0, integral=2.0, velocity=4.0, attitude=15.0)
"""The best of a grid; `python -m benchmarks.drone_track` looks for it."""


def control_drone_track(obs: NDArray[Any], gains: Gains = PID) -> NDArray[np.float32]:
    """Give the action that brings the drone to its reference, by feedback.

    It knows the reference's position and velocity. Of its acceleration, of what comes, of the wind and of the commands
    that are still under way it knows nothing; the integral finds out about steady wind.

    Args:
        obs: laid out as in `envs.drone.track_obs`.
        gains: of the loops.
    """
    force = _choose_force(obs, gains)
    size = float(np.linalg.norm(force))
    rotation = LAYOUT["rotation"].read(obs).reshape(3, 3)
    # The wanted direction, seen from the body: its x and y say how far to tilt about y and -x.
    tilt_x, tilt_y, along = (force @ rotation / size).tolist()
    heading = math.atan2(rotation[1, 0], rotation[0, 0])
    action = (
        size * max(along, 0.0) / GRAVITY - 1,
        -gains.attitude * tilt_y / COMMANDED_RATES[0],
        gains.attitude * tilt_x / COMMANDED_RATES[1],
        -HEADING_GAIN * heading / COMMANDED_RATES[2],
    )
    return np.array([min(max(value, -1.0), 1.0) for value in action], dtype=np.float32)


def _choose_force(obs: NDArray[Any], gains: Gains) -> NDArray[np.float64]:
    """Give the wanted specific force, which counts gravity, in the world, in m/s^2; it points up."""
    correction = gains.position * LAYOUT["position_error"].read(obs) + gains.integral * LAYOUT["integral"].read(obs)
    force = gains.velocity * (LAYOUT["velocity_error"].read(obs) + correction)
    if gains.feed_forward:
        force += gains.feed_forward * LAYOUT["reference_acceleration"].read(obs)[:3]
    force[2] = GRAVITY + min(max(force[2], -MAX_CLIMB_ACCELERATION), MAX_CLIMB_ACCELERATION)
    level, most = math.hypot(force[0], force[1]), force[2] * math.tan(MAX_TILT)
    if level > most:
        force[:2] *= most / level
    return force
