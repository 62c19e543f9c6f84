"""Exploration noise in normalised action units: the action space is [-1, 1] whatever the environment's bounds."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class ActionNoise(Protocol):
    """A source of noise for several environments, with a generator of its own."""

    def sample(self) -> NDArray[np.float32]:
        """Give the noise of the next step, of shape (num_envs, action_dim)."""
        ...

    def reset(self, env: int) -> None:
        """Forget what was drawn for one environment: an episode begins there."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give what resuming needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...


def build_noise(
    noise_type: Literal["gaussian", "ou"],
    shape: tuple[int, int],
    std: float,
    theta: float,
    generator: np.random.Generator,
) -> ActionNoise:
    """Give the noise that a config names, of shape (num_envs, action_dim); `theta` matters to `ou` alone."""
    if noise_type == "ou":
        return OrnsteinUhlenbeckNoise(shape, std, theta, generator)
    return GaussianNoise(shape, std, generator)


class GaussianNoise:
    """Independent normal noise of standard deviation `std`."""

    TRANSIENT: ClassVar = ("shape", "std")

    def __init__(self, shape: tuple[int, int], std: float, generator: np.random.Generator) -> None:
        self.shape = shape
        self.std = np.float32(std)
        self._generator = generator

    def sample(self) -> NDArray[np.float32]:
        """Give the noise of the next step, of shape (num_envs, action_dim)."""
        return self.std * self._generator.standard_normal(self.shape, dtype=np.float32)

    def reset(self, env: int) -> None:
        """Do nothing: each draw is independent of the ones before."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state of the generator."""
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self._generator.bit_generator.state = state["generator"]


class OrnsteinUhlenbeckNoise:
    """Noise that remembers: `x += -theta * x + std * normal`, from 0 at the start of each episode.

    `std` is the deviation of one step's push, the sigma of Lillicrap et al. 2015 (0.2, with theta 0.15), whose common
    implementations take a time step of 1. The deviation of x itself grows from `std` to
    `std / sqrt(theta * (2 - theta))`, 1.90 times `std` at theta 0.15. (stable-baselines3 takes a time step of 0.01 by
    default, which makes the same sigma push ten times less and forget a hundred times more slowly.)
    """

    TRANSIENT: ClassVar[tuple[str, ...]] = ("std", "theta")

    def __init__(self, shape: tuple[int, int], std: float, theta: float, generator: np.random.Generator) -> None:
        self.std = np.float32(std)
        self.theta = np.float32(theta)
        self._generator = generator
        self._noise = np.zeros(shape, dtype=np.float32)

    def sample(self) -> NDArray[np.float32]:
        """Give the noise of the next step, of shape (num_envs, action_dim)."""
        push = self.std * self._generator.standard_normal(self._noise.shape, dtype=np.float32)
        self._noise = self._noise - self.theta * self._noise + push
        return self._noise

    def reset(self, env: int) -> None:
        """Start from 0 again in one environment."""
        self._noise = self._noise.copy()  # what was given out before stays as it was
        self._noise[env] = 0

    def state_dict(self) -> dict[str, Any]:
        """Give the last noise and the state of the generator."""
        return {"noise": self._noise, "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self._noise = np.array(state["noise"], dtype=np.float32)
        self._generator.bit_generator.state = state["generator"]
