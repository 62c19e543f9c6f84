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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of recorded chunks, (batch,) each but for the first and the last.

    Attributes:
        chunk: (batch, horizon, num_agents, action_dim), in [-1, 1], whole: where an episode ended within it, actions of
            another window stand for those that were never done.
        reward: discounted sum over the chunk's recorded steps, the agents' mean, divided by a unit.
        discount: of what comes after them.
        terminated: 1 where the task ended within them, else 0.
        next_history: after them; that of the episode's last frame where it ended within them.
    """

    chunk: Tensor
    reward: Tensor
    discount: Tensor
    terminated: Tensor
    next_history: History
