"""The arithmetic of the offline algorithms, against references that share no code with them."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rl.buffers import Batch
from rl.offline import bc, iql, td3_bc
from rl.offline.bc import BCAgent
from rl.offline.iql import IQLAgent
from rl.offline.td3_bc import TD3BCAgent
from rl.residual import ActionMap
from train import build_config, find_trainer
from training.adam import Adam
from training.losses import expectile_loss

OBS, ACTION, BATCH = 4, 2, 48
STEPS = 200
AGENTS: dict[str, Any] = {"bc": BCAgent, "td3_bc": TD3BCAgent, "iql": IQLAgent}


def make_agent(algorithm: str, **settings: Any) -> Any:
    """An agent in float64 whose targets differ from its networks."""
    defaults = {"env_name": "Pendulum-v1", "dataset": "x.h5", "hidden_dims": [12, 8], "learning_rate": 1e-2}
    more = {} if algorithm == "bc" else {"tau": 0.1}
    config = build_config({"algorithm_name": algorithm, "max_timesteps": STEPS} | defaults | more | settings)
    agent = AGENTS[algorithm](config, OBS, ACTION, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for name, network in vars(agent).items():
        if isinstance(network, nn.Module):
            network.double()
            for parameter in network.parameters():
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
            if f"{name}_optimizer" in vars(agent):  # its moments have to be in float64 too
                setattr(agent, f"{name}_optimizer", Adam(list(network.parameters()), 1e-2))
    return agent


def make_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(columns: int) -> torch.Tensor:
        return torch.randn(BATCH, columns, generator=generator, dtype=torch.float64)

    terminated = (torch.rand(BATCH, 1, generator=generator) < 0.3).double()
    discount = torch.tensor(0.9, dtype=torch.float64)
    return Batch(draw(OBS), draw(ACTION).clamp(-1, 1), draw(1), terminated, draw(OBS), discount)


def run_forward(mlp: Any, features: Any) -> Any:
    """Give an MLP's output in NumPy."""
    layers = list(mlp.layers)
    for number, layer in enumerate(layers):
        features = features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if number < len(layers) - 1:
            features = np.maximum(features, 0)
    return features


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
def test_the_expectile_loss_is_least_at_the_expectile(expectile: float) -> None:
    """Of numbers spread evenly over 0 to 1 it is `sqrt(e) / (sqrt(e) + sqrt(1 - e))`: where its slope is 0."""
    points = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    expected = math.sqrt(expectile) / (math.sqrt(expectile) + math.sqrt(1 - expectile))
    slopes = []
    for estimate in (expected - 1e-3, expected, expected + 1e-3):
        at = torch.tensor(estimate, dtype=torch.float64, requires_grad=True)
        expectile_loss(points - at, expectile).backward()
        assert at.grad is not None
        slopes.append(at.grad.item())
    assert slopes[0] < -1e-5
    assert slopes[1] == pytest.approx(0, abs=1e-8)
    assert slopes[2] > 1e-5


def test_the_cloning_loss_is_the_mean_squared_error() -> None:
    agent, batch = make_agent("bc"), make_batch()
    loss, metrics = bc.actor_loss(agent.actor, batch)
    error = np.tanh(run_forward(agent.actor.mlp, batch.obs.numpy())) - batch.action.numpy()
    assert loss.item() == metrics["train/actor_loss"].item() == pytest.approx((error**2).mean(), rel=1e-12)


def test_td3_bcs_actor_loss_is_the_one_written_by_hand() -> None:
    agent, batch = make_agent("td3_bc"), make_batch()
    own = np.tanh(run_forward(agent.actor.mlp, batch.obs.numpy()))
    values = run_forward(agent.critic.first.mlp, np.hstack([batch.obs.numpy(), own]))
    cloning = ((own - batch.action.numpy()) ** 2).mean()
    expected = cloning - 2.5 * values.mean() / np.abs(values).mean()
    loss, metrics = td3_bc.actor_loss(agent.actor, agent.critic, batch, 2.5, ActionMap(ACTION))
    assert loss.item() == metrics["train/actor_loss"].item() == pytest.approx(expected, rel=1e-12)
    assert metrics["train/bc_loss"].item() == pytest.approx(cloning, rel=1e-12)


