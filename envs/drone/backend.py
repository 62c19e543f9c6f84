"""What a drone task asks of whatever simulates the drone: the embedded simulation, or one behind a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.drone.camera import Camera
from envs.drone.quadrotor import Vector
from envs.drone.world import World

BACKENDS = ("embedded",)
"""Those that there are."""


@dataclass(frozen=True)
class Pose:
    """Where the drone is and how it moves; world frame with z up, SI units.

    Attributes:
        position: of its centre.
        velocity: in the world.
        rotation: (3, 3), from the body (x forward, y left, z up) to the world.
        rates: angular velocity about the body's axes.
    """

    position: Vector
    velocity: Vector
    rotation: NDArray[np.float64]
    rates: Vector


class Backend(Protocol):
    """A drone in a world. Times are simulated ones.

    Attributes:
        world: that the drone is in; None before the first reset.
        keeps_state: whether `read_state` and `write_state` bring a flight back to the bit.
    """

    world: World | None
    keeps_state: bool

    def reset(self, world: World) -> None:
        """Put the drone at the start of a world, hovering in still air, at time 0."""
        ...

    def fly(self, forward: float, climb: float, yaw_rate: float, duration: float) -> bool:
        """Follow a velocity for so many seconds; give whether something was touched, which ends it early.

        Args:
            forward: along the heading, in m/s.
            climb: upwards, in m/s.
            yaw_rate: to the left, in rad/s.
            duration: in seconds.
        """
        ...

    def set_wind(self, wind: Vector) -> None:
        """Set the velocity of the air until the next call or reset, in m/s."""
        ...

    def read_pose(self) -> Pose:
        """Give where the drone is now."""
        ...

    def see(self, camera: Camera) -> NDArray[np.float64]:
        """Give the planar depth that a camera at the drone's centre, looking forward, sees; (H, W), in metres."""
        ...

    def scan(self, camera: Camera) -> NDArray[np.float64]:
        """Give the same for a camera that is kept level: it turns with the heading alone."""
        ...

    def read_state(self) -> dict[str, Any]:
        """Give all that the rest of the flight depends on, as arrays and plain values."""
        ...

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over what `read_state` gave."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...
