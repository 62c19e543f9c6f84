"""The policy gradient through a diffusion policy's chains: advantages, and the clipped loss over denoising steps.

A decision is a chunk of actions. It is made in K denoising steps, each a Gaussian with a density, so that the chain
itself is what the policy gradient is taken of: a Markov decision process within each decision (Black et al. 2023,
arXiv:2305.13301; Ren et al. 2024, arXiv:2409.00588). All steps of a chain share the advantage of its chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """What several environments did for some chunks, all tensors of shape (chunks, environments, ...).

    Attributes:
        c: encoded histories that the chunks answered, (..., trajectory_latent_dim).
        next_c: encoded histories after them, before any reset.
        chain: (..., K + 1, tokens, agents, latent_dim).
        log_prob: of the tuned steps when they were drawn, (..., tuned steps), a mean over the latent's numbers.
        reward: discounted sum of rewards within the chunk.
        discount: of what comes after it, the discount to the power of the steps that were executed.
        terminated: 1.0 where the task ended within the chunk.
        ended: 1.0 where the episode did, by its task or its clock.
    """

    c: Tensor
    next_c: Tensor
    chain: Tensor
    log_prob: Tensor
    reward: Tensor
    discount: Tensor
    terminated: Tensor
    ended: Tensor

    def state_dict(self) -> dict[str, Any]:
        """Give the tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def estimate_advantages(
    rollout: Rollout, value: Tensor, next_value: Tensor, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Give advantages and the returns that values are to predict, both (chunks, environments).

    Only `terminated` cuts the bootstrap; `ended` cuts the sum over later chunks too.

    Args:
        value: of `c`, (chunks, environments).
        next_value: of `next_c`.
        gae_lambda: weight of longer sums, in [0, 1].

    Source: Schulman et al. 2015, arXiv:1506.02438, equation 16, over chunks of differing lengths.
    """
    surprise = rollout.reward + rollout.discount * (1 - rollout.terminated) * next_value - value
    advantages = torch.zeros_like(surprise)
    later = torch.zeros_like(surprise[0])
    for chunk in reversed(range(len(surprise))):
        carried = rollout.discount[chunk] * gae_lambda * (1 - rollout.ended[chunk])
        later = surprise[chunk] + carried * later
        advantages[chunk] = later
    return advantages, advantages + value


def sum_rewards(rollout: Rollout) -> Tensor:
    """Give the discounted sum of what came from each chunk to its episode's end or the last chunk, (chunks, envs)."""
    returns = torch.zeros_like(rollout.reward)
    later = torch.zeros_like(rollout.reward[0])
    for chunk in reversed(range(len(returns))):
        later = rollout.reward[chunk] + rollout.discount[chunk] * (1 - rollout.ended[chunk]) * later
        returns[chunk] = later
    return returns


def compare_to_peers(rollout: Rollout) -> Tensor:
    """Give advantages without a value function, (chunks, environments): what came, less the mean over environments at
    the same chunk."""
    returns = sum_rewards(rollout)
    return returns - returns.mean(1, keepdim=True)


def measure_return_size(rollout: Rollout) -> float:
    """Give the root mean square of what came, 1 where nothing did: the unit that values are learnt in."""
    size = float(sum_rewards(rollout).square().mean().sqrt())
    return size if size > 0 else 1.0


def normalize_advantages(advantages: Tensor) -> Tensor:
    """Give advantages with mean 0 and deviation 1 over all of them; all 0 where they are alike."""
    centred = advantages - advantages.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred


def policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Give minus the clipped surrogate, a mean over steps, all (steps,).

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def estimate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Give how far the policy has moved, a mean of `ratio - 1 - log ratio` over steps: 0 where it hasn't."""
    difference = log_prob - old_log_prob
    return (difference.exp() - 1 - difference).mean()
