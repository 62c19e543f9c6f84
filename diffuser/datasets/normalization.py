"""How recorded numbers become what networks read. Data stay as they are on disk; this acts on what is taken of them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.episodes import Episodes

Floats = NDArray[np.float32]

NormalizerKind = Literal["gaussian", "limits"]

CLIP = 10.0
"""Normalised observations beyond this are cut to it: where data never were, networks know nothing anyway."""
FLAT = 1e-6
"""A column that varies by less than this, beside its own size, is taken as constant and only shifted."""
BLOCK = 65_536
"""Rows that are looked at together, so that mapped data are never in memory at once."""


class ObsNormalizer:
    """Observations shifted and scaled, column by column and agent by agent, and cut to [-10, 10].

    Args:
        shift: (num_agents, obs_dim), subtracted first.
        scale: of the same shape, multiplied then.
    """

    TRANSIENT: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, shift: NDArray[Any], scale: NDArray[Any]) -> None:
        self.shift: Floats = np.asarray(shift, dtype=np.float32)
        self.scale: Floats = np.asarray(scale, dtype=np.float32)

    def apply(self, obs: Floats) -> Floats:
        """Give observations of shape (..., num_agents, obs_dim) normalised."""
        normal: Floats = np.clip((obs - self.shift) * self.scale, -CLIP, CLIP)
        return normal

    def apply_tensor(self, obs: Tensor) -> Tensor:
        """Give the same as `apply`, on the observations' device."""
        shift, scale = (torch.from_numpy(array).to(obs.device) for array in (self.shift, self.scale))
        return ((obs - shift) * scale).clamp(-CLIP, CLIP)

    def state_dict(self) -> dict[str, Any]:
        """Give shift and scale."""
        return {"shift": self.shift, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.shift, self.scale = (np.array(state[name], dtype=np.float32) for name in ("shift", "scale"))


def fit_obs_normalizer(kind: NormalizerKind, episodes: Episodes) -> ObsNormalizer:
    """Give the normaliser of a data set's observations.

    Args:
        kind: `gaussian` brings columns to mean 0 and variance 1, `limits` their least and greatest to -1 and 1.
    """
    if kind == "limits":
        low, high = episodes.observations.min(0), episodes.observations.max(0)
        shift, spread = (low.astype(np.float64) + high) / 2, (high.astype(np.float64) - low) / 2
    else:
        shift, spread = _find_moments(episodes.observations)
    flat = spread <= FLAT * np.maximum(1, np.abs(shift))
    return ObsNormalizer(shift, 1 / np.where(flat, 1, spread))


def _find_moments(rows: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give mean and standard deviation over the first axis, in float64, a block at a time."""
    blocks = range(0, len(rows), BLOCK)
    mean = sum(rows[first : first + BLOCK].sum(0, dtype=np.float64) for first in blocks) / len(rows)
    squares = sum(((rows[first : first + BLOCK] - mean) ** 2).sum(0) for first in blocks)
    return mean, np.sqrt(squares / len(rows))


class ActionScale:
    """Actions in an environment's own units and in [-1, 1].

    Args:
        low: bounds, (num_agents, action_dim), as a file's header or an environment has them.
        high: likewise.
    """

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"low", "high"})

    def __init__(self, low: Floats, high: Floats) -> None:
        self.low = low
        self.high = high

    def to_unit(self, action: Floats) -> Floats:
        """Give actions of shape (..., num_agents, action_dim) in [-1, 1]."""
        unit: Floats = np.clip(2 * (action - self.low) / (self.high - self.low) - 1, -1, 1)
        return unit

    def to_env(self, action: Floats) -> Floats:
        """Give actions in the environment's own units, never outside its bounds."""
        own: Floats = np.clip(self.low + (action + 1) / 2 * (self.high - self.low), self.low, self.high)
        return own
