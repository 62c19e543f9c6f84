"""One action for several steps, as one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from envs.action_repeat import ActionRepeat
from envs.make import Env, find_environment_faults, find_time_limit, make_env
from envs.plain_values import SnapshotError
from envs.snapshot import equal_bits, probe_resume_mode, restore_snapshot, take_snapshot
from tests.envs.test_new_process import AFTER, ROOT, fly_on
from training.state import pack_state

GO_ON = """
import json, sys
import torch
from envs.action_repeat import ActionRepeat
from envs.make import make_env
from envs.snapshot import restore_snapshot
from tests.envs.test_new_process import AFTER, fly_on
from training.state import unpack_state
env = ActionRepeat(make_env(sys.argv[2], {}), 3)
restore_snapshot(env, unpack_state(torch.load(sys.argv[1], weights_only=True), {}.__getitem__))
print(json.dumps(fly_on(env, AFTER)))
"""


class CountingEnv(gym.Env[Any, Any]):
    """Pays 1, 2, 4, ... for the steps of an episode, which the task ends after `length` of them."""

    def __init__(self, length: int = 100) -> None:
        self.observation_space = gym.spaces.Box(0, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.length, self.time = length, 0
        self.actions: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1), {"begun": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(float(action[0]))
        self.time += 1
        reward = 2.0 ** (self.time - 1)
        return np.full(1, float(self.time)), reward, self.time == self.length, False, {"time": self.time}


def act(env: Env, action: float = 0.5) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    obs, reward, terminated, truncated, info = env.step(np.array([action], np.float32))
    return obs.tolist(), float(reward), terminated, truncated, info


def test_an_action_is_carried_out_as_often_as_said_and_its_rewards_are_summed() -> None:
    core = CountingEnv()
    env = ActionRepeat(core, 3)
    assert env.reset(seed=0)[1] == {"begun": True}
    assert act(env, 0.5) == ([3.0], 7.0, False, False, {"time": 3, "frames": 3})
    assert act(env, -1.0) == ([6.0], 56.0, False, False, {"time": 6, "frames": 3})
    assert core.actions == [0.5] * 3 + [-1.0] * 3


def test_the_end_of_the_task_stops_the_repeating() -> None:
    core = CountingEnv(length=4)
    env = ActionRepeat(core, 3)
    env.reset()
    act(env)
    assert act(env) == ([4.0], 8.0, True, False, {"time": 4, "frames": 1})
    assert len(core.actions) == 4


@pytest.mark.parametrize(("limit", "steps", "last"), [(6, 2, 3), (7, 3, 1), (8, 3, 2), (1, 1, 1)])
def test_the_clock_counts_frames_and_truncates_within_a_step(limit: int, steps: int, last: int) -> None:
    env = ActionRepeat(gym.wrappers.TimeLimit(CountingEnv(), limit), 3)
    env.reset()
    given = [act(env) for _ in range(steps)]
    assert [truncated for *_, truncated, _ in given] == [False] * (steps - 1) + [True]
    assert not any(terminated for _, _, terminated, _, _ in given)
    assert [info["frames"] for *_, info in given] == [3] * (steps - 1) + [last]
    assert find_time_limit(env) == limit


def test_once_is_the_environment_as_it_is() -> None:
    env, alone = ActionRepeat(make_env("Pendulum-v1", {}), 1), make_env("Pendulum-v1", {})
    assert equal_bits(env.reset(seed=3)[0], alone.reset(seed=3)[0])
    env.action_space.seed(0)
    for _ in range(5):
        action = env.action_space.sample()
        obs, reward, *endings, info = env.step(action)
        wanted_obs, wanted_reward, *wanted_endings, wanted_info = alone.step(action)
        assert equal_bits(obs, wanted_obs)
        assert (reward, endings, info) == (float(wanted_reward), wanted_endings, {**wanted_info, "frames": 1})


@pytest.mark.parametrize("repeat", [0, -2, 1.5, 2.0, True, "2", None])
def test_a_number_of_times_that_is_none_is_refused(repeat: Any) -> None:
    with pytest.raises(ValueError, match=r"repeat: .* is not a whole number from 1"):
        ActionRepeat(CountingEnv(), repeat)


@pytest.mark.parametrize("env_name", ["Pendulum-v1", "HalfCheetah-v5", "DepthNavState-v0"])
def test_a_new_process_goes_on_from_a_snapshot_to_the_bit(env_name: str, tmp_path: Path) -> None:
    env = ActionRepeat(make_env(env_name, {}), 3)
    env.reset(seed=4)
    env.action_space.seed(9)
    fly_on(env, 30)
    path = tmp_path / "snapshot.pt"
    torch.save(pack_state(take_snapshot(env)), path)
    straight = fly_on(env, AFTER)
    env.close()
    command = [sys.executable, "-c", GO_ON, str(path), env_name]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == straight
    assert len(set(straight)) == AFTER


def test_a_snapshot_does_not_go_into_one_that_repeats_more_or_less_often() -> None:
    env, other = (ActionRepeat(make_env("Pendulum-v1", {}), repeat) for repeat in (2, 4))
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    with pytest.raises(SnapshotError, match="each action was carried out 2 times, and here it is 4 times"):
        restore_snapshot(other, snapshot)
    with pytest.raises(SnapshotError, match=r"the snapshot was taken of .*ActionRepeat of .*, and this is "):
        restore_snapshot(make_env("Pendulum-v1", {}), snapshot)


@pytest.fixture
def repeated_pendulum() -> Iterator[str]:
    entry = "gymnasium.envs.classic_control.pendulum:PendulumEnv"
    wrappers = (ActionRepeat.wrapper_spec(repeat=4),)
    gym.register("Repeated-v0", entry, max_episode_steps=30, additional_wrappers=wrappers)
    yield "Repeated-v0"
    del gym.registry["Repeated-v0"]


def test_an_id_may_be_registered_with_it(repeated_pendulum: str) -> None:
    assert find_environment_faults(repeated_pendulum, {}, continuous_actions=True) == []
    probe = probe_resume_mode(repeated_pendulum, {})
    assert (probe.mode, probe.reason) == ("exact", None)
    env = make_env(repeated_pendulum, {})
    env.reset(seed=0)
    frames = [env.step(env.action_space.sample())[-1]["frames"] for _ in range(8)]
    assert frames == [4] * 7 + [2]
