"""Plain actors and critics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rl.networks import MLP, Actor, Critic, NumpyActor, NumpyMLP, StochasticActor, TwinCritic, build_target


def make_actor(seed: int = 0, hidden_dims: tuple[int, ...] = (32, 16)) -> Actor:
    actor = Actor(5, 2, hidden_dims, "cpu")
    actor.mlp.initialise(torch.Generator().manual_seed(seed))
    return actor


def test_shapes_and_the_range_of_actions() -> None:
    actor, critic = make_actor(), Critic(5, 2, [32, 16], "cpu")
    critic.mlp.initialise(torch.Generator().manual_seed(1))
    obs = 100 * torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    action = actor(obs)
    assert action.shape == (7, 2)
    assert action.abs().max() <= 1
    assert critic(obs, action).shape == (7, 1)


def test_first_weights_are_uniform_within_the_bounds_of_the_paper() -> None:
    actor = make_actor(hidden_dims=(400, 300))
    first, second, last = actor.mlp.layers
    bounds = (1 / math.sqrt(5), 1 / math.sqrt(400), 3e-3)
    for layer, bound in zip((first, second, last), bounds, strict=True):
        for values in (layer.weight, layer.bias):
            assert isinstance(values, torch.Tensor)
            assert values.abs().max() <= bound
        assert isinstance(layer.weight, torch.Tensor)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_building_and_initialising_draw_nothing_global() -> None:
    before = torch.get_rng_state()
    one, same, other = make_actor(3), make_actor(3), make_actor(4)
    assert torch.equal(before, torch.get_rng_state())
    for left, equal, right in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, equal)
        assert not torch.equal(left, right)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_network_through_numpy_is_the_network_and_follows_its_changes(rows: int) -> None:
    actor = make_actor()
    numpy_mlp = NumpyMLP(actor.mlp)
    obs = np.random.default_rng(0).standard_normal((rows, 5), dtype=np.float32)
    for _ in range(3):
        with torch.no_grad():
            expected = actor.mlp(torch.from_numpy(obs)).numpy()
        np.testing.assert_allclose(numpy_mlp(obs), expected, rtol=1e-5, atol=1e-7)
        optimizer = torch.optim.Adam(actor.parameters(), lr=0.1, fused=True)
        actor(torch.from_numpy(obs)).sum().backward()
        optimizer.step()
    actor.load_state_dict(make_actor(9).state_dict())
    with torch.no_grad():
        expected = actor.mlp(torch.from_numpy(obs)).numpy()
    np.testing.assert_allclose(numpy_mlp(obs), expected, rtol=1e-5, atol=1e-7)


def test_an_actor_through_numpy_gives_its_actions_one_by_one_or_together() -> None:
    actor = make_actor()
    obs = 50 * np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32)
    with torch.no_grad():
        expected = actor(torch.from_numpy(obs)).numpy()
    np.testing.assert_allclose(NumpyActor(actor)(obs), expected, rtol=1e-5, atol=1e-6)
    for row, action in zip(obs, expected, strict=True):
        np.testing.assert_allclose(NumpyActor(actor)(row), action, rtol=1e-5, atol=1e-6)


def test_a_final_bound_of_zero_makes_the_output_zero_and_lets_gradients_pass() -> None:
    mlp = MLP(5, [16], 2, "cpu")
    mlp.initialise(torch.Generator().manual_seed(0), final_bound=0.0)
    out = mlp(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)))
    assert not out.any()
    out.sum().backward()
    last = mlp.layers[-1]
    assert isinstance(last.weight, torch.Tensor)
    assert last.weight.grad is not None
    assert last.weight.grad.any()


def test_twin_critics_begin_different_and_share_nothing() -> None:
    twins = TwinCritic(5, 2, [16], "cpu")
    twins.initialise(torch.Generator().manual_seed(0))
    obs, action = torch.ones(3, 5), torch.zeros(3, 2)
    first, second = twins(obs, action)
    assert first.shape == second.shape == (3, 1)
    assert not torch.equal(first, second)
    assert torch.equal(first, twins.first(obs, action))
    assert torch.equal(second, twins.second(obs, action))


def test_a_stochastic_actor_keeps_its_deviations_in_range() -> None:
    actor = StochasticActor(5, 2, [16], "cpu")
    actor.mlp.initialise(torch.Generator().manual_seed(0), final_bound=1e3)
    mean, log_std = actor(torch.randn(200, 5, generator=torch.Generator().manual_seed(1)))
    assert mean.shape == log_std.shape == (200, 2)
    assert (log_std.min().item(), log_std.max().item()) == (-20.0, 2.0)
    assert mean.abs().max() > 100


def test_a_target_is_a_copy_that_no_gradient_reaches() -> None:
    actor = make_actor()
    target = build_target(actor)
    for mine, copied in zip(actor.parameters(), target.parameters(), strict=True):
        assert torch.equal(mine, copied)
        assert mine.data_ptr() != copied.data_ptr()
        assert mine.requires_grad
        assert not copied.requires_grad


def test_networks_can_be_counted_without_memory() -> None:
    critic = Critic(100_000, 6, [4096, 4096], "meta")
    assert all(parameter.is_meta for parameter in critic.parameters())
    assert sum(parameter.numel() for parameter in critic.parameters()) == (100_007) * 4096 + 4097 * 4096 + 4097
