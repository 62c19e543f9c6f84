"""Policies as one module each, from an environment's observations to its actions, to be used without this project."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from envs.actions import ActionScale
from training.protocol import NotOneModuleError


@runtime_checkable
class HasPlainPolicy(Protocol):
    """An actor whose policy can be made of torch's own layers."""

    def copy_policy(self) -> nn.Module:
        """Give a copy on the CPU, from normalised observations, (batch, obs_dim), to actions in [-1, 1]."""
        ...


class BoundedModule(nn.Module):
    """What modules of policies end with: from actions in [-1, 1] to the environment's units.

    Args:
        scale: to the environment's units and number type.
    """

    centre: Tensor
    half_range: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, scale: ActionScale) -> None:
        super().__init__()
        low, high = scale.low.astype(np.float64), scale.high.astype(np.float64)
        self.register_buffer("centre", torch.from_numpy((low + high) / 2))
        self.register_buffer("half_range", torch.from_numpy((high - low) / 2))
        self.register_buffer("lowest", torch.from_numpy(scale.low.copy()))
        self.register_buffer("highest", torch.from_numpy(scale.high.copy()))

    def to_units(self, own: Tensor) -> Tensor:
        """Give actions of shape (batch, action_dim), never outside their bounds by rounding."""
        action = (self.centre + self.half_range * own.to(torch.float64)).to(self.lowest.dtype)
        return torch.minimum(torch.maximum(action, self.lowest), self.highest)


class PolicyModule(BoundedModule):
    """A policy without noise: float32 observations, (batch, obs_dim), to actions in the environment's units.

    Args:
        normalize: what happens to observations first.
        policy: from what that gives to actions in [-1, 1].
        scale: from there to the environment's units and number type.
    """

    def __init__(self, normalize: nn.Module, policy: nn.Module, scale: ActionScale) -> None:
        super().__init__(scale)
        self.normalize = normalize
        self.policy = policy

    def forward(self, obs: Tensor) -> Tensor:
        """Give actions of shape (batch, action_dim)."""
        return self.to_units(self.policy(self.normalize(obs)))


def build_policy_module(normalize: nn.Module, actor: nn.Module, scale: ActionScale) -> PolicyModule:
    """Give the policy of an actor as one module, a copy on the CPU.

    Raises:
        NotOneModuleError: the actor can't be copied into torch's own layers.
    """
    if not isinstance(actor, HasPlainPolicy):
        raise NotOneModuleError(
            f"its actor, {type(actor).__name__}, has no form in torch's own layers (no copy_policy)"
        )
    return PolicyModule(normalize, actor.copy_policy(), scale).eval()
