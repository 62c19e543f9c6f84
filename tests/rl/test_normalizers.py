"""Running statistics, and what is normalised by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.normalizers import ObsNormalizer, RewardNormalizer, RunningMoments


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 2**32))
def test_moments_are_those_of_all_rows_at_once(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    parts = [generator.normal(1e3, 2.0, (size, 3)) for size in sizes]
    moments = RunningMoments(3)
    for part in parts:
        moments.add(part)
    rows = np.concatenate(parts)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-6, atol=1e-9)


def test_observations_come_to_mean_zero_and_deviation_one() -> None:
    generator = np.random.default_rng(0)
    obs = generator.normal([5.0, -300.0], [0.1, 70.0], (4_000, 2)).astype(np.float32)
    normalizer = ObsNormalizer(2, 0)
    for rows in np.split(obs, 500):
        normalizer.add(rows)
    normal = normalizer.apply(obs)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(normal.std(0), 1, rtol=1e-3)


def test_what_was_never_seen_is_left_alone_or_clipped() -> None:
    normalizer = ObsNormalizer(2, 0)
    obs = np.array([[3.0, -4.0]], dtype=np.float32)
    np.testing.assert_array_equal(normalizer.apply(obs), obs)
    normalizer.add(np.array([[0.0, 0.0], [1.0, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(normalizer.apply(np.array([[1e6, -1e6]], dtype=np.float32)), [[10.0, -10.0]])


def test_the_base_action_is_not_normalised() -> None:
    normalizer = ObsNormalizer(2, 1)
    obs = np.random.default_rng(0).normal(50.0, 9.0, (100, 3)).astype(np.float32)
    obs[:, 2] = np.linspace(-1, 1, 100)
    normalizer.add(obs)
    np.testing.assert_array_equal(normalizer.apply(obs)[:, 2], obs[:, 2])
    assert abs(normalizer.apply(obs)[:, :2].mean()) < 0.01


def test_tensors_and_arrays_are_normalised_alike() -> None:
    normalizer = ObsNormalizer(2, 1)
    obs = np.random.default_rng(0).normal(50.0, 9.0, (40, 3)).astype(np.float32)
    normalizer.add(obs[:30])
    np.testing.assert_array_equal(normalizer.apply_tensor(torch.from_numpy(obs)).numpy(), normalizer.apply(obs))


def test_rewards_are_divided_by_the_deviation_of_running_returns() -> None:
    discount, rewards = 0.8, np.random.default_rng(0).normal(2.0, 3.0, (50, 2))
    starts = {(0, 0), (0, 1), (20, 0), (33, 1)}
    normalizer, running, seen = RewardNormalizer(2, discount), [0.0, 0.0], []
    for step, pair in enumerate(rewards):
        for env in range(2):
            if (step, env) in starts:
                normalizer.begin_episode(env)
                running[env] = 0.0
            running[env] = running[env] * discount + pair[env]
            seen.append(running[env])
        normalizer.add(pair)
    assert normalizer.scale() == pytest.approx(1 / np.std(seen), rel=1e-6)


def test_before_the_first_reward_nothing_is_scaled() -> None:
    assert RewardNormalizer(1, 0.9).scale() == pytest.approx(1.0)


def test_restored_statistics_go_on_as_if_never_stopped() -> None:
    generator = np.random.default_rng(0)
    obs, rewards = generator.normal(3, 2, (20, 2)).astype(np.float32), generator.normal(1, 2, (20, 2))
    straight, restored = (
        (ObsNormalizer(2, 0), RewardNormalizer(2, 0.9)),
        (ObsNormalizer(2, 0), RewardNormalizer(2, 0.9)),
    )
    straight[0].add(obs[:10])
    straight[1].add(rewards[0])
    restored[0].load_state_dict(straight[0].state_dict())
    restored[1].load_state_dict(straight[1].state_dict())
    for normalizer, scaler in (straight, restored):
        normalizer.add(obs[10:])
        scaler.begin_episode(1)
        scaler.add(rewards[1])
    np.testing.assert_array_equal(straight[0].apply(obs), restored[0].apply(obs))
    assert straight[1].scale() == restored[1].scale()
    assert straight[1].state_dict()["returns"].tolist() == restored[1].state_dict()["returns"].tolist()
