"""dm_control's suite under ids like `dmc/walker-walk`: flat observations, actions in [-1, 1], gymnasium's endings.

dm_control is imported when one is made. Drawing is left out, so none of this needs OpenGL.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.actions import ActionScale
from envs.make import mute_mujoco
from envs.mujoco_state import read_mujoco, write_mujoco
from envs.refusals import check_action, refuse_reset_options

_LARGEST_ACTION = 1e9
"""What dm_control calls the bound of an actuator that has none is larger than this."""


class DmcEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """One task of dm_control's suite (Tassa et al. 2018, arXiv:1801.00690).

    Its own clock is off: the time limit of the id is as long, and can be replaced like that of any environment.

    Args:
        domain: as in `dm_control.suite.load`.
        task: as in `dm_control.suite.load`.

    Raises:
        DependencyNotInstalled: there is no dm_control; the message says what to install.
        ValueError: the suite has no such task.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, domain: str, task: str) -> None:
        self._suite_env = _load(domain, task)
        spec = self._suite_env.action_spec()
        bounded = (spec.minimum > -_LARGEST_ACTION) & (spec.maximum < _LARGEST_ACTION)
        low, high = np.where(bounded, spec.minimum, -1.0), np.where(bounded, spec.maximum, 1.0)
        self._scale = ActionScale(gym.spaces.Box(low, high, dtype=np.float64))
        self._over = True
        obs_dim = sum(math.prod(part.shape) for part in self._suite_env.observation_spec().values())
        self.action_space = gym.spaces.Box(-1, 1, spec.shape, np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; the task's own generator is seeded from this environment's.

        Raises:
            ValueError: there are reset options, which mean nothing here.
        """
        super().reset(seed=seed)
        refuse_reset_options(options)
        self._suite_env.task.random.seed(int(self.np_random.integers(2**32)))
        step = self._suite_env.reset()
        self._over = False
        return _flatten(step.observation), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act for one of the task's control periods; a discount of 0 is its way to say that an episode terminated.

        Raises:
            ValueError: the action isn't as many numbers in [-1, 1] as the task takes.
            ResetNeeded: there is no episode, or it has terminated.
        """
        numbers = check_action(action, len(self._scale.low))
        if self._over:
            raise gym.error.ResetNeeded("the episode is over, or none has begun; call reset")
        step = self._suite_env.step(self._scale.to_env(numbers))
        self._over = bool(step.discount == 0)
        return _flatten(step.observation), float(step.reward), self._over, False, {}

    def snapshot_state(self) -> dict[str, Any]:
        """Give the simulation, the task's generator, and its plain attributes."""
        return {
            "simulation": read_mujoco(self._suite_env.physics.data.ptr),
            "task": dict(vars(self._suite_env.task)),
            "over": self._over,
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over what `snapshot_state` gave."""
        self._suite_env.reset()  # or its next step would be one
        write_mujoco(self._suite_env.physics.data.ptr, state["simulation"], "its simulation")
        vars(self._suite_env.task).update(state["task"])
        self._over = state["over"]


def _load(domain: str, task: str) -> Any:
    """Give dm_control's environment, made the same each time: the springs of lqr are drawn when it is."""
    suite = _import_suite()
    with mute_mujoco():
        env = suite.load(domain, task, task_kwargs={"random": np.random.RandomState(0), "time_limit": math.inf})
    # Resets of quadruped-escape upload its terrain to where it is drawn, and would open a window's context for that.
    env.physics._make_rendering_contexts = lambda: None
    return env


def _import_suite() -> Any:
    """Import dm_control, without the warnings that its look for a display leads to.

    Raises:
        DependencyNotInstalled: it isn't there.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="glfw")
            from dm_control import suite
    except ImportError as error:
        message = f"dm_control (pip install -e '.[dmc]' with Python 3.11 or 3.12): {error}"
        raise gym.error.DependencyNotInstalled(message) from error
    return suite


def _flatten(observation: Mapping[str, Any]) -> NDArray[np.float32]:
    """Give all parts of an observation in one row, in the order of the task's specification."""
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)
