"""`MultiTask-v0`: several tasks in one environment, one of them in each episode.

For an agent that learns many tasks in one run: observations and actions of all tasks have the same shapes, with the
task's index and a mask of the actions that count beside them (Hansen et al. 2024, arXiv:2310.16828).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.actions import ActionScale
from envs.make import Env, find_time_limit, make_env_or_fail
from envs.plain_values import SnapshotError
from envs.refusals import check_action, refuse_reset_options
from envs.snapshot import restore_snapshot, take_snapshot
from experiment.problems import SettingsError, suggest

ENV_NAME = "MultiTask-v0"
_KEYS = ("env_name", "env_kwargs")
_NUM_SEEDS = 2**31
"""Episodes of tasks begin with seeds below this: generators of the old kind and C simulators take no more."""


@dataclass(frozen=True)
class Task:
    """An environment with its arguments."""

    env_name: str
    env_kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The id, with the arguments in parentheses where there are any, ordered by their names."""
        arguments = ", ".join(f"{key}={value}" for key, value in sorted(self.env_kwargs.items()))
        return f"{self.env_name}({arguments})" if arguments else self.env_name


class MultiTaskEnv(gym.Env[dict[str, Any], NDArray[Any]]):
    """Several tasks, each an environment of its own with its own time limit.

    An observation: `obs`, (obs_dim,), the task's own and zeros after it; `task`, its index; `action_mask`,
    (action_dim,), 1 where an entry of the action counts. An action: (action_dim,) in [-1, 1]; the task's own come
    first, scaled to its bounds, and the rest is ignored. `obs_dim` and `action_dim` are the largest of all tasks.

    An episode's task, and the seed that it begins with, are drawn from this environment's generator. With `task` it is
    always the same one, begun with the seeds that `reset` is given: as if it were alone.

    Args:
        tasks: ids, or mappings of `env_name` and `env_kwargs`.
        task: the only one that is acted in, by its index or its name. Shapes and indices stay those of all.

    Raises:
        ValueError: a task can't be made or has other than flat observations and bounded actions, one stands there
            twice, or `task` isn't one of them; with a line for each.

    Attributes:
        tasks: all of them, in order.
        held_envs: the environments of those that are acted in, by the tasks' names.
        index: of the task in this episode; None before the first.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, tasks: Sequence[str | Mapping[str, Any]] = (), task: int | str | None = None) -> None:
        self.tasks = read_tasks(tasks)
        self._fixed = None if task is None else find_task(self.tasks, task)
        self.index: int | None = None
        made = _make_all(self.tasks)
        self._scales = [ActionScale(_get_box(env.action_space)) for env in made.values()]
        obs_dim = max(_get_box(env.observation_space).shape[0] for env in made.values())
        action_dims = [len(scale.low) for scale in self._scales]
        self._masks = (np.arange(max(action_dims)) < np.array(action_dims)[:, None]).astype(np.int8)
        acting = self.tasks if self._fixed is None else self.tasks[self._fixed : self._fixed + 1]
        self.held_envs: dict[str, Env] = {each.name: made.pop(each.name) for each in acting}
        _close_all(made)
        self.action_space = gym.spaces.Box(-1, 1, (max(action_dims),), np.float32)
        self.observation_space = gym.spaces.Dict(
            {
                "action_mask": gym.spaces.MultiBinary(max(action_dims)),
                "obs": gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32),
                "task": gym.spaces.Discrete(len(self.tasks)),
            }
        )
        self._obs_dim = obs_dim

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; `info` has its `task`, by name.

        Raises:
            ValueError: there are reset options, which mean nothing here.
        """
        super().reset(seed=seed)
        refuse_reset_options(options)
        index = self._fixed
        if index is None:
            index = int(self.np_random.integers(len(self.tasks)))
            seed = int(self.np_random.integers(_NUM_SEEDS))
        self.index = index
        name = self.tasks[index].name
        obs, info = self.held_envs[name].reset(seed=seed)
        return self._describe(index, obs), {**info, "task": name}

    def step(self, action: NDArray[Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act in this episode's task; `info` is the task's own, with `task`, its name.

        Raises:
            ValueError: the action isn't `action_dim` numbers in [-1, 1].
            ResetNeeded: no episode has begun.
        """
        numbers = check_action(action, self._masks.shape[1])
        if self.index is None:
            raise gym.error.ResetNeeded("no episode has begun; call reset")
        name, scale = self.tasks[self.index].name, self._scales[self.index]
        own = scale.to_env(numbers[: len(scale.low)])
        obs, reward, terminated, truncated, info = self.held_envs[name].step(own)
        return (
            self._describe(self.index, obs),
            float(reward),
            bool(terminated),
            bool(truncated),
            {**info, "task": name},
        )

    def _describe(self, index: int, obs: NDArray[Any]) -> dict[str, Any]:
        padded = np.zeros(self._obs_dim, np.float32)
        padded[: len(obs)] = obs
        return {"action_mask": self._masks[index].copy(), "obs": padded, "task": np.int64(index)}

    def close(self) -> None:
        """Close all tasks."""
        _close_all(self.held_envs)

    def snapshot_state(self) -> dict[str, Any]:
        """Give the task of this episode and the states of all tasks, also of those that no episode is in.

        Raises:
            SnapshotError: one of them can't be taken; it is named.
        """
        states = {}
        for name, env in self.held_envs.items():
            try:
                states[name] = take_snapshot(env)
            except SnapshotError as error:
                raise SnapshotError(f"in task {name}: {error}") from error
        return {"tasks": [task.name for task in self.tasks], "index": self.index, "parts": states}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over what `snapshot_state` gave.

        Raises:
            ValueError: there are other tasks here, or another one is fixed; or a task's environment differs.
        """
        for found, wanted in (([task.name for task in self.tasks], state["tasks"]), (self.held_envs, state["parts"])):
            if list(found) != list(wanted):
                raise ValueError(f"its tasks were {', '.join(wanted)}, and here they are {', '.join(found)}")
        for name, env in self.held_envs.items():
            try:
                restore_snapshot(env, state["parts"][name])
            except SnapshotError as error:
                raise SnapshotError(f"in task {name}: {error}") from error
        self.index = state["index"]


def read_tasks(tasks: object) -> tuple[Task, ...]:
    """Check the form of the argument `tasks`; no environment is made.

    Raises:
        ValueError: it isn't a list of tasks, all of them different; with a line for each entry that is none.
    """
    if not isinstance(tasks, list | tuple):
        raise ValueError(f"tasks: {tasks!r} is not a list; write one, as `tasks: [dmc/walker-walk, Pendulum-v1]`")
    if not tasks:
        raise ValueError("tasks: there are none; name some, as `tasks: [dmc/walker-walk, Pendulum-v1]`")
    places: dict[str, int] = {}
    read, problems = [], []
    for index, entry in enumerate(tasks):
        if complaints := list(_find_entry_faults(f"tasks[{index}]", entry)):
            problems += complaints
            continue
        task = Task(entry, {}) if isinstance(entry, str) else Task(entry["env_name"], dict(entry.get("env_kwargs", {})))
        first = places.setdefault(task.name, index)
        if first != index:
            problems.append(
                f"tasks[{index}]: {task.name} is tasks[{first}] already; a task may stand there again with other "
                "env_kwargs only"
            )
        read.append(task)
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(read)


def _find_entry_faults(place: str, entry: object) -> Iterator[str]:
    """Name what is wrong with the form of one entry of `tasks`."""
    name: object = entry
    if isinstance(entry, Mapping):
        for key in entry:
            if key not in _KEYS:
                yield f"{place}: a task has no key {key!r}{suggest(str(key), _KEYS)}; it has: {', '.join(_KEYS)}"
        kwargs = entry.get("env_kwargs", {})
        if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            yield f"{place}.env_kwargs: {kwargs!r} are not arguments; write a mapping, as `{{max_episode_steps: 500}}`"
        if "env_name" not in entry:
            yield f"{place}: {dict(entry)} has no env_name; write one, as `env_name: Pendulum-v1`"
            return
        name = entry["env_name"]
    if not isinstance(name, str):
        yield f"{place}: {name!r} is not a task; write an id, or {{env_name: ..., env_kwargs: ...}}"
    elif name == ENV_NAME:
        yield f"{place}: {ENV_NAME} can't be a task of itself; list its tasks here"


def find_task(tasks: Sequence[Task], task: int | str) -> int:
    """Give the index of a task that is named by its index or its name.

    Raises:
        ValueError: it is none of them.
    """
    names = [each.name for each in tasks]
    if isinstance(task, str) and task in names:
        return names.index(task)
    if type(task) is int and 0 <= task < len(names):
        return task
    hint = suggest(task, names) if isinstance(task, str) else ""
    listed = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
    raise ValueError(f"task: {task!r} is none of the tasks{hint}; there are: {listed}")


def _make_all(tasks: Sequence[Task]) -> dict[str, Env]:
    """Make the environment of each task.

    Raises:
        ValueError: some can't be made or can't be tasks; with a line for each reason, and none is left open.
    """
    made: dict[str, Env] = {}
    problems = []
    for index, task in enumerate(tasks):
        place = f"tasks[{index}]"
        try:
            made[task.name] = make_env_or_fail(task.env_name, task.env_kwargs)
        except SettingsError as error:
            problems += [_place_fault(place, fault.message) for fault in error.faults]
        else:
            problems += [f"{place}: {complaint}" for complaint in _find_faults(task, made[task.name])]
    if problems:
        _close_all(made)
        raise ValueError("\n".join(problems))
    return made


def _place_fault(place: str, message: str) -> str:
    """Say of an entry of `tasks` what was said of settings."""
    return (
        f"{place}.{message}" if message.startswith("env_kwargs") else f"{place}: {message.removeprefix('env_name: ')}"
    )


def _find_faults(task: Task, env: Env) -> Iterator[str]:
    """Name what keeps an environment from being a task."""
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        yield f"{task.name} observes {observations}; a task needs a flat vector (a 1-D Box)"
    if isinstance(actions, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        yield f"{task.name} has discrete actions, {actions}; a task needs continuous ones, as 'Pendulum-v1' has"
    elif not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded("both"):
        yield f"{task.name} takes actions in {actions}; a task needs a 1-D Box with finite bounds"
    if find_time_limit(env) is None:
        yield (
            f"{task.name} has no time limit, so its episodes might never end; give it one, as "
            f"{{env_name: {task.env_name}, env_kwargs: {{max_episode_steps: 1000}}}}"
        )


def _get_box(space: gym.Space[Any]) -> gym.spaces.Box:
    assert isinstance(space, gym.spaces.Box)
    return space


def _close_all(environments: Mapping[str, Env]) -> None:
    for env in environments.values():
        env.close()
