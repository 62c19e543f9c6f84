"""The interface that gym had: over gymnasium alone, and in gym's registry."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from benchmarks.peers.make_venv import CACHE, PINS, find_python
from envs import classic_gym
from envs.classic_gym import convert_space, make, register_in_gym
from envs.make import make_env
from envs.registration import OWN
from envs.snapshot import equal_bits

NAMES = [row.env_name for row in OWN]
SMALL: dict[str, Any] = {"height": 8, "width": 12, "seq_len": 2}
DIVE = np.array([0.0, -1.0, 0.0], np.float32)
HOVER = np.zeros(3, np.float32)


def equal(one: Any, other: Any) -> bool:
    """Give whether two observations are the same to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_bits(one[key], other[key]) for key in one)
    return equal_bits(one, other)


def choose_action(env: Any) -> Any:
    """Give an action that isn't zero, the same for everybody."""
    return np.linspace(-0.3, 0.4, env.action_space.shape[0], dtype=np.float32)


def fly_to_the_end(env: Any, action: Any) -> tuple[int, list[dict[str, Any]]]:
    """Give the number of steps until an episode is over, and all infos."""
    infos: list[dict[str, Any]] = []
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, info = env.step(action)
        infos.append(info)
    return len(infos), infos


@pytest.mark.parametrize("env_name", NAMES)
def test_the_old_interface_gives_the_numbers_of_the_new_one(env_name: str) -> None:
    old, new = make(env_name), make_env(env_name, {})
    assert (old.observation_space, old.action_space) == (new.observation_space, new.action_space)
    obs, (expected, _) = old.reset(seed=4), new.reset(seed=4)
    assert equal(obs, expected)
    action = choose_action(old)
    for _ in range(5):
        obs, reward, done, info = old.step(action)
        expected, expected_reward, terminated, truncated, expected_info = new.step(action)
        assert equal(obs, expected)
        ending = {"TimeLimit.truncated": not terminated} if terminated or truncated else {}
        assert (reward, done, info) == (expected_reward, terminated or truncated, expected_info | ending)
        if done:
            break
    old.close()
    new.close()


def test_an_end_by_the_clock_and_an_end_of_the_task_are_told_apart() -> None:
    crashed, infos = fly_to_the_end(make("AirSimEnv-v42", **SMALL), DIVE)
    assert infos[-1]["TimeLimit.truncated"] is False
    assert not any("TimeLimit.truncated" in info for info in infos[:-1])
    stopped, infos = fly_to_the_end(make("AirSimEnv-v42", **SMALL, max_episode_steps=3), HOVER)
    assert stopped == 3 < crashed
    assert infos[-1]["TimeLimit.truncated"] is True
    both, infos = fly_to_the_end(make("AirSimEnv-v42", **SMALL, max_episode_steps=crashed), DIVE)
    assert both == crashed
    assert infos[-1]["TimeLimit.truncated"] is False  # nothing is left to bootstrap from, whatever the clock says


def test_a_seed_that_is_given_first_counts_for_one_reset() -> None:
    env = make("AirSimEnv-v42", **SMALL)
    first = env.reset(seed=5)
    assert env.seed(5) == [5]
    assert equal(env.reset(), first)
    assert not equal(env.reset(), first)
    env.seed(6)
    assert equal(env.reset(seed=5), first)
    assert not equal(env.reset(), first)


def test_it_is_closed_by_a_with_statement_and_is_its_own_core(monkeypatch: pytest.MonkeyPatch) -> None:
    with make("AirSimEnv-v42", **SMALL) as env:
        assert env.unwrapped is env
        assert env.spec.id == "AirSimEnv-v42"
        closed: list[bool] = []
        monkeypatch.setattr(env.env, "close", lambda: closed.append(True))
    assert closed == [True]


def test_other_environments_of_gymnasium_have_the_old_interface_too() -> None:
    env = make("Pendulum-v1", max_episode_steps=2, render_mode="rgb_array")
    assert env.reset(seed=0).shape == (3,)
    assert env.metadata["render_modes"]
    *_, done, info = env.step(np.zeros(1, np.float32))
    assert (done, "TimeLimit.truncated" in info) == (False, False)
    *_, done, info = env.step(np.zeros(1, np.float32))
    assert (done, info["TimeLimit.truncated"]) == (True, True)


