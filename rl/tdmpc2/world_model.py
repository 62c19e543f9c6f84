"""The latent world: observations into it, what follows in it, and what a policy and value heads make of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.networks import build_target
from rl.tdmpc2.layers import Ensemble, PixelEncoder, build_mlp, draw_network
from rl.tdmpc2.sizes import ModelSizes, list_encoder_dims
from rl.tdmpc2.two_hot import TwoHot
from training.products import Linear

EMBEDDING_BOUND = 0.02
LOG_ROOT_TAU = 0.9189385332046727
"""Half the logarithm of 2 pi."""


class Tasks(NamedTuple):
    """What tells tasks apart, a row for each of a batch.

    Attributes:
        number: (rows,), of each row's task.
        mask: (rows, action_dim), 1 where the task has an action of that number.
    """

    number: Tensor
    mask: Tensor


class Choice(NamedTuple):
    """What a policy does.

    Attributes:
        action: (..., action_dim), drawn; in [-1, 1], or one 1 among zeros where actions are discrete.
        mean: (..., action_dim), without noise.
        entropy: (..., 1), as it counts in the policy's loss.
    """

    action: Tensor
    mean: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class PolicyRange:
    """Bounds of the logarithm of a policy's deviations."""

    log_std_min: float
    log_std_max: float


