"""Recording: each frame once, noise in normalised units, everything from one seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from envs.actions import ActionScale
from envs.controllers import CONTROLLERS
from envs.episodes import EpisodeError
from envs.make import Env
from envs.pilots import PILOTS, Steer
from envs.recipes import Amount
from envs.record import Act, Policy, build_random_policy, build_scripted_policy, record_policy
from experiment.problems import SettingsError


class CountEnv(gym.Env[Any, Any]):
    """Observes the number of its steps so far; ends by its task after five, or by its clock."""

    def __init__(self, broken_from: int = 100) -> None:
        self.observation_space = gym.spaces.Box(0, 100, (1,), np.float64)
        self.action_space = gym.spaces.Box(np.array([-2.0, 0.5]), np.array([6.0, 0.75]), dtype=np.float64)
        self.time, self.broken_from, self.begun = 0, broken_from, 0
        self.seeds: list[int | None] = []

    def observe(self) -> Any:
        return np.array([np.nan if self.time >= self.broken_from else self.time])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.begun += 1
        SEEDS.append(seed)
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.time += 1
        return self.observe(), float(self.time), self.time == 5, False, {}


SEEDS: list[int | None] = []


@pytest.fixture(autouse=True)
def _count_env() -> Iterator[None]:
    gym.register("Count-v0", CountEnv, max_episode_steps=50)
    SEEDS.clear()
    yield
    del gym.registry["Count-v0"]


def build_still_policy(**kwargs: Any) -> Policy:
    """Always the middle of the bounds, 0 in normalised units."""

    def begin(env: Env, generator: np.random.Generator) -> Act:
        return lambda obs: ActionScale(env.action_space).to_env(np.zeros(2))

    return Policy("Count-v0", kwargs, {"kind": "still"}, begin)


def test_each_frame_is_kept_once_and_the_last_one_too() -> None:
    recorded = record_policy(build_still_policy(), Amount(episodes=3), 0.0, 0, lambda line: None)
    assert recorded.lengths.tolist() == [5, 5, 5]
    assert recorded.terminated.all()
    np.testing.assert_array_equal(recorded.episode(1).observations[:, 0, 0], np.arange(6))
    np.testing.assert_array_equal(recorded.episode(1).rewards[:, 0], np.arange(1, 6))
    np.testing.assert_array_equal(recorded.actions[:, 0], np.tile(np.float32([2.0, 0.625]), (15, 1)))


def test_bounds_come_from_the_action_space() -> None:
    header = record_policy(build_still_policy(), Amount(episodes=1), 0.0, 0, lambda line: None).header
    np.testing.assert_array_equal(header.action_low, np.float32([[-2.0, 0.5]]))
    np.testing.assert_array_equal(header.action_high, np.float32([[6.0, 0.75]]))
    assert header.policy == {"kind": "still", "noise": 0.0, "seed": 0}


def test_a_number_of_steps_cuts_the_last_episode_off() -> None:
    recorded = record_policy(build_still_policy(), Amount(steps=12), 0.0, 0, lambda line: None)
    assert recorded.lengths.tolist() == [5, 5, 2]
    assert recorded.terminated.tolist() == [True, True, False]
    assert len(recorded.observations) == 15


def test_of_two_limits_the_first_one_counts() -> None:
    assert len(record_policy(build_still_policy(), Amount(2, 100), 0.0, 0, lambda line: None)) == 2
    assert len(record_policy(build_still_policy(), Amount(20, 10), 0.0, 0, lambda line: None)) == 2


def test_noise_is_in_normalised_units_and_clipped() -> None:
    recorded = record_policy(build_still_policy(), Amount(steps=4_000), 0.25, 0, lambda line: None)
    low, high = recorded.header.action_low, recorded.header.action_high
    normal = 2 * (recorded.actions - low) / (high - low) - 1
    np.testing.assert_allclose(normal.std((0, 1)), 0.25, atol=0.02)
    wide = record_policy(build_still_policy(), Amount(steps=400), 3.0, 0, lambda line: None).actions
    np.testing.assert_array_equal(wide.min((0, 1)), low[0])
    np.testing.assert_array_equal(wide.max((0, 1)), high[0])


def test_one_seed_decides_everything() -> None:
    def record(seed: int) -> str:
        policy = build_random_policy("Pendulum-v1", {})
        return record_policy(policy, Amount(steps=300), 0.1, seed, lambda line: None).sha256

    assert record(3) == record(3) != record(4)


def test_policies_meet_the_same_starts_whatever_they_draw() -> None:
    amount = Amount(steps=200)
    random = record_policy(build_random_policy("Pendulum-v1", {}), amount, 0.0, 7, lambda line: None)
    scripted = build_scripted_policy("pendulum_energy", None, {})
    noisy = record_policy(scripted, amount, 0.5, 7, lambda line: None)
    np.testing.assert_array_equal(random.observations[0], noisy.observations[0])
    assert not np.array_equal(random.observations[1], noisy.observations[1])


def test_noise_starts_and_what_a_policy_draws_share_no_stream() -> None:
    def begin(env: Env, generator: np.random.Generator) -> Act:
        return lambda obs: ActionScale(env.action_space).to_env(0.1 * generator.standard_normal(2))

    def record(noise: float) -> Any:
        policy = Policy("Count-v0", {}, {}, begin)
        recorded = record_policy(policy, Amount(steps=50), noise, 0, lambda line: None)
        return ActionScale(gym.spaces.Box(np.array([-2.0, 0.5]), np.array([6.0, 0.75]), dtype=np.float64)).to_normal(
            recorded.actions[:, 0]
        )

    drawn, added = record(0.0), record(0.1) - record(0.0)
    assert abs(np.corrcoef(drawn.reshape(-1), added.reshape(-1))[0, 1]) < 0.5


def test_an_environment_gets_one_seed_in_its_life() -> None:
    record_policy(build_still_policy(), Amount(episodes=3), 0.0, 0, lambda line: None)
    # The checks of the environment come first, twice: before recording, and for its bounds.
    recording = SEEDS[1:4]
    assert isinstance(recording[0], int)
    assert 0 <= recording[0] < 2**31
    assert recording[1:] == [None, None]


def test_a_controller_stays_with_its_environment() -> None:
    with pytest.raises(SettingsError, match="pendulum_energy controls Pendulum-v1, and the environment is Hopper-v5"):
        build_scripted_policy("pendulum_energy", "Hopper-v5", {})
    with pytest.raises(SettingsError, match="did you mean 'pendulum_energy'"):
        build_scripted_policy("pendulum_enregy", None, {})


def begin_by_the_map(env: Env, generator: np.random.Generator) -> Steer:
    """Steer by what no observation shows: how many episodes the environment has begun."""
    begun = env.unwrapped.begun
    assert env.unwrapped.time == 0, "an episode is under way"
    return lambda obs: np.array([begun / 10, generator.uniform(-1, 1)])


def test_a_pilot_is_begun_after_each_reset_and_may_look_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PILOTS, "by_the_map", (("Count-v0",), begin_by_the_map))
    policy = build_scripted_policy("by_the_map", None, {"broken_from": 50})
    assert (policy.env_name, policy.env_kwargs) == ("Count-v0", {"broken_from": 50})
    recorded = record_policy(policy, Amount(episodes=3), 0.0, 0, lambda line: None)
    low, high = recorded.header.action_low[0], recorded.header.action_high[0]
    normal = 2 * (recorded.actions[:, 0] - low) / (high - low) - 1
    # In the environment's units, from [-1, 1].
    np.testing.assert_allclose(normal[:, 0], np.repeat([0.1, 0.2, 0.3], 5), atol=1e-6)
    assert len(np.unique(normal[:, 1])) == 15
    assert recorded.header.policy == {"kind": "scripted", "name": "by_the_map", "noise": 0.0, "seed": 0}


def test_a_pilot_of_several_environments_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PILOTS, "by_the_map", (("Count-v0", "Count-v1"), begin_by_the_map))
    assert build_scripted_policy("by_the_map", "Count-v1", {}).env_name == "Count-v1"
    with pytest.raises(SettingsError, match="by_the_map controls Count-v0, Count-v1; say which with --env"):
        build_scripted_policy("by_the_map", None, {})
    with pytest.raises(SettingsError, match="by_the_map controls Count-v0, Count-v1, and the environment is Hopper-v5"):
        build_scripted_policy("by_the_map", "Hopper-v5", {})


def test_no_pilot_has_the_name_of_a_controller() -> None:
    assert not CONTROLLERS.keys() & PILOTS.keys()


def test_an_environment_that_breaks_is_told_apart_from_its_data() -> None:
    with pytest.raises(EpisodeError, match="episode 0: the environment gave a number that isn't finite"):
        record_policy(build_still_policy(broken_from=3), Amount(episodes=2), 0.0, 0, lambda line: None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CartPole-v1", "discrete actions"),
        ("Pendulum-v9", "did you mean 'Pendulum-v1'"),
        ("FrozenLake-v1", "flat vector"),
    ],
)
def test_other_environments_are_refused(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        record_policy(build_random_policy(name, {}), Amount(episodes=1), 0.0, 0, lambda line: None)


def test_progress_is_told_in_ten_lines_at_most() -> None:
    lines: list[str] = []
    record_policy(build_still_policy(), Amount(episodes=40), 0.0, 0, lines.append)
    assert len(lines) == 10
    assert lines[-1] == "40 episodes, 200 steps, mean return 15.0"
