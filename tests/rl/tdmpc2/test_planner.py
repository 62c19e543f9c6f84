"""Plans are those of the paper, in worlds whose best actions are known; several at once are what single ones are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.tdmpc2.planner import (
    DiscreteSearch,
    NormalSearch,
    Plan,
    PlannerSettings,
    PlanNoise,
    Situation,
    draw_gumbel,
    draw_noise,
    plan,
    shift_plan,
)
from rl.tdmpc2.sizes import ModelSizes
from rl.tdmpc2.two_hot import TwoHot
from rl.tdmpc2.world_model import Choice, PolicyRange, Tasks, WorldModel, join

SETTINGS = PlannerSettings(
    horizon=3,
    iterations=3,
    num_samples=14,
    num_elites=5,
    num_pi_trajs=3,
    min_std=0.05,
    max_std=2.0,
    temperature=0.5,
)
CERTAIN = replace(SETTINGS, horizon=1, iterations=4, num_samples=64, num_elites=8, num_pi_trajs=0)
"""Enough to find the best of a single action that counts for much."""
CHI_SQUARE = {3: 16.3, 19: 43.8}
"""By degrees of freedom: what is exceeded once in a thousand times."""
WORLDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tasks": {"num_tasks": 2, "task_dim": 3},
    "ends": {"episodic": True},
    "discrete": {"discrete": True},
    "tasks that end": {"num_tasks": 2, "task_dim": 3, "episodic": True},
}
Part = Callable[[Tensor, Tensor], Tensor]


class Plain(TwoHot):
    """Numbers as they are."""

    def decode(self, logits: Tensor) -> Tensor:
        return logits


class Toy(WorldModel):
    """A world in closed form, of parts that take latent states and actions, (rows, dim) each.

    Args:
        action_dim: numbers of an action; `latent_dim` those of a latent state.
        move: gives the next latent states; those before and the actions added up unless told.
        pay: gives rewards, (rows, 1); 0 unless told.
        worth: gives the values of all heads, (num_q, rows, 1); 0 unless told.
        lead: gives the policy's actions for latent states and noise; 0 unless told.
        end: gives the logits of the task having ended, (rows, 1), for latent states.
    """

    def __init__(
        self,
        action_dim: int = 1,
        latent_dim: int = 1,
        *,
        move: Part = torch.add,
        pay: Part = lambda latent, action: torch.zeros_like(latent[:, :1]),
        worth: Part = lambda latent, action: latent.new_zeros(2, len(latent), 1),
        lead: Part = lambda latent, noise: torch.zeros_like(noise),
        end: Callable[[Tensor], Tensor] | None = None,
        discrete: bool = False,
    ) -> None:
        sizes = ModelSizes(
            obs_shape=(1,),
            action_dim=action_dim,
            discrete=discrete,
            latent_dim=latent_dim,
            mlp_dim=1,
            enc_dim=1,
            num_q=2,
            num_bins=2,
            simnorm_dim=1,
            episodic=end is not None,
        )
        super().__init__(sizes, Plain(-1, 1, 2), PolicyRange(-1, 1), 0.0)
        self.move, self.pay, self.worth, self.lead, self.end = move, pay, worth, lead, end

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        return joint[:, : self.sizes.latent_dim], joint[:, self.sizes.latent_dim :]

    def follow(self, joint: Tensor) -> Tensor:
        return self.move(*self.split(joint))

    def predict_reward(self, joint: Tensor) -> Tensor:
        return self.pay(*self.split(joint))

    def value(self, joint: Tensor, chosen: Sequence[int] | None, **_: Any) -> Tensor:
        values = self.worth(*self.split(joint))
        return values if chosen is None else values[list(chosen)]

    def act(self, latent: Tensor, noise: Tensor, task: Tensor | None = None, mask: Tensor | None = None) -> Choice:
        action = self.lead(latent, noise)
        return Choice(action, action, action[:, :1])

    def predict_end(self, latent: Tensor, task: Tensor | None = None) -> Tensor:
        assert self.end is not None
        return self.end(latent)


class Case(NamedTuple):
    """What `plan` is called with."""

    model: WorldModel
    situation: Situation
    mean: Tensor
    noise: PlanNoise
    settings: PlannerSettings

    def plan(self, *, explore: bool = False) -> Plan:
        return plan(self.model, self.situation, self.mean, self.noise, self.settings, explore=explore)

    def take(self, row: int) -> Case:
        """Give the case of one environment."""
        rows = slice(row, row + 1)
        noise = self.noise
        return self._replace(
            situation=Situation(*(None if part is None else part[rows] for part in self.situation)),  # type: ignore[arg-type]
            mean=self.mean[:, rows],
            noise=PlanNoise(
                noise.proposals[:, rows],
                noise.samples[:, :, rows],
                noise.last[:, rows],
                noise.heads,
                noise.elite[rows],
                noise.action[rows],
            ),
        )


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def draw(model: WorldModel, count: int, settings: PlannerSettings, number: int = 0) -> PlanNoise:
    sizes = model.sizes
    discrete, device = sizes.discrete, torch.device("cpu")
    return draw_noise(
        count, settings, sizes.action_dim, sizes.num_q, discrete=discrete, device=device, generator=seed(number)
    )


def build_case(count: int, settings: PlannerSettings = SETTINGS, **sizes: Any) -> Case:
    """Give a small world whose parameters are all drawn, and environments that each have another discount, and mask."""
    widths: dict[str, Any] = {"latent_dim": 8, "mlp_dim": 16, "enc_dim": 16, "num_bins": 11, "simnorm_dim": 4}
    model = WorldModel(ModelSizes((3,), 4, **widths, **sizes), TwoHot(-3, 3, 11), PolicyRange(-3, 1), 0.01).eval()
    generator = seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7, generator=generator)
        several = model.sizes.num_tasks > 0
        mask = (torch.arange(4) <= torch.arange(count)[:, None]).float() if several else None
        task = model.embed(Tasks(torch.arange(count) % 2, mask)) if mask is not None else None
        latent = model.encode(torch.randn(count, 3, generator=generator), task)
    discount = torch.linspace(0.6, 1, count)[:, None]
    mean = torch.rand(settings.horizon, count, 4, generator=generator) - (0 if model.sizes.discrete else 0.5)
    mean[:, 0] = 0
    return Case(model, Situation(latent, discount, task, mask), mean, draw(model, count, settings), settings)


def build_toy(model: Toy, settings: PlannerSettings = CERTAIN, *, count: int = 1, discount: float = 1.0) -> Case:
    """Give a closed world that begins with zeros."""
    situation = Situation(torch.zeros(count, model.sizes.latent_dim), torch.full((count, 1), discount))
    mean = torch.zeros(settings.horizon, count, model.sizes.action_dim)
    return Case(model, situation, mean, draw(model, count, settings), settings)


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("world", WORLDS)
def test_a_batch_of_plans_is_what_single_plans_with_the_same_noise_are(world: str, weight: float) -> None:
    case = build_case(5, replace(SETTINGS, uncertainty_weight=weight), **WORLDS[world])
    together = case.plan(explore=True)
    alone = [case.take(row).plan(explore=True) for row in range(5)]
    for name, axis in (("action", 0), ("mean", 1), ("value", 0), ("spread", 0)):
        expected = torch.cat([getattr(each, name) for each in alone], axis)
        torch.testing.assert_close(getattr(together, name), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together.mean[:, 0], together.mean[:, 1])


def imagine(case: Case, latent: Tensor, future: Tensor, last: Tensor, heads: Sequence[int]) -> float:
    """Give the value of one future, (H, action_dim), of one environment, step by step."""
    model, (_, discount, task, mask) = case.model, case.situation
    total, factor = 0.0, 1.0
    for action in future:
        joint = join(latent, action[None], task)
        total += factor * float(model.two_hot.decode(model.predict_reward(joint)))
        latent = model.follow(joint)
        factor *= float(discount)
        if model.sizes.episodic and float(model.predict_end(latent, task)) > 0:
            return total
    joint = join(latent, model.act(latent, last[None], task, mask).action, task)
    values = model.two_hot.decode(model.value(joint, None)).flatten().numpy()
    return total + factor * float(values[heads].mean() - case.settings.uncertainty_weight * values.std())


def propose_one(case: Case, noise: Tensor) -> Tensor:
    """Give what the policy does for noise (H, action_dim), (H, action_dim)."""
    latent, _, task, mask = case.situation
    actions = []
    for each in noise:
        actions.append(case.model.act(latent, each[None], task, mask).action[0])
        latent = case.model.follow(join(latent, actions[-1][None], task))
    return torch.stack(actions)


@torch.no_grad()
def plan_by_hand(case: Case) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Give the action, with as much noise as is left, the mean and the best value of one environment, as the paper
    reads: futures one after another.
    """
    settings, noise = case.settings, case.noise
    mask = 1.0 if case.situation.mask is None else case.situation.mask[0].numpy()
    proposals = [propose_one(case, noise.proposals[:, 0, number]) for number in range(settings.num_pi_trajs)]
    mean: NDArray[Any] = case.mean[:, 0].numpy().astype(float)
    std = np.full_like(mean, settings.max_std)
    for number in range(settings.iterations):
        drawn = noise.samples[number, :, 0].transpose(0, 1).numpy()
        sampled = np.clip(mean + std * drawn, -1, 1) * mask
        futures = [*proposals, *torch.from_numpy(sampled).float()]
        heads = noise.heads[number].tolist()
        values = np.array(
            [
                imagine(case, case.situation.latent, *pair, heads)
                for pair in zip(futures, noise.last[number, 0], strict=True)
            ]
        )
        order = np.argsort(-values)[: settings.num_elites]
        weights = np.exp(settings.temperature * (values[order] - values.max()))
        weights /= weights.sum()
        elites = np.stack([futures[place].numpy() for place in order])
        mean = np.tensordot(weights, elites, 1)
        std = np.sqrt(np.tensordot(weights, (elites - mean) ** 2, 1)).clip(settings.min_std, settings.max_std) * mask
    chosen = elites[np.argmax(np.log(weights) + noise.elite[0].numpy())]
    return np.clip(chosen[0] + std[0] * noise.action[0].numpy(), -1, 1), mean, values.max()


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("world", [world for world in WORLDS if world != "discrete"])
def test_a_plan_is_what_the_paper_says_future_by_future(world: str, weight: float) -> None:
    case = build_case(4, replace(SETTINGS, uncertainty_weight=weight), **WORLDS[world])
    for row in range(4):
        found = case.take(row).plan(explore=True)
        action, mean, value = plan_by_hand(case.take(row))
        np.testing.assert_allclose(found.action[0], action, atol=1e-4)
        np.testing.assert_allclose(found.mean[:, 0], mean, atol=1e-4)
        assert float(found.value) == pytest.approx(value, rel=1e-4, abs=1e-4)


