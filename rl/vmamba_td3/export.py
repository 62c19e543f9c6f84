"""The policy as one module, from windows to actions, to be used without this project."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from envs.actions import ActionScale
from rl.export import BoundedModule
from rl.vmamba_td3.agent import VMambaTD3


class WindowPolicyModule(BoundedModule):
    """A policy without noise: windows of states and frames, as the environment gives them, to actions in its units.

    Args:
        stream: from a window to a vector.
        actor: from there to actions in [-1, 1].
        scale: from there to the environment's units and number type.
        depth_scale: what depth goes up to in the environment's observations.
    """

    def __init__(self, stream: nn.Module, actor: nn.Module, scale: ActionScale, depth_scale: float) -> None:
        super().__init__(scale)
        self.stream, self.actor, self.depth_scale = stream, actor, depth_scale

    def forward(self, base: Tensor, depth: Tensor) -> Tensor:
        """Give actions of shape (batch, action_dim).

        Args:
            base: (batch, steps, base_dim).
            depth: (batch, steps, 1, height, width), in [0, depth_scale].
        """
        return self.to_units(self.actor(self.stream(base, depth / self.depth_scale)))


def build_window_policy(agent: VMambaTD3, scale: ActionScale, depth_scale: float) -> WindowPolicyModule:
    """Give an agent's policy as one module, a copy on the CPU in eval mode."""
    parts = copy.deepcopy(nn.ModuleList([agent.find_stream("actor"), agent.networks["actor"]])).cpu()
    return WindowPolicyModule(parts[0], parts[1], scale, depth_scale).eval().requires_grad_(False)
