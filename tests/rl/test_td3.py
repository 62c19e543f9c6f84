"""The arithmetic of TD3, against references that share no code with it."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rl.buffers import Batch
from rl.residual import ActionMap
from rl.td3 import TD3Agent, actor_loss, count_parameters, critic_loss
from rl.td3_config import TD3Config
from training.adam import Adam

OBS, ACTION, BATCH = 4, 2, 48
ALONE = ActionMap(ACTION)


def make_agent(**settings: Any) -> TD3Agent:
    """An agent in float64 whose targets differ from its networks."""
    defaults = {"algorithm_name": "td3", "env_name": "Pendulum-v1", "hidden_dims": [12, 8]}
    config = TD3Config.from_settings(defaults | {"learning_rate": 1e-2, "tau": 0.1} | settings)
    agent = TD3Agent(config, OBS, ACTION, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for network in (agent.actor, agent.target_actor):
        network.double()
        network.mlp.initialise(generator, final_bound=1.5)
    for twins in (agent.critic, agent.target_critic):
        twins.double()
        for critic in (twins.first, twins.second):
            critic.mlp.initialise(generator, final_bound=0.5)
    # Their moments have to be in float64 too.
    agent.actor_optimizer = Adam(list(agent.actor.parameters()), agent.actor_optimizer.learning_rate)
    agent.critic_optimizer = Adam(list(agent.critic.parameters()), agent.critic_optimizer.learning_rate)
    return agent


def make_batch(seed: int = 0, actions: int = ACTION) -> Batch:
    """A batch in float64 whose rows have discounts of their own, as n-step returns give them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(columns: int) -> torch.Tensor:
        return torch.randn(BATCH, columns, generator=generator, dtype=torch.float64)

    terminated = (torch.rand(BATCH, 1, generator=generator) < 0.3).double()
    discount = 0.5 + 0.5 * torch.rand(BATCH, 1, generator=generator, dtype=torch.float64)
    return Batch(draw(OBS), draw(actions).clamp(-1, 1), draw(1), terminated, draw(OBS), discount)


def run_forward(network: Any, features: Any) -> Any:
    """Give an MLP's output in NumPy."""
    layers = list(network.mlp.layers)
    for number, layer in enumerate(layers):
        features = features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if number < len(layers) - 1:
            features = np.maximum(features, 0)
    return features


