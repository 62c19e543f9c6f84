"""Plain actors and critics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rl.networks import Actor, Critic, NumpyActor


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


def test_the_actor_through_numpy_is_the_actor_and_follows_its_changes() -> None:
    actor = make_actor()
    numpy_actor = NumpyActor(actor)
    obs = np.random.default_rng(0).standard_normal(5, dtype=np.float32)
    for _ in range(3):
        with torch.no_grad():
            expected = actor(torch.from_numpy(obs)).numpy()
        np.testing.assert_allclose(numpy_actor(obs), expected, rtol=1e-5, atol=1e-7)
        optimizer = torch.optim.Adam(actor.parameters(), lr=0.1, fused=True)
        actor(torch.from_numpy(obs)).sum().backward()
        optimizer.step()
    actor.load_state_dict(make_actor(9).state_dict())
    with torch.no_grad():
        expected = actor(torch.from_numpy(obs)).numpy()
    np.testing.assert_allclose(numpy_actor(obs), expected, rtol=1e-5, atol=1e-7)


def test_networks_can_be_counted_without_memory() -> None:
    critic = Critic(100_000, 6, [4096, 4096], "meta")
    assert all(parameter.is_meta for parameter in critic.parameters())
    assert sum(parameter.numel() for parameter in critic.parameters()) == (100_007) * 4096 + 4097 * 4096 + 4097
