"""Environments with the interface that gym had before gymnasium, for scripts that were written against it.

`reset` gives an observation alone, and `step` four things, the third of which says that the episode is over. gym itself
isn't needed for `make`; `register_in_gym` lets `gym.make` find our environments where gym is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium import spaces

from envs.make import Env, make_env
from envs.registration import OWN

GYM_VERSION = "0.26"
"""Of gym, its last; no other was tried."""


class ClassicEnv:
    """An environment as gym had them.

    Args:
        env: one of gymnasium's, with its time limit.

    Attributes:
        env: the same.
        observation_space: gymnasium's, or gym's where gym made it.
        action_space: likewise.
        spec: what it was made from; gym sets its own.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self.observation_space: Any = env.observation_space
        self.action_space: Any = env.action_space
        self.metadata = env.metadata
        self.spec: Any = env.spec
        self._next_seed: int | None = None

    @property
    def unwrapped(self) -> ClassicEnv:
        """Give itself; what it is made of is `env.unwrapped`."""
        return self

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Let the next reset begin with a seed, as scripts did before `reset` took one."""
        self._next_seed = seed
        return [seed]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode and give its first observation."""
        if seed is None:
            seed = self._next_seed
        self._next_seed = None
        return self.env.reset(seed=seed, options=options)[0]

    def step(self, action: Any) -> tuple[Any, float, bool, dict[str, Any]]:
        """Give the next observation, the reward, whether the episode is over, and `info`.

        At the end of an episode `info["TimeLimit.truncated"]` is True where only the clock stopped it: the task went
        on, so a target still has to bootstrap. It is False where the task ended.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        done = terminated or truncated
        if done:
            info = {**info, "TimeLimit.truncated": not terminated}
        return obs, float(reward), done, info

    def render(self, *_: object, **__: object) -> Any:
        """Give what the environment renders; the mode is chosen when it is made (`render_mode`)."""
        return self.env.render()

    def close(self) -> None:
        """Let go of what the environment holds."""
        self.env.close()

    def __enter__(self) -> ClassicEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make(env_name: str, **env_kwargs: Any) -> ClassicEnv:
    """Make an environment with the old interface.

    Args:
        env_name: an id of gymnasium's registry or of ours, as `AirSimEnv-v42`.
        env_kwargs: arguments of the environment; `max_episode_steps` replaces the registered limit.

    Raises:
        Exception: as `envs.make.make_env`.
    """
    return ClassicEnv(make_env(env_name, env_kwargs))


def register_in_gym() -> None:
    """Let `gym.make` find our environments, with the old interface; what is registered already stays as it is.

    gym's checker, which fails on the NumPy of today, its order of calls and its time limit are left out: each of them
    expects five things of a step, and gymnasium does their work underneath.

    Raises:
        ImportError: gym isn't installed, or another version is.
    """
    gym = import_gym()
    for row in OWN:
        if row.env_name not in gym.envs.registration.registry:
            gym.register(
                id=row.env_name,
                entry_point=_choose_creator(gym, row.env_name),
                disable_env_checker=True,
                order_enforce=False,
            )


def import_gym() -> ModuleType:
    """Give the package gym.

    Raises:
        ImportError: it isn't installed, or another version is.
    """
    try:
        gym = importlib.import_module("gym")
    except ImportError as error:
        raise ImportError(
            f"gym can't be imported ({error}): pip install gym=={GYM_VERSION}.2, or use envs.classic_gym.make, "
            "which doesn't need it"
        ) from error
    version = str(gym.__version__)
    if not version.startswith(f"{GYM_VERSION}."):
        raise ImportError(f"gym {version} is installed, and {GYM_VERSION} is needed: pip install gym=={GYM_VERSION}.2")
    return gym


def _choose_creator(gym: ModuleType, env_name: str) -> Callable[..., Any]:
    """Give what makes one of our environments as an instance of gym's `Env`, with spaces of gym's."""
    kind = type("GymEnv", (ClassicEnv, gym.Env), {})

    def create(**env_kwargs: Any) -> Any:
        env = kind(make_env(env_name, env_kwargs))
        env.observation_space = convert_space(gym, env.observation_space)
        env.action_space = convert_space(gym, env.action_space)
        return env

    return create


def convert_space(gym: ModuleType, space: gymnasium.Space[Any]) -> Any:
    """Give a space of gymnasium's as one of gym's.

    Raises:
        TypeError: it is neither a Box nor a Dict of such.
    """
    if isinstance(space, spaces.Box):
        return gym.spaces.Box(space.low, space.high, space.shape, space.dtype.type)
    if isinstance(space, spaces.Dict):
        return gym.spaces.Dict({key: convert_space(gym, part) for key, part in space.spaces.items()})
    raise TypeError(f"{space} can't be turned into a space of gym's; a Box or a Dict of them can")