def test_the_critic_loss_is_the_one_written_by_hand() -> None:
    agent, batch = make_agent(), make_batch()
    smoothing = 0.3 * torch.randn(BATCH, ACTION, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    obs, action, next_obs = batch.obs.numpy(), batch.action.numpy(), batch.next_obs.numpy()
    unclipped = np.tanh(run_forward(agent.target_actor, next_obs)) + smoothing.numpy()
    next_features = np.hstack([next_obs, np.clip(unclipped, -1, 1)])
    assert (np.abs(unclipped) > 1).any()
    targets = agent.target_critic
    values = [run_forward(critic, next_features) for critic in (targets.first, targets.second)]
    shift = float((values[0] - values[1]).mean())  # so that each is the smaller one somewhere
    with torch.no_grad():
        targets.second.mlp.layers[-1].bias.add_(shift)
    values[1] = values[1] + shift
    assert (values[0] < values[1]).any()
    assert (values[0] > values[1]).any()
    future = batch.discount.numpy() * (1 - batch.terminated.numpy()) * np.minimum(*values)
    target = batch.reward.numpy() + future
    features = np.hstack([obs, action])
    first, second = (run_forward(critic, features) for critic in (agent.critic.first, agent.critic.second))

    loss, metrics = critic_loss(agent.critic, agent.target_actor, targets, batch, ALONE, smoothing)
    expected = ((first - target) ** 2).mean() + ((second - target) ** 2).mean()
    assert loss.item() == metrics["train/critic_loss"].item() == pytest.approx(expected, rel=1e-12)
    assert metrics["train/q_mean"].item() == pytest.approx(first.mean(), rel=1e-12)
    assert metrics["train/target_std"].item() == pytest.approx(target.std(), rel=1e-12)


def test_the_actor_loss_asks_the_first_critic_alone() -> None:
    agent, batch = make_agent(), make_batch()
    features = np.hstack([batch.obs.numpy(), np.tanh(run_forward(agent.actor, batch.obs.numpy()))])
    loss, metrics = actor_loss(agent.actor, agent.critic, batch, ALONE)
    expected = -run_forward(agent.critic.first, features).mean()
    assert loss.item() == metrics["train/actor_loss"].item() == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        for parameter in agent.critic.second.parameters():
            parameter.add_(1.0)
    assert actor_loss(agent.actor, agent.critic, batch, ALONE)[0].item() == loss.item()


def test_corrections_are_smoothed_before_they_are_added_to_the_base_action() -> None:
    agent, batch = make_agent(), make_batch()
    smoothing = 0.3 * torch.randn(BATCH, ACTION, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    next_obs = batch.next_obs.numpy()
    own = np.clip(np.tanh(run_forward(agent.target_actor, next_obs)) + smoothing.numpy(), -1, 1)
    executed = np.clip(next_obs[:, -ACTION:] + 0.25 * own, -1, 1)
    features = np.hstack([next_obs, executed])
    targets = agent.target_critic
    future = np.minimum(*(run_forward(critic, features) for critic in (targets.first, targets.second)))
    target = batch.reward.numpy() + batch.discount.numpy() * (1 - batch.terminated.numpy()) * future
    action_map = ActionMap(ACTION, 0.25)
    _, metrics = critic_loss(agent.critic, agent.target_actor, targets, batch, action_map, smoothing)
    assert metrics["train/target_std"].item() == pytest.approx(target.std(), rel=1e-12)
    obs = batch.obs.numpy()
    executed = np.clip(obs[:, -ACTION:] + 0.25 * np.tanh(run_forward(agent.actor, obs)), -1, 1)
    loss, _ = actor_loss(agent.actor, agent.critic, batch, action_map)
    assert loss.item() == pytest.approx(-run_forward(agent.critic.first, np.hstack([obs, executed])).mean(), rel=1e-12)


class PlainTD3:
    """TD3 as a textbook writes it: no fused kernels, no pruned gradients, every network on its own."""

    def __init__(self, agent: TD3Agent, delay: int) -> None:
        self.actor, self.target_actor = copy.deepcopy(agent.actor), copy.deepcopy(agent.target_actor)
        self.critics = [copy.deepcopy(critic) for critic in (agent.critic.first, agent.critic.second)]
        self.targets = [copy.deepcopy(critic) for critic in (agent.target_critic.first, agent.target_critic.second)]
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-2, foreach=False)
        self.critic_adams = [torch.optim.Adam(critic.parameters(), lr=1e-2, foreach=False) for critic in self.critics]
        self.delay, self.number = delay, 0

    def update(self, batch: Batch, normal: torch.Tensor) -> None:
        with torch.no_grad():
            action = self.target_actor(batch.next_obs) + torch.clamp(0.2 * normal, -0.3, 0.3)
            action = torch.clamp(action, -1, 1)
            future = torch.min(*(target(batch.next_obs, action) for target in self.targets))
            future = torch.where(batch.terminated == 1, torch.zeros_like(future), future)
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            adam.zero_grad()
            errors = critic(batch.obs, batch.action) - (batch.reward + batch.discount * future)
            (errors * errors).mean().backward()
            adam.step()
        self.number += 1
        if self.number % self.delay:
            return
        self.actor_adam.zero_grad()
        (-self.critics[0](batch.obs, self.actor(batch.obs)).mean()).backward()
        self.actor_adam.step()
        pairs = [(self.target_actor, self.actor), *zip(self.targets, self.critics, strict=True)]
        for slow, fast in pairs:
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data = 0.9 * old.data + 0.1 * new.data


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_fifty_updates_equal_those_of_a_plain_implementation(delay: int) -> None:
    agent = make_agent(policy_delay=delay, target_noise_std=0.2, target_noise_clip=0.3)
    plain, generator = PlainTD3(agent, delay), torch.Generator()
    generator.set_state(agent.state_dict()["smoothing"])
    for number in range(50):
        batch = make_batch(number)
        metrics = agent.update(batch)
        plain.update(batch, torch.empty(BATCH, ACTION, dtype=torch.float64).normal_(generator=generator))
        assert ("train/actor_loss" in metrics) == ((number + 1) % delay == 0)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (agent.actor, plain.actor),
        (agent.target_actor, plain.target_actor),
        (agent.critic.first, plain.critics[0]),
        (agent.critic.second, plain.critics[1]),
        (agent.target_critic.first, plain.targets[0]),
        (agent.target_critic.second, plain.targets[1]),
    ]
    for ours, theirs in pairs:
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_a_state_from_within_the_delay_goes_on_there() -> None:
    straight, resumed = make_agent(policy_delay=3), make_agent(policy_delay=3)
    for number in range(4):
        straight.update(make_batch(number))
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for number in range(4, 9):
        ours, theirs = straight.update(make_batch(number)), resumed.update(make_batch(number))
        assert {name: value.item() for name, value in ours.items()} == {
            name: value.item() for name, value in theirs.items()
        }


def test_clipped_gradients_are_told_of_where_they_were_computed() -> None:
    agent = make_agent(max_grad_norm=0.1)
    names = [set(agent.update(make_batch(number))) for number in range(2)]
    assert names[1] - names[0] == {"train/actor_loss", "train/actor_grad_norm"}
    assert "train/critic_grad_norm" in names[0]


def test_parameter_counts_are_the_closed_form() -> None:
    settings = {"algorithm_name": "td3", "env_name": "HalfCheetah-v5", "hidden_dims": [400, 300]}

    def count(sizes: list[int]) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))

    expected = {"actor": count([17, 400, 300, 6]), "critic": 2 * count([23, 400, 300, 1])}
    assert count_parameters(TD3Config.from_settings(settings)) == expected


@pytest.mark.parametrize(
    ("settings", "inactive"),
    [
        ({"target_noise_clip": 0.3}, set()),
        ({"target_noise_clip": 0.3, "target_noise_std": 0.0}, {"target_noise_clip"}),
        ({"noise_std": 0.0, "noise_type": "ou", "ou_theta": 0.2}, {"noise_type", "ou_theta"}),
        ({"learning_rate": 1e-3, "actor_learning_rate": 1e-4, "critic_learning_rate": 1e-3}, {"learning_rate"}),
    ],
)
def test_switched_off_keys_are_named(settings: dict[str, Any], inactive: set[str]) -> None:
    config = TD3Config.from_settings({"algorithm_name": "td3", "env_name": "Pendulum-v1"} | settings)
    assert set(config.inactive_keys()) == inactive
