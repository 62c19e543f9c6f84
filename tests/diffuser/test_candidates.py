"""Choosing the best of several chunks: what the critic learns, what it is given, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser.datasets.batch import History, Outcome, SequenceBatch
from diffuser.datasets.sequence import VAESequenceDataset
from diffuser.models.critic import ChunkCritic, critic_loss
from diffuser.models.diffusion_rl import DiffusionRL
from diffuser.models.fast_policy import FastPolicy
from diffuser.models.layers import draw_weights
from diffuser.utils.training import Trainer
from envs.episodes import Episodes, Header, RecordedEpisode, gather_episodes
from experiment.problems import SettingsError
from train import build_config
from training.resources import hash_state
from training.state import pack_state, unpack_state

Build = Callable[..., Trainer]
DISCOUNT = 0.9


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_episodes(lengths: list[int], ended: list[bool]) -> Episodes:
    numbers = np.random.default_rng(0)
    bound = np.full((1, 2), 1, dtype=np.float32)
    episodes = [
        RecordedEpisode(
            observations=numbers.normal(1, 2, (length + 1, 1, 3)).astype(np.float32),
            actions=numbers.uniform(-1, 1, (length, 1, 2)).astype(np.float32),
            rewards=numbers.standard_normal((length, 1)).astype(np.float32),
            terminated=over,
        )
        for length, over in zip(lengths, ended, strict=True)
    ]
    return gather_episodes(Header("", {}, -bound, bound, {}), episodes)


def build_critic(seed: int = 0, obs_dim: int = 3, hidden_dims: tuple[int, ...] = (16, 16)) -> ChunkCritic:
    critic = ChunkCritic(obs_dim, 2, num_agents=1, history_horizon=3, horizon=4, hidden_dims=hidden_dims)
    draw_weights(critic, make_generator(seed))
    return critic


@settings(deadline=None, max_examples=25)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6),
    horizon=st.integers(1, 4),
    history_horizon=st.integers(1, 3),
)
def test_what_came_of_a_chunk_is_what_a_walk_through_its_episode_gives(
    episodes: list[tuple[int, bool]], horizon: int, history_horizon: int
) -> None:
    lengths, ended = zip(*episodes, (5, False), strict=True)
    recorded = draw_episodes(list(lengths), list(ended))
    dataset = VAESequenceDataset(
        recorded, horizon=horizon, history_horizon=history_horizon, discount=DISCOUNT, obs_normalizer="gaussian"
    )
    windows = np.arange(len(dataset))
    batch = dataset.gather(windows)
    outcome = dataset.gather_outcomes(windows, batch, unit=2.0)
    window = 0
    for number, length in enumerate(lengths):
        episode = recorded.episode(number)
        obs = dataset.normalizer.apply(episode.observations)
        for step in range(length):
            stop = min(step + horizon, length)
            rewards = episode.rewards[step:stop, 0]
            wanted = float(rewards @ DISCOUNT ** np.arange(stop - step)) / 2
            assert float(outcome.reward[window]) == pytest.approx(wanted, abs=1e-5)
            assert float(outcome.discount[window]) == pytest.approx(DISCOUNT ** (stop - step))
            assert bool(outcome.terminated[window]) == (ended[number] and stop == length)
            np.testing.assert_array_equal(outcome.next_history.obs[window, -1], obs[stop])
            before = outcome.next_history.action[window, -1]
            np.testing.assert_allclose(before, episode.actions[stop - 1], atol=1e-6)
            done = episode.actions[step:stop]
            np.testing.assert_allclose(outcome.chunk[window, : stop - step], done, atol=1e-6)
            window += 1


def test_a_chunk_that_was_cut_off_is_filled_up_with_another_windows_actions() -> None:
    dataset = VAESequenceDataset(
        draw_episodes([6], [True]), horizon=4, history_horizon=1, discount=DISCOUNT, obs_normalizer="gaussian"
    )
    windows = np.array([0, 4])
    batch = dataset.gather(windows)
    outcome = dataset.gather_outcomes(windows, batch, unit=1.0)
    assert torch.equal(outcome.chunk[1, 2:], batch.chunk[0, 2:])
    assert torch.equal(outcome.chunk[0], batch.chunk[0])


def take_rows(history: History, rows: list[int]) -> History:
    return History(history.obs[rows], history.action[rows], history.mask[rows])


def repeat_outcome(batch: SequenceBatch, reward: torch.Tensor, discount: float, terminated: float) -> Outcome:
    ones = torch.ones(len(reward))
    return Outcome(batch.chunk, reward, discount * ones, terminated * ones, batch.history)


def learn(critic: ChunkCritic, batch: SequenceBatch, outcome: Outcome, expectile: float, steps: int) -> ChunkCritic:
    target = build_critic(1)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(steps):
        loss, _ = critic_loss(critic, target, batch.history, outcome, expectile)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
    return target


def test_values_of_a_constant_reward_are_its_sum(make_batch: Callable[..., SequenceBatch]) -> None:
    batch = make_batch(16)
    critic = learn(build_critic(), batch, repeat_outcome(batch, torch.full((16,), 0.5), 0.8, 0.0), 0.7, 1500)
    for values in (*critic.value_of_chunk(batch.history, batch.chunk), critic.value_of_history(batch.history)):
        np.testing.assert_allclose(values.detach(), 2.5, rtol=0.02)


def test_nothing_is_expected_after_the_tasks_end(make_batch: Callable[..., SequenceBatch]) -> None:
    batch = make_batch(16)
    critic = learn(build_critic(), batch, repeat_outcome(batch, torch.full((16,), 0.5), 0.8, 1.0), 0.7, 500)
    np.testing.assert_allclose(critic.value_of_chunk(batch.history, batch.chunk)[0].detach(), 0.5, rtol=0.02)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_a_history_is_worth_the_expectile_of_its_chunks(
    make_batch: Callable[..., SequenceBatch], expectile: float
) -> None:
    batch = make_batch(16)
    history = replace(
        batch.history,
        **{
            name: getattr(batch.history, name)[1:2].expand_as(getattr(batch.history, name))
            for name in ("obs", "action", "mask")
        },
    )
    batch = replace(batch, history=history)
    rewards = torch.linspace(-1, 1, 16) ** 3
    critic = learn(build_critic(), batch, repeat_outcome(batch, rewards, 0.8, 1.0), expectile, 1500)
    value = float(critic.value_of_history(batch.history)[0].detach())
    # At the expectile, what lies above and what lies below weigh the same.
    above, below = (rewards - value).clamp(min=0).sum(), (value - rewards).clamp(min=0).sum()
    pull = expectile * above - (1 - expectile) * below
    assert float(pull.abs() / len(rewards)) < 0.02


def test_the_candidate_with_the_highest_lower_value_is_chosen(make_batch: Callable[..., SequenceBatch]) -> None:
    critic, batch = build_critic(), make_batch(5)
    candidates = torch.rand((5, 9, 4, 1, 2), generator=make_generator()) * 2 - 1
    chosen = critic.rank(batch.history, candidates)
    for row in range(5):
        one = replace(
            batch.history, **{name: getattr(batch.history, name)[row : row + 1] for name in ("obs", "action", "mask")}
        )
        values = [
            min(float(value) for value in critic.value_of_chunk(one, candidates[row, n : n + 1])) for n in range(9)
        ]
        assert int(chosen[row]) == int(np.argmax(values))
    assert len(set(chosen.tolist())) > 1


def build_choosing(make_model: Callable[..., DiffusionRL], num_candidates: int) -> DiffusionRL:
    model = make_model(use_critic=True)
    model.num_candidates = num_candidates
    return model


def test_what_is_decided_is_one_of_the_chunks_that_would_be_decided_alone(
    make_model: Callable[..., DiffusionRL], make_batch: Callable[..., SequenceBatch]
) -> None:
    batch, several, single = make_batch(6), build_choosing(make_model, 5), build_choosing(make_model, 1)
    noise = torch.randn((6, *several.noise_shape), generator=make_generator())
    chosen = several.decide(batch.history, noise)
    alone = torch.stack([single.decide(batch.history, noise[:, n : n + 1]) for n in range(5)], dim=1)
    assert several.critic is not None
    wanted = alone[torch.arange(6), several.critic.rank(batch.history, alone)]
    torch.testing.assert_close(chosen, wanted)
    assert not torch.equal(chosen, alone[:, 0])


def test_at_temperature_0_no_noise_is_left(
    make_model: Callable[..., DiffusionRL], make_batch: Callable[..., SequenceBatch]
) -> None:
    model, batch = make_model(), make_batch()
    spreads = []
    for temperature in (1.0, 0.5, 0.0):
        model.temperature = temperature
        chunks = [model.act(batch.history, generator=make_generator(seed)) for seed in range(20)]
        spreads.append(float(torch.stack(chunks).std(0).mean()))
    assert spreads[0] > spreads[1] > spreads[2] == 0


def test_acting_in_numpy_has_the_same_temperature_and_no_candidates(
    make_model: Callable[..., DiffusionRL], make_batch: Callable[..., SequenceBatch]
) -> None:
    model, batch = make_model(), make_batch(1)
    model.temperature = 0.3
    noise = torch.randn((1, *model.noise_shape), generator=make_generator())
    given_row = [part[0].numpy() for part in (batch.history.obs, batch.history.action, batch.history.mask)]
    fast = FastPolicy(model).act(*given_row, noise[0, 0].flatten(1).numpy())
    np.testing.assert_allclose(fast, model.decide(batch.history, noise)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="num_candidates: only 1"):
        FastPolicy(build_choosing(make_model, 2))


def test_the_critic_leaves_the_policy_as_it_would_be_without(build: Build) -> None:
    plain, choosing = build(), build(num_candidates=4)
    for _ in range(5):
        plain.train_step()
        choosing.train_step()
    alone = plain.components()
    beside = choosing.components()
    assert set(beside) - set(alone) == {"critic"}
    for name, network in alone.items():
        assert hash_state(network.state_dict()) == hash_state(beside[name].state_dict()), name


@pytest.mark.parametrize("stop", [1, 4])
def test_straight_equals_resumed_with_a_critic(build: Build, stop: int) -> None:
    wanted: dict[str, Any] = {"num_candidates": 3, "gradient_accumulation": 2, "guard": "repair"}
    straight, first, second = (build(**wanted) for _ in range(3))
    for _ in range(7):
        straight.train_step()
    for _ in range(stop):
        first.train_step()
    second.load_state_dict(unpack_state(pack_state(first.state_dict()), lambda path: None))  # type: ignore[arg-type,return-value]
    for _ in range(7 - stop):
        second.train_step()
    assert hash_state(second.state_dict()) == hash_state(straight.state_dict())
    assert second.evaluate([1, 2]) == straight.evaluate([1, 2])


@pytest.mark.parametrize(("key", "value"), [("expectile", 0.9), ("discount", 0.5)])
def test_each_key_of_the_critic_changes_it_and_nothing_else(build: Build, key: str, value: float) -> None:
    trainers = [build(num_candidates=2), build(num_candidates=2, **{key: value})]
    hashes = []
    for trainer in trainers:
        for _ in range(3):
            trainer.train_step()
        hashes.append({name: hash_state(part.state_dict()) for name, part in trainer.components().items()})
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {"critic"}


def test_choosing_among_candidates_is_better_than_taking_the_first(build: Build) -> None:
    trainer = build(num_candidates=16, horizon=1, discount=0.5, batch_size=64, learning_rate=3e-3, hidden_dims=[32, 32])
    for _ in range(1200):
        trainer.train_step()
    chosen = np.mean(trainer.evaluate(range(20)).returns)
    trainer.average.num_candidates = 1
    first = np.mean(trainer.evaluate(range(20)).returns)
    assert chosen > 0.5 * first  # returns are below 0


@pytest.mark.parametrize("key", ["num_candidates", "sampling_temperature"])
def test_each_key_of_evaluations_changes_them(build: Build, key: str) -> None:
    evaluations = []
    for wanted in ({}, {key: 2}):
        trainer = build(**wanted)
        trainer.train_step()
        evaluations.append(trainer.evaluate([1, 2]).returns)
    assert evaluations[0] != evaluations[1]


def test_keys_that_mean_nothing_here_take_no_part_in_the_identity(build: Build) -> None:
    settings_of_run = build().config.resolved()
    plain = build_config(settings_of_run)
    assert build_config(settings_of_run | {"expectile": 0.9}).run_id() == plain.run_id()
    assert build_config(settings_of_run | {"discount": 0.5}).run_id() == plain.run_id()
    choosing = settings_of_run | {"num_candidates": 4}
    ids = {build_config(choosing | other).run_id() for other in ({}, {"expectile": 0.9}, {"discount": 0.5})}
    assert len(ids | {plain.run_id()}) == 4


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"num_candidates": 0}, "num_candidates must be >= 1"),
        ({"num_candidates": 2, "sampling_temperature": 0.0}, "all candidates would be the same chunk"),
        ({"num_candidates": 2, "online_training": True}, "doesn't know the policy that acting improves"),
        ({"num_candidates": 2, "expectile": 1.0}, "expectile must be < 1"),
        ({"sampling_temperature": -0.5}, "sampling_temperature must be >= 0"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(build: Build, wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build(**wanted)
