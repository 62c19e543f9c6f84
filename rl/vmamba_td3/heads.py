"""Vector -> action, and vector and action -> two values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.networks import FINAL_BOUND
from rl.vmamba_td3.encoders import draw_uniform
from training.products import Linear


class NormedMLP(nn.Module):
    """Three linear layers, with a norm before each and ReLU between them; the last is bare."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        dims = (in_dim, hidden_dim, hidden_dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.layers = nn.ModuleList(Linear(*ends) for ends in zip(dims, (hidden_dim, hidden_dim, out_dim), strict=True))

    def forward(self, features: Tensor) -> Tensor:
        """Give (batch, out_dim) for features of shape (batch, in_dim)."""
        features = self.layers[0](self.norms[0](features))
        for norm, layer in zip(self.norms[1:], self.layers[1:], strict=True):
            features = layer(functional.relu(norm(features)))
        return features

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters: uniform within 1 / sqrt(inputs), in the last layer within `rl.networks.FINAL_BOUND`."""
        first, second, last = self.layers
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        draw_uniform((first, second), generator)
        for parameter in last.parameters():
            parameter.uniform_(-FINAL_BOUND, FINAL_BOUND, generator=generator)
        for norm in self.norms:
            assert isinstance(norm, nn.LayerNorm)
            norm.reset_parameters()


class Actor(nn.Module):
    """A deterministic policy with actions in [-1, 1] through tanh, which is here and nowhere else.

    Args:
        repr_dim: numbers that a window became.
        hidden_dim: width of its hidden layers.
        action_dim: numbers of an action.
    """

    def __init__(self, repr_dim: int, hidden_dim: int, action_dim: int) -> None:
        super().__init__()
        self.mlp = NormedMLP(repr_dim, hidden_dim, action_dim)

    def forward(self, context: Tensor) -> Tensor:
        """Give actions of shape (batch, action_dim) for windows of shape (batch, repr_dim)."""
        return torch.tanh(self.mlp(context))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters; first actions are near 0."""
        self.mlp.initialise(generator)


class TwinCritic(nn.Module):
    """Two action values with nothing in common but their inputs.

    Args:
        repr_dim: numbers that a window became.
        hidden_dim: width of the hidden layers.
        action_dim: numbers of an action.
    """

    def __init__(self, repr_dim: int, hidden_dim: int, action_dim: int) -> None:
        super().__init__()
        self.first = NormedMLP(repr_dim + action_dim, hidden_dim, 1)
        self.second = NormedMLP(repr_dim + action_dim, hidden_dim, 1)

    def forward(self, context: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Give both values, each of shape (batch, 1); `action` is in [-1, 1]."""
        features = torch.cat([context, action], dim=1)
        return self.first(features), self.second(features)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the parameters of both, one after the other; first values are near 0."""
        self.first.initialise(generator)
        self.second.initialise(generator)
