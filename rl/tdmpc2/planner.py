"""Planning by model-predictive path integral: the best of many imagined futures, found in a few rounds.

Source: Hansen et al. 2024, arXiv:2310.16828, section 3.2; Williams et al. 2015, arXiv:1509.01149.

Several environments are planned for at once. All that is random is drawn first, so that a batch of plans is what as
many single ones would be. Shapes: H steps ahead, N environments, S samples, P proposals of the policy, E elites.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rl.tdmpc2.sizes import NUM_MEMBERS
from rl.tdmpc2.world_model import WorldModel, join, mark_largest

SMALL = 1e-9
ENDED = 0.5
"""Probability from which on a task is taken to have ended."""


@dataclass(frozen=True)
class PlannerSettings:
    """How a plan is found.

    Attributes:
        horizon: steps ahead.
        iterations: rounds of sampling.
        num_samples: futures in a round, proposals of the policy among them.
        num_elites: best of them, which the next round is drawn about.
        num_pi_trajs: proposals of the policy.
        min_std: least deviation of an action; of discrete ones the share that stays evenly spread.
        max_std: largest and first deviation; takes no part where actions are discrete.
        temperature: how much better elites count for more.
        uncertainty_weight: of the value heads' spread at the horizon, which is taken off.
    """

    horizon: int
    iterations: int
    num_samples: int
    num_elites: int
    num_pi_trajs: int
    min_std: float
    max_std: float
    temperature: float
    uncertainty_weight: float = 0.0


class PlanNoise(NamedTuple):
    """All that is random in plans: normal numbers, Gumbel's where actions are discrete.

    Attributes:
        proposals: (H, N, P, action_dim), of the policy's proposals.
        samples: (iterations, H, N, S - P, action_dim).
        last: (iterations, N, S, action_dim), of the policy's action at the horizon.
        heads: (iterations, 2), value heads that judge there.
        elite: (N, E), Gumbel numbers that choose among the elites.
        action: (N, action_dim), of the action itself, while exploring.
    """

    proposals: Tensor
    samples: Tensor
    last: Tensor
    heads: Tensor
    elite: Tensor
    action: Tensor


class Situation(NamedTuple):
    """What plans are made for.

    Attributes:
        latent: (N, latent_dim).
        discount: (N, 1), per step.
        task: (N, task_dim), from `WorldModel.embed`; None where there is one.
        mask: (N, action_dim), 1 where the task has an action; None where it has all.
    """

    latent: Tensor
    discount: Tensor
    task: Tensor | None = None
    mask: Tensor | None = None

    def repeat(self, count: int) -> Situation:
        """Give so many rows for each, next to each other."""
        return Situation(*(None if part is None else part.repeat_interleave(count, 0) for part in self))  # type: ignore[arg-type]


class Plan(NamedTuple):
    """What came of it.

    Attributes:
        action: (N, action_dim), to be carried out.
        mean: (H, N, action_dim), what the next plan begins with, a step on.
        value: (N,), of the best future.
        spread: (N,), deviation of what all value heads say of the action.
    """

    action: Tensor
    mean: Tensor
    value: Tensor
    spread: Tensor


class Search(Protocol):
    """A distribution over futures that is narrowed round by round; `mean` is its middle, (H, N, action_dim)."""

    mean: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Give futures, (H, N, samples, action_dim), for noise of that shape."""
        ...

    def fit(self, elites: Tensor, weights: Tensor) -> None:
        """Move to futures (H, N, E, action_dim) that count by weights (N, E), which add up to 1."""
        ...

    def explore(self, action: Tensor, noise: Tensor) -> Tensor:
        """Give first actions, (N, action_dim), with noise of that shape."""
        ...


