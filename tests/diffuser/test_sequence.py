"""Windows over episodes: what is gathered is what was recorded, and what can't be learned from is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser.datasets import normalization
from diffuser.datasets.normalization import ActionScale, fit_obs_normalizer
from diffuser.datasets.sequence import VAESequenceDataset, WindowSampler, check_fit
from diffuser.models.diffusion_rl import DiffusionRL
from envs.episodes import (
    EpisodeError,
    Episodes,
    Header,
    RecordedEpisode,
    gather_episodes,
    open_episodes,
    write_episodes,
)
from training.state import pack_state

LOW = np.array([[-2.0, 0.0]], dtype=np.float32)
HIGH = np.array([[2.0, 1.0]], dtype=np.float32)


def draw_episodes(lengths: list[int], num_agents: int = 1, seed: int = 0, **header: Any) -> Episodes:
    generator = np.random.default_rng(seed)
    low, high = (np.repeat(bound, num_agents, axis=0) for bound in (LOW, HIGH))
    episodes = [
        RecordedEpisode(
            observations=generator.normal(3, 2, (length + 1, num_agents, 3)).astype(np.float32),
            actions=generator.uniform(low, high, (length, num_agents, 2)).astype(np.float32),
            rewards=generator.standard_normal((length, num_agents)).astype(np.float32),
            terminated=True,
        )
        for length in lengths
    ]
    return gather_episodes(replace(Header("Pendulum-v1", {}, low, high, {}), **header), episodes)


def open_windows(episodes: Episodes, **settings: Any) -> VAESequenceDataset:
    defaults: dict[str, Any] = {"horizon": 4, "history_horizon": 3, "discount": 0.9, "obs_normalizer": "gaussian"}
    return VAESequenceDataset(episodes, **(defaults | settings))


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6).map(lambda lengths: [*lengths, 4]),
    num_agents=st.integers(1, 2),
    horizon=st.integers(1, 4),
    history_horizon=st.integers(1, 5),
)
def test_every_window_is_what_a_walk_through_its_episode_gives(
    lengths: list[int], num_agents: int, horizon: int, history_horizon: int
) -> None:
    episodes = draw_episodes(lengths, num_agents)
    dataset = open_windows(episodes, horizon=horizon, history_horizon=history_horizon)
    assert len(dataset) == sum(lengths)
    batch = dataset.gather(np.arange(len(dataset)))
    window = 0
    for number, length in enumerate(lengths):
        episode = episodes.episode(number)
        obs, actions = dataset.normalizer.apply(episode.observations), dataset.action_scale.to_unit(episode.actions)
        for step in range(length):
            for place in range(history_horizon):
                then = step - history_horizon + 1 + place
                assert batch.history.mask[window, place] == (then >= 0)
                wanted_obs = obs[then] if then >= 0 else np.zeros_like(obs[0])
                wanted_action = actions[then - 1] if then >= 1 else np.zeros_like(actions[0])
                np.testing.assert_array_equal(batch.history.obs[window, place], wanted_obs)
                np.testing.assert_array_equal(batch.history.action[window, place], wanted_action)
            for ahead in range(horizon):
                there = step + ahead < length
                assert batch.chunk_mask[window, ahead] == there
                wanted_action = actions[step + ahead] if there else np.zeros_like(actions[0])
                np.testing.assert_array_equal(batch.chunk[window, ahead], wanted_action)
            powers = 0.9 ** np.arange(length - step)
            wanted_return = (powers[:, None] * episode.rewards[step:]).sum(0)
            np.testing.assert_allclose(batch.return_to_go[window], wanted_return, rtol=1e-5, atol=1e-5)
            window += 1


def test_a_batch_feeds_the_model_and_may_have_any_order(make_model: Callable[..., DiffusionRL]) -> None:
    dataset = open_windows(draw_episodes([30, 5, 12]))
    windows = np.array([46, 0, 33, 33])
    batch = dataset.gather(windows, torch.device("cpu"))
    alone = dataset.gather(windows[2:3])
    assert torch.equal(batch.chunk[2:3], alone.chunk)
    assert torch.equal(batch.history.obs[3:4], alone.history.obs)
    loss, _ = make_model().loss(batch, torch.Generator().manual_seed(0))
    assert loss.isfinite()
    assert {tensor.dtype for tensor in (batch.chunk, batch.history.obs, batch.return_to_go)} == {torch.float32}


def test_large_data_stay_on_disk_until_they_are_gathered(tmp_path: Path) -> None:
    write_episodes(tmp_path / "large.h5", draw_episodes([30_000, 10_000]))
    dataset = open_windows(open_episodes(tmp_path / "large.h5"))
    assert isinstance(dataset.episodes.observations, np.memmap)
    kept = {name: value for name, value in vars(dataset).items() if isinstance(value, np.ndarray)}
    assert sum(array.nbytes for array in kept.values()) <= 4 * 40_000 + 100
    batch = dataset.gather(np.array([39_999]))
    assert batch.chunk_mask.tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("kind", ["gaussian", "limits"])
def test_normalisers_do_what_their_names_say(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "BLOCK", 7)
    episodes = draw_episodes([200, 100], num_agents=2)
    constant = np.array(episodes.observations)
    constant[:, :, 1] = 1000.1
    episodes = replace(episodes, observations=constant)
    normalizer = fit_obs_normalizer(kind, episodes)
    normal = normalizer.apply(episodes.observations)
    assert np.abs(normal[:, :, 1]).max() < 1e-3
    varied = normal[:, :, [0, 2]]
    if kind == "gaussian":
        np.testing.assert_allclose(varied.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(varied.std(0), 1, rtol=1e-4)
    else:
        np.testing.assert_allclose(varied.min(0), -1, atol=1e-5)
        np.testing.assert_allclose(varied.max(0), 1, atol=1e-5)
    far = np.full((2, 3), 1e9, dtype=np.float32)
    np.testing.assert_array_equal(normalizer.apply(far), 10)
    torch.testing.assert_close(normalizer.apply_tensor(torch.from_numpy(constant)), torch.from_numpy(normal))
    other = fit_obs_normalizer(kind, draw_episodes([20], num_agents=2, seed=1))
    other.load_state_dict(normalizer.state_dict())
    np.testing.assert_array_equal(other.apply(episodes.observations), normal)


def test_actions_go_to_their_bounds_and_back() -> None:
    scale = ActionScale(LOW, HIGH)
    own = np.array([[[-2.0, 1.0]], [[0.0, 0.5]], [[2.0, 0.25]]], dtype=np.float32)
    np.testing.assert_allclose(scale.to_unit(own), [[[-1, 1]], [[0, 0]], [[1, -0.5]]])
    np.testing.assert_allclose(scale.to_env(scale.to_unit(own)), own)
    assert scale.to_unit(HIGH * 1.00005).max() == 1
    assert (scale.to_env(np.full((1, 2), 1.5, dtype=np.float32)) == HIGH).all()


def test_an_epoch_has_every_window_once_and_the_next_one_another_order() -> None:
    sampler = WindowSampler(10, seed=3)
    drawn = np.concatenate([sampler.draw(4) for _ in range(5)])
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert sampler.epochs == 2
    assert sorted(WindowSampler(3, seed=0).draw(7)[:6]) == [0, 0, 1, 1, 2, 2]
    assert WindowSampler(10, seed=4).draw(10).tolist() != first.tolist()


@pytest.mark.parametrize("batches", [0, 1, 3, 7])
def test_a_resumed_sampler_goes_on_where_it_was(batches: int) -> None:
    straight, resumed = WindowSampler(10, seed=3), WindowSampler(10, seed=99)
    for _ in range(batches):
        straight.draw(4)
    state = straight.state_dict()
    pack_state(state)
    resumed.load_state_dict(state)
    for size in (4, 4, 1, 8):
        np.testing.assert_array_equal(straight.draw(size), resumed.draw(size))
    names = {name.lstrip("_") for name in vars(straight)} - {name.lstrip("_") for name in straight.TRANSIENT}
    assert names == set(state)
    straight.reseed(5)
    assert straight.draw(10).tolist() != resumed.draw(10).tolist()


def test_what_can_not_be_learned_from_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    write_episodes(path, draw_episodes([2, 3]))
    with pytest.raises(EpisodeError, match=r"short.h5: the longest episode has 3 steps, and horizon is 4"):
        open_windows(open_episodes(path))
    good = draw_episodes([9])
    spoilt = np.array(good.observations)
    spoilt[4] = np.nan
    with pytest.raises(EpisodeError, match=r"observations, row 4: a number that isn't finite"):
        open_windows(replace(good, observations=spoilt))
    with pytest.raises(EpisodeError, match="there are no episodes"):
        open_windows(replace(good, lengths=np.zeros(0, np.int64), terminated=np.zeros(0, np.bool_)))
    with pytest.raises(EpisodeError, match="the file was cut short"):
        open_windows(replace(good, actions=good.actions[:5]))
    with pytest.raises(EpisodeError, match="actions have no finite bounds"):
        open_windows(draw_episodes([9], action_high=np.array([[np.inf, 1.0]], dtype=np.float32)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs_dim": 4}, "3 numbers in an observation, and Pendulum-v1 has 4"),
        ({"num_agents": 2}, "1 agents, and Pendulum-v1 has 2"),
        ({"action_low": LOW[:, :1], "action_high": HIGH[:, :1]}, "2 actions, and Pendulum-v1 has 1"),
        ({"action_high": HIGH * 2}, r"action_high is \[\[2.0, 1.0\]\], and Pendulum-v1 has \[\[4.0, 2.0\]\]"),
    ],
)
def test_data_of_another_environment_are_refused(changes: dict[str, Any], words: str) -> None:
    episodes = draw_episodes([9])
    fitting: dict[str, Any] = {
        "env_name": "Pendulum-v1",
        "num_agents": 1,
        "obs_dim": 3,
        "action_low": LOW,
        "action_high": HIGH,
    }
    check_fit(episodes, **fitting)
    with pytest.raises(EpisodeError, match=words):
        check_fit(episodes, **(fitting | changes))
