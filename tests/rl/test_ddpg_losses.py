"""The arithmetic of DDPG, against references that share no code with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rl.buffers import Batch
from rl.ddpg import DDPGAgent, actor_loss, critic_loss
from rl.ddpg_config import DDPGConfig
from rl.residual import ActionMap
from training.adam import Adam

OBS, ACTION, BATCH = 4, 2, 48
ALONE = ActionMap(ACTION)
Layers = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def make_agent(**settings: Any) -> DDPGAgent:
    """An agent in float64 whose targets differ from its networks."""
    defaults = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "hidden_dims": [12, 8], "discount": 0.9}
    config = DDPGConfig.from_settings(defaults | {"learning_rate": 1e-2, "tau": 0.1} | settings)
    agent = DDPGAgent(config, OBS, ACTION, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for network in (agent.actor, agent.critic, agent.target_actor, agent.target_critic):
        network.double()
        network.mlp.initialise(generator, final_bound=0.5)
    # Their moments have to be in float64 too.
    agent.actor_optimizer = Adam(list(agent.actor.parameters()), agent.actor_optimizer.learning_rate)
    agent.critic_optimizer = Adam(list(agent.critic.parameters()), agent.critic_optimizer.learning_rate)
    return agent


def make_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(columns: int) -> torch.Tensor:
        return torch.randn(BATCH, columns, generator=generator, dtype=torch.float64)

    terminated = (torch.rand(BATCH, 1, generator=generator) < 0.3).double()
    obs, action, reward, next_obs = draw(OBS), draw(ACTION).clamp(-1, 1), draw(1), draw(OBS)
    return Batch(obs, action, reward, terminated, next_obs, torch.tensor(0.9, dtype=torch.float64))


def read_layers(network: Any) -> Layers:
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in network.mlp.layers]


def run_forward(layers: Layers, features: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Give the output and the inputs of each layer."""
    inputs = []
    for number, (weight, bias) in enumerate(layers):
        inputs.append(features)
        features = features @ weight.T + bias
        if number < len(layers) - 1:
            features = np.maximum(features, 0)
    return features, inputs


def run_backward(
    layers: Layers, inputs: list[NDArray[np.float64]], slope: NDArray[np.float64]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Give the gradients (weight, bias, weight, ...) and the gradient of the first input, from the output's."""
    gradients: list[NDArray[np.float64]] = []
    for number in reversed(range(len(layers))):
        gradients = [slope.T @ inputs[number], slope.sum(0), *gradients]
        slope = slope @ layers[number][0]
        if number > 0:
            slope = slope * (inputs[number] > 0)
    return gradients, slope


def assert_gradients(network: nn.Module, expected: list[NDArray[np.float64]]) -> None:
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-10, atol=1e-13)


