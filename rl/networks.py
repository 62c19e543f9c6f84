"""Plain networks of the agents that learn from state vectors."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.products import Linear

FINAL_BOUND = 3e-3
"""Bound of the last layer's first weights: values and actions start near 0 (Lillicrap et al. 2015, section 7)."""

LOG_STD_RANGE = (-20.0, 2.0)
"""Where the logarithms of a stochastic actor's deviations are kept (Haarnoja et al. 2018, their code)."""


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last one is bare. Its parameters are not set: see `initialise`."""

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int, device: torch.device | str) -> None:
        super().__init__()
        sizes = [in_dim, *hidden_dims, out_dim]
        # A layer draws first weights from torch's global generators, which are put back: nobody is to notice.
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            self.layers = nn.ModuleList(Linear(*ends, device=device) for ends in pairwise(sizes))

    def forward(self, features: Tensor) -> Tensor:
        """Give the last layer's output, (batch, out_dim), for features of shape (batch, in_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            features = torch.relu(layer(features))
        out: Tensor = last(features)
        return out

    def initialise(self, generator: torch.Generator, final_bound: float = FINAL_BOUND) -> None:
        """Draw all parameters: uniform within 1 / sqrt(inputs) in hidden layers, within `final_bound` in the last.

        A `final_bound` of 0 makes the output 0 for every input.
        """
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, nn.Linear)
            bound = final_bound if number == len(self.layers) else 1 / math.sqrt(layer.in_features)
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def copy_plain(self, out_dim: int | None = None) -> nn.Sequential:
        """Give a copy, on the CPU, of torch's own layers alone, to be exported; of the first outputs, or of all."""
        *hidden, last = self.layers
        parts = [part for layer in hidden for part in (_copy_linear(layer), nn.ReLU())]
        return nn.Sequential(*parts, _copy_linear(last, out_dim))


def _copy_linear(layer: nn.Module, out_dim: int | None = None) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    weight, bias = (part.detach().cpu()[:out_dim].clone() for part in (layer.weight, layer.bias))
    plain = nn.Linear(layer.in_features, len(weight), device="meta")  # nothing is drawn
    plain.weight, plain.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
    return plain


class Actor(nn.Module):
    """A deterministic policy with actions in [-1, 1] through tanh."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], device: torch.device | str) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim, hidden_dims, action_dim, device)

    def forward(self, obs: Tensor) -> Tensor:
        """Give actions of shape (batch, action_dim) for observations of shape (batch, obs_dim)."""
        return torch.tanh(self.mlp(obs))

    def copy_policy(self) -> nn.Sequential:
        """Give the same as a copy that can be exported."""
        return nn.Sequential(self.mlp.copy_plain(), nn.Tanh())


class Critic(nn.Module):
    """An action value that reads observation and action side by side in its first layer."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], device: torch.device | str) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim + action_dim, hidden_dims, 1, device)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Give values of shape (batch, 1); `action` is in [-1, 1]."""
        value: Tensor = self.mlp(torch.cat([obs, action], dim=1))
        return value


class TwinCritic(nn.Module):
    """Two critics with nothing in common but their inputs (Fujimoto et al. 2018, section 4.2)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], device: torch.device | str) -> None:
        super().__init__()
        self.first = Critic(obs_dim, action_dim, hidden_dims, device)
        self.second = Critic(obs_dim, action_dim, hidden_dims, device)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Give both values, each of shape (batch, 1); `action` is in [-1, 1]."""
        features = torch.cat([obs, action], dim=1)
        return self.first.mlp(features), self.second.mlp(features)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the parameters of both, one after the other."""
        self.first.mlp.initialise(generator)
        self.second.mlp.initialise(generator)


class StochasticActor(nn.Module):
    """A normal distribution for each action before tanh: its mean, and the logarithm of its deviation."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], device: torch.device | str) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim, hidden_dims, 2 * action_dim, device)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Give means and logarithms of deviations, each of shape (batch, action_dim)."""
        mean, log_std = self.mlp(obs).chunk(2, dim=1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def copy_policy(self) -> nn.Sequential:
        """Give the action of the mean, in [-1, 1], as a copy that can be exported."""
        last = self.mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        return nn.Sequential(self.mlp.copy_plain(last.out_features // 2), nn.Tanh())


Network = TypeVar("Network", bound=nn.Module)


def build_target(network: Network) -> Network:
    """Give a copy with memory of its own that no gradient reaches."""
    return copy.deepcopy(network).requires_grad_(False)


class NumpyMLP:
    """An `MLP` for a few observations at a time, on the memory of its parameters.

    It sees every later change that is made in place, as optimizers and `load_state_dict` do. For one observation this
    costs about a quarter of what going through torch does.

    Args:
        mlp: on the CPU, in float32.
    """

    def __init__(self, mlp: MLP) -> None:
        self._layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for layer in mlp.layers:
            assert isinstance(layer, nn.Linear)
            self._layers.append((layer.weight.detach().numpy(), layer.bias.detach().numpy()))

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the last layer's output, (out_dim,) or (n, out_dim), for observations (in_dim,) or (n, in_dim)."""
        if obs.ndim == 2 and len(obs) == 1:  # a matrix times a vector is faster than a matrix of one row
            return self(obs[0])[None]
        features: NDArray[Any] = obs
        *hidden, (weight, bias) = self._layers
        for hidden_weight, hidden_bias in hidden:
            features = features @ hidden_weight.T
            features += hidden_bias
            np.maximum(features, 0, out=features)
        out: NDArray[np.float32] = features @ weight.T + bias
        return out


class NumpyActor:
    """An `Actor` through a `NumpyMLP`."""

    def __init__(self, actor: Actor) -> None:
        self._mlp = NumpyMLP(actor.mlp)

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give actions, (action_dim,) or (n, action_dim), for observations (obs_dim,) or (n, obs_dim)."""
        return np.tanh(self._mlp(obs))
