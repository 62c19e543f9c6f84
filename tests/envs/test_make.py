"""Environments by name, and what is said about those that a run can't use."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from envs.make import (
    SpaceSizes,
    describe_spaces,
    find_environment_faults,
    find_evaluation_faults,
    make_env,
    take_anything,
)
from experiment.problems import SettingsError


def only_message(env_name: str, env_kwargs: dict[str, Any], continuous_actions: bool = True) -> str:
    faults = find_environment_faults(env_name, env_kwargs, continuous_actions)
    assert len(faults) == 1
    return faults[0].message


@pytest.mark.parametrize("env_name", ["Pendulum-v1", "HalfCheetah-v5", "MountainCarContinuous-v0"])
def test_a_good_environment_has_no_faults(env_name: str) -> None:
    assert find_environment_faults(env_name, {}, continuous_actions=True) == []


@pytest.mark.parametrize(
    ("env_name", "meant"),
    [
        ("Pendulum-v9", "Pendulum-v1"),
        ("Pendulum", "Pendulum-v1"),
        ("pendulum-v1", "Pendulum-v1"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("HalfCheetah-v99", "HalfCheetah-v5"),
        ("Penduluum-v1", "Pendulum-v1"),
    ],
)
def test_an_unknown_name_is_answered_with_the_likely_one(env_name: str, meant: str) -> None:
    message = only_message(env_name, {})
    assert message == f"env_name: no environment is called '{env_name}'; did you mean '{meant}'?"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert only_message("zzz", {}) == "env_name: no environment is called 'zzz'"


def test_a_module_in_the_name_is_sent_to_imports() -> None:
    message = only_message("my_package.envs:Thing-v0", {})
    assert "imports: [my_package.envs]" in message
    assert "env_name: Thing-v0" in message


def test_an_unknown_argument_is_named_with_the_likely_one() -> None:
    (fault,) = find_environment_faults("HalfCheetah-v5", {"ctrl_cost_wight": 0.2}, continuous_actions=True)
    assert fault.keys == ("env_kwargs.ctrl_cost_wight", "env_kwargs")
    assert fault.message.endswith("no argument 'ctrl_cost_wight'; did you mean 'ctrl_cost_weight'?")


def test_arguments_of_a_base_class_are_known() -> None:
    assert (
        find_environment_faults("HalfCheetah-v5", {"width": 100, "max_episode_steps": 7}, continuous_actions=True) == []
    )


@pytest.mark.parametrize("env_kwargs", [{"g": "heavy"}, {"max_episode_steps": "long"}])
def test_an_argument_that_fails_when_made_or_stepped_is_shown(env_kwargs: dict[str, Any]) -> None:
    message = only_message("Pendulum-v1", env_kwargs)
    assert message.startswith("env_kwargs: Pendulum-v1")
    assert str(env_kwargs) in message


class WindowEnv(gym.Env[Any, Any]):
    """Shows `width` numbers of what there is, up to `top`, and takes actions up to `reach`."""

    def __init__(self, width: int = 2, top: float = 1.0, reach: float = 1.0, layout: str = "seen") -> None:
        if layout not in ("seen", "held_out"):
            raise ValueError(f"layout: no layouts are called {layout!r}")
        self.observation_space = gym.spaces.Box(0, top, (width,))
        self.action_space = gym.spaces.Box(-reach, reach, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.low, 0.0, True, False, {}


@pytest.fixture
def _window() -> Iterator[None]:
    gym.register("Window-v0", WindowEnv, max_episode_steps=5)
    yield
    del gym.registry["Window-v0"]


@pytest.mark.parametrize("changes", [{}, {"layout": "held_out"}, {"max_episode_steps": 9}, {"top": 2.0}])
@pytest.mark.usefixtures("_window")
def test_evaluations_may_change_what_leaves_the_spaces_alone(changes: dict[str, Any]) -> None:
    assert find_evaluation_faults("Window-v0", {"top": 2.0}, changes) == []


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"width": 3}, "eval_env_kwargs", r"Window-v0 observes Box\(0.0, 1.0, \(3,\).* both must be the same"),
        ({"top": 2.0}, "eval_env_kwargs", r"with {'top': 2.0} Window-v0 observes Box\(0.0, 2.0"),
        ({"reach": 2.0}, "eval_env_kwargs", r"Window-v0 takes actions in Box\(-2.0"),
        ({"layout": "held_put"}, "eval_env_kwargs", "^eval_env_kwargs: Window-v0 can't be made .* 'held_put'"),
        ({"widht": 2}, "eval_env_kwargs.widht", "^eval_env_kwargs.widht: .* did you mean 'width'"),
        (
            {"max_episode_steps": -1},
            "eval_env_kwargs.max_episode_steps",
            "^eval_env_kwargs.max_episode_steps: -1 leaves",
        ),
    ],
)
@pytest.mark.usefixtures("_window")
def test_evaluations_may_not_change_spaces_or_break_the_environment(
    changes: dict[str, Any], key: str, said: str
) -> None:
    (fault,) = find_evaluation_faults("Window-v0", {"layout": "seen"}, changes)
    assert fault.keys[0] == key
    assert re.search(said, fault.message)


def test_discrete_actions_are_refused_only_where_continuous_ones_are_needed() -> None:
    assert "CartPole-v1 has discrete actions, Discrete(2)" in only_message("CartPole-v1", {})
    assert find_environment_faults("CartPole-v1", {}, continuous_actions=False) == []


def test_a_missing_package_is_named() -> None:
    message = only_message("HalfCheetah-v3", {})
    assert message.startswith("env_name: HalfCheetah-v3 needs a package that is not installed: ")
    assert "gymnasium-robotics" in message


class OddEnv(gym.Env[Any, Any]):
    """An environment with the spaces that a test gives it."""

    def __init__(self, observations: str = "flat", actions: str = "bounded", broken: bool = False) -> None:
        boxes = {"flat": (2,), "picture": (4, 4, 3)}
        self.observation_space = (
            gym.spaces.Dict({}) if observations == "mapping" else gym.spaces.Box(-1, 1, boxes[observations])
        )
        high = 1.0 if actions == "bounded" else float("inf")
        self.action_space = gym.spaces.Box(-1, high, (2, 2) if actions == "matrix" else (2,))
        if broken:
            raise RuntimeError("the simulator is not running")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


@pytest.fixture
def odd_env() -> Iterator[str]:
    gym.register("Odd-v0", OddEnv, max_episode_steps=50)
    yield "Odd-v0"
    del gym.registry["Odd-v0"]


@pytest.mark.parametrize(
    ("env_kwargs", "part"),
    [
        ({"observations": "picture"}, "needs a flat vector"),
        ({"observations": "mapping"}, "needs a flat vector"),
        ({"actions": "unbounded"}, "actions without bounds"),
        ({"actions": "matrix"}, "needs a 1-D Box"),
        ({"broken": True}, "RuntimeError: the simulator is not running"),
        ({}, "fails on its first step: NotImplementedError"),
    ],
)
def test_other_spaces_and_broken_environments_are_said_in_words(
    odd_env: str, env_kwargs: dict[str, Any], part: str
) -> None:
    assert part in only_message(odd_env, env_kwargs)


class SmallSeedEnv(OddEnv):
    """An environment whose generator takes no seed above `largest`."""

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None and seed > self.largest:
            raise ValueError("Seed must be smaller")
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def endless_env() -> Iterator[str]:
    gym.register("Endless-v0", SmallSeedEnv, kwargs={"largest": 2**31 - 1})
    yield "Endless-v0"
    del gym.registry["Endless-v0"]


def test_an_environment_without_a_time_limit_is_sent_to_the_key_that_gives_one(endless_env: str) -> None:
    (fault,) = find_environment_faults(endless_env, {}, continuous_actions=True)
    assert fault.keys == ("env_name",)
    assert fault.message.startswith("env_name: Endless-v0 is registered without a time limit: ")
    assert fault.message.endswith("`env_kwargs.max_episode_steps: 1000`")
    assert find_environment_faults(endless_env, {"max_episode_steps": 1000}, continuous_actions=True) == []


def test_a_time_limit_that_is_taken_away_is_pointed_at() -> None:
    (fault,) = find_environment_faults("Pendulum-v1", {"max_episode_steps": -1}, continuous_actions=True)
    assert fault.keys == ("env_kwargs.max_episode_steps", "env_kwargs")
    assert fault.message.startswith("env_kwargs.max_episode_steps: -1 leaves Pendulum-v1 without a time limit")


def test_seeds_that_an_environment_cannot_take_show_before_training(endless_env: str) -> None:
    """Those of 31 bits are all that is ever asked of it."""
    kwargs = {"max_episode_steps": 9}
    assert find_environment_faults(endless_env, kwargs | {"largest": 2**31 - 1}, continuous_actions=True) == []
    message = only_message(endless_env, kwargs | {"largest": 2**31 - 2})
    assert message.endswith("fails on reset(seed=2147483647): ValueError: Seed must be smaller")


def test_the_sizes_of_vectors_are_given() -> None:
    assert describe_spaces("HalfCheetah-v5", {}) == SpaceSizes(obs_dim=17, action_dim=6)
    with pytest.raises(SettingsError, match="discrete"):
        describe_spaces("CartPole-v1", {})


def test_the_time_limit_is_kept_and_can_be_replaced() -> None:
    assert make_env("Pendulum-v1", {}).get_wrapper_attr("_max_episode_steps") == 200
    assert make_env("Pendulum-v1", {"max_episode_steps": 7}).get_wrapper_attr("_max_episode_steps") == 7


def test_old_versions_make_no_noise_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_env("HalfCheetah-v4", {}).close()
    assert caught == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_observations_are_judged_by_who_needs_them() -> None:
    small = {"height": 4, "width": 4}
    faults = find_environment_faults("DepthNav-v0", small, continuous_actions=True)
    assert len(faults) == 1
    assert "this trainer needs a flat vector" in faults[0].message
    assert find_environment_faults("DepthNav-v0", small, continuous_actions=True, judge=take_anything) == []