def test_the_critic_loss_and_its_gradient_are_those_written_by_hand() -> None:
    agent, batch = make_agent(), make_batch()
    obs, action, reward, terminated, next_obs = (
        part.numpy() for part in (batch.obs, batch.action, batch.reward, batch.terminated, batch.next_obs)
    )
    next_action = np.tanh(run_forward(read_layers(agent.target_actor), next_obs)[0])
    next_value, _ = run_forward(read_layers(agent.target_critic), np.hstack([next_obs, next_action]))
    target = reward + 0.9 * (1 - terminated) * next_value
    value, inputs = run_forward(read_layers(agent.critic), np.hstack([obs, action]))
    gradients, _ = run_backward(read_layers(agent.critic), inputs, 2 * (value - target) / BATCH)

    loss, metrics = critic_loss(agent.critic, agent.target_actor, agent.target_critic, batch, ALONE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(((value - target) ** 2).mean(), rel=1e-12)
    assert_gradients(agent.critic, gradients)
    assert metrics["train/critic_loss"].item() == loss.item()
    assert metrics["train/q_mean"].item() == pytest.approx(value.mean(), rel=1e-12)
    assert metrics["train/target_std"].item() == pytest.approx(target.std(), rel=1e-12)


def test_the_actor_loss_and_its_gradient_are_those_written_by_hand() -> None:
    agent, batch = make_agent(), make_batch()
    before, actor_inputs = run_forward(read_layers(agent.actor), batch.obs.numpy())
    action = np.tanh(before)
    value, critic_inputs = run_forward(read_layers(agent.critic), np.hstack([batch.obs.numpy(), action]))
    _, slope = run_backward(read_layers(agent.critic), critic_inputs, np.full((BATCH, 1), -1 / BATCH))
    gradients, _ = run_backward(read_layers(agent.actor), actor_inputs, slope[:, OBS:] * (1 - action**2))

    loss, metrics = actor_loss(agent.actor, agent.critic, batch, ALONE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-value.mean(), rel=1e-12)
    assert_gradients(agent.actor, gradients)
    assert metrics["train/actor_loss"].item() == loss.item()


def test_corrections_are_added_to_the_base_action_before_they_are_valued() -> None:
    """The base action is the last part of the observation."""
    agent, batch = make_agent(), make_batch()
    obs, action, next_obs = batch.obs.numpy(), batch.action.numpy(), batch.next_obs.numpy()

    def execute(actor: Any, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.tanh(run_forward(read_layers(actor), seen)[0])
        return np.hstack([seen, np.clip(seen[:, -ACTION:] + 0.25 * own, -1, 1)])

    next_value, _ = run_forward(read_layers(agent.target_critic), execute(agent.target_actor, next_obs))
    target = batch.reward.numpy() + 0.9 * (1 - batch.terminated.numpy()) * next_value
    value, _ = run_forward(read_layers(agent.critic), np.hstack([obs, action]))
    expected, _ = run_forward(read_layers(agent.critic), execute(agent.actor, obs))
    residual = ActionMap(ACTION, 0.25)
    loss, _ = critic_loss(agent.critic, agent.target_actor, agent.target_critic, batch, residual)
    assert loss.item() == pytest.approx(((value - target) ** 2).mean(), rel=1e-12)
    assert actor_loss(agent.actor, agent.critic, batch, residual)[0].item() == pytest.approx(
        -expected.mean(), rel=1e-12
    )


def test_one_step_on_a_fixed_batch_lowers_each_loss() -> None:
    agent, batch = make_agent(learning_rate=1e-3), make_batch()

    def losses() -> tuple[float, float]:
        critic, _ = critic_loss(agent.critic, agent.target_actor, agent.target_critic, batch, ALONE)
        actor, _ = actor_loss(agent.actor, agent.critic, batch, ALONE)
        return critic.item(), actor.item()

    first_critic, _ = losses()
    targets = copy.deepcopy((agent.target_actor, agent.target_critic))
    agent.update(batch)
    agent.target_actor.load_state_dict(targets[0].state_dict())
    agent.target_critic.load_state_dict(targets[1].state_dict())
    assert losses()[0] < first_critic
    moved = copy.deepcopy(agent.critic)
    first_actor = actor_loss(agent.actor, moved, batch, ALONE)[0].item()
    agent.update(batch)
    assert actor_loss(agent.actor, moved, batch, ALONE)[0].item() < first_actor


class PlainDDPG:
    """DDPG as a textbook writes it: no fused kernels, no pruned gradients."""

    def __init__(self, agent: DDPGAgent, max_grad_norm: float) -> None:
        networks = (agent.actor, agent.critic, agent.target_actor, agent.target_critic)
        self.actor, self.critic, self.target_actor, self.target_critic = (copy.deepcopy(net) for net in networks)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-2, foreach=False)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=1e-2, foreach=False)
        self.max_grad_norm = max_grad_norm

    def update(self, batch: Batch) -> None:
        with torch.no_grad():
            future = self.target_critic(batch.next_obs, self.target_actor(batch.next_obs))
        target = torch.where(batch.terminated == 1, batch.reward, batch.reward + 0.9 * future)
        errors = self.critic(batch.obs, batch.action) - target
        self.descend((errors * errors).sum() / BATCH, self.critic, self.critic_adam)
        self.descend(-self.critic(batch.obs, self.actor(batch.obs)).sum() / BATCH, self.actor, self.actor_adam)
        for slow, fast in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data = 0.9 * old.data + 0.1 * new.data

    def descend(self, loss: torch.Tensor, network: nn.Module, adam: torch.optim.Adam) -> None:
        self.actor.zero_grad()
        self.critic.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.max_grad_norm:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            norm = torch.sqrt(sum(((gradient**2).sum() for gradient in gradients), torch.zeros(())))
            for gradient in gradients:
                gradient *= min(1.0, self.max_grad_norm / (norm.item() + 1e-6))
        adam.step()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_fifty_updates_equal_those_of_a_plain_implementation(max_grad_norm: float) -> None:
    agent = make_agent(max_grad_norm=max_grad_norm)
    plain = PlainDDPG(agent, max_grad_norm)
    for number in range(50):
        batch = make_batch(number)
        metrics = agent.update(batch)
        plain.update(batch)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (agent.actor, plain.actor),
        (agent.critic, plain.critic),
        (agent.target_actor, plain.target_actor),
        (agent.target_critic, plain.target_critic),
    ]
    for ours, theirs in pairs:
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert ("train/critic_grad_norm" in metrics) == ("train/actor_grad_norm" in metrics) == (max_grad_norm > 0)


