"""Residual control: a learned correction of bounded size on top of a controller that is there already.

`executed = clip(base + delta * u, -1, 1)` with the policy's own action `u` in [-1, 1] (Johannink et al. 2018,
arXiv:1812.03201; Silver et al. 2018, arXiv:1812.06298). The base action is appended to the observation, so that actor
and critic see it; what is executed is what is stored and what the critic values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.controllers import Controller


@dataclass(frozen=True)
class ActionMap:
    """From the policy's own action to the executed one; both are in [-1, 1].

    Attributes:
        action_dim: of both.
        delta: the largest correction; None where the policy acts alone, and both actions are the same.
    """

    action_dim: int
    delta: float | None = None

    def execute(self, obs: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give executed actions for observations (..., obs_dim), whose last entries are the base action."""
        if self.delta is None:
            return own
        executed: NDArray[np.float32] = np.clip(obs[..., -self.action_dim :] + np.float32(self.delta) * own, -1, 1)
        return executed

    def execute_tensor(self, obs: Tensor, own: Tensor) -> Tensor:
        """Give the same as `execute`, with a gradient to the policy's own action where nothing is clipped."""
        if self.delta is None:
            return own
        return (obs[..., -self.action_dim :] + self.delta * own).clamp(-1, 1)


def append_base_action(raw_obs: NDArray[Any], controller: Controller | None) -> NDArray[np.float32]:
    """Give an observation as the agent sees it, in memory of its own: the base action last, where there is one."""
    obs = np.array(raw_obs, dtype=np.float32)
    return obs if controller is None else np.concatenate([obs, controller(raw_obs)])
