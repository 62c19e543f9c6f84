"""What a diffusion policy draws beside the data that it learned from: chunks and latents for the same histories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffuser.datasets.sequence import Indices, VAESequenceDataset
from diffuser.models.diffusion_rl import DiffusionRL
from diffuser.models.vae import draw_posterior
from experiment.problems import Fault, SettingsError
from training.seeding import derive_seed, spawn_generator

Floats = NDArray[np.float32]

DRAWS = 16
"""Samples for each history."""
_BATCH = 2_048
_SEED = 0


@dataclass(frozen=True)
class DrawnSamples:
    """Recorded chunks in [-1, 1], what a policy drew for their histories, and how far latents spread.

    Attributes:
        data: (windows, horizon, action_dim).
        samples: (draws, windows, horizon, action_dim).
        learnt_std: (vae_latent_dim,): deviations of posterior samples over the data, which the denoiser learns.
        sampled_std: (vae_latent_dim,): of the latents that it draws.
    """

    data: Floats
    samples: Floats
    learnt_std: Floats
    sampled_std: Floats


def draw_samples(model: DiffusionRL, dataset: VAESequenceDataset, windows: int, draws: int = DRAWS) -> DrawnSamples:
    """Have a policy draw chunks for some histories of a data set, the same ones and the same chunks each time.

    Args:
        model: the policy, with the networks that act.
        dataset: what it has learned from.
        windows: how many histories, drawn without replacement from those that a whole chunk follows; all of these where
            there are fewer.
        draws: for each of them.

    Raises:
        SettingsError: fewer than two whole chunks were recorded.
    """
    order = spawn_generator(_SEED, "samples/windows").permutation(find_whole_windows(dataset))[:windows]
    if len(order) < 2:
        message = f"dataset: {len(order)} of its histories are followed by a whole chunk; two or more are needed"
        raise SettingsError([Fault(("dataset",), message)])
    generator = torch.Generator().manual_seed(derive_seed(_SEED, "samples/noise"))
    parts = [_draw_part(model, dataset, part, draws, generator) for part in _split(order)]
    data, samples, learnt, sampled = (torch.cat(columns, dim=-1) for columns in zip(*parts, strict=True))
    return DrawnSamples(
        data=data.movedim(-1, 0).numpy(),
        samples=samples.movedim(-1, 1).numpy(),
        learnt_std=learnt.std(-1).numpy(),
        sampled_std=sampled.std(-1).numpy(),
    )


def find_whole_windows(dataset: VAESequenceDataset) -> Indices:
    """Give the windows whose chunk ends before its episode does, so that none of its actions is padding."""
    episodes = dataset.episodes
    ends = np.repeat(episodes.first_steps + episodes.lengths, episodes.lengths)
    return np.flatnonzero(np.arange(len(dataset)) + dataset.horizon <= ends)


def _split(windows: Indices) -> Iterator[Indices]:
    for first in range(0, len(windows), _BATCH):
        yield windows[first : first + _BATCH]


@torch.no_grad()
def _draw_part(
    model: DiffusionRL, dataset: VAESequenceDataset, windows: Indices, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give data, samples and latents, learnt and drawn, with the windows (for latents: their tokens) on the last axis.

    Shapes: (horizon, action_dim, windows), (draws, horizon, action_dim, windows), (vae_latent_dim, tokens) twice.
    """
    batch = dataset.gather(windows, model.log_std.device)
    history = batch.history
    c = model.encode_history(history.obs, history.action, history.mask)
    mean, logvar = model.vae.encode(batch.chunk, batch.chunk_mask)
    learnt = draw_posterior(mean, logvar, model.draw_noise(mean.shape, generator))
    drawn = [model.sample(c, generator=generator) for _ in range(draws)]
    chunks = torch.stack([model.decode(latent)[:, :, 0].movedim(0, -1) for latent in drawn])
    latents = [latent.flatten(0, -2).T.cpu() for latent in (learnt, drawn[0])]
    return batch.chunk[:, :, 0].movedim(0, -1).cpu(), chunks.cpu(), latents[0], latents[1]