def test_the_unit_of_reward_drops_out_of_td3_bcs_gradient() -> None:
    agent, batch = make_agent("td3_bc"), make_batch()
    parameters = list(agent.actor.parameters())

    def give_gradient() -> list[torch.Tensor]:
        loss, _ = td3_bc.actor_loss(agent.actor, agent.critic, batch, 2.5, ActionMap(ACTION))
        return list(torch.autograd.grad(loss, parameters))

    before = give_gradient()
    with torch.no_grad():
        for parameter in agent.critic.first.mlp.layers[-1].parameters():
            parameter.mul_(200)
    torch.testing.assert_close(give_gradient(), before, rtol=1e-9, atol=1e-12)


def test_iqls_value_loss_is_the_one_written_by_hand() -> None:
    agent, batch = make_agent("iql"), make_batch()
    features = np.hstack([batch.obs.numpy(), batch.action.numpy()])
    targets = agent.target_critic
    values = [run_forward(critic.mlp, features) for critic in (targets.first, targets.second)]
    assert (values[0] < values[1]).any()
    assert (values[0] > values[1]).any()
    error = np.minimum(*values) - run_forward(agent.value, batch.obs.numpy())
    expected = np.where(error > 0, 0.8 * error**2, 0.2 * error**2).mean()
    loss, advantage, metrics = iql.value_loss(agent.value, targets, batch, 0.8)
    assert loss.item() == metrics["train/value_loss"].item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(advantage.numpy(), error, rtol=1e-12)
    assert not advantage.requires_grad


def test_iqls_actor_loss_is_the_one_written_by_hand() -> None:
    agent, batch = make_agent("iql"), make_batch()
    advantage = 2 * make_batch(7).reward
    assert (3 * advantage > math.log(100)).any()
    mean = np.tanh(run_forward(agent.actor.mean.mlp, batch.obs.numpy()))
    std = torch.exp(agent.actor.log_std.detach())
    density = torch.distributions.Normal(torch.from_numpy(mean), std).log_prob(batch.action).sum(1).numpy()
    weight = np.minimum(np.exp(3 * advantage.numpy()[:, 0]), 100)
    loss, metrics = iql.actor_loss(agent.actor, batch, advantage, 3.0)
    assert loss.item() == pytest.approx(-(weight * density).mean(), rel=1e-12)
    assert metrics["train/weight_mean"].item() == pytest.approx(weight.mean(), rel=1e-12)
    assert metrics["train/weight_clipped"].item() == pytest.approx((weight == 100).mean(), rel=1e-6)


def test_iqls_critic_loss_is_the_one_written_by_hand() -> None:
    agent, batch = make_agent("iql"), make_batch()
    future = 0.9 * (1 - batch.terminated.numpy()) * run_forward(agent.value, batch.next_obs.numpy())
    target = batch.reward.numpy() + future
    features = np.hstack([batch.obs.numpy(), batch.action.numpy()])
    first, second = (run_forward(critic.mlp, features) for critic in (agent.critic.first, agent.critic.second))
    loss, metrics = iql.critic_loss(agent.critic, agent.value, batch)
    expected = ((first - target) ** 2).mean() + ((second - target) ** 2).mean()
    assert loss.item() == metrics["train/critic_loss"].item() == pytest.approx(expected, rel=1e-12)
    assert metrics["train/q_mean"].item() == pytest.approx(first.mean(), rel=1e-12)
    assert metrics["train/target_std"].item() == pytest.approx(target.std(), rel=1e-12)


def build_adam(*networks: Any) -> torch.optim.Adam:
    return torch.optim.Adam([p for network in networks for p in network.parameters()], lr=1e-2, foreach=False)


class PlainIQL:
    """IQL as a textbook writes it: no fused kernels, no pruned gradients."""

    def __init__(self, agent: IQLAgent) -> None:
        self.actor, self.value = copy.deepcopy(agent.actor), copy.deepcopy(agent.value)
        self.critic, self.target_critic = copy.deepcopy(agent.critic), copy.deepcopy(agent.target_critic)
        self.adams = [build_adam(network) for network in (self.value, self.actor, self.critic)]
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adams[1], STEPS)

    def update(self, batch: Batch) -> None:
        value_adam, actor_adam, critic_adam = self.adams
        best = torch.min(*self.target_critic(batch.obs, batch.action)).detach()
        advantage = best - self.value(batch.obs)
        weight = torch.abs(0.7 - (advantage < 0).double())
        value_adam.zero_grad()
        (weight * advantage**2).mean().backward()
        value_adam.step()
        actor_adam.zero_grad()
        normal = torch.distributions.Normal(self.actor.mean(batch.obs), self.actor.log_std.exp())
        density = normal.log_prob(batch.action).sum(1, keepdim=True)
        (-(torch.exp(3 * advantage.detach()).clamp(max=100) * density).mean()).backward()
        actor_adam.step()
        self.schedule.step()
        target = batch.reward + 0.9 * torch.where(batch.terminated == 1, 0.0, self.value(batch.next_obs)).detach()
        critic_adam.zero_grad()
        for estimate in self.critic(batch.obs, batch.action):
            ((estimate - target) ** 2).mean().backward(retain_graph=True)
        critic_adam.step()
        for old, new in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            old.data = 0.9 * old.data + 0.1 * new.data


