"""DDPG's update by hand, against the one that autograd does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl import fast_ddpg
from rl.buffers import Batch
from rl.ddpg import DDPGAgent
from rl.ddpg_config import DDPGConfig
from rl.fast_ddpg import FastUpdate
from rl.networks import NumpyActor
from rl.residual import ActionMap
from training.adam import Adam
from training.products import multiply

OBS, ACTION, BATCH = 5, 2, 24
NETWORKS = ("actor", "critic", "target_actor", "target_critic")
OPTIMIZERS = ("actor_optimizer", "critic_optimizer")
ACTOR_RATE, CRITIC_RATE, DISCOUNT, TAU = 1e-3, 2e-3, 0.9, 0.05


def make_agent(
    dtype: torch.dtype, hidden_dims: list[int], max_grad_norm: float = 0.0, delta: float | None = None
) -> DDPGAgent:
    """An agent that updates by autograd, with targets that differ from its networks; residual with a `delta`."""
    rates = {"actor_learning_rate": ACTOR_RATE, "critic_learning_rate": CRITIC_RATE}
    settings = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "hidden_dims": hidden_dims, "tau": TAU}
    residual = {} if delta is None else {"base_controller": "pendulum_energy", "delta_scale_max": delta}
    config = DDPGConfig.from_settings(settings | rates | residual | {"max_grad_norm": max_grad_norm})
    agent = DDPGAgent(config, OBS, ACTION, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for network in (agent.actor, agent.critic, agent.target_actor, agent.target_critic):
        network.to(dtype)
        network.mlp.initialise(generator, final_bound=0.5)
    agent.actor_optimizer = Adam(list(agent.actor.parameters()), ACTOR_RATE)
    agent.critic_optimizer = Adam(list(agent.critic.parameters()), CRITIC_RATE)
    return agent


class FastAgent:
    """The four networks of an agent, copied, and their update by hand."""

    def __init__(self, agent: DDPGAgent, max_grad_norm: float = 0.0, delta: float | None = None) -> None:
        self.actor, self.critic = copy.deepcopy(agent.actor), copy.deepcopy(agent.critic)
        self.target_actor, self.target_critic = copy.deepcopy(agent.target_actor), copy.deepcopy(agent.target_critic)
        self.fast = FastUpdate(
            self.actor,
            self.critic,
            self.target_actor,
            self.target_critic,
            actor_learning_rate=ACTOR_RATE,
            critic_learning_rate=CRITIC_RATE,
            action_map=ActionMap(ACTION, delta),
            tau=TAU,
            max_grad_norm=max_grad_norm,
        )

    def parts(self) -> dict[str, Any]:
        optimizers = {name: vars(self.fast)[name] for name in OPTIMIZERS}
        return {name: vars(self)[name] for name in NETWORKS} | optimizers

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def make_batch(seed: int, dtype: torch.dtype, size: int = BATCH) -> Batch:
    """A batch as the buffer gives it: views of one tensor of packed rows; every other one has n-step discounts."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, 2 * OBS + ACTION + 2, generator=generator, dtype=dtype)
    rows[:, OBS : OBS + ACTION].clamp_(-1, 1)
    rows[:, OBS + ACTION + 1] = (rows[:, OBS + ACTION + 1] > 1).to(dtype)
    obs, action, reward, terminated, next_obs = rows.split_with_sizes([OBS, ACTION, 1, 1, OBS], dim=1)
    steps = torch.randint(1, 4, (size, 1), generator=generator) if seed % 2 else torch.tensor(1)
    discount = torch.tensor(DISCOUNT, dtype=dtype) ** steps
    return Batch(obs, action, reward, terminated, next_obs, discount)


def list_tensors(state: dict[str, Any], path: str = "") -> dict[str, Tensor]:
    """Give every tensor of a state by its path; what explores is left out."""
    leaves: dict[str, Tensor] = {}
    for key, part in state.items():
        if key == "noise" or part is None:
            continue
        if isinstance(part, Tensor):
            leaves[f"{path}/{key}"] = part.detach()
        else:
            parts = {str(number): leaf for number, leaf in enumerate(part)} if isinstance(part, list) else part
            leaves |= list_tensors(parts, f"{path}/{key}")
    return leaves


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    left, right = list_tensors(one), list_tensors(other)
    assert left.keys() == right.keys()
    for path, tensor in left.items():
        assert tensor.numpy().tobytes() == right[path].numpy().tobytes(), path


@pytest.mark.parametrize(
    ("hidden_dims", "max_grad_norm", "delta"),
    [
        ([16], 0.0, None),
        ([16], 0.1, None),
        ([16, 12], 0.0, None),
        ([16, 12], 0.1, None),
        ([12, 16, 8], 0.0, None),
        ([12, 16, 8], 0.1, None),
        ([16, 12], 0.0, 0.4),
    ],
    ids=str,
)
def test_a_thousand_updates_equal_those_of_autograd(
    hidden_dims: list[int], max_grad_norm: float, delta: float | None
) -> None:
    agent = make_agent(torch.float64, hidden_dims, max_grad_norm, delta)
    by_hand = FastAgent(agent, max_grad_norm, delta)
    start = {path: tensor.clone() for path, tensor in list_tensors(agent.state_dict()).items()}
    clipped = 0
    for number in range(1000):
        batch = make_batch(number, torch.float64)
        expected, metrics = agent.update(batch), by_hand.fast.update(batch)
        assert metrics.keys() == expected.keys()
        for name, value in metrics.items():
            assert (value.shape, value.requires_grad) == ((), False)
            assert abs(value.item() - expected[name].item()) <= 1e-9, (number, name)
        clipped += any(value.item() > max_grad_norm for name, value in metrics.items() if "grad_norm" in name)
    theirs, ours = list_tensors(agent.state_dict()), list_tensors(by_hand.state_dict())
    assert ours.keys() == theirs.keys()
    for path, tensor in ours.items():
        assert tensor.shape == theirs[path].shape
        assert (tensor - theirs[path]).abs().max() <= 1e-9, path
        assert not torch.equal(tensor, start[path]), path
    assert clipped == 0 if max_grad_norm == 0 else 100 < clipped <= 1000


