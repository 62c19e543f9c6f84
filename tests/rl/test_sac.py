"""The arithmetic of SAC, against references that share no code with it."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rl.buffers import Batch
from rl.residual import ActionMap
from rl.sac import SACAgent, actor_loss, count_parameters, critic_loss, sample_actions, temperature_loss
from rl.sac_config import SACConfig
from training.adam import Adam

OBS, ACTION, BATCH = 4, 2, 48
ALONE = ActionMap(ACTION)


def make_agent(**settings: Any) -> SACAgent:
    """An agent in float64 whose targets differ from its networks."""
    defaults = {"algorithm_name": "sac", "env_name": "Pendulum-v1", "hidden_dims": [12, 8]}
    config = SACConfig.from_settings(defaults | {"learning_rate": 1e-2, "tau": 0.1} | settings)
    agent = SACAgent(config, OBS, ACTION, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    agent.actor.double()
    agent.actor.mlp.initialise(generator, final_bound=0.5)
    for twins in (agent.critic, agent.target_critic):
        twins.double()
        for critic in (twins.first, twins.second):
            critic.mlp.initialise(generator, final_bound=0.5)
    with torch.no_grad():
        agent.log_temperature = agent.log_temperature.double().requires_grad_(config.temperature is None)
    rates = (agent.actor_optimizer, agent.critic_optimizer, agent.temperature_optimizer)
    # Their moments have to be in float64 too.
    agent.actor_optimizer = Adam(list(agent.actor.parameters()), rates[0].learning_rate)
    agent.critic_optimizer = Adam(list(agent.critic.parameters()), rates[1].learning_rate)
    agent.temperature_optimizer = Adam([agent.log_temperature], rates[2].learning_rate)
    return agent


def make_batch(seed: int = 0) -> Batch:
    """A batch in float64 whose rows have discounts of their own, as n-step returns give them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(columns: int) -> torch.Tensor:
        return torch.randn(BATCH, columns, generator=generator, dtype=torch.float64)

    terminated = (torch.rand(BATCH, 1, generator=generator) < 0.3).double()
    discount = 0.5 + 0.5 * torch.rand(BATCH, 1, generator=generator, dtype=torch.float64)
    return Batch(draw(OBS), draw(ACTION).clamp(-1, 1), draw(1), terminated, draw(OBS), discount)


