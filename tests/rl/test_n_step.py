"""Windows of the replay buffer, against a reference that walks along them row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.buffers import ReplayBuffer

CPU = torch.device("cpu")
DISCOUNT = 0.9


@dataclass(frozen=True)
class Row:
    """A transition as the reference knows it; `ends` tells how its episode ended with it, if it did."""

    env: int
    episode: int
    reward: float
    ends: str | None


def write_rows(lengths: list[list[tuple[int, str]]], steps: int) -> list[Row]:
    """Give the rows of environments that step in turn, each through its episodes of (length, how it ends)."""
    rows = []
    state = [(0, 0) for _ in lengths]
    for step in range(steps):
        for env, episodes in enumerate(lengths):
            episode, time = state[env]
            length, ending = episodes[episode % len(episodes)]
            over = time + 1 == length
            rows.append(Row(env, episode, float((step * 7 + env * 3) % 11 - 5), ending if over else None))
            state[env] = (episode + 1, 0) if over else (episode, time + 1)
    return rows


def fill(buffer: ReplayBuffer, rows: list[Row]) -> None:
    """Add rows that carry their number in obs and next_obs."""
    for number, row in enumerate(rows):
        obs = np.array([number], dtype=np.float32)
        action = np.array([number / 1000], dtype=np.float32)
        buffer.add(obs, action, row.reward, row.ends == "task", obs + 0.5, row.episode)


def walk(rows: list[Row], start: int, n_step: int) -> tuple[float, int, int]:
    """Give the discounted sum of rewards from a row on, the number of steps taken, and the last row."""
    total, steps, last = 0.0, 0, start
    for number in range(start, len(rows)):
        if rows[number].env != rows[start].env:
            continue
        total += DISCOUNT**steps * rows[number].reward
        steps, last = steps + 1, number
        if steps == n_step or rows[number].ends is not None:
            break
    return total, steps, last


endings = st.sampled_from(["task", "clock", "stop"])
episodes = st.lists(st.tuples(st.integers(1, 7), endings), min_size=1, max_size=4)


@settings(deadline=None)
@given(
    lengths=st.lists(episodes, min_size=1, max_size=3),
    steps=st.integers(1, 30),
    capacity=st.integers(1, 50),
    n_step=st.integers(2, 6),
)
def test_every_window_is_the_one_that_a_walk_gives(
    lengths: list[list[tuple[int, str]]], steps: int, capacity: int, n_step: int
) -> None:
    rows = write_rows(lengths, steps)
    generator = np.random.default_rng(0)
    buffer = ReplayBuffer(capacity, 1, 1, generator, CPU, discount=DISCOUNT, n_step=n_step, num_envs=len(lengths))
    fill(buffer, rows)
    batch = buffer.sample(600)
    drawn = batch.obs[:, 0].int().tolist()
    assert set(drawn) <= set(range(max(0, len(rows) - capacity), len(rows)))
    for place, start in enumerate(drawn):
        total, taken, last = walk(rows, start, n_step)
        assert batch.action[place].item() == np.float32(start / 1000)
        assert batch.reward[place].item() == pytest.approx(total, abs=1e-5)
        assert batch.discount[place].item() == pytest.approx(DISCOUNT**taken, rel=1e-6)
        assert batch.next_obs[place].item() == last + 0.5
        assert batch.terminated[place].item() == (rows[last].ends == "task")


def test_windows_of_one_step_are_the_transitions_themselves() -> None:
    rows = write_rows([[(4, "task"), (3, "clock")], [(5, "clock")]], 20)
    plain, windowed = (
        ReplayBuffer(30, 1, 1, np.random.default_rng(5), CPU, discount=DISCOUNT, n_step=n_step, num_envs=2)
        for n_step in (1, 2)
    )
    fill(plain, rows)
    fill(windowed, rows)
    one, other = plain.sample(100), windowed.sample(100)
    assert torch.equal(one.obs, other.obs)
    assert torch.equal(one.next_obs, one.obs + 0.5)
    single = other.discount == np.float32(DISCOUNT)
    assert torch.equal(one.reward[single], other.reward[single])


def test_a_reward_that_is_not_finite_stays_in_its_own_windows() -> None:
    buffer = ReplayBuffer(10, 1, 1, np.random.default_rng(0), CPU, discount=DISCOUNT, n_step=3)
    fill(buffer, [Row(0, 0, 1.0, "clock"), Row(0, 1, float("nan"), None), Row(0, 1, 1.0, None)])
    batch = buffer.sample(100)
    assert torch.equal(batch.reward.isnan(), batch.obs == 1)


def test_episode_numbers_may_pass_what_float32_counts() -> None:
    buffer = ReplayBuffer(10, 1, 1, np.random.default_rng(0), CPU, discount=DISCOUNT, n_step=3)
    for number in range(2**24 - 1, 2**24 + 3):
        buffer.add(np.ones(1, np.float32), np.ones(1, np.float32), 1.0, False, np.ones(1, np.float32), number)
    assert buffer.sample(100).discount.unique().tolist() == [pytest.approx(DISCOUNT)]
