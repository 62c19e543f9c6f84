"""Navigation by depth: fly to a goal through obstacles that a forward camera sees.

`DepthNav-v0` and `AirSimEnv-v42` observe the last frames as pictures, `DepthNavState-v0` a flat vector.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.drone.eyes import Eyes, FanEyes, PictureEyes, spoil_depth
from envs.drone.flight import Flight, open_backend
from envs.drone.options import NavigationOptions, read_options
from envs.refusals import check_action, refuse_reset_options

ACTION_DIM = 3


class NavigationEnv(gym.Env[Any, NDArray[Any]]):
    """What the navigation tasks have in common: a flight, and its arguments.

    Args:
        arguments: names and values of `envs.drone.options.NavigationOptions`.

    Raises:
        ValueError: with a line for each argument that is no good.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, **arguments: Any) -> None:
        self.options = read_options(arguments)
        self.eyes = self.open_eyes(self.options, 1)
        self.flight = Flight(self.options, open_backend(self.options))
        self.action_space = gym.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.observation_space = self.eyes.space

    @staticmethod
    def open_eyes(options: NavigationOptions, num_worlds: int) -> Eyes:
        """Give what makes the observations."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a flight; with a seed, always in the same world.

        `info` also names the `layout_seed`, unless the world is fixed.

        Raises:
            ValueError: there are reset options, which mean nothing here.
        """
        super().reset(seed=seed)
        refuse_reset_options(options)
        info = self.flight.begin(self.np_random)
        self.eyes.begin(0, self.flight, self._measure_depth())
        return self.eyes.read(0), info

    def step(self, action: NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Fly on for a period; the clock is the wrapper's.

        Raises:
            ValueError: the action isn't three numbers in [-1, 1].
        """
        outcome = self.flight.advance(check_action(action, ACTION_DIM), self.np_random)
        self.eyes.look(0, self.flight, self._measure_depth())
        return self.eyes.read(0), outcome.reward, outcome.terminated, False, outcome.info

    def _measure_depth(self) -> NDArray[np.float64]:
        backend, camera = self.flight.backend, self.eyes.camera
        depth = backend.scan(camera) if self.eyes.level else backend.see(camera)
        return spoil_depth(depth, self.options, self.np_random)

    def close(self) -> None:
        """Let go of the backend."""
        self.flight.backend.close()

    def snapshot_state(self) -> dict[str, Any]:
        """Give the flight's state, and what has been seen."""
        return {"flight": self.flight.read_state(), "eyes": self.eyes.read_state()}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over a flight's state, and what has been seen."""
        self.eyes.write_state(state["eyes"])
        self.flight.write_state(state["flight"])


class DepthNavEnv(NavigationEnv):
    """Sees the last frames of the drone's camera: `envs.drone.eyes.PictureEyes`."""

    @staticmethod
    def open_eyes(options: NavigationOptions, num_worlds: int) -> Eyes:
        """Give what makes pictures."""
        return PictureEyes(options, num_worlds)


class DepthNavStateEnv(NavigationEnv):
    """Sees a flat vector: `envs.drone.eyes.FanEyes`. Arguments that only pictures have are refused."""

    def __init__(self, **arguments: Any) -> None:
        refuse_picture_arguments(arguments)
        super().__init__(**arguments)

    @staticmethod
    def open_eyes(options: NavigationOptions, num_worlds: int) -> Eyes:
        """Give what makes flat vectors."""
        return FanEyes(options, num_worlds)


def refuse_picture_arguments(arguments: dict[str, Any]) -> None:
    """Raise `ValueError` where a flat observation is asked for with arguments that only pictures have."""
    if pictures := [key for key in ("seq_len", "height", "width", "privileged") if key in arguments]:
        raise ValueError("\n".join(f"{key}: means nothing in a flat observation; leave it out" for key in pictures))