class PlainTD3BC:
    """TD3+BC as a textbook writes it."""

    def __init__(self, agent: TD3BCAgent, delay: int) -> None:
        self.actor, self.target_actor = copy.deepcopy(agent.actor), copy.deepcopy(agent.target_actor)
        self.critic, self.target_critic = copy.deepcopy(agent.critic), copy.deepcopy(agent.target_critic)
        self.actor_adam, self.critic_adam = build_adam(self.actor), build_adam(self.critic)
        self.delay, self.number = delay, 0

    def update(self, batch: Batch, normal: torch.Tensor) -> None:
        with torch.no_grad():
            action = self.target_actor(batch.next_obs) + torch.clamp(0.2 * normal, -0.5, 0.5)
            future = torch.min(*self.target_critic(batch.next_obs, torch.clamp(action, -1, 1)))
            target = batch.reward + 0.9 * torch.where(batch.terminated == 1, torch.zeros_like(future), future)
        self.critic_adam.zero_grad()
        for estimate in self.critic(batch.obs, batch.action):
            ((estimate - target) ** 2).mean().backward()
        self.critic_adam.step()
        self.number += 1
        if self.number % self.delay:
            return
        own = self.actor(batch.obs)
        values = self.critic.first(batch.obs, own)
        self.actor_adam.zero_grad()
        (-(1.5 / values.abs().mean().detach()) * values.mean() + ((own - batch.action) ** 2).mean()).backward()
        self.actor_adam.step()
        for slow, fast in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data = 0.9 * old.data + 0.1 * new.data


def assert_same_networks(names: list[str], one: Any, other: Any) -> None:
    for name in names:
        pairs = zip(getattr(one, name).parameters(), getattr(other, name).parameters(), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def test_fifty_updates_of_iql_equal_those_of_a_plain_implementation() -> None:
    agent = make_agent("iql")
    plain = PlainIQL(agent)
    for number in range(50):
        agent.update(make_batch(number))
        plain.update(make_batch(number))
    assert_same_networks(["actor", "value", "critic", "target_critic"], agent, plain)


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_fifty_updates_of_td3_bc_equal_those_of_a_plain_implementation(delay: int) -> None:
    agent = make_agent("td3_bc", policy_delay=delay, q_weight=1.5)
    plain, generator = PlainTD3BC(agent, delay), torch.Generator()
    generator.set_state(agent.state_dict()["smoothing"])
    for number in range(50):
        metrics = agent.update(make_batch(number))
        normal = torch.empty(BATCH, ACTION, dtype=torch.float64).normal_(generator=generator)
        plain.update(make_batch(number), normal)
        assert ("train/bc_loss" in metrics) == ((number + 1) % delay == 0)
    assert_same_networks(["actor", "target_actor", "critic", "target_critic"], agent, plain)


def test_the_actors_learning_rate_of_iql_falls_to_nothing_and_a_treatment_halves_all() -> None:
    agent, rates = make_agent("iql"), []
    for number in range(STEPS):
        agent.update(make_batch(number))
        rates.append(agent.actor_optimizer.learning_rate)
        if number == STEPS // 2 - 1:
            agent.scale_learning_rates(0.5)
    assert rates[0] == 1e-2
    assert rates[STEPS // 2] == pytest.approx(0.5 * 0.5e-2)
    assert rates[-1] < 1e-6
    assert agent.critic_optimizer.learning_rate == agent.value_optimizer.learning_rate == 0.5e-2


def test_parameter_counts_are_the_closed_form() -> None:
    def count(sizes: list[int]) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))

    actor, critic, value = count([17, 40, 30, 6]), 2 * count([23, 40, 30, 1]), count([17, 40, 30, 1])
    expected = {
        "bc": {"actor": actor},
        "td3_bc": {"actor": actor, "critic": critic},
        "iql": {"actor": actor + 6, "critic": critic, "value": value},
    }
    for algorithm, counts in expected.items():
        settings = {"env_name": "HalfCheetah-v5", "hidden_dims": [40, 30], "dataset": "x.h5"}
        config = build_config({"algorithm_name": algorithm} | settings)
        assert find_trainer(config.model_dump()).count_parameters(config) == counts
