"""What a diffusion agent learns from and acts on: histories, and the chunks of actions that followed them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class History:
    """What was seen up to now and done before it, oldest first. Entries where `mask` is False stand for nothing.

    Attributes:
        obs: (batch, history_horizon, num_agents, obs_dim), normalised.
        action: (batch, history_horizon, num_agents, action_dim), the action before each observation, in [-1, 1]; 0
            before the first observation of an episode.
        mask: (batch, history_horizon), bool: False before the episode began.
    """

    obs: Tensor
    action: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Windows stacked along the first axis.

    Attributes:
        history: up to and with the observation that the first action of `chunk` answers.
        chunk: (batch, horizon, num_agents, action_dim), in [-1, 1]; 0 where `chunk_mask` is False.
        chunk_mask: (batch, horizon), bool: False after the episode's last action.
        return_to_go: (batch, num_agents), discounted rewards from the first action of `chunk` to the episode's end.
    """

    history: History
    chunk: Tensor
    chunk_mask: Tensor
    return_to_go: Tensor