def draw_noise(seed: int) -> torch.Tensor:
    return torch.randn(BATCH, ACTION, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def describe(actor: Any, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Give means, deviations, and torch's own squashed distribution of a policy."""
    mean, log_std = torch.split(actor.mlp(obs), ACTION, dim=1)
    std = torch.exp(torch.clamp(log_std, -20, 2))
    squashed = TransformedDistribution(Normal(mean, std, validate_args=False), [TanhTransform()], validate_args=False)
    return mean, std, Independent(squashed, 1, validate_args=False)


def test_densities_are_those_of_a_squashed_normal_distribution() -> None:
    agent, batch, noise = make_agent(), make_batch(), draw_noise(3)
    actions, log_density = sample_actions(agent.actor, batch.obs, noise)
    mean, std, distribution = describe(agent.actor, batch.obs)
    torch.testing.assert_close(actions, torch.tanh(mean + std * noise), rtol=1e-12, atol=1e-12)
    assert log_density.shape == (BATCH, 1)
    torch.testing.assert_close(log_density[:, 0], distribution.log_prob(actions), rtol=1e-6, atol=1e-8)


def test_densities_stay_finite_and_right_where_tanh_rounds_to_one() -> None:
    agent, noise = make_agent(), torch.full((1, ACTION), 30.0, dtype=torch.float64)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
    actions, log_density = sample_actions(agent.actor, torch.zeros(1, OBS, dtype=torch.float64), noise)
    assert actions.tolist() == [[1.0, 1.0]]
    # Of one action: the normal density at 30, over 1 - tanh(30)^2, which is 4 exp(-60) but for a factor of 1 + 1e-26.
    single = -450 - 0.5 * math.log(2 * math.pi) - (math.log(4) - 60)
    assert log_density.item() == pytest.approx(2 * single, rel=1e-12)


def test_the_critic_loss_is_the_one_written_by_hand() -> None:
    agent, batch, noise = make_agent(), make_batch(), draw_noise(4)
    temperature = torch.tensor(0.7, dtype=torch.float64)
    with torch.no_grad():
        mean, std, distribution = describe(agent.actor, batch.next_obs)
        action = torch.tanh(mean + std * noise)
        values = [critic(batch.next_obs, action) for critic in (agent.target_critic.first, agent.target_critic.second)]
        future = torch.min(*values) - 0.7 * distribution.log_prob(action)[:, None]
        future = torch.where(batch.terminated == 1, torch.zeros_like(future), future)
        target = batch.reward + batch.discount * future
        first, second = (critic(batch.obs, batch.action) for critic in (agent.critic.first, agent.critic.second))
    loss, metrics = critic_loss(agent.critic, agent.actor, agent.target_critic, batch, ALONE, temperature, noise)
    expected = ((first - target) ** 2).mean() + ((second - target) ** 2).mean()
    assert loss.item() == metrics["train/critic_loss"].item() == pytest.approx(expected.item(), rel=1e-7)
    assert metrics["train/q_mean"].item() == pytest.approx(first.mean().item(), rel=1e-12)
    assert metrics["train/target_std"].item() == pytest.approx(target.numpy().std(), rel=1e-7)


def test_the_actor_loss_is_the_one_written_by_hand() -> None:
    agent, batch, noise = make_agent(), make_batch(), draw_noise(5)
    temperature = torch.tensor(0.7, dtype=torch.float64)
    mean, std, distribution = describe(agent.actor, batch.obs)
    action = torch.tanh(mean + std * noise)
    log_density = distribution.log_prob(action)
    value = torch.min(agent.critic.first(batch.obs, action), agent.critic.second(batch.obs, action))[:, 0]
    expected = (0.7 * log_density - value).mean()
    gradients = torch.autograd.grad(expected, list(agent.actor.parameters()))
    loss, metrics = actor_loss(agent.actor, agent.critic, batch, ALONE, temperature, noise)
    assert loss.item() == metrics["train/actor_loss"].item() == pytest.approx(expected.item(), rel=1e-7)
    assert metrics["train/entropy"].item() == pytest.approx(-log_density.mean().item(), rel=1e-7)
    for ours, theirs in zip(torch.autograd.grad(loss, list(agent.actor.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_corrections_are_added_to_the_base_action_before_they_are_valued() -> None:
    """The entropy is that of the policy's own action."""
    agent, batch, noise = make_agent(), make_batch(), draw_noise(6)
    temperature = torch.tensor(0.7, dtype=torch.float64)

    def judge(critics: Any, obs: torch.Tensor) -> torch.Tensor:
        mean, std, distribution = describe(agent.actor, obs)
        own = torch.tanh(mean + std * noise)
        executed = torch.clamp(obs[:, -ACTION:] + 0.25 * own, -1, 1)
        values = (critic(obs, executed) for critic in (critics.first, critics.second))
        soft_value: torch.Tensor = torch.min(*values) - 0.7 * distribution.log_prob(own)[:, None]
        return soft_value

    residual = ActionMap(ACTION, 0.25)
    loss, _ = actor_loss(agent.actor, agent.critic, batch, residual, temperature, noise)
    assert loss.item() == pytest.approx(-judge(agent.critic, batch.obs).mean().item(), rel=1e-7)
    _, metrics = critic_loss(agent.critic, agent.actor, agent.target_critic, batch, residual, temperature, noise)
    future = batch.discount * (1 - batch.terminated) * judge(agent.target_critic, batch.next_obs)
    expected = (batch.reward + future).detach().numpy().std()
    assert metrics["train/target_std"].item() == pytest.approx(expected, rel=1e-7)


def test_the_entropy_to_come_to_is_minus_the_number_of_actions_unless_set() -> None:
    """Of a policy whose entropy is between two targets, the temperature falls for the one and rises for the other."""
    for settings, rises in (({}, False), ({"target_entropy": 10.0}, True)):
        agent = make_agent(**settings)
        assert -2 < agent.update(make_batch())["train/entropy"].item() < 10
        assert (agent.log_temperature.item() > 0) == rises


@pytest.mark.parametrize(("entropy", "rises"), [(-3.0, True), (-1.0, False)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target(entropy: float, rises: bool) -> None:
    log_temperature = torch.tensor(0.3, requires_grad=True)
    temperature_loss(log_temperature, torch.tensor(entropy), target_entropy=-2.0).backward()
    assert log_temperature.grad is not None
    assert (log_temperature.grad.item() < 0) == rises


class PlainSAC:
    """SAC as a textbook writes it: torch's distributions and optimizers, every network on its own."""

    def __init__(self, agent: SACAgent) -> None:
        self.actor = copy.deepcopy(agent.actor)
        self.critics = [copy.deepcopy(critic) for critic in (agent.critic.first, agent.critic.second)]
        self.targets = [copy.deepcopy(critic) for critic in (agent.target_critic.first, agent.target_critic.second)]
        self.log_temperature = agent.log_temperature.detach().clone().requires_grad_()
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-2, foreach=False)
        self.critic_adams = [torch.optim.Adam(critic.parameters(), lr=1e-2, foreach=False) for critic in self.critics]
        self.temperature_adam = torch.optim.Adam([self.log_temperature], lr=1e-2, foreach=False)

    def update(self, batch: Batch, noise: tuple[torch.Tensor, torch.Tensor]) -> None:
        temperature = self.log_temperature.exp().item()
        with torch.no_grad():
            mean, std, distribution = describe(self.actor, batch.next_obs)
            action = torch.tanh(mean + std * noise[0])
            future = torch.min(*(target(batch.next_obs, action) for target in self.targets))
            future = future - temperature * distribution.log_prob(action)[:, None]
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            adam.zero_grad()
            target = batch.reward + batch.discount * (1 - batch.terminated) * future
            ((critic(batch.obs, batch.action) - target) ** 2).mean().backward()
            adam.step()
        self.actor_adam.zero_grad()
        mean, std, distribution = describe(self.actor, batch.obs)
        action = torch.tanh(mean + std * noise[1])
        log_density = distribution.log_prob(action)
        value = torch.min(*(critic(batch.obs, action) for critic in self.critics))[:, 0]
        (temperature * log_density - value).mean().backward()
        self.actor_adam.step()
        self.temperature_adam.zero_grad()
        (-self.log_temperature * (log_density.detach() - ACTION).mean()).backward()
        self.temperature_adam.step()
        for slow, fast in zip(self.targets, self.critics, strict=True):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data = 0.9 * old.data + 0.1 * new.data


def test_fifty_updates_equal_those_of_a_plain_implementation() -> None:
    agent = make_agent()
    plain, generator = PlainSAC(agent), torch.Generator()
    generator.set_state(agent.state_dict()["sampling"])
    for number in range(50):
        batch = make_batch(number)
        metrics = agent.update(batch)
        first = torch.empty(BATCH, ACTION, dtype=torch.float64).normal_(generator=generator)
        plain.update(batch, (first, torch.empty(BATCH, ACTION, dtype=torch.float64).normal_(generator=generator)))
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (agent.actor, plain.actor),
        (agent.critic.first, plain.critics[0]),
        (agent.critic.second, plain.critics[1]),
        (agent.target_critic.first, plain.targets[0]),
        (agent.target_critic.second, plain.targets[1]),
    ]
    for ours, theirs in pairs:
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(agent.log_temperature, plain.log_temperature, rtol=1e-6, atol=1e-8)
    assert agent.log_temperature.item() != 0
    assert set(metrics) == {
        "train/critic_loss",
        "train/actor_loss",
        "train/q_mean",
        "train/target_std",
        "train/entropy",
        "train/temperature",
    }


def test_a_fixed_temperature_stays_and_is_used() -> None:
    agent = make_agent(temperature=0.25)
    metrics = [agent.update(make_batch(number)) for number in range(3)]
    assert [round(each["train/temperature"].item(), 6) for each in metrics] == [0.25] * 3


def test_restored_parts_go_on_as_if_never_stopped() -> None:
    straight, resumed = make_agent(), make_agent()
    for number in range(3):
        straight.update(make_batch(number))
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    obs = np.ones((2, OBS), dtype=np.float32)
    assert np.array_equal(straight.explore(obs), resumed.explore(obs))
    for number in range(3, 6):
        ours, theirs = straight.update(make_batch(number)), resumed.update(make_batch(number))
        assert {name: value.item() for name, value in ours.items()} == {
            name: value.item() for name, value in theirs.items()
        }


def test_exploring_draws_from_the_policy_and_acting_takes_its_mean() -> None:
    settings = {"algorithm_name": "sac", "env_name": "Pendulum-v1", "hidden_dims": [16]}
    agent = SACAgent(SACConfig.from_settings(settings), OBS, 1, torch.device("cpu"))
    agent.actor.mlp.initialise(torch.Generator().manual_seed(0), final_bound=0.5)
    obs = np.random.default_rng(0).standard_normal((1, OBS), dtype=np.float32)
    with torch.no_grad():
        mean, log_std = (part.item() for part in agent.actor(torch.from_numpy(obs)))
    assert agent.act(obs).item() == pytest.approx(math.tanh(mean), rel=1e-5)
    drawn = np.arctanh(np.concatenate([agent.explore(obs) for _ in range(4_000)])[:, 0].astype(np.float64))
    assert np.mean(drawn) == pytest.approx(mean, abs=0.06 * math.exp(log_std))
    assert np.std(drawn) == pytest.approx(math.exp(log_std), rel=0.06)


def test_parameter_counts_are_the_closed_form() -> None:
    settings = {"algorithm_name": "sac", "env_name": "HalfCheetah-v5", "hidden_dims": [64, 32]}

    def count(sizes: list[int]) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))

    expected = {"actor": count([17, 64, 32, 12]), "critic": 2 * count([23, 64, 32, 1])}
    assert count_parameters(SACConfig.from_settings(settings)) == expected


@pytest.mark.parametrize(
    ("settings", "inactive"),
    [
        ({"target_entropy": -2.0, "temperature_learning_rate": 1e-3}, set()),
        (
            {"target_entropy": -2.0, "temperature_learning_rate": 1e-3, "temperature": 0.2},
            {"target_entropy", "temperature_learning_rate"},
        ),
        ({"learning_rate": 1e-3, "actor_learning_rate": 1e-4, "critic_learning_rate": 1e-3}, set()),
        (
            {"learning_rate": 1e-3, "actor_learning_rate": 1e-4, "critic_learning_rate": 1e-3, "temperature": 0.2},
            {"learning_rate"},
        ),
    ],
)
def test_switched_off_keys_are_named(settings: dict[str, Any], inactive: set[str]) -> None:
    """The temperature's optimizer takes `learning_rate` too, where it has no rate of its own."""
    config = SACConfig.from_settings({"algorithm_name": "sac", "env_name": "Pendulum-v1"} | settings)
    assert set(config.inactive_keys()) == inactive
