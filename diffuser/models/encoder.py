"""From what was seen and done to one vector that actions are drawn for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffuser.datasets.batch import History
from diffuser.models.layers import MLP


def count_history_features(obs_dim: int, action_dim: int, num_agents: int, history_horizon: int) -> int:
    """Give how many numbers `join_history` gives."""
    return history_horizon * (num_agents * (obs_dim + action_dim) + 1)


def join_history(history: History) -> Tensor:
    """Give all numbers of each history side by side, (batch, features).

    Padded entries are replaced by 0, and the mask is among the numbers, so that the beginning of an episode differs
    from a history of zeros.
    """
    features = torch.cat([history.obs, history.action], dim=-1)
    hidden = torch.where(history.mask[:, :, None, None], features, 0)
    return torch.cat([hidden.flatten(1), history.mask.to(features.dtype)], dim=1)


class TrajectoryEncoder(nn.Module):
    """Gives one vector c of a history of all agents; what is padded changes nothing."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_agents: int,
        history_horizon: int,
        trajectory_latent_dim: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        in_dim = count_history_features(obs_dim, action_dim, num_agents, history_horizon)
        self.mlp = MLP(in_dim, hidden_dims, trajectory_latent_dim)

    def forward(self, history: History) -> Tensor:
        """Give c, (batch, trajectory_latent_dim)."""
        c: Tensor = self.mlp(join_history(history))
        return c
