"""Tiny environments and small trainers for the tests of the agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.ddpg import DDPGTrainer, build_trainer
from rl.ddpg_config import DDPGConfig

BuildTrainer = Callable[..., DDPGTrainer]


class ClockEnv(gym.Env[Any, Any]):
    """Reward 1 a step, for `horizon` steps; observes which step it is. Ends by its task, by its clock, or by both.

    A `hidden` one holds something that no snapshot can, from the start or from step `hidden_from` on.
    """

    def __init__(
        self,
        horizon: int = 10,
        terminate: bool = False,
        both: bool = False,
        hidden: bool = False,
        hidden_from: int | None = None,
    ) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (horizon,))
        self.action_space = gym.spaces.Box(
            np.array([-2.0, 0.5], dtype=np.float32), np.array([6.0, 0.75], dtype=np.float32)
        )
        self.horizon, self.terminate, self.both, self.time = horizon, terminate, both, 0
        self.start = 0.0
        self.starts: list[float] = []
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []
        self.hidden: Any = object() if hidden else None
        self.hidden_from = hidden_from

    def observe(self) -> Any:
        obs = np.zeros(self.horizon, dtype=np.float32)
        obs[min(self.time, self.horizon - 1)] = 1
        return obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.start = 0, float(self.np_random.uniform())
        self.starts.append(self.start)
        self.seeds.append(seed)
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.actions.append(action)
        if len(self.actions) == self.hidden_from:
            self.hidden = object()
        over = self.time >= self.horizon
        return self.observe(), 1.0, over and (self.terminate or self.both), over and not self.terminate, {}


class MirrorEnv(gym.Env[Any, Any]):
    """A hundred steps; the best action is the observation itself, each step gives 1 less the distance to it."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.time, self.goal = 0, np.zeros(1, dtype=np.float32)

    def draw_goal(self) -> Any:
        self.goal = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.goal

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.draw_goal(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        reward = 1 - float(np.abs(action - self.goal).item())
        return self.draw_goal(), reward, False, self.time >= 100, {}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on several threads wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _tiny_environments() -> Iterator[None]:
    environments: dict[str, Any] = {"Clock-v0": ClockEnv, "Mirror-v0": MirrorEnv}
    for name, environment in environments.items():
        gym.register(name, environment)
    yield
    for name in environments:
        del gym.registry[name]


@pytest.fixture
def small_trainer() -> Iterator[BuildTrainer]:
    """Give a function that builds a trainer with small networks from settings; all are closed at the end."""
    built: list[DDPGTrainer] = []

    def build(**settings: Any) -> DDPGTrainer:
        defaults = {
            "algorithm_name": "ddpg",
            "env_name": "Pendulum-v1",
            "hidden_dims": [16, 16],
            "batch_size": 32,
            "learning_starts": 40,
            "max_timesteps": 5_000,
        }
        config = DDPGConfig.from_settings(defaults | settings)
        built.append(build_trainer(config, torch.device("cpu")))
        return built[-1]

    yield build
    for trainer in built:
        trainer.close()
