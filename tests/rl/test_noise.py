"""Exploration noise and the map to an environment's units."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from envs.actions import ActionScale
from rl.noise import ActionNoise, build_noise


def make_noise(noise_type: str, std: float = 0.2, seed: int = 0, num_envs: int = 1) -> ActionNoise:
    assert noise_type in ("gaussian", "ou")
    return build_noise(noise_type, (num_envs, 3), std, 0.15, np.random.default_rng(seed))  # type: ignore[arg-type]


def draw(noise: ActionNoise, number: int) -> NDArray[np.float32]:
    """Draws for the first environment, of shape (number, action_dim)."""
    return np.stack([noise.sample()[0] for _ in range(number)])


def correlate(series: NDArray[np.float32]) -> float:
    """Correlation of each value with the one before it."""
    return float(np.corrcoef(series[1:].ravel(), series[:-1].ravel())[0, 1])


def test_gaussian_noise_has_its_deviation_and_no_memory() -> None:
    series = draw(make_noise("gaussian"), 20_000)
    assert series.dtype == np.float32
    assert series.mean() == pytest.approx(0, abs=0.003)
    assert series.std() == pytest.approx(0.2, rel=0.02)
    assert abs(correlate(series)) < 0.02


def test_ou_noise_pushes_with_its_deviation_and_remembers() -> None:
    series = draw(make_noise("ou"), 20_000)
    pushes = series[1:] - 0.85 * series[:-1]
    assert pushes.std() == pytest.approx(0.2, rel=0.02)
    assert abs(correlate(pushes)) < 0.02
    assert correlate(series) == pytest.approx(0.85, abs=0.02)
    assert series.std() == pytest.approx(0.2 / np.sqrt(0.15 * 1.85), rel=0.05)


def test_ou_noise_starts_every_episode_from_zero() -> None:
    noise = make_noise("ou")
    draw(noise, 500)
    noise.reset(0)
    starts = []
    for _ in range(4_000):
        noise.reset(0)
        starts.append(noise.sample())
    assert np.std(starts) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize("noise_type", ["gaussian", "ou"])
def test_environments_get_noise_of_their_own(noise_type: str) -> None:
    series = np.stack([noise.sample() for noise in [make_noise(noise_type, num_envs=3)] for _ in range(5_000)])
    assert series.shape == (5_000, 3, 3)
    correlations = np.corrcoef(series.reshape(5_000, 9).T) - np.eye(9)
    assert np.abs(correlations).max() < 0.15


def test_ou_noise_starts_anew_in_the_one_environment_whose_episode_begins() -> None:
    noise = make_noise("ou", std=0.0, num_envs=3)
    noise.load_state_dict(noise.state_dict() | {"noise": np.ones((3, 3), dtype=np.float32)})
    given = noise.sample()
    noise.reset(1)
    np.testing.assert_allclose(given, 0.85)
    np.testing.assert_allclose(noise.sample(), 0.85**2 * np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1]]), rtol=1e-6)


@pytest.mark.parametrize("noise_type", ["gaussian", "ou"])
def test_noise_of_zero_deviation_is_zero(noise_type: str) -> None:
    assert not draw(make_noise(noise_type, std=0.0), 50).any()


@pytest.mark.parametrize("noise_type", ["gaussian", "ou"])
def test_loaded_noise_goes_on_with_the_same_draws(noise_type: str) -> None:
    noise, other = make_noise(noise_type, seed=1), make_noise(noise_type, seed=2)
    draw(noise, 7)
    other.load_state_dict(noise.state_dict())
    assert np.array_equal(draw(noise, 20), draw(other, 20))


def test_drawn_noise_is_not_changed_by_the_next_draw() -> None:
    noise = make_noise("ou")
    first = noise.sample()
    copied = first.copy()
    noise.sample()
    assert np.array_equal(first, copied)


def test_actions_reach_asymmetric_bounds_exactly_and_never_pass_them() -> None:
    space = gym.spaces.Box(np.array([-2.0, 0.1, -7.3], np.float32), np.array([2.0, 0.7, 1.9], np.float32))
    scale = ActionScale(space)
    full = np.ones(3, dtype=np.float32)
    np.testing.assert_array_equal(scale.to_env(-full), space.low)
    np.testing.assert_array_equal(scale.to_env(full), space.high)
    np.testing.assert_allclose(scale.to_env(0 * full), (space.low + space.high) / 2, rtol=1e-6)
    np.testing.assert_allclose(scale.to_env(0.5 * full), [1.0, 0.55, -0.4], rtol=1e-5)
    for action in np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32):
        assert space.contains(scale.to_env(np.sign(action)))
        assert space.contains(scale.to_env(action))


@pytest.mark.parametrize(("low", "high"), [(-9.9, 7.7), (-7.7, 9.9)])
def test_bounds_that_rounding_would_pass_are_kept(low: float, high: float) -> None:
    """In float64, half the width more or less than the centre of these is beyond a bound."""
    space = gym.spaces.Box(low, high, (1,), dtype=np.float64)
    scale = ActionScale(space)
    overshoot = (low + high) / 2 + (high - low) / 2 > high
    undershoot = (low + high) / 2 - (high - low) / 2 < low
    assert overshoot or undershoot
    for end in (-1.0, 1.0):
        assert space.contains(scale.to_env(np.array([end], dtype=np.float32)))


def test_actions_have_the_number_type_of_the_space() -> None:
    space = gym.spaces.Box(-3.0, 5.0, (2,), dtype=np.float64)
    action = ActionScale(space).to_env(np.array([0.25, -1.0], dtype=np.float32))
    assert action.dtype == np.float64
    assert action.tolist() == [2.0, -3.0]