class NormalSearch:
    """Independent normal numbers, cut to [-1, 1].

    Args:
        mean: (H, N, action_dim), what to begin with.
        settings: have the bounds of deviations.
        mask: (N, action_dim); None where tasks have all actions.
    """

    def __init__(self, mean: Tensor, settings: PlannerSettings, mask: Tensor | None) -> None:
        self.mean = mean
        self._std = torch.full_like(mean, settings.max_std)
        self._settings, self._mask = settings, mask

    def sample(self, noise: Tensor) -> Tensor:
        """Give futures, (H, N, samples, action_dim)."""
        found = (self.mean.unsqueeze(2) + self._std.unsqueeze(2) * noise).clamp_(-1, 1)
        return found if self._mask is None else found * self._mask.unsqueeze(1)

    def fit(self, elites: Tensor, weights: Tensor) -> None:
        """Move to the elites' mean and deviation."""
        counts = weights[None, :, :, None]
        self.mean = (counts * elites).sum(2)
        variance = (counts * (elites - self.mean.unsqueeze(2)).square()).sum(2)
        self._std = variance.sqrt().clamp(self._settings.min_std, self._settings.max_std)
        if self._mask is not None:
            self.mean, self._std = self.mean * self._mask, self._std * self._mask

    def explore(self, action: Tensor, noise: Tensor) -> Tensor:
        """Give actions with as much noise as the first step still has."""
        return (action + self._std[0] * noise).clamp_(-1, 1)


class DiscreteSearch:
    """One action of several at each step; `mean` is how probable each is.

    It begins half way between the last plan and none, as normal numbers begin with their largest deviation: what the
    last plan was sure of may have been wrong.

    Args:
        mean: (H, N, action_dim), how probable each was when the last plan ended; rows of zeros stand for all alike.
        settings: have the share that stays evenly spread.
    """

    def __init__(self, mean: Tensor, settings: PlannerSettings) -> None:
        total = mean.sum(-1, keepdim=True)
        self._even = 1.0 / mean.shape[-1]
        self._share = min(settings.min_std, 1.0)
        self.mean = torch.where(total > 0, (mean + self._even) / 2, torch.full_like(mean, self._even))

    def _spread(self, probabilities: Tensor) -> Tensor:
        return (1 - self._share) * probabilities + self._share * self._even

    def sample(self, noise: Tensor) -> Tensor:
        """Give futures, (H, N, samples, action_dim), each action 1 among zeros."""
        return mark_largest(self.mean.log().unsqueeze(2) + noise)

    def fit(self, elites: Tensor, weights: Tensor) -> None:
        """Move to how often elites do what."""
        self.mean = self._spread((weights[None, :, :, None] * elites).sum(2))

    def explore(self, action: Tensor, noise: Tensor) -> Tensor:
        """Give the action itself: which elite it is of was drawn already."""
        return action


def draw_noise(
    count: int,
    settings: PlannerSettings,
    action_dim: int,
    num_q: int,
    *,
    discrete: bool,
    device: torch.device,
    generator: torch.Generator | None,
) -> PlanNoise:
    """Draw all that `count` plans need.

    Args:
        count: environments.
        settings: of the planner.
        action_dim: numbers of an action.
        num_q: value heads to draw from.
        discrete: whether Gumbel numbers are wanted.
        device: where they go, and the generator is.
        generator: None is torch's own.
    """
    steps, rounds, proposed = settings.horizon, settings.iterations, settings.num_pi_trajs

    def draw(*shape: int) -> Tensor:
        if discrete:
            return draw_gumbel(shape, device, generator)
        return torch.randn(shape, device=device, generator=generator)

    order = torch.rand((rounds, num_q), device=device, generator=generator).argsort(-1)
    return PlanNoise(
        draw(steps, count, proposed, action_dim),
        draw(rounds, steps, count, settings.num_samples - proposed, action_dim),
        draw(rounds, count, settings.num_samples, action_dim),
        order[:, :NUM_MEMBERS],
        draw_gumbel((count, settings.num_elites), device, generator),
        draw(count, action_dim),
    )


