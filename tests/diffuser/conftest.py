"""Small models, schedules and batches for the tests of the diffusion agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from diffuser.datasets.batch import History, SequenceBatch
from diffuser.models.diffusion_rl import DiffusionRL, ModelSizes
from diffuser.models.schedule_rules import ScheduleSettings
from diffuser.utils.training import Trainer
from envs.episodes import Header, RecordedEpisode, gather_episodes, write_episodes
from train import build_config, find_trainer

SCHEDULE = ScheduleSettings(
    num_diffusion_steps=20,
    num_sampling_steps=5,
    sampler="ddim",
    beta_schedule="squaredcos_cap_v2",
    prediction_type="sample",
    eta=1.0,
    clip_range=None,
)
SIZES = ModelSizes(
    obs_dim=3,
    action_dim=2,
    num_agents=1,
    horizon=4,
    history_horizon=3,
    vae_latent_dim=6,
    trajectory_latent_dim=8,
    denoiser="mlp",
    hidden_dims=(16, 16),
    denoiser_hidden_dims=(24, 24),
    unet_channels=32,
    use_value_function=True,
    use_critic=False,
)


LENGTH = 24

Build = Callable[..., Trainer]


class TrackEnv(gym.Env[Any, Any]):
    """Twenty-four steps; observes a wave and the time, and pays for actions near the wave."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-2, 2, (2,))
        self.action_space = gym.spaces.Box(-2, 2, (1,))
        self.time, self.phase = 0, 0.0

    def observe(self) -> Any:
        return np.array([np.sin(self.phase + 0.3 * self.time), self.time / LENGTH], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.phase = 0, float(self.np_random.uniform(0, 6))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -abs(float(action[0]) - float(self.observe()[0]))
        self.time += 1
        return self.observe(), reward, False, self.time >= LENGTH, {}


def build_model(
    seed: int = 0,
    vae_weight: float = 1.0,
    kl_weight: float = 1e-3,
    schedule: dict[str, Any] | None = None,
    **sizes: Any,
) -> DiffusionRL:
    return DiffusionRL(
        replace(SIZES, **sizes),
        replace(SCHEDULE, **(schedule or {})),
        vae_weight=vae_weight,
        kl_weight=kl_weight,
        generator=torch.Generator().manual_seed(seed),
    )


def draw_batch(size: int = 7, seed: int = 0, **sizes: Any) -> SequenceBatch:
    """Random windows, the first of them padded at both ends, the second at neither."""
    wanted = replace(SIZES, **sizes)
    generator = torch.Generator().manual_seed(seed)
    past, agents, horizon = wanted.history_horizon, wanted.num_agents, wanted.horizon

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    mask = torch.ones(size, past, dtype=torch.bool)
    chunk_mask = torch.ones(size, horizon, dtype=torch.bool)
    mask[0, : past - 1] = False
    chunk_mask[0, 1:] = False
    history = History(draw(size, past, agents, wanted.obs_dim), draw(size, past, agents, wanted.action_dim), mask)
    return SequenceBatch(history, draw(size, horizon, agents, wanted.action_dim), chunk_mask, draw(size, agents))


@pytest.fixture
def make_model() -> Callable[..., DiffusionRL]:
    """A small model, with changes to its sizes and its schedule."""
    return build_model


@pytest.fixture
def make_batch() -> Callable[..., SequenceBatch]:
    """A batch for a small model, with the same changes to its sizes."""
    return draw_batch


@pytest.fixture
def make_sizes() -> Callable[..., ModelSizes]:
    """Sizes of a small model, with changes."""
    return lambda **sizes: replace(SIZES, **sizes)


@pytest.fixture
def make_schedule() -> Callable[..., ScheduleSettings]:
    """Settings of a short schedule, with changes."""
    return lambda **settings: replace(SCHEDULE, **settings)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on several threads wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _track() -> Iterator[None]:
    gym.register("Track-v0", TrackEnv, max_episode_steps=1_000)
    yield
    del gym.registry["Track-v0"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of episodes whose actions follow the wave, with noise."""
    generator, env, episodes = np.random.default_rng(0), TrackEnv(), []
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        frames, actions, rewards, over = [obs], [], [], False
        while not over:
            action = np.clip(obs[:1] + 0.3 * generator.standard_normal(1), -2, 2).astype(np.float32)
            obs, reward, _, over, _ = env.step(action)
            frames.append(obs)
            actions.append(action)
            rewards.append([reward])
        arrays = (np.array(part, dtype=np.float32) for part in (frames, actions))
        observations, done = (part[:, None] for part in arrays)
        episodes.append(RecordedEpisode(observations, done, np.array(rewards, dtype=np.float32), terminated=False))
    bound = np.full((1, 1), 2, dtype=np.float32)
    path = tmp_path_factory.mktemp("data") / "track.h5"
    write_episodes(path, gather_episodes(Header("Track-v0", {}, -bound, bound, {"kind": "wave"}), episodes))
    return path


@pytest.fixture
def build(dataset: Path, _track: None) -> Iterator[Build]:
    """Give a function that builds a small trainer; all are closed at the end."""
    built: list[Trainer] = []

    def build_one(**settings: Any) -> Trainer:
        online = {
            "online_training": True,
            "rl_warmup_steps": 4,
            "rl_collect_freq": 4,
            "rl_collect_steps": 9,
            "rl_update_freq": 2,
            "rl_batch_size": 5,
            "rl_tuned_steps": 3,
            "num_envs": 2,
        }
        defaults = {
            "diffusion": "models.DiffusionRL",
            "env_name": "Track-v0",
            "dataset": str(dataset),
            "max_timesteps": 40,
            "batch_size": 16,
            "vae_latent_dim": 3,
            "trajectory_latent_dim": 8,
            "hidden_dims": [16],
            "denoiser_hidden_dims": [16, 16],
            "num_diffusion_steps": 10,
            "num_sampling_steps": 5,
        }
        wanted = defaults | (online if settings.get("online_training") else {}) | settings
        config = build_config(wanted)
        trainer = find_trainer(config.model_dump()).build_trainer(config, torch.device("cpu"))
        assert isinstance(trainer, Trainer)
        built.append(trainer)
        return trainer

    yield build_one
    for trainer in built:
        trainer.close()
