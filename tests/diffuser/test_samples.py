"""Samples of a policy for its data's histories: which histories, how often, and how far from the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from analysis.samples import compare_actions
from diffuser.datasets.sequence import VAESequenceDataset
from diffuser.models.diffusion_rl import DiffusionRL
from diffuser.samples import draw_samples, find_whole_windows
from envs.episodes import Header, RecordedEpisode, gather_episodes
from experiment.problems import SettingsError

HORIZON = 4
LENGTHS = (40, 3, 25, 4)


def make_dataset(lengths: tuple[int, ...] = LENGTHS) -> VAESequenceDataset:
    """Episodes whose first action is plus or minus 0.7 and follows an observation, and whose second one is noise."""
    generator = np.random.default_rng(0)
    episodes = []
    for length in lengths:
        observations = generator.standard_normal((length + 1, 1, 3)).astype(np.float32)
        sides = 0.7 * np.sign(observations[:-1, :, :1]) + 0.05 * generator.standard_normal((length, 1, 1))
        actions = np.concatenate([sides, generator.uniform(-1, 1, (length, 1, 1))], axis=-1).astype(np.float32)
        episodes.append(RecordedEpisode(observations, actions, np.zeros((length, 1), np.float32), terminated=False))
    bound = np.ones((1, 2), dtype=np.float32)
    recorded = gather_episodes(Header("", {}, -bound, bound, {"kind": "unknown"}), episodes)
    return VAESequenceDataset(recorded, horizon=HORIZON, history_horizon=3, discount=1.0, obs_normalizer="gaussian")


def train(model: DiffusionRL, dataset: VAESequenceDataset, steps: int) -> DiffusionRL:
    generator, order = torch.Generator().manual_seed(0), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss, _ = model.loss(dataset.gather(order.integers(0, len(dataset), 128)), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_only_histories_that_a_whole_chunk_follows_are_taken() -> None:
    dataset = make_dataset()
    windows = find_whole_windows(dataset)
    assert len(windows) == sum(max(0, length - HORIZON + 1) for length in LENGTHS)
    assert dataset.gather(windows).chunk_mask.all()
    others = np.setdiff1d(np.arange(len(dataset)), windows)
    assert not dataset.gather(others).chunk_mask.all(dim=1).any()


def test_chunks_are_of_as_many_windows_as_asked_for_and_as_there_are(make_model: Callable[..., DiffusionRL]) -> None:
    dataset = make_dataset()
    drawn = draw_samples(make_model(), dataset, 20, draws=3)
    assert drawn.data.shape == (20, HORIZON, 2)
    assert drawn.samples.shape == (3, 20, HORIZON, 2)
    assert drawn.learnt_std.shape == drawn.sampled_std.shape == (6,)
    everything = draw_samples(make_model(), dataset, 10_000, draws=2).data
    assert len(everything) == len(find_whole_windows(dataset))
    chunks = dataset.gather(find_whole_windows(dataset)).chunk[:, :, 0].numpy()
    assert sorted(map(bytes, everything)) == sorted(map(bytes, np.ascontiguousarray(chunks)))


def test_the_same_is_drawn_each_time_and_the_global_generator_is_left_alone(
    make_model: Callable[..., DiffusionRL],
) -> None:
    dataset, model = make_dataset(), make_model()
    before = torch.get_rng_state()
    first, again = (draw_samples(model, dataset, 30, draws=2) for _ in range(2))
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, vars(again)[name], err_msg=name)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(first.samples[0], first.samples[1])


def test_data_too_short_to_compare_with_are_refused(make_model: Callable[..., DiffusionRL]) -> None:
    with pytest.raises(SettingsError, match="1 of its histories are followed by a whole chunk"):
        draw_samples(make_model(), make_dataset((4, 2)), 100)


@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
def test_latents_are_counted_by_their_own_numbers_whatever_the_tokens(
    make_model: Callable[..., DiffusionRL], denoiser: str
) -> None:
    drawn = draw_samples(make_model(denoiser=denoiser), make_dataset(), 64, draws=2)
    assert drawn.learnt_std.shape == drawn.sampled_std.shape == (6,)
    assert (drawn.learnt_std > 0.5).all()


def test_a_policy_that_has_learned_is_nearer_to_the_data_than_random_weights(
    make_model: Callable[..., DiffusionRL],
) -> None:
    dataset = make_dataset((60,) * 20)
    trained = train(make_model(hidden_dims=(64,), denoiser_hidden_dims=(64, 64)), dataset, 600)
    learnt, random = (
        compare_actions(drawn.data, drawn.samples)
        for drawn in (draw_samples(model, dataset, 1_000, draws=4) for model in (trained, make_model()))
    )
    for mine, untrained in zip(learnt, random, strict=True):
        assert untrained.distance > 2 * mine.distance
        assert untrained.distance > 4 * untrained.floor
    # The sign of the first action is known from what is seen, the second one is anybody's guess.
    assert learnt[0].correlation is not None
    assert learnt[0].correlation > 0.6
    assert learnt[1].correlation == pytest.approx(0, abs=0.1)
    assert random[0].correlation == pytest.approx(0, abs=0.1)
