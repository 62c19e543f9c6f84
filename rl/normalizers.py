"""Running statistics that observations and rewards are normalised by. Data are stored raw; this acts on their use."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CLIP = 10.0
"""Normalised observations beyond this are cut to it."""
EPSILON = 1e-8
"""Added to variances before their root."""


class RunningMoments:
    """Mean and variance of all rows seen so far, in float64; mean 0 and variance 1 before the first.

    Source: the parallel update of Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for
    computing sample variances".
    """

    TRANSIENT: ClassVar = ()

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(dim)
        self.variance: NDArray[np.float64] = np.ones(dim)

    def add(self, rows: NDArray[Any]) -> None:
        """Take in rows of shape (n, dim)."""
        count, mean, variance = len(rows), rows.mean(0, dtype=np.float64), rows.var(0, dtype=np.float64)
        total = self.count + count
        delta = mean - self.mean
        between = delta**2 * self.count * count / total
        self.variance = (self.variance * self.count + variance * count + between) / total
        self.mean = self.mean + delta * count / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """Give the statistics."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over statistics that `state_dict` gave."""
        self.count = state["count"]
        self.mean = np.array(state["mean"], dtype=np.float64)
        self.variance = np.array(state["variance"], dtype=np.float64)


class ObsNormalizer:
    """Observations with mean 0 and variance 1 over what training has acted on, clipped at 10 deviations.

    Args:
        obs_dim: columns to normalise.
        base_dim: columns after them that stay as they are: the base action of residual control, already in [-1, 1].
    """

    TRANSIENT: ClassVar = ("_base_dim", "_shift", "_scale")

    def __init__(self, obs_dim: int, base_dim: int) -> None:
        self._base_dim = base_dim
        self.moments = RunningMoments(obs_dim)
        self._refresh()

    def add(self, obs: NDArray[np.float32]) -> None:
        """Take in observations of shape (n, obs_dim + base_dim)."""
        self.moments.add(obs[:, : len(self.moments.mean)])
        self._refresh()

    def _refresh(self) -> None:
        scale = 1 / np.sqrt(self.moments.variance + EPSILON)
        self._shift = np.append(self.moments.mean, np.zeros(self._base_dim)).astype(np.float32)
        self._scale = np.append(scale, np.ones(self._base_dim)).astype(np.float32)

    def apply(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give observations of shape (..., obs_dim + base_dim) normalised."""
        normal: NDArray[np.float32] = np.clip((obs - self._shift) * self._scale, -CLIP, CLIP)
        return normal

    def apply_tensor(self, obs: Tensor) -> Tensor:
        """Give the same as `apply`, on the observations' device."""
        shift = torch.from_numpy(self._shift).to(obs.device)
        scale = torch.from_numpy(self._scale).to(obs.device)
        return ((obs - shift) * scale).clamp_(-CLIP, CLIP)

    def build_module(self) -> nn.Module:
        """Give `apply` as a module that can be exported, with the statistics as they are now."""
        return Normalize(torch.from_numpy(self._shift.copy()), torch.from_numpy(self._scale.copy()))

    def state_dict(self) -> dict[str, Any]:
        """Give the statistics."""
        return {"moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over statistics that `state_dict` gave."""
        self.moments.load_state_dict(state["moments"])
        self._refresh()


class Normalize(nn.Module):
    """What `ObsNormalizer` does to observations; `shift` and `scale` are of shape (obs_dim,)."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, obs: Tensor) -> Tensor:
        """Give observations of shape (batch, obs_dim) normalised."""
        return ((obs - self.shift) * self.scale).clamp(-CLIP, CLIP)


class RewardNormalizer:
    """Rewards divided by the deviation of the discounted return that runs along each environment.

    The mean is left alone: shifting rewards changes what is worth ending an episode for. The rule is that of
    gymnasium's `NormalizeReward` and of stable-baselines3's `VecNormalize`, without their clipping.
    """

    TRANSIENT: ClassVar = ("_discount",)

    def __init__(self, num_envs: int, discount: float) -> None:
        self._discount = discount
        self.moments = RunningMoments(1)
        self._returns: NDArray[np.float64] = np.zeros(num_envs)

    def begin_episode(self, env: int) -> None:
        """Start one environment's return from 0."""
        self._returns[env] = 0.0

    def add(self, rewards: NDArray[np.float64]) -> None:
        """Take in one reward for each environment."""
        self._returns = self._returns * self._discount + rewards
        self.moments.add(self._returns[:, None])

    def scale(self) -> float:
        """Give the factor by which rewards are multiplied."""
        return float(1 / np.sqrt(self.moments.variance[0] + EPSILON))

    def state_dict(self) -> dict[str, Any]:
        """Give the statistics and the running returns."""
        return {"moments": self.moments.state_dict(), "returns": self._returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.moments.load_state_dict(state["moments"])
        self._returns = np.array(state["returns"], dtype=np.float64)
