"""The environments of our own, under their ids: as gymnasium wants them, single and many at a time."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from envs.make import make_env
from envs.registration import OWN, register_environments

NAMES = [row.env_name for row in OWN]
IN_ONE_PROCESS = [row.env_name for row in OWN if row.vector_entry_point is not None]


@pytest.mark.parametrize("env_name", NAMES)
def test_gymnasium_finds_nothing_to_complain_about(env_name: str) -> None:
    env = make_env(env_name, {})
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("env_name", NAMES)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_many_at_a_time_give_valid_observations_through_endings(env_name: str, mode: AutoresetMode) -> None:
    register_environments()
    in_one = env_name in IN_ONE_PROCESS
    extra: dict[str, Any] = {"autoreset_mode": mode} if in_one else {"vector_kwargs": {"autoreset_mode": mode}}
    envs = gym.make_vec(env_name, num_envs=3, vectorization_mode="vector_entry_point" if in_one else "sync", **extra)
    assert envs.metadata["autoreset_mode"] is mode
    obs, _ = envs.reset(seed=1)
    assert obs in envs.observation_space
    envs.action_space.seed(0)
    endings = 0
    for _ in range(310):
        obs, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert obs in envs.observation_space
        assert rewards.shape == terminated.shape == truncated.shape == (3,)
        endings += int((terminated | truncated).sum())
    assert endings > 0
    envs.close()


def test_registering_twice_changes_nothing() -> None:
    register_environments()
    before = {name: gym.registry[name] for name in NAMES}
    register_environments()
    assert all(gym.registry[name] is spec for name, spec in before.items())


@pytest.mark.parametrize("env_name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5])
def test_actions_that_are_none_are_refused_with_the_entry(env_name: str, value: float) -> None:
    env = make_env(env_name, {})
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, dtype=np.float32)
    action[-1] = value
    with pytest.raises(ValueError, match=rf"action\[{len(action) - 1}\]"):
        env.step(action)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(len(action) + 1, dtype=np.float32))
    env.close()
