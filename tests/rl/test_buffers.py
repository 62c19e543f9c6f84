"""The ring of transitions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.buffers import ReplayBuffer
from training.resources import hash_state

CPU = torch.device("cpu")


def make_buffer(capacity: int, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(capacity, 3, 2, np.random.default_rng(seed), CPU, discount=0.9)


def fill(buffer: ReplayBuffer, numbers: range) -> None:
    """Add transitions that carry their number in every part."""
    for number in numbers:
        obs = np.full(3, number, dtype=np.float32)
        action = np.full(2, number / 1000, dtype=np.float32)
        buffer.add(obs, action, -float(number), number % 2 == 0, obs + 0.5)


def test_a_batch_has_every_part_of_the_same_transition() -> None:
    buffer = make_buffer(100)
    fill(buffer, range(40))
    batch = buffer.sample(64)
    assert batch.obs.shape == batch.next_obs.shape == (64, 3)
    assert batch.action.shape == (64, 2)
    assert batch.reward.shape == batch.terminated.shape == (64, 1)
    number = batch.obs[:, :1]
    assert torch.equal(batch.next_obs, number.expand(64, 3) + 0.5)
    assert torch.equal(batch.reward, -number)
    assert torch.equal(batch.terminated, 1 - number % 2)
    torch.testing.assert_close(batch.action, (number / 1000).expand(64, 2))
    assert batch.discount.item() == np.float32(0.9)


@settings(deadline=None)
@given(capacity=st.integers(1, 12), added=st.integers(1, 40))
def test_the_last_rows_stay_and_no_others_are_ever_drawn(capacity: int, added: int) -> None:
    buffer = make_buffer(capacity)
    fill(buffer, range(added))
    assert len(buffer) == min(capacity, added)
    drawn = set(buffer.sample(400).obs[:, 0].int().tolist())
    assert drawn == set(range(max(0, added - capacity), added))


def test_every_row_is_drawn_about_as_often() -> None:
    buffer = make_buffer(10)
    fill(buffer, range(10))
    counts = torch.bincount(buffer.sample(20_000).obs[:, 0].long(), minlength=10)
    assert counts.min() > 1_800
    assert counts.max() < 2_200


def test_an_empty_buffer_gives_no_batch() -> None:
    with pytest.raises(ValueError):
        make_buffer(4).sample(1)


def test_the_saved_state_is_the_rings_own_memory() -> None:
    buffer = make_buffer(8)
    fill(buffer, range(11))
    log = buffer.state_dict()["rows"]
    assert (log.total, log.capacity, log.first) == (11, 8, 3)
    fill(buffer, range(11, 12))
    assert log.rows[11 % 8, 0] == 11


def test_a_loaded_buffer_goes_on_with_the_same_batches_and_rows() -> None:
    buffer, other = make_buffer(8, seed=1), make_buffer(8, seed=2)
    fill(buffer, range(11))
    buffer.sample(5)
    other.load_state_dict(copy.deepcopy(buffer.state_dict()))
    for each in (buffer, other):
        fill(each, range(11, 14))
    assert torch.equal(buffer.sample(50).obs, other.sample(50).obs)


def test_a_ring_of_another_size_is_refused_where_rows_would_be_missing() -> None:
    full = make_buffer(8)
    fill(full, range(9))
    for buffer in (make_buffer(7), make_buffer(9)):
        with pytest.raises(ValueError, match="buffer_size"):
            buffer.load_state_dict(full.state_dict())
    with pytest.raises(ValueError, match="buffer_size"):
        make_buffer(7).load_state_dict(make_buffer(8).state_dict())


def test_a_ring_that_nothing_was_written_over_in_goes_on_in_a_larger_one() -> None:
    """As a run does that is made longer: it has the rows and draws the batches of one that was so long all the time."""
    short, long, straight = make_buffer(8), make_buffer(20), make_buffer(20)
    for buffer in (short, straight):
        fill(buffer, range(8))
    long.load_state_dict(short.state_dict())
    for buffer in (long, straight):
        fill(buffer, range(8, 15))
    assert hash_state(long.state_dict()) == hash_state(straight.state_dict())
    assert torch.equal(long.sample(50).obs, straight.sample(50).obs)
    assert len(short) == 8