def test_each_gradient_is_computed_once_an_update() -> None:
    """The actor's loss runs through the critic, whose weights' gradients it has no use for."""
    agent, seen = make_agent(), list[str]()
    networks: dict[str, nn.Module] = {"actor": agent.actor, "critic": agent.critic}
    names = [f"{kind}.{name}" for kind, network in networks.items() for name, _ in network.named_parameters()]
    for kind, network in networks.items():
        for name, parameter in network.named_parameters():
            parameter.register_hook(note(seen, f"{kind}.{name}"))  # type: ignore[no-untyped-call]
    agent.update(make_batch())
    assert sorted(seen) == sorted(names)


def note(seen: list[str], name: str) -> Callable[[torch.Tensor], None]:
    return lambda gradient: seen.append(name)


def test_own_learning_rates_win_over_the_common_one() -> None:
    for settings, rates in (
        ({}, (1e-2, 1e-2)),
        ({"actor_learning_rate": 1e-4}, (1e-4, 1e-2)),
        ({"critic_learning_rate": 1e-5}, (1e-2, 1e-5)),
        ({"actor_learning_rate": 1e-4, "critic_learning_rate": 1e-5}, (1e-4, 1e-5)),
    ):
        agent = make_agent(**settings)
        assert (agent.actor_optimizer.learning_rate, agent.critic_optimizer.learning_rate) == rates


def test_targets_start_as_copies_with_memory_of_their_own() -> None:
    config = DDPGConfig.from_settings({"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "hidden_dims": [12, 8]})
    agent = DDPGAgent(config, OBS, ACTION, torch.device("cpu"))
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (agent.actor, agent.target_actor),
        (agent.critic, agent.target_critic),
    ]
    for network, target in pairs:
        for one, other in zip(network.parameters(), target.parameters(), strict=True):
            assert torch.equal(one, other)
            assert one.data_ptr() != other.data_ptr()


def test_metrics_are_tensors_without_a_graph() -> None:
    metrics = make_agent(max_grad_norm=1.0).update(make_batch())
    assert set(metrics) == {
        "train/critic_loss",
        "train/actor_loss",
        "train/q_mean",
        "train/target_std",
        "train/critic_grad_norm",
        "train/actor_grad_norm",
    }
    assert all(isinstance(value, torch.Tensor) and not value.requires_grad for value in metrics.values())
