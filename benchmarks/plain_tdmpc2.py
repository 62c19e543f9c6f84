"""TD-MPC2 as the paper reads, to hold the speed of `rl/tdmpc2` against: torch's own layers, eager, by autograd.

One task, vectors observed, several numbers acted, no end of tasks predicted. All value heads are run, and of what they
say two are taken. Shapes: H steps, a batch of B sequences, time first.

Source: Hansen et al. 2024, arXiv:2310.16828, section 3; what it leaves open is as in `rl/tdmpc2`.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.tdmpc2.agent import Batch
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.layers import Ensemble
from rl.tdmpc2.planner import PlanNoise
from rl.tdmpc2.sizes import NUM_MEMBERS, ModelSizes, list_encoder_dims
from rl.tdmpc2.world_model import WorldModel

POLICY_EPSILON = 1e-5


class UpdateNoise(NamedTuple):
    """All that is random in an update but dropout.

    Attributes:
        target: (H, B, action_dim), normal numbers of the actions that targets look at.
        target_heads: the two value heads of the targets.
        policy: (H + 1, B, action_dim), normal numbers of the actions that the policy's loss looks at.
        policy_heads: its two value heads.
    """

    target: Tensor
    target_heads: list[int]
    policy: Tensor
    policy_heads: list[int]


def draw_update_noise(batch: Batch, num_q: int, generator: torch.Generator) -> UpdateNoise:
    """Draw all that an update with a batch needs."""
    steps, count, action_dim = batch.action.shape
    pairs = [torch.randperm(num_q, generator=generator)[:NUM_MEMBERS].tolist() for _ in range(2)]
    return UpdateNoise(
        torch.randn(steps, count, action_dim, generator=generator),
        pairs[0],
        torch.randn(steps + 1, count, action_dim, generator=generator),
        pairs[1],
    )


class SimNorm(nn.Module):
    """A softmax within each group of neighbouring numbers."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, features: Tensor) -> Tensor:
        """Give the same shape, (..., features)."""
        groups = features.view(*features.shape[:-1], -1, self.group)
        return functional.softmax(groups, dim=-1).flatten(-2)


def build_network(*dims: int, last: nn.Module | None = None, dropout: float = 0.0) -> nn.Sequential:
    """Give linear layers with a norm and Mish between them; dropout follows the first of them.

    Args:
        last: what follows the last layer and its norm; None leaves that layer bare.
    """
    layers: list[nn.Module] = []
    for number, (inner, outer) in enumerate(itertools.pairwise(dims)):
        layers.append(nn.Linear(inner, outer))
        if number == 0 and dropout > 0:
            layers.append(nn.Dropout(dropout))
        if number < len(dims) - 2:
            layers += [nn.LayerNorm(outer), nn.Mish()]
    return nn.Sequential(*layers) if last is None else nn.Sequential(*layers, nn.LayerNorm(dims[-1]), last)


class ValueHeads(nn.ModuleList):
    """Networks of one shape that judge the same actions."""

    def forward(self, joint: Tensor) -> Tensor:
        """Give logits, (heads, ..., num_bins), for latent states and actions side by side, (..., joint_dim)."""
        return torch.stack([head(joint) for head in self])


