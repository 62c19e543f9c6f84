"""Advantages over chunks and the clipped loss, against sums and densities written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffuser.policy_gradient import (
    Rollout,
    compare_to_peers,
    estimate_advantages,
    estimate_kl,
    measure_return_size,
    normalize_advantages,
    policy_loss,
    sum_rewards,
)

DISCOUNT = 0.9


def draw_rollout(chunks: int, worlds: int, seed: int) -> Rollout:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    ended = (uniform(chunks, worlds) < 0.3).double()
    steps = torch.randint(1, 5, (chunks, worlds), generator=generator)
    return Rollout(
        c=uniform(chunks, worlds, 2),
        next_c=uniform(chunks, worlds, 2),
        chain=uniform(chunks, worlds, 3, 1, 1, 2),
        log_prob=uniform(chunks, worlds, 2),
        reward=uniform(chunks, worlds) - 0.5,
        discount=torch.tensor(DISCOUNT, dtype=torch.float64) ** steps,
        terminated=ended * (uniform(chunks, worlds) < 0.5),
        ended=ended,
    )


def sum_by_hand(rollout: Rollout, values: Tensor, next_values: Tensor, chunk: int, world: int, weight: float) -> float:
    """Give the weighted sum of surprises from a chunk on, one by one."""
    total, factor = 0.0, 1.0
    for later in range(chunk, len(rollout.reward)):
        place = later, world
        bootstrap = 0.0 if rollout.terminated[place] else float(rollout.discount[place] * next_values[place])
        total += factor * (float(rollout.reward[place]) + bootstrap - float(values[place]))
        if rollout.ended[place]:
            break
        factor *= float(rollout.discount[place]) * weight
    return total


@settings(deadline=None, max_examples=25)
@given(chunks=st.integers(1, 7), worlds=st.integers(1, 3), weight=st.floats(0, 1), seed=st.integers(0, 99))
def test_advantages_are_weighted_sums_of_surprises(chunks: int, worlds: int, weight: float, seed: int) -> None:
    rollout = draw_rollout(chunks, worlds, seed)
    values, next_values = rollout.c[..., 0], rollout.next_c[..., 0]
    advantages, returns = estimate_advantages(rollout, values, next_values, weight)
    for chunk in range(chunks):
        for world in range(worlds):
            wanted = sum_by_hand(rollout, values, next_values, chunk, world, weight)
            assert float(advantages[chunk, world]) == pytest.approx(wanted, abs=1e-12)
    torch.testing.assert_close(returns, advantages + values)


def test_an_episode_that_the_clock_ended_keeps_its_bootstrap() -> None:
    one = draw_rollout(1, 1, 0)
    truncated = replace(one, terminated=torch.zeros(1, 1), ended=torch.ones(1, 1))
    terminated = replace(one, terminated=torch.ones(1, 1), ended=torch.ones(1, 1))
    value, next_value = torch.zeros(1, 1), torch.full((1, 1), 7.0)
    kept, _ = estimate_advantages(truncated, value, next_value, 0.95)
    cut, _ = estimate_advantages(terminated, value, next_value, 0.95)
    assert float(kept) == pytest.approx(float(one.reward + one.discount * 7))
    assert float(cut) == pytest.approx(float(one.reward))


def test_peers_are_the_other_environments_at_the_same_chunk() -> None:
    rollout = replace(draw_rollout(2, 3, 1), ended=torch.zeros(2, 3))
    sums = rollout.reward[0] + rollout.discount[0] * rollout.reward[1]
    torch.testing.assert_close(sum_rewards(rollout)[0], sums)
    torch.testing.assert_close(compare_to_peers(rollout)[0], sums - sums.mean())
    assert measure_return_size(rollout) == pytest.approx(float(sum_rewards(rollout).square().mean().sqrt()))
    assert measure_return_size(replace(rollout, reward=torch.zeros(2, 3))) == 1.0


def test_advantages_that_are_all_alike_become_zero() -> None:
    assert not normalize_advantages(torch.full((3, 2), 4.0)).any()
    normal = normalize_advantages(torch.tensor([[1.0, 2.0], [3.0, 10.0]]))
    assert float(normal.mean()) == pytest.approx(0, abs=1e-6)
    assert float(normal.square().mean()) == pytest.approx(1, rel=1e-6)


def test_a_ratio_beyond_the_clip_range_has_no_gradient_in_the_direction_it_went() -> None:
    old = torch.zeros(4)
    for moved, advantage, has_gradient in (
        (0.5, 1.0, False),
        (0.5, -1.0, True),
        (-0.5, 1.0, True),
        (-0.5, -1.0, False),
    ):
        log_prob = torch.full((4,), moved, requires_grad=True)
        policy_loss(log_prob, old, torch.full((4,), advantage), 0.1).backward()
        assert log_prob.grad is not None
        assert bool(log_prob.grad.any()) is has_gradient, (moved, advantage)


def test_the_loss_of_a_policy_that_has_not_moved_is_minus_the_mean_advantage() -> None:
    log_prob, advantage = torch.randn(50), torch.randn(50)
    assert float(policy_loss(log_prob, log_prob, advantage, 0.2)) == pytest.approx(-float(advantage.mean()), abs=1e-6)


def test_the_distance_from_the_old_policy_grows_with_each_move() -> None:
    old = torch.zeros(10)
    distances = [float(estimate_kl(old + moved, old)) for moved in (0.0, 0.01, 0.1, 1.0)]
    assert distances[0] == 0
    assert all(nearer < further for nearer, further in pairwise(distances))
