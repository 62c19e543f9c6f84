"""A kill between any two file operations leaves the old state or the new one, whole."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checkpoint import CheckpointStore, load_newest
from training.resources import hash_state
from training.rowlog import RowLog

OPERATIONS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "close")


class Killed(BaseException):
    """The process is gone: nothing after this reaches the disk."""


class Killer:
    """Lets so many file operations through; every later one raises, so that no clean-up works either."""

    def __init__(self, patch: pytest.MonkeyPatch, allowed: int) -> None:
        self.left = allowed
        for name in OPERATIONS:
            patch.setattr(os, name, self.guard(getattr(os, name)))
        guarded = self.guard(io.open)
        patch.setattr(io, "open", guarded)
        patch.setattr(builtins, "open", guarded)

    def guard(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return real(*args, **kwargs)

        return operation


def make_state(step: int) -> dict[str, Any]:
    rows = np.zeros((8, 2), np.float32)
    for row in range(max(0, 3 * step - 8), 3 * step):
        rows[row % 8] = (row, -row)
    return {"weights": torch.full((3,), float(step)), "buffer": RowLog(rows, 3 * step)}


def count_operations(work: Callable[[], object]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch, 10**9)
        work()
        return 10**9 - killer.left


def kill_during(work: Callable[[], object], allowed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, allowed)
        with pytest.raises(Killed):
            work()


def begin(folder: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(folder, 2, lambda line: None)
    for step in steps:
        store.save(step, make_state(step), {})
    return store


def resume(folder: Path) -> tuple[CheckpointStore, int]:
    store = CheckpointStore(folder, 2, lambda line: None)
    checkpoint = store.resume()
    if checkpoint is None:
        return store, 0
    assert hash_state(checkpoint.state) == hash_state(make_state(checkpoint.step))
    return store, checkpoint.step


@pytest.mark.parametrize("steps", [(), (1, 2, 3)])
def test_a_kill_during_a_save_leaves_the_old_state_or_the_new_one(tmp_path: Path, steps: tuple[int, ...]) -> None:
    old, new = len(steps), len(steps) + 1
    counter = begin(tmp_path / "count", *steps)
    total = count_operations(lambda: counter.save(new, make_state(new), {}))
    assert total > 10
    seen = set()
    for allowed in range(total):
        folder = tmp_path / str(allowed)
        store = begin(folder, *steps)
        kill_during(lambda store=store: store.save(new, make_state(new), {}), allowed)  # type: ignore[misc]
        looked = load_newest(folder)
        resumed, step = resume(folder)
        assert (looked.step if looked else 0) == step
        assert step in (old, new)
        seen.add(step)
        assert not list(folder.rglob(".*.tmp"))
        for later in range(step + 1, new + 3):
            resumed.save(later, make_state(later), {})
        assert resume(folder)[1] == new + 2
        assert len(list(folder.glob("step_*.pt"))) == 2
    assert seen == {old, new}


def test_a_kill_while_a_better_policy_is_saved_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    def prepare(folder: Path) -> CheckpointStore:
        store = begin(folder, 1)
        store.save_best(3, make_state(3), {"mean": 1.0})
        return store

    counter = prepare(tmp_path / "count")
    seen = set()
    for allowed in range(count_operations(lambda: counter.save_best(7, make_state(7), {"mean": 2.0}))):
        folder = tmp_path / str(allowed)
        store = prepare(folder)
        kill_during(lambda store=store: store.save_best(7, make_state(7), {"mean": 2.0}), allowed)  # type: ignore[misc]
        resumed = resume(folder)[0]
        best = resumed.read_best()
        assert best is not None
        seen.add(best["mean"])
        assert len(list(folder.glob("best_*.pt"))) == len(list(folder.glob("best_*.json"))) == 1
        resumed.save_best(7, make_state(7), {"mean": 2.0})
        assert resumed.read_best() == {"mean": 2.0}
    assert seen == {1.0, 2.0}


def test_a_kill_while_replay_data_are_dropped_leaves_a_checkpoint_for_evaluation(tmp_path: Path) -> None:
    counter = begin(tmp_path / "count", 1, 2)
    for allowed in range(count_operations(counter.drop_replay)):
        folder = tmp_path / str(allowed)
        store = begin(folder, 1, 2)
        kill_during(store.drop_replay, allowed)
        checkpoint = load_newest(folder, with_replay=False)
        assert checkpoint is not None
        assert torch.equal(checkpoint.state["weights"], torch.full((3,), 2.0))
        CheckpointStore(folder, 2, lambda line: None).drop_replay()
        assert not list(folder.rglob("*.rows"))


def test_a_kill_while_a_damaged_checkpoint_is_set_aside_loses_nothing(tmp_path: Path) -> None:
    def damage(folder: Path) -> CheckpointStore:
        begin(folder, 1, 2)
        (folder / "step_00000002.pt").write_bytes(b"torn")
        (folder / ".step_00000003.pt.1234.tmp").write_bytes(b"left behind")
        return CheckpointStore(folder, 2, lambda line: None)

    counter = damage(tmp_path / "count")
    for allowed in range(count_operations(counter.resume)):
        folder = tmp_path / str(allowed)
        kill_during(damage(folder).resume, allowed)
        assert resume(folder)[1] == 1
        kept = [path.read_bytes() for path in folder.glob("*.invalid")]
        assert b"torn" in kept
