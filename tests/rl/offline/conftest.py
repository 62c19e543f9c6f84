"""Small data sets, and offline trainers on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.episodes import Episodes, Header, RecordedEpisode, gather_episodes, write_episodes
from rl.offline.offline import OfflineTrainer
from train import build_config, find_trainer

BuildOffline = Callable[..., OfflineTrainer]
DrawEpisodes = Callable[..., Episodes]


def _draw_episodes(
    lengths: list[int],
    *,
    obs_dim: int = 3,
    action_dim: int = 1,
    num_agents: int = 1,
    env_name: str = "Pendulum-v1",
    high: float = 2.0,
    seed: int = 0,
) -> Episodes:
    """Episodes of noise, every other one ended by its task. By default they could be Pendulum-v1's."""
    generator = np.random.default_rng(seed)
    bound = np.full((num_agents, action_dim), high, dtype=np.float32)
    episodes = [
        RecordedEpisode(
            observations=(3 + 2 * generator.standard_normal((length + 1, num_agents, obs_dim))).astype(np.float32),
            actions=generator.uniform(-high, high, (length, num_agents, action_dim)).astype(np.float32),
            rewards=generator.standard_normal((length, num_agents)).astype(np.float32),
            terminated=number % 2 == 1,
        )
        for number, length in enumerate(lengths)
    ]
    return gather_episodes(Header(env_name, {}, -bound, bound, {"kind": "random"}), episodes)


def _draw_mirror_episodes(number: int, slope: float, noise: float) -> Episodes:
    """Episodes of Mirror-v0 of a policy that takes `slope` times the observation, and uniform noise on it."""
    generator = np.random.default_rng(1)
    episodes = []
    for _ in range(number):
        obs = generator.uniform(-1, 1, (101, 1)).astype(np.float32)
        action = (slope * obs[:-1] + generator.uniform(-noise, noise, (100, 1))).astype(np.float32)
        reward = 1 - np.abs(action - obs[:-1])
        episodes.append(RecordedEpisode(obs[:, None], action[:, None], reward, terminated=False))
    bound = np.ones((1, 1), dtype=np.float32)
    return gather_episodes(Header("Mirror-v0", {}, -bound, bound, {"kind": "scripted"}), episodes)


@pytest.fixture
def draw_episodes() -> DrawEpisodes:
    """Give a function that gives episodes of noise."""
    return _draw_episodes


@pytest.fixture
def draw_mirror_episodes() -> DrawEpisodes:
    """Give a function that gives episodes of Mirror-v0."""
    return _draw_mirror_episodes


@pytest.fixture
def store(tmp_path: Path) -> Callable[[Episodes], str]:
    """Give a function that writes episodes into a file and gives its path."""

    def write(episodes: Episodes, name: str = "some.h5") -> str:
        write_episodes(tmp_path / name, episodes)
        return str(tmp_path / name)

    return write


@pytest.fixture
def small_offline(store: Callable[[Episodes], str]) -> Iterator[BuildOffline]:
    """Give a function that builds an offline trainer, BC unless told, with small networks, on noise unless told."""
    built: list[OfflineTrainer] = []

    def build(episodes: Episodes | None = None, **settings: Any) -> OfflineTrainer:
        dataset = store(_draw_episodes([20, 7, 1, 12]) if episodes is None else episodes)
        defaults = {"algorithm_name": "bc", "env_name": "Pendulum-v1", "hidden_dims": [16, 16], "batch_size": 32}
        config = build_config(defaults | {"dataset": dataset, "max_timesteps": 500} | settings)
        trainer = find_trainer(config.model_dump()).build_trainer(config, torch.device("cpu"))
        assert isinstance(trainer, OfflineTrainer)
        built.append(trainer)
        return trainer

    yield build
    for trainer in built:
        trainer.close()
