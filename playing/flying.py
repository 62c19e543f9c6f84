"""Flights of a policy in a navigation task, kept to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.flights import ASTRAY, COLLISION, GOAL, TIME, Flight
from envs.drone.camera import Camera
from envs.drone.depth_nav import NavigationEnv
from envs.drone.flight import GOAL_RADIUS, PERIOD
from envs.make import Env, make_env
from envs.record import Policy
from experiment.problems import Fault, SettingsError
from training.seeding import spawn_generator

PIXELS = 64
"""Across and down a picture of depth, where the task shows none to its agents."""


def fly(policy: Policy, seeds: Sequence[int]) -> list[Flight]:
    """Let a policy fly once for each seed, as an evaluation of the same seeds does.

    Raises:
        SettingsError: its environment is no navigation task.
    """
    env = make_env(policy.env_name, policy.env_kwargs)
    try:
        task = env.unwrapped
        if not isinstance(task, NavigationEnv):
            message = f"{policy.env_name} can't be drawn: only flights of navigation tasks are (DepthNav-v0 and others)"
            raise SettingsError([Fault(("env",), f"{message}; `play.py evaluate` tells how it went anywhere")])
        return [_fly_once(env, task, policy, seed) for seed in seeds]
    finally:
        env.close()


def _fly_once(env: Env, task: NavigationEnv, policy: Policy, seed: int) -> Flight:
    obs, info = env.reset(seed=seed)
    act = policy.begin(env, spawn_generator(seed, "acting"))
    path, depths, episode_return = [_find_place(task)], [see(task, obs)], 0.0
    terminated = truncated = False
    while not (terminated or truncated):
        obs, reward, terminated, truncated, info = env.step(act(obs))
        path.append(_find_place(task))
        depths.append(see(task, obs))
        episode_return += float(reward)
    world = task.flight.world
    assert world is not None
    return Flight(
        name=f"seed {seed}",
        world=world.to_json(),
        goal_radius=GOAL_RADIUS,
        period=PERIOD,
        path=np.array(path),
        depths=np.stack(depths),
        outcome=name_outcome(info, terminated),
        episode_return=episode_return,
    )


def _find_place(task: NavigationEnv) -> tuple[float, float, float]:
    assert task.flight.pose is not None
    return task.flight.pose.position


def see(task: NavigationEnv, obs: Any) -> NDArray[np.float32]:
    """Give depth over its largest, as a picture: what the agent sees where that is one, else what a camera would."""
    if isinstance(obs, Mapping):
        newest: NDArray[np.float32] = obs["depth"][-1, 0]
        return newest
    options = task.options
    camera = Camera(PIXELS, PIXELS, horizontal_fov=options.horizontal_fov, max_depth=options.max_depth)
    return (task.flight.backend.see(camera) / options.max_depth).astype(np.float32)


def name_outcome(info: Mapping[str, Any], terminated: bool) -> str:
    """Say how a flight ended, from its last `info`."""
    if info["is_success"]:
        return GOAL
    if info["collision"]:
        return COLLISION
    return ASTRAY if terminated else TIME
