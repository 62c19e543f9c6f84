"""Tiny environments and small trainers for the tests of the agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.off_policy import OffPolicyTrainer
from train import build_config, find_trainer

BuildTrainer = Callable[..., OffPolicyTrainer]


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


class DiceEnv(gym.Env[Any, Any]):
    """Episodes of 1 to 6 steps, ended by the task or by the clock as drawn; observes the episode's own number and the
    time, and gives their sum.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.time, self.length, self.number, self.terminate = 0, 1, 0.0, False
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.time, self.length = 0, int(self.np_random.integers(1, 7))
        self.number, self.terminate = float(self.np_random.integers(0, 2**16)), bool(self.np_random.integers(2))
        return np.array([self.number, 0], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.number + self.time
        self.time += 1
        over = self.time == self.length
        obs = np.array([self.number, self.time], dtype=np.float32)
        return obs, reward, over and self.terminate, over and not self.terminate, {}


class UnboundedEnv(ClockEnv):
    """A clock whose actions have no bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (1,))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on several threads wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _tiny_environments() -> Iterator[None]:
    environments: dict[str, Any] = {
        "Clock-v0": ClockEnv,
        "Mirror-v0": MirrorEnv,
        "Dice-v0": DiceEnv,
        "Unbounded-v0": UnboundedEnv,
    }
    for name, environment in environments.items():
        gym.register(name, environment, max_episode_steps=1_000)
    yield
    for name in environments:
        del gym.registry[name]


@pytest.fixture
def small_trainer() -> Iterator[BuildTrainer]:
    """Give a function that builds a trainer, DDPG unless told, with small networks; all are closed at the end."""
    built: list[OffPolicyTrainer] = []

    def build(**settings: Any) -> OffPolicyTrainer:
        defaults = {
            "algorithm_name": "ddpg",
            "env_name": "Pendulum-v1",
            "hidden_dims": [16, 16],
            "batch_size": 32,
            "learning_starts": 40,
            "max_timesteps": 5_000,
        }
        config = build_config(defaults | settings)
        trainer = find_trainer(config.model_dump()).build_trainer(config, torch.device("cpu"))
        assert isinstance(trainer, OffPolicyTrainer)
        built.append(trainer)
        return trainer

    yield build
    for trainer in built:
        trainer.close()