def solve_riccati(*matrices: NDArray[np.float64], discount: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give P and K of `x' = A x + B u` at costs `x^T Q x + u^T R u` without end: the value is -x^T P x, u is -K x."""
    moved, pushed, state_cost, action_cost = matrices
    worth = state_cost
    for _ in range(1_000):
        ahead = discount * pushed.T @ worth
        gain = np.linalg.solve(action_cost + ahead @ pushed, ahead @ moved)
        worth = state_cost + discount * moved.T @ worth @ (moved - pushed @ gain)
    return worth, gain


@pytest.mark.parametrize("discount", [0.5, 0.95, 1.0])
def test_on_a_linear_quadratic_problem_the_first_action_is_within_a_twentieth_of_the_best(discount: float) -> None:
    random = np.random.default_rng(3)
    moved, pushed = 0.4 * random.normal(size=(3, 3)) + 0.5 * np.eye(3), random.normal(size=(3, 2))
    worth, gain = solve_riccati(moved, pushed, np.eye(3), np.eye(2), discount=discount)
    starts = random.normal(size=(6, 3))
    starts *= 0.7 / np.abs(starts @ gain.T).max(1, keepdims=True)
    a, b, p, k = (torch.from_numpy(matrix).float() for matrix in (moved, pushed, worth, gain))

    def move(latent: Tensor, action: Tensor) -> Tensor:
        return latent @ a.T + action @ b.T

    def pay(latent: Tensor, action: Tensor) -> Tensor:
        return -(latent.square().sum(-1, keepdim=True) + action.square().sum(-1, keepdim=True))

    def value(latent: Tensor, action: Tensor) -> Tensor:
        following = move(latent, action)
        return (pay(latent, action) - discount * ((following @ p) * following).sum(-1, keepdim=True)).expand(2, -1, -1)

    toy = Toy(2, 3, move=move, pay=pay, worth=value, lead=lambda latent, noise: -latent @ k.T)
    settings = PlannerSettings(3, 12, 1024, 64, 0, 0.002, 2.0, 0.5)
    case = build_toy(toy, settings, count=6, discount=discount)
    latent = torch.from_numpy(starts).float()
    found = case._replace(situation=case.situation._replace(latent=latent)).plan()
    best = -latent @ k.T
    assert ((found.action - best).norm(dim=1) <= 0.05 * best.norm(dim=1)).all()
    assert ((found.mean[0] - best).norm(dim=1) <= 0.05 * best.norm(dim=1)).all()
    torch.testing.assert_close(found.value, -((latent @ p) * latent).sum(1), rtol=0.01, atol=0.0)


def test_the_next_round_is_drawn_about_the_best_futures() -> None:
    goal = 0.3
    case = build_toy(
        Toy(pay=lambda latent, action: -(action - goal).abs()), replace(CERTAIN, iterations=1, max_std=0.5)
    )
    tried = (0.5 * case.noise.samples[0, 0, 0, :, 0]).clamp(-1, 1)
    values, places = (-(tried - goal).abs()).sort(descending=True)
    weights = (0.5 * (values[:8] - values[0])).exp()
    found = case.plan()
    torch.testing.assert_close(found.mean.flatten(), (weights @ tried[places[:8]] / weights.sum())[None])
    torch.testing.assert_close(found.value, values[:1])
    assert found.action in tried[places[:8]]


@pytest.mark.parametrize(("gain", "luck", "place"), [(200, 0, 0), (200, 1, 0), (200, 100, 7), (100_000, 100, 0)])
def test_better_elites_are_carried_out_more_often(gain: float, luck: float, place: int) -> None:
    case = build_toy(Toy(pay=lambda latent, action: gain * action), replace(CERTAIN, iterations=1, max_std=0.2))
    tried = 0.2 * case.noise.samples[0, 0, 0, :, 0].sort(descending=True).values
    assert luck == 100 or 100 * (tried[0] - tried[7]) > luck
    elite = torch.zeros_like(case.noise.elite)
    elite[0, 7] = luck
    found = case._replace(noise=case.noise._replace(elite=elite)).plan()
    assert found.action == tried[place]
    assert 0 <= tried[0] - found.mean < tried[0] - tried[1]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("other", [-1.0, 1.0])
def test_a_value_that_is_not_finite_counts_as_0(broken: float, other: float) -> None:
    toy = Toy(pay=lambda latent, action: torch.where(action > 0.5, broken, other))
    found = build_toy(toy).plan()
    assert (float(found.action) > 0.5) == (other < 0)
    assert float(found.value) == max(other, 0.0)


def test_a_policy_that_knows_the_answer_is_followed_in_the_first_round() -> None:
    goal = torch.linspace(-0.9, 0.9, 20)
    toy = Toy(
        *(20, 20),
        pay=lambda latent, action: -100 * (action - goal).abs().sum(-1, keepdim=True),
        lead=lambda latent, noise: goal + 0.001 * noise,
    )
    settings = replace(CERTAIN, iterations=1, num_samples=16, num_elites=4, num_pi_trajs=4)
    torch.testing.assert_close(build_toy(toy, settings).plan().action[0], goal, atol=0.01, rtol=0)
    alone = build_toy(toy, replace(settings, num_pi_trajs=0)).plan()
    assert float((alone.action - goal).abs().max()) > 0.5


def test_with_as_many_proposals_as_samples_nothing_but_the_policy_is_followed() -> None:
    toy = Toy(move=lambda latent, action: latent + 0.2, lead=lambda latent, noise: latent)
    settings = replace(SETTINGS, num_pi_trajs=SETTINGS.num_samples)
    found = build_toy(toy, settings, count=2).plan()
    torch.testing.assert_close(found.mean, torch.tensor([0.0, 0.2, 0.4])[:, None, None].expand(3, 2, 1))


def test_deviations_stay_between_their_bounds() -> None:
    settings = replace(SETTINGS, min_std=0.1, max_std=0.5)
    search = NormalSearch(torch.zeros(1, 1, 1), settings, None)
    noise = torch.ones(1, 1)
    assert float(search.explore(torch.zeros(1, 1), noise)) == 0.5
    even = torch.full((1, 2), 0.5)
    for elites, expected in (([0.2, 0.2], 0.1), ([-0.3, 0.3], 0.3), ([-1.0, 1.0], 0.5)):
        search.fit(torch.tensor(elites).view(1, 1, 2, 1), even)
        assert float(search.explore(torch.zeros(1, 1), noise)) == pytest.approx(expected)


def test_a_plan_begins_with_the_last_one_a_step_on() -> None:
    mean = torch.arange(6.0).view(3, 2, 1)
    assert shift_plan(mean).flatten().tolist() == [2, 3, 4, 5, 0, 0]
    settings = replace(SETTINGS, num_pi_trajs=0, max_std=0.01, min_std=0.01)
    begun = torch.tensor([0.5, -0.5, 0.2])[:, None, None].expand(3, 2, 1)
    found = build_toy(Toy(), settings, count=2)._replace(mean=begun).plan()
    torch.testing.assert_close(found.mean, begun, atol=0.1, rtol=0)


@pytest.mark.parametrize("explore", [False, True])
def test_actions_that_a_task_lacks_stay_0(explore: bool) -> None:
    case = build_case(4, num_tasks=2, task_dim=3)
    found = case.plan(explore=explore)
    assert case.situation.mask is not None
    lacking = case.situation.mask == 0
    assert lacking.sum() == 6
    assert (found.action[lacking] == 0).all()
    assert (found.mean[:, lacking] == 0).all()
    assert (found.action[~lacking] != 0).all()


def test_without_exploring_the_same_noise_gives_the_same_action() -> None:
    case = build_case(3)
    first, second = case.plan(), case.plan()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mean", [0.0, 0.9])
def test_exploring_adds_the_last_deviation_times_noise_and_changes_nothing_else(mean: float) -> None:
    settings = replace(SETTINGS, min_std=0.25, max_std=0.25)
    case = build_case(3, settings)
    case = case._replace(mean=torch.full_like(case.mean, mean))
    still, noisy = case.plan(), case.plan(explore=True)
    torch.testing.assert_close(noisy.action, (still.action + 0.25 * case.noise.action).clamp(-1, 1))
    assert torch.equal(still.mean, noisy.mean)
    assert torch.equal(still.value, noisy.value)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ((1,), 1.0),
        ((1, 2, 3), 1.0),
        ((2,), 1 + 0.5),
        ((3,), 1 + 0.5 + 0.25),
        ((), 1 + 0.5 + 0.25 + 0.125 * 100),
    ],
)
def test_nothing_counts_after_the_end_of_a_task(ended: tuple[int, ...], expected: float) -> None:
    def end(latent: Tensor) -> Tensor:
        return torch.where(torch.isin(latent, torch.tensor(ended, dtype=torch.float32)), 0.1, 0.0)

    toy = Toy(
        move=lambda latent, action: latent + 1,
        pay=lambda latent, action: torch.ones_like(latent),
        worth=lambda latent, action: torch.full((2, len(latent), 1), 100.0),
        end=end,
    )
    assert float(build_toy(toy, SETTINGS, discount=0.5).plan().value) == expected


def test_the_planner_goes_where_heads_disagree_unless_their_spread_is_taken_off() -> None:
    def worth(latent: Tensor, action: Tensor) -> Tensor:
        doubtful = (latent + action > 0).float()
        return torch.stack([0.5 + doubtful * gain for gain in (0.1, 0.9)])

    case = build_toy(Toy(worth=worth))
    bold = case.plan()
    shy = case._replace(settings=replace(case.settings, uncertainty_weight=5.0)).plan()
    assert float(bold.action) > 0
    assert float(bold.value) == pytest.approx(1.0)
    assert float(bold.spread) == pytest.approx(0.4)
    assert float(shy.action) < 0
    assert float(shy.value) == pytest.approx(0.5)
    assert float(shy.spread) == 0


def test_the_spread_is_the_deviation_over_all_heads_of_the_action_that_is_carried_out() -> None:
    case = build_case(3, num_q=7, num_tasks=2, task_dim=3)
    found = case.plan(explore=True)
    joint = join(case.situation.latent, found.action, case.situation.task)
    values = case.model.two_hot.decode(case.model.value(joint, None)).detach()[..., 0].numpy()
    assert values.shape == (7, 3)
    np.testing.assert_allclose(found.spread, values.std(axis=0), rtol=1e-5)


def test_discrete_actions_are_as_probable_as_elites_weigh_and_keep_a_share_of_even_chance() -> None:
    search = DiscreteSearch(torch.zeros(1, 2, 4), replace(SETTINGS, min_std=0.2))
    assert torch.equal(search.mean, torch.full((1, 2, 4), 0.25))
    elites = torch.eye(4)[torch.tensor([1, 2, 1])].expand(1, 2, 3, 4)
    for _ in range(3):
        search.fit(elites, torch.tensor([[0.1, 0.5, 0.4], [0.0, 0.0, 1.0]]))
        torch.testing.assert_close(search.mean[0, 0], torch.tensor([0.05, 0.45, 0.45, 0.05]))
        torch.testing.assert_close(search.mean[0, 1], torch.tensor([0.05, 0.85, 0.05, 0.05]))


def test_a_discrete_plan_begins_half_way_between_the_last_one_and_none() -> None:
    sure = torch.tensor([[[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    search = DiscreteSearch(sure, replace(SETTINGS, min_std=0.05))
    torch.testing.assert_close(search.mean[0, 0], torch.tensor([0.125, 0.625, 0.125, 0.125]))
    torch.testing.assert_close(search.mean[1, 0], torch.full((4,), 0.25))


@pytest.mark.parametrize("num_pi_trajs", [0, 3, SETTINGS.num_samples])
def test_discrete_actions_are_one_1_among_zeros(num_pi_trajs: int) -> None:
    case = build_case(40, replace(SETTINGS, num_pi_trajs=num_pi_trajs), discrete=True)
    found = case.plan(explore=True)
    assert torch.equal(found.action.sort(-1).values, torch.eye(4)[3].expand(40, 4))
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(3, 40))
    assert (found.mean >= SETTINGS.min_std / 4 - 1e-6).all()


@pytest.mark.parametrize("best", range(5))
def test_the_best_arm_of_a_bandit_is_found(best: int) -> None:
    gains = torch.where(torch.arange(5) == best, 5.0, torch.linspace(0, 1, 5))
    toy = Toy(5, 5, pay=lambda latent, action: action @ gains[:, None], discrete=True)
    settings = replace(SETTINGS, num_samples=400, num_elites=20, num_pi_trajs=0, iterations=6)
    found = build_toy(toy, settings).plan()
    assert found.action.argmax() == best
    assert float(found.value) == 15
    assert (found.mean[:, 0, best] > 0.9).all()


def test_noise_has_a_number_for_all_that_is_drawn() -> None:
    model = build_case(1, num_q=6).model
    noise = draw(model, 7, SETTINGS)
    shapes = [(3, 7, 3, 4), (3, 3, 7, 11, 4), (3, 7, 14, 4), (3, 2), (7, 5), (7, 4)]
    assert [tuple(part.shape) for part in noise] == shapes
    for part, again, other in zip(noise, draw(model, 7, SETTINGS), draw(model, 7, SETTINGS, 1), strict=True):
        assert torch.equal(part, again)
        assert part is noise.heads or not torch.equal(part, other)


def test_value_heads_are_two_different_ones_and_each_pair_is_as_probable() -> None:
    heads = draw(build_case(1).model, 1, replace(SETTINGS, iterations=4_000)).heads
    assert (heads[:, 0] != heads[:, 1]).all()
    counts = torch.bincount(5 * heads[:, 0] + heads[:, 1], minlength=25)
    pairs = counts[counts > 0]
    assert len(pairs) == 20
    assert float(((pairs - 200).square() / 200).sum()) < CHI_SQUARE[19]


def test_gumbel_numbers_draw_as_probable_as_logarithms_say() -> None:
    probable = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = (probable.log() + draw_gumbel((4_000, 4), torch.device("cpu"), seed())).argmax(-1)
    expected = 4_000 * probable
    assert float(((torch.bincount(drawn) - expected).square() / expected).sum()) < CHI_SQUARE[3]