@pytest.mark.parametrize("size", [BATCH, 4096])
def test_a_float32_update_is_that_of_autograd_up_to_rounding(size: int) -> None:
    """The larger batch takes the other library."""
    agent = make_agent(torch.float32, [64, 48])
    by_hand = FastAgent(agent)
    batch = make_batch(0, torch.float32, size)
    expected, metrics = agent.update(batch), by_hand.fast.update(batch)
    for name, value in metrics.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    theirs, ours = list_tensors(agent.state_dict()), list_tensors(by_hand.state_dict())
    for path, tensor in ours.items():
        if "/first/" in path:  # a tenth of the gradient, after one step
            torch.testing.assert_close(tensor, theirs[path], rtol=1e-3, atol=1e-5 * theirs[path].abs().max().item())


@pytest.mark.parametrize("size", [BATCH, 4096])
def test_straight_equals_stopped_and_resumed(size: int) -> None:
    agent = make_agent(torch.float32, [64, 48])
    straight = FastAgent(agent)
    batches = [make_batch(number, torch.float32, size) for number in range(6)]
    for batch in batches[:3]:
        straight.fast.update(batch)
    state = copy.deepcopy(straight.state_dict())
    resumed = FastAgent(make_agent(torch.float32, [64, 48]))
    resumed.fast.update(batches[5])
    resumed.load_state_dict(state)
    assert_same_bits(resumed.state_dict(), straight.state_dict())
    for batch in batches[3:]:
        assert {name: value.item() for name, value in straight.fast.update(batch).items()} == {
            name: value.item() for name, value in resumed.fast.update(batch).items()
        }
    assert_same_bits(resumed.state_dict(), straight.state_dict())


def test_a_state_saved_by_either_update_is_taken_over_by_the_other() -> None:
    agent = make_agent(torch.float64, [16, 12])
    for number in range(3):
        agent.update(make_batch(number, torch.float64))
    by_hand = FastAgent(make_agent(torch.float64, [16, 12]))
    by_hand.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert_same_bits(by_hand.state_dict(), agent.state_dict())
    by_hand.fast.update(make_batch(3, torch.float64))
    agent.load_state_dict(agent.state_dict() | copy.deepcopy(by_hand.state_dict()))
    assert_same_bits(by_hand.state_dict(), agent.state_dict())


def test_modules_and_numpy_actor_show_every_step_and_every_loaded_state() -> None:
    by_hand = FastAgent(make_agent(torch.float32, [16, 12]))
    policy, obs = NumpyActor(by_hand.actor), torch.linspace(-1, 1, OBS)
    before = by_hand.state_dict()["actor"]["mlp.layers.0.weight"].clone()
    first = policy(obs.numpy())
    for number in range(20):
        by_hand.fast.update(make_batch(number, torch.float32))
    assert not np.array_equal(policy(obs.numpy()), first)
    assert not torch.equal(by_hand.actor.state_dict()["mlp.layers.0.weight"], before)
    with torch.no_grad():
        np.testing.assert_allclose(policy(obs.numpy()), by_hand.actor(obs[None])[0].numpy(), rtol=1e-5, atol=1e-6)
    other = FastAgent(make_agent(torch.float32, [16, 12]))
    other.fast.update(make_batch(99, torch.float32))
    by_hand.load_state_dict(copy.deepcopy(other.state_dict()))
    np.testing.assert_array_equal(policy(obs.numpy()), NumpyActor(other.actor)(obs.numpy()))


def test_numbers_of_one_update_are_not_changed_by_the_next() -> None:
    by_hand = FastAgent(make_agent(torch.float32, [16]), max_grad_norm=0.1)
    metrics = by_hand.fast.update(make_batch(0, torch.float32))
    values = {name: value.item() for name, value in metrics.items()}
    by_hand.fast.update(make_batch(1, torch.float32))
    assert {name: value.item() for name, value in metrics.items()} == values


def test_a_batch_is_left_as_it_was() -> None:
    batch = make_batch(0, torch.float32)
    before = batch.obs.clone(), batch.action.clone(), batch.reward.clone(), batch.next_obs.clone()
    FastAgent(make_agent(torch.float32, [16])).fast.update(batch)
    for tensor, copied in zip((batch.obs, batch.action, batch.reward, batch.next_obs), before, strict=True):
        assert torch.equal(tensor, copied)


def test_a_network_converted_behind_its_back_is_noticed() -> None:
    by_hand = FastAgent(make_agent(torch.float32, [16]))
    by_hand.target_critic.double()
    with pytest.raises(AssertionError, match="moved or converted"):
        by_hand.fast.update(make_batch(0, torch.float32))


def test_no_operand_of_a_product_has_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN takes a hundred times as long for them, and gives the same numbers."""
    seen = list[Tensor]()

    def note(left: Tensor, right: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.extend((left, right))
        return multiply(left, right, *rest, **options)

    monkeypatch.setattr(fast_ddpg, "multiply", note)
    FastAgent(make_agent(torch.float32, [64, 48])).fast.update(make_batch(0, torch.float32))
    assert len(seen) == 2 * 28
    assert all(operand.is_contiguous() or operand.t().is_contiguous() for operand in seen)