class PlainModel(nn.Module):
    """Encoder, dynamics, reward, policy and value heads.

    Args:
        config: has the bins of rewards and values, the range of the policy's deviations, and dropout.
        sizes: of the networks.
    """

    bins: Tensor

    def __init__(self, config: TDMPC2Config, sizes: ModelSizes) -> None:
        super().__init__()
        latent, joint, hidden, bins = sizes.latent_dim, sizes.joint_dim, sizes.mlp_dim, sizes.num_bins
        group = sizes.simnorm_dim
        self.encoder = build_network(*list_encoder_dims(sizes), last=SimNorm(group))
        self.dynamics = build_network(joint, hidden, hidden, latent, last=SimNorm(group))
        self.reward_head = build_network(joint, hidden, hidden, bins)
        self.policy = build_network(latent, hidden, hidden, 2 * sizes.action_dim)
        heads = [build_network(joint, hidden, hidden, bins, dropout=config.dropout) for _ in range(sizes.num_q)]
        self.heads = ValueHeads(heads)
        self.target_heads = copy.deepcopy(self.heads).requires_grad_(False)
        self.register_buffer("bins", torch.linspace(config.vmin, config.vmax, bins))
        self._low, self._high = config.log_std_min, config.log_std_max

    @torch.no_grad()
    def copy_weights(self, model: WorldModel) -> None:
        """Take over the parameters of ours."""
        for mine, theirs in (
            (self.encoder, model.encoder),
            (self.dynamics, model.dynamics),
            (self.reward_head, model.reward_head),
            (self.policy, model.policy),
        ):
            _copy(list(mine.parameters()), list(theirs.parameters()))
        for heads, ensemble in ((self.heads, model.q), (self.target_heads, model.target_q)):
            for member, head in enumerate(heads):
                _copy(list(head.parameters()), list_head(ensemble, member))

    def act(self, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Give actions, (..., action_dim), of the policy with noise of that shape, and their entropy, (..., 1)."""
        mean, spread = self.policy(latent).chunk(2, dim=-1)
        log_std = self._low + 0.5 * (self._high - self._low) * (torch.tanh(spread) + 1)
        log_prob = -0.5 * noise.pow(2) - log_std - 0.5 * math.log(2 * math.pi)
        entropy = -log_prob.sum(-1, keepdim=True) * noise.shape[-1]
        return torch.tanh(mean + noise * log_std.exp()), entropy

    def encode_two_hot(self, values: Tensor) -> Tensor:
        """Give weights of the two bins that are next to the symlog of values: (..., num_bins) for (..., 1)."""
        low, high = self.bins[0], self.bins[-1]
        last = len(self.bins) - 1
        place = (torch.sign(values) * torch.log1p(values.abs())).clamp(low, high).sub(low) / (high - low) * last
        below = place.floor().clamp(0, last - 1)
        weights = torch.zeros(*values.shape[:-1], last + 1)
        weights.scatter_(-1, below.long(), 1 - (place - below))
        return weights.scatter_(-1, below.long() + 1, place - below)

    def decode(self, logits: Tensor) -> Tensor:
        """Give the values, (..., 1), that logits, (..., num_bins), stand for."""
        mean = (functional.softmax(logits, dim=-1) * self.bins).sum(-1, keepdim=True)
        return torch.sign(mean) * torch.expm1(mean.abs())

    def find_cross_entropy(self, logits: Tensor, values: Tensor) -> Tensor:
        """Give the loss, (..., 1), of logits, (..., num_bins), where values, (..., 1), would be right."""
        return -(self.encode_two_hot(values) * functional.log_softmax(logits, dim=-1)).sum(-1, keepdim=True)


class PlainTDMPC2:
    """A model, its optimizers, and what one batch, or one observation, makes of it.

    Args:
        config: of the run.
        sizes: of the model.
        discount: per step.

    Attributes:
        model: all networks.
        scale: what values are divided by in the policy's loss, of shape ().
    """

    def __init__(self, config: TDMPC2Config, sizes: ModelSizes, discount: float) -> None:
        self._config, self._discount = config, discount
        self.model = model = PlainModel(config, sizes)
        encoder = list(model.encoder.parameters())
        others = [*model.dynamics.parameters(), *model.reward_head.parameters(), *model.heads.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": config.lr * config.enc_lr_scale},
            {"params": others},
        ]
        self._learned, self._policy = [*encoder, *others], list(model.policy.parameters())
        self._optimizer = torch.optim.Adam(groups, lr=config.lr, fused=True)
        self._policy_optimizer = torch.optim.Adam(self._policy, lr=config.lr, eps=POLICY_EPSILON, fused=True)
        self._weights = config.rho ** torch.arange(config.horizon + 1.0)[:, None, None]
        self.scale = torch.ones(())

    def update(self, batch: Batch, noise: UpdateNoise) -> dict[str, Tensor]:
        """Move the model, then the policy, then the slow copy of the value heads; give the losses by name."""
        model, config = self.model.train(), self._config
        model.target_heads.eval()
        target, next_latents = self._find_target(batch, noise)
        latents = [model.encoder(batch.obs[0])]
        for action in batch.action:
            latents.append(model.dynamics(torch.cat([latents[-1], action], dim=-1)))
        imagined = torch.stack(latents)
        joint = torch.cat([imagined[:-1], batch.action], dim=-1)
        weights = self._weights[:-1] * batch.valid
        losses = {
            "consistency": (weights * (imagined[1:] - next_latents).pow(2)).mean(),
            "reward": (weights * model.find_cross_entropy(model.reward_head(joint), batch.reward)).mean(),
            "value": (
                weights * model.find_cross_entropy(model.heads(joint), target.expand(len(model.heads), -1, -1, -1))
            ).mean(),
        }
        losses["total"] = (
            config.consistency_coef * losses["consistency"]
            + config.reward_coef * losses["reward"]
            + config.value_coef * losses["value"]
        )
        descend(losses["total"], self._optimizer, self._learned, config.grad_clip_norm)
        losses["policy"] = self._update_policy(imagined.detach(), batch.valid, noise)
        with torch.no_grad():
            for slow, online in zip(model.target_heads.parameters(), model.heads.parameters(), strict=True):
                slow.lerp_(online, config.tau)
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _find_target(self, batch: Batch, noise: UpdateNoise) -> tuple[Tensor, Tensor]:
        """Give `r + discount * min(Q1', Q2')(z', pi(z'))`, (H, B, 1), and z', (H, B, latent_dim)."""
        model = self.model
        latents = model.encoder(batch.obs[1:])
        action, _ = model.act(latents, noise.target)
        logits = model.target_heads(torch.cat([latents, action], dim=-1))
        value = model.decode(logits[noise.target_heads]).amin(0)
        return batch.reward + batch.discount * (1 - batch.terminated) * value, latents

    def _update_policy(self, latents: Tensor, valid: Tensor, noise: UpdateNoise) -> Tensor:
        """Move the policy towards actions of higher value and more entropy in latent states, (H + 1, B, latent_dim)."""
        model = self.model
        model.heads.requires_grad_(False)
        action, entropy = model.act(latents, noise.policy)
        logits = model.heads(torch.cat([latents, action], dim=-1))
        value = model.decode(logits[noise.policy_heads]).mean(0)
        low, high = torch.quantile(value[0].detach(), torch.tensor([0.05, 0.95]))
        self.scale.lerp_((high - low).clamp(min=1.0), self._config.tau)
        within = torch.cat([torch.ones_like(valid[:1]), valid])
        gain = within * (self._config.entropy_coef * entropy + value / self.scale)
        loss = -(self._weights * gain).mean()
        descend(loss, self._policy_optimizer, self._policy, self._config.grad_clip_norm)
        model.heads.requires_grad_(True)
        return loss

    @torch.no_grad()
    def plan(self, obs: Tensor, mean: Tensor, noise: PlanNoise) -> tuple[Tensor, Tensor]:
        """Find what to do without exploring: an action, (action_dim,), and the plan's mean, (H, action_dim).

        Args:
            obs: (obs_dim,).
            mean: (H, action_dim), the last plan a step on, 0 where an episode begins.
            noise: of one environment.
        """
        model, config = self.model.eval(), self._config
        latent = model.encoder(obs[None])
        proposals = self._propose(latent, noise.proposals[:, 0])
        std = torch.full_like(mean, config.max_std)
        for number, heads in enumerate(noise.heads.tolist()):
            sampled = (mean[:, None] + std[:, None] * noise.samples[number, :, 0]).clamp(-1, 1)
            actions = torch.cat([proposals, sampled], dim=1)
            values = self._judge(latent.repeat(actions.shape[1], 1), actions, noise.last[number, 0], heads)
            best, places = torch.topk(values, config.num_elites)
            elites = actions[:, places]
            weights = torch.exp(config.temperature * (best - best[0]))
            weights = weights / (weights.sum() + 1e-9)
            mean = (weights[:, None] * elites).sum(1)
            std = (weights[:, None] * (elites - mean[:, None]).pow(2)).sum(1).sqrt()
            std = std.clamp(config.min_std, config.max_std)
        chosen = (weights.log() + noise.elite[0]).argmax()
        return elites[0, chosen], mean

    def _propose(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Give what the policy would do from a latent state, (1, latent_dim), for noise (H, proposals, action_dim)."""
        latent = latent.repeat(noise.shape[1], 1)
        actions: list[Tensor] = []
        for step in noise:
            if actions:
                latent = self.model.dynamics(torch.cat([latent, actions[-1]], dim=-1))
            actions.append(self.model.act(latent, step)[0])
        return torch.stack(actions)

    def _judge(self, latent: Tensor, actions: Tensor, last: Tensor, heads: list[int]) -> Tensor:
        """Give the values, (samples,), of futures, (H, samples, action_dim), from latent states (samples, latent_dim).

        Args:
            last: (samples, action_dim), noise of the policy's action where they end.
            heads: the two value heads that judge there.
        """
        model, total, factor = self.model, torch.zeros(len(latent), 1), 1.0
        for action in actions:
            joint = torch.cat([latent, action], dim=-1)
            total = total + factor * model.decode(model.reward_head(joint))
            latent = model.dynamics(joint)
            factor *= self._discount
        action, _ = model.act(latent, last)
        logits = model.heads(torch.cat([latent, action], dim=-1))
        value = model.decode(logits[heads]).mean(0)
        return (total + factor * value).nan_to_num(0.0)[:, 0]


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], max_norm: float) -> None:
    """Take one step with gradients shortened to `max_norm`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def list_head(ensemble: Ensemble, member: int) -> list[Tensor]:
    """Give the parameters of one of our value heads in the order of its layers."""
    found: list[Tensor] = []
    for layer in range(len(ensemble.weights)):
        found += [ensemble.weights[layer][member], ensemble.biases[layer][member]]
        if layer < len(ensemble.norm_weights):
            found += [ensemble.norm_weights[layer][member], ensemble.norm_biases[layer][member]]
    return found


def _copy(mine: list[nn.Parameter], theirs: list[Tensor] | list[nn.Parameter]) -> None:
    for parameter, source in zip(mine, theirs, strict=True):
        assert parameter.shape == source.shape, f"{tuple(parameter.shape)} and {tuple(source.shape)}"
        parameter.copy_(source)
