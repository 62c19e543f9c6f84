"""Between policies' actions, which are always in [-1, 1], and an environment's own units."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class ActionScale:
    """The affine map from [-1, 1] onto the bounds of an action space, one pair of bounds a dimension.

    Args:
        space: one-dimensional with finite bounds.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        self.low: NDArray[Any] = space.low
        self.high: NDArray[Any] = space.high
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._centre = (low + high) / 2
        self._half = (high - low) / 2

    def to_env(self, action: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Give an action in the environment's units and number type, never outside its bounds by rounding."""
        scaled: NDArray[Any] = (self._centre + self._half * action).astype(self.low.dtype)
        np.minimum(scaled, self.high, out=scaled)
        np.maximum(scaled, self.low, out=scaled)
        return scaled

    def to_normal(self, action: NDArray[Any]) -> NDArray[np.float64]:
        """Give an action of the environment's in [-1, 1], but for rounding."""
        normal: NDArray[np.float64] = (np.asarray(action, dtype=np.float64) - self._centre) / self._half
        return normal