def test_arguments_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="densty: there is no such argument; did you mean 'density'"):
        make("AirSimEnv-v42", densty="hard")


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put a stand-in for gym into place, with as much of it as registering needs."""
    module = ModuleType("gym")
    registry: dict[str, SimpleNamespace] = {}

    def register(id: str, entry_point: Callable[..., Any], **options: Any) -> None:
        registry[id] = SimpleNamespace(entry_point=entry_point, options=options)

    box = type("Box", (spaces.Box,), {})
    contents = {
        "__version__": "0.26.2",
        "Env": type("Env", (), {"reset": None, "step": None}),
        "envs": SimpleNamespace(registration=SimpleNamespace(registry=registry)),
        "register": register,
        "spaces": SimpleNamespace(Box=box, Dict=type("Dict", (spaces.Dict,), {})),
    }
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, "gym", module)
    return module


def test_gym_gets_our_environments_without_what_expects_five_things_of_a_step(gym: ModuleType) -> None:
    register_in_gym()
    registry = gym.envs.registration.registry
    assert list(registry) == NAMES
    assert all(row.options == {"disable_env_checker": True, "order_enforce": False} for row in registry.values())


@pytest.mark.parametrize("env_name", NAMES)
def test_what_gym_makes_is_an_environment_of_gyms_with_its_spaces(gym: ModuleType, env_name: str) -> None:
    register_in_gym()
    env = gym.envs.registration.registry[env_name].entry_point()
    assert isinstance(env, gym.Env)
    observations = env.observation_space
    parts = observations.spaces.values() if isinstance(observations, gym.spaces.Dict) else [observations]
    assert all(isinstance(part, gym.spaces.Box) for part in [*parts, env.action_space])
    obs = env.reset(seed=1)
    assert obs in observations
    assert len(env.step(env.action_space.sample())) == 4


def test_arguments_given_to_gym_reach_the_environment(gym: ModuleType) -> None:
    register_in_gym()
    env = gym.envs.registration.registry["AirSimEnv-v42"].entry_point(**SMALL)
    assert env.observation_space["depth"].shape == (2, 1, 8, 12)


def test_registering_again_changes_nothing(gym: ModuleType) -> None:
    register_in_gym()
    before = dict(gym.envs.registration.registry)
    register_in_gym()
    assert all(gym.envs.registration.registry[name] is row for name, row in before.items())


def test_spaces_without_a_counterpart_are_refused(gym: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"Discrete\(3\) can't be turned into a space of gym's"):
        convert_space(gym, spaces.Discrete(3))


def test_without_gym_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym", None)
    with pytest.raises(ImportError, match=r"pip install gym==0\.26\.2, or use envs\.classic_gym\.make"):
        register_in_gym()


def test_a_gym_of_another_interface_is_refused(gym: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "__version__", "0.21.0")
    with pytest.raises(ImportError, match=r"gym 0\.21\.0 is installed, and 0\.26 is needed"):
        register_in_gym()


def test_gym_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, envs.classic_gym; sys.exit('gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("env_name", NAMES)
def test_the_real_gym_flies_as_we_do(env_name: str) -> None:
    python = find_python(PINS / "gym.txt", CACHE / "gym")
    if python is None:
        pytest.skip("gym isn't there: python -m benchmarks.peers.make_venv gym")
    root = Path(classic_gym.__file__).parents[1]
    words = [str(python), str(Path(__file__).with_name("gym_loop.py")), env_name]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    env, digest, rewards = make(env_name), hashlib.sha256(), []
    env.reset(seed=7)
    over = False
    while not over:
        obs, reward, over, info = env.step(choose_action(env))
        rewards.append(reward)
        for part in obs.values() if isinstance(obs, dict) else [obs]:
            digest.update(part.tobytes())
    expected = {"rewards": rewards, "digest": digest.hexdigest(), "truncated": info["TimeLimit.truncated"]}
    assert json.loads(done.stdout) == expected
