"""Exploration noise in normalised action units: the action space is [-1, 1] whatever the environment's bounds."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class ActionNoise(Protocol):
    """A source of noise with a generator of its own."""

    def sample(self) -> NDArray[np.float32]:
        """Give the noise of the next step, of shape (action_dim,)."""
        ...

    def reset(self) -> None:
        """Forget what was drawn: an episode begins."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give what resuming needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...


def build_noise(
    noise_type: Literal["gaussian", "ou"], action_dim: int, std: float, theta: float, generator: np.random.Generator
) -> ActionNoise:
    """Give the noise that a config names; `theta` matters to `ou` alone."""
    if noise_type == "ou":
        return OrnsteinUhlenbeckNoise(action_dim, std, theta, generator)
    return GaussianNoise(action_dim, std, generator)


class GaussianNoise:
    """Independent normal noise of standard deviation `std`."""

    TRANSIENT: ClassVar = ("action_dim", "std")

    def __init__(self, action_dim: int, std: float, generator: np.random.Generator) -> None:
        self.action_dim = action_dim
        self.std = np.float32(std)
        self._generator = generator

    def sample(self) -> NDArray[np.float32]:
        """Give the noise of the next step, of shape (action_dim,)."""
        return self.std * self._generator.standard_normal(self.action_dim, dtype=np.float32)

    def reset(self) -> None:
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

    TRANSIENT: ClassVar = ("std", "theta")

    def __init__(self, action_dim: int, std: float, theta: float, generator: np.random.Generator) -> None:
        self.std = np.float32(std)
        self.theta = np.float32(theta)
        self._generator = generator
        self._noise = np.zeros(action_dim, dtype=np.float32)

    def sample(self) -> NDArray[np.float32]:
        """Give the noise of the next step, of shape (action_dim,)."""
        push = self.std * self._generator.standard_normal(self._noise.shape[0], dtype=np.float32)
        self._noise = self._noise - self.theta * self._noise + push
        return self._noise

    def reset(self) -> None:
        """Start from 0 again."""
        self._noise = np.zeros_like(self._noise)

    def state_dict(self) -> dict[str, Any]:
        """Give the last noise and the state of the generator."""
        return {"noise": self._noise, "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self._noise = np.array(state["noise"], dtype=np.float32)
        self._generator.bit_generator.state = state["generator"]