def draw_gumbel(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw Gumbel numbers: adding them to logarithms makes the largest be drawn as probable as it is."""
    found = torch.empty(shape, device=device).exponential_(generator=generator).log_()
    return found.neg_()


def shift_plan(mean: Tensor) -> Tensor:
    """Give a plan, (H, N, action_dim), a step on: its first step is gone, its last one is 0."""
    return torch.cat([mean[1:], torch.zeros_like(mean[:1])])


@torch.no_grad()
def plan(
    model: WorldModel,
    situation: Situation,
    mean: Tensor,
    noise: PlanNoise,
    settings: PlannerSettings,
    *,
    explore: bool,
) -> Plan:
    """Find what to do in each environment.

    Args:
        model: in eval mode.
        situation: of N environments.
        mean: (H, N, action_dim), what to begin with: the last plan a step on, 0 where an episode begins.
        noise: from `draw_noise`.
        settings: of the planner.
        explore: whether the action gets as much noise as is left.
    """
    search: Search = (
        DiscreteSearch(mean, settings) if model.sizes.discrete else NormalSearch(mean, settings, situation.mask)
    )
    proposals = propose(model, situation, noise.proposals)
    rows = situation.repeat(settings.num_samples)
    heads: list[list[int]] = noise.heads.tolist()
    for number in range(settings.iterations):
        futures = torch.cat([proposals, search.sample(noise.samples[number])], dim=2)
        values = judge(model, rows, futures.flatten(1, 2), noise.last[number].flatten(0, 1), heads[number], settings)
        best, places = values.view(len(mean[0]), -1).topk(settings.num_elites, dim=1)
        elites = futures.gather(2, places[None, :, :, None].expand(len(mean), -1, -1, futures.shape[-1]))
        weights = torch.exp(settings.temperature * (best - best[:, :1]))
        weights = weights / (weights.sum(1, keepdim=True) + SMALL)
        search.fit(elites, weights)
    drawn = (weights.log() + noise.elite).argmax(1)
    action = elites[0].gather(1, drawn[:, None, None].expand(-1, 1, elites.shape[-1]))[:, 0]
    if explore:
        action = search.explore(action, noise.action)
    return Plan(action, search.mean, best[:, 0], measure_spread(model, situation, action))


def propose(model: WorldModel, situation: Situation, noise: Tensor) -> Tensor:
    """Give what the policy would do, (H, N, P, action_dim), for noise of that shape."""
    steps, count, proposed, action_dim = noise.shape
    if proposed == 0:
        return noise
    rows = situation.repeat(proposed)
    latent, actions = rows.latent, []
    for number in range(steps):
        actions.append(model.act(latent, noise[number].flatten(0, 1), rows.task, rows.mask).action)
        if number + 1 < steps:
            latent = model.follow(join(latent, actions[-1], rows.task))
    return torch.stack(actions).view(steps, count, proposed, action_dim)


def judge(
    model: WorldModel, rows: Situation, actions: Tensor, last: Tensor, heads: list[int], settings: PlannerSettings
) -> Tensor:
    """Give the values of futures, (rows,): discounted rewards, and the value of where they end; what isn't finite is 0.

    Args:
        model: in eval mode.
        rows: of as many futures.
        actions: (H, rows, action_dim).
        last: (rows, action_dim), noise of the policy's action at the end.
        heads: value heads whose mean judges there.
        settings: say how much their spread takes off.
    """
    latent = rows.latent
    total = torch.zeros_like(rows.discount)
    factor = torch.ones_like(total)
    for action in actions:
        joint = join(latent, action, rows.task)
        total = total + factor * model.two_hot.decode(model.predict_reward(joint))
        latent = model.follow(joint)
        factor = factor * rows.discount
        if model.termination_head is not None:
            factor = factor * (torch.sigmoid(model.predict_end(latent, rows.task)) <= ENDED)
    joint = join(latent, model.act(latent, last, rows.task, rows.mask).action, rows.task)
    if settings.uncertainty_weight > 0:
        every = model.two_hot.decode(model.value(joint, None))
        value = every[heads].mean(0) - settings.uncertainty_weight * every.std(0, correction=0)
    else:
        value = model.Q(joint, heads, "avg")
    return (total + factor * value).nan_to_num(0.0, 0.0, 0.0)[:, 0]


def measure_spread(model: WorldModel, situation: Situation, action: Tensor) -> Tensor:
    """Give the deviation, (N,), of what all value heads say of actions (N, action_dim)."""
    values = model.two_hot.decode(model.value(join(situation.latent, action, situation.task), None))
    return values.std(0, correction=0)[:, 0]