class WorldModel(nn.Module):
    """Encoder, dynamics, reward, policy, value heads, and the end of tasks where that is predicted.

    Args:
        sizes: of all of them.
        two_hot: the code of rewards and values.
        policy_range: of the policy's deviations.
        dropout: in the value heads' first layers.

    Attributes:
        two_hot: the code of rewards and values.
        q: value heads; `target_q` is their slow copy, without gradients and in eval mode.
    """

    def __init__(self, sizes: ModelSizes, two_hot: TwoHot, policy_range: PolicyRange, dropout: float) -> None:
        super().__init__()
        self.sizes, self.two_hot, self._range = sizes, two_hot, policy_range
        hidden, group = sizes.mlp_dim, sizes.simnorm_dim
        state = sizes.latent_dim + sizes.task_dim
        self.encoder: nn.Module = (
            PixelEncoder(sizes.obs_shape[0], sizes.num_channels, group)
            if sizes.sees_pixels
            else build_mlp(list_encoder_dims(sizes), "simnorm", group)
        )
        self.dynamics = build_mlp([sizes.joint_dim, hidden, hidden, sizes.latent_dim], "simnorm", group)
        self.reward_head = build_mlp([sizes.joint_dim, hidden, hidden, sizes.num_bins])
        self.policy = build_mlp([state, hidden, hidden, sizes.policy_dim])
        self.q = Ensemble(sizes.num_q, sizes.joint_dim, hidden, sizes.num_bins, dropout)
        self.termination_head = build_mlp([state, hidden, hidden, 1]) if sizes.episodic else None
        self.task_embedding = nn.Parameter(torch.empty(sizes.num_tasks, sizes.task_dim)) if sizes.num_tasks else None
        self.target_q = build_target(self.q).eval()

    def train(self, mode: bool = True) -> WorldModel:
        """Turn dropout on or off; the slow copy never has any."""
        super().train(mode)
        self.target_q.eval()
        return self

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters; rewards and values are 0 at first, and the slow copy is equal to the heads."""
        for network in (self.encoder, self.dynamics, self.reward_head, self.policy, self.termination_head):
            if network is not None:
                draw_network(network, generator)
        last = self.reward_head[-1]
        assert isinstance(last, Linear)
        last.weight.zero_()
        self.q.initialise(generator)
        if self.task_embedding is not None:
            self.task_embedding.uniform_(-EMBEDDING_BOUND, EMBEDDING_BOUND, generator=generator)
        self.target_q.load_state_dict(self.q.state_dict())

    def components(self) -> dict[str, nn.Module]:
        """Give the networks that learn, by the names that sizes are counted under."""
        found: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "dynamics": self.dynamics,
            "reward": self.reward_head,
            "policy": self.policy,
            "q": self.q,
        }
        if self.termination_head is not None:
            found["termination"] = self.termination_head
        if self.task_embedding is not None:
            found["task_embedding"] = nn.ParameterList([self.task_embedding])
        return found

    def embed(self, tasks: Tasks | None) -> Tensor | None:
        """Give what tells tasks apart, (rows, task_dim) of length 1 at most; None where there is one task."""
        if self.task_embedding is None:
            return None
        assert tasks is not None, "several tasks, and nothing says which"
        rows = self.task_embedding[tasks.number]
        embedded: Tensor = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=1.0)
        return embedded

    def encode(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        """Give latent states, (..., latent_dim), of observations (..., *obs_shape).

        Args:
            obs: vectors, or bytes of images.
            task: from `embed`, and so is it below; its rows are the last but one axis.
        """
        joined = obs if self.sizes.sees_pixels else join(obs, task)
        latent: Tensor = self.encoder(joined)
        return latent

    def follow(self, joint: Tensor) -> Tensor:
        """Give the next latent state, (..., latent_dim), after `join(latent, action, task)`."""
        latent: Tensor = self.dynamics(joint)
        return latent

    def predict_reward(self, joint: Tensor) -> Tensor:
        """Give logits of the reward, (..., num_bins), for `join(latent, action, task)`."""
        logits: Tensor = self.reward_head(joint)
        return logits

    def predict_end(self, latent: Tensor, task: Tensor | None = None) -> Tensor:
        """Give the logit of the task having ended in a latent state, (..., 1)."""
        assert self.termination_head is not None, "ends are predicted where episodic is set"
        logit: Tensor = self.termination_head(join(latent, task))
        return logit

    def act(self, latent: Tensor, noise: Tensor, task: Tensor | None = None, mask: Tensor | None = None) -> Choice:
        """Give what the policy does.

        Args:
            latent: (..., latent_dim).
            noise: (..., action_dim): normal numbers; Gumbel's where actions are discrete.
            task: from `embed`.
            mask: (rows, action_dim), 1 where the row's task has an action.
        """
        out: Tensor = self.policy(join(latent, task)).float()
        return choose_discrete(out, noise) if self.sizes.discrete else self._choose(out, noise, mask)

    def _choose(self, out: Tensor, noise: Tensor, mask: Tensor | None) -> Choice:
        """Give a squashed normal policy's choice.

        The entropy is that of the normal numbers before they are squashed, times the number of actions, which is what
        the authors' code comes to.
        """
        mean, log_std = out.chunk(2, dim=-1)
        low, high = self._range.log_std_min, self._range.log_std_max
        log_std = low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)
        log_prob = -0.5 * noise.square() - log_std - LOG_ROOT_TAU
        count: Tensor | int = noise.shape[-1]
        if mask is not None:
            mean, noise, log_prob = mean * mask, noise * mask, log_prob * mask
            count = mask.sum(-1, keepdim=True)
        entropy = -log_prob.sum(-1, keepdim=True) * count
        action = torch.tanh(mean + noise * log_std.exp())
        return Choice(action if mask is None else action * mask, torch.tanh(mean), entropy)

    def value(
        self,
        joint: Tensor,
        chosen: Sequence[int] | None,
        *,
        target: bool = False,
        frozen: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Give logits of the values, (chosen, rows, num_bins), for `join(latent, action, task)` of shape (rows, joint).

        Args:
            joint: its axes before the last are rows, whatever their shape.
            chosen: value heads to run; None for all.
            target: ask the slow copy.
            frozen: let gradients through to `joint` alone.
            generator: draws what dropout leaves out in training.
        """
        network = self.target_q if target else self.q
        logits: Tensor = network(joint.flatten(0, -2), chosen, generator, frozen=frozen)
        return logits.view(-1, *joint.shape[:-1], self.sizes.num_bins)

    def Q(  # noqa: N802  the document's name
        self,
        joint: Tensor,
        chosen: Sequence[int],
        return_type: Literal["min", "avg"],
        *,
        target: bool = False,
        frozen: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Give values, (..., 1): the least or the mean of what the chosen heads say; arguments are those of `value`."""
        values = self.two_hot.decode(self.value(joint, chosen, target=target, frozen=frozen, generator=generator))
        return values.amin(0) if return_type == "min" else values.mean(0)


def build_half(model: WorldModel) -> WorldModel:
    """Give a copy in bfloat16 that no gradient reaches, in eval mode; `refresh_half` has it follow the model.

    The last layers of rewards and values stay in float32: early in learning futures differ by less than the rounding of
    their logits.
    """
    half = copy.deepcopy(model).requires_grad_(False).eval().to(torch.bfloat16)
    half.reward_head[-1].float()
    for parts in (half.q.weights, half.q.biases):
        parts[-1].data = parts[-1].data.float()
    refresh_half(half, model)  # what is float32 again was rounded on the way
    return half


@torch.no_grad()
def refresh_half(half: WorldModel, model: WorldModel) -> None:
    """Round the model's parameters into a copy that `build_half` gave."""
    torch._foreach_copy_(list(half.parameters()), list(model.parameters()))


def join(first: Tensor, *others: Tensor | None) -> Tensor:
    """Put numbers of the same rows side by side in the first's type; those of fewer axes are repeated."""
    parts = [first]
    for part in others:
        if part is not None:
            parts.append(part.to(first.dtype).expand(*first.shape[:-1], part.shape[-1]))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else first


def choose_discrete(logits: Tensor, noise: Tensor) -> Choice:
    """Give one action of several, (..., action_dim), by the Gumbel trick; its gradient is that of the softmax.

    Source: Jang et al. 2017, arXiv:1611.01144, section 2.2.
    """
    probabilities = logits.softmax(-1)
    soft = (logits + noise).softmax(-1)
    action = mark_largest(soft) + (soft - soft.detach())
    entropy = -(probabilities * functional.log_softmax(logits, -1)).sum(-1, keepdim=True)
    return Choice(action, mark_largest(logits), entropy)


def mark_largest(scores: Tensor) -> Tensor:
    """Give 1 for the largest of the last axis, 0 for all others."""
    return functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
