"""Rings in append-only segments, against a model: any history of adding, saving, resuming gives the ring back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import segments
from training.checkpoint import CheckpointStore, load_checkpoint
from training.resources import hash_state
from training.rowlog import RowLog
from training.segments import MAX_SEGMENTS, SegmentError, read_row_log, write_segments


class Ring:
    """The model: a list of all rows ever added, and the ring's own memory."""

    def __init__(self, capacity: int, added: list[int]) -> None:
        self.capacity = capacity
        self.added = list(added)

    def log(self) -> RowLog:
        rows = np.zeros((self.capacity, 2), np.int64)
        for number, value in enumerate(self.added):
            rows[number % self.capacity] = (number, value)
        return RowLog(rows, len(self.added))


ADD = st.tuples(st.just("add"), st.lists(st.integers(0, 3), max_size=12))
SAVE = st.tuples(st.just("save"), st.none())
RESUME = st.tuples(st.just("resume"), st.integers(0, 2))


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.lists(ADD | SAVE | RESUME, max_size=25))
@settings(max_examples=80, deadline=None)
def test_any_history_gives_every_kept_checkpoint_back(
    capacity: int, keep_last: int, max_segments: int, history: list[tuple[str, Any]]
) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "MAX_SEGMENTS", max_segments)
        folder = Path(name) / "checkpoints"
        saved: dict[int, list[int]] = {}
        store, ring, step = CheckpointStore(folder, keep_last, print), Ring(capacity, []), 0
        for action, detail in history:
            if action == "add":
                ring.added += detail
            elif action == "save":
                step += 1
                store.save(step, {"log": ring.log(), "other": {"log": ring.log()}}, {})
                saved = dict(sorted((saved | {step: list(ring.added)}).items())[-keep_last:])
            elif saved:
                # The newest checkpoints are lost, and the run goes on from an older one.
                for lost in sorted(saved)[max(1, len(saved) - detail) :]:
                    (folder / f"step_{lost:08d}.json").unlink()
                    del saved[lost]
                store = CheckpointStore(folder, keep_last, lambda line: None)
                checkpoint = store.resume()
                assert checkpoint is not None
                step = checkpoint.step
                ring = Ring(capacity, saved[step])
                assert hash_state(checkpoint.state["log"]) == hash_state(ring.log())
            for kept, rows in saved.items():
                checkpoint = load_checkpoint(folder / f"step_{kept:08d}.pt")
                for log in checkpoint.replay.values():
                    assert len(log.segments) <= max_segments
                    assert all(segment.rows <= capacity for segment in log.segments)
                state = checkpoint.state
                expected = Ring(capacity, rows).log()
                assert hash_state(state) == hash_state({"log": expected, "other": {"log": expected}})
                assert np.array_equal(state["log"].rows, expected.rows)


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    ring = Ring(10, [1, 2, 3])
    first = write_segments(tmp_path, ring.log(), None, "log")
    ring.added += [4]
    second = write_segments(tmp_path, ring.log(), first, "log")
    third = write_segments(tmp_path, ring.log(), second, "log")
    assert [(segment.first, segment.rows) for segment in second.segments] == [(0, 3), (3, 1)]
    assert third == second
    assert len(list(tmp_path.iterdir())) == 2


def test_a_ring_in_too_many_segments_is_written_whole(tmp_path: Path) -> None:
    ring = Ring(1000, list(range(10)))
    stored = write_segments(tmp_path, ring.log(), None, "log")
    for added in range(1, MAX_SEGMENTS):
        ring.added += [added]
        stored = write_segments(tmp_path, ring.log(), stored, "log")
    assert len(stored.segments) == MAX_SEGMENTS
    assert write_segments(tmp_path, ring.log(), stored, "log") == stored
    ring.added += [7]
    stored = write_segments(tmp_path, ring.log(), stored, "log")
    assert [(segment.first, segment.rows) for segment in stored.segments] == [(0, 10 + MAX_SEGMENTS)]
    assert hash_state(read_row_log(tmp_path, stored)) == hash_state(ring.log())


@pytest.mark.parametrize(("first", "rows", "words"), [(4, 2, "gap"), (0, 3, "in no segment"), (0, 9, "gap")])
def test_segments_that_do_not_make_up_the_ring_are_refused(tmp_path: Path, first: int, rows: int, words: str) -> None:
    stored = write_segments(tmp_path, Ring(10, [1, 2, 3, 4, 5, 6]).log(), None, "log")
    wrong = replace(stored, segments=(replace(stored.segments[0], first=first, rows=rows),))
    if words == "in no segment":
        part = write_segments(tmp_path, Ring(10, [1, 2, 3]).log(), None, "log")
        wrong = replace(stored, segments=part.segments)
    with pytest.raises(SegmentError, match=words):
        read_row_log(tmp_path, wrong)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.bool_, (4,)), (np.uint8, (4, 2, 3)), (np.uint32, (4, 1)), (">f8", (4, 2)), (np.float16, (4, 2))],
)
def test_rows_keep_their_dtype_and_shape(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    rows = (np.arange(np.prod(shape)) % 2).reshape(shape).astype(dtype)
    log = RowLog(rows, 6)
    read = read_row_log(tmp_path, write_segments(tmp_path, log, None, "log"))
    assert read.rows.dtype == rows.dtype
    assert np.array_equal(read.rows, rows)


def test_a_ring_that_is_not_contiguous_is_written_right(tmp_path: Path) -> None:
    rows = np.arange(24.0).reshape(6, 4)[::2, ::2]
    read = read_row_log(tmp_path, write_segments(tmp_path, RowLog(rows, 5), None, "log"))
    assert np.array_equal(read.rows, rows)
