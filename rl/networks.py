"""Plain networks of the agents that learn from state vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FINAL_BOUND = 3e-3
"""Bound of the last layer's first weights: values and actions start near 0 (Lillicrap et al. 2015, section 7)."""


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last one is bare. Its parameters are not set: see `initialise`."""

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int, device: torch.device | str) -> None:
        super().__init__()
        sizes = [in_dim, *hidden_dims, out_dim]
        # A layer draws first weights from torch's global generators, which are put back: nobody is to notice.
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            self.layers = nn.ModuleList(nn.Linear(*ends, device=device) for ends in pairwise(sizes))

    def forward(self, features: Tensor) -> Tensor:
        """Give the last layer's output, (batch, out_dim), for features of shape (batch, in_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            features = torch.relu(layer(features))
        out: Tensor = last(features)
        return out

    def initialise(self, generator: torch.Generator, final_bound: float = FINAL_BOUND) -> None:
        """Draw all parameters: uniform within 1 / sqrt(inputs) in hidden layers, within `final_bound` in the last."""
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, nn.Linear)
            bound = final_bound if number == len(self.layers) else 1 / math.sqrt(layer.in_features)
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)


class Actor(nn.Module):
    """A deterministic policy with actions in [-1, 1] through tanh."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], device: torch.device | str) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim, hidden_dims, action_dim, device)

    def forward(self, obs: Tensor) -> Tensor:
        """Give actions of shape (batch, action_dim) for observations of shape (batch, obs_dim)."""
        return torch.tanh(self.mlp(obs))


class Critic(nn.Module):
    """An action value that reads observation and action side by side in its first layer."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], device: torch.device | str) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim + action_dim, hidden_dims, 1, device)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Give values of shape (batch, 1); `action` is in [-1, 1]."""
        value: Tensor = self.mlp(torch.cat([obs, action], dim=1))
        return value


class NumpyActor:
    """An actor for one observation at a time, on the memory of its parameters.

    It sees every later change that is made in place, as optimizers and `load_state_dict` do. For one observation this
    costs about a quarter of what going through torch does.

    Args:
        actor: on the CPU, in float32.
    """

    def __init__(self, actor: Actor) -> None:
        self._layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for layer in actor.mlp.layers:
            assert isinstance(layer, nn.Linear)
            self._layers.append((layer.weight.detach().numpy(), layer.bias.detach().numpy()))

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the action, of shape (action_dim,), for an observation of shape (obs_dim,)."""
        *hidden, (weight, bias) = self._layers
        features: NDArray[Any] = obs
        for hidden_weight, hidden_bias in hidden:
            features = hidden_weight @ features
            features += hidden_bias
            np.maximum(features, 0, out=features)
        action: NDArray[np.float32] = np.tanh(weight @ features + bias)
        return action
