"""Small models, schedules and batches for the tests of the diffusion agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from diffuser.datasets.batch import History, SequenceBatch
from diffuser.models.diffusion_rl import DiffusionRL, ModelSizes
from diffuser.models.schedule_rules import ScheduleSettings

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
)


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
