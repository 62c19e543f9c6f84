"""Reference pilots: one that sees the map, one that flies straight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.drone.depth_nav import DepthNavEnv, DepthNavStateEnv, NavigationEnv
from envs.drone.pilots import fly_straight, open_privileged
from envs.make import make_env
from envs.pilots import PILOTS
from tests.envs.drone.test_world import describe_world

BLOCK = {"shape": "box", "size": [0.5, 2.5, 3], "position": [9, 0, 3]}


def fly(env: NavigationEnv, act: Any, obs: Any) -> dict[str, Any]:
    for _ in range(300):
        obs, _, terminated, _, info = env.step(act(obs))
        if terminated:
            break
    return info


@pytest.mark.parametrize("task", [DepthNavEnv, DepthNavStateEnv])
def test_the_straight_pilot_reaches_a_free_goal_and_hits_what_is_between(task: Any) -> None:
    free = task(world=describe_world(obstacles=[], start_yaw=2.0))
    info = fly(free, fly_straight, free.reset(seed=0)[0])
    assert info["is_success"]
    blocked = task(world=describe_world(obstacles=[BLOCK]))
    info = fly(blocked, fly_straight, blocked.reset(seed=0)[0])
    assert info["collision"]


def test_the_pilot_with_the_map_flies_around() -> None:
    env = DepthNavStateEnv(world=describe_world(obstacles=[BLOCK]))
    obs, _ = env.reset(seed=0)
    info = fly(env, open_privileged(env), obs)
    assert info["is_success"]
    assert info["path_length"] > 17


@pytest.mark.parametrize("density", ["easy", "hard"])
def test_the_pilot_with_the_map_gets_through_drawn_layouts(density: str) -> None:
    env = DepthNavStateEnv(density=density, layouts="held_out")
    infos = []
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        infos.append(fly(env, open_privileged(env), obs))
    assert sum(info["is_success"] for info in infos) == 6


def test_pilots_are_known_by_name_in_all_navigation_tasks() -> None:
    for name in ("straight_line", "privileged"):
        names, begin = PILOTS[name]
        for env_name in names:
            env = make_env(env_name, {})
            obs, _ = env.reset(seed=0)
            action = begin(env, np.random.default_rng(0))(obs)
            assert action.shape == (3,)
            assert np.abs(action).max() <= 1
