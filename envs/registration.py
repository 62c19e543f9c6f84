"""The environments of our own, under their ids in gymnasium's registry.

Registering says where an environment is, as text: nothing is imported before one is made, so a name can be looked up
or suggested without MuJoCo or dm_control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym


@dataclass(frozen=True)
class Registration:
    """One id.

    Attributes:
        entry_point: `module:Class`.
        max_episode_steps: the time limit, after which an episode is truncated; None where the environment has its own.
        kwargs: arguments that belong to the id.
        vector_entry_point: `module:Class` of many in one process; None where gymnasium's own way has to do.
    """

    env_name: str
    entry_point: str
    max_episode_steps: int | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    vector_entry_point: str | None = None


DMC_TASKS = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}
"""All domains of dm_control's suite with their tasks, written down here so that dm_control need not be asked."""
DMC_STEPS = 1000
"""Steps of an episode of dm_control: each task's own clock, and for lqr, which has none, the same."""

OWN = (
    Registration(
        "DepthNav-v0",
        "envs.drone.depth_nav:DepthNavEnv",
        max_episode_steps=300,
        vector_entry_point="envs.drone.depth_nav_vector:DepthNavVectorEnv",
    ),
    Registration(
        "DepthNavState-v0",
        "envs.drone.depth_nav:DepthNavStateEnv",
        max_episode_steps=300,
        vector_entry_point="envs.drone.depth_nav_vector:DepthNavStateVectorEnv",
    ),
    Registration(
        "AirSimEnv-v42",
        "envs.drone.depth_nav:DepthNavEnv",
        max_episode_steps=300,
        vector_entry_point="envs.drone.depth_nav_vector:DepthNavVectorEnv",
    ),
    Registration("DroneTrack-v0", "envs.drone.track:DroneTrackEnv", max_episode_steps=500),
    Registration("TwoHandReach-v0", "envs.reach.env:TwoHandReachEnv", max_episode_steps=100),
    Registration("DepthRecall-v0", "envs.recall:DepthRecallEnv", max_episode_steps=100),
)
COMPOSED = (Registration("MultiTask-v0", "envs.multitask:MultiTaskEnv", max_episode_steps=None),)
"""Those made of other environments, which their arguments name: without arguments there are none."""
WINDOWED = ("DepthNav-v0", "AirSimEnv-v42", "DepthRecall-v0")
"""The ids whose observations are windows as long as their argument `seq_len`."""


def register_environments() -> None:
    """Put the environments of this project into gymnasium's registry; what is there already stays as it is.

    `train.py`, `play.py` and `envs.make` do this themselves. A script that calls `gymnasium.make` does it first.
    """
    for row in (*OWN, *COMPOSED, *list_dmc()):
        if row.env_name not in gym.registry:
            gym.register(
                row.env_name,
                row.entry_point,
                max_episode_steps=row.max_episode_steps,
                kwargs=dict(row.kwargs),
                vector_entry_point=row.vector_entry_point,
            )


def list_dmc() -> Iterator[Registration]:
    """Give an id like `dmc/walker-walk` for each task of dm_control's suite, whether or not that is installed."""
    for domain, tasks in DMC_TASKS.items():
        for task in tasks:
            kwargs = {"domain": domain, "task": task}
            yield Registration(f"dmc/{domain}-{task}", "envs.dmc:DmcEnv", DMC_STEPS, kwargs)
