"""Checkpoints: whole or not there, the newest valid one wins, and no code is run from them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiment.files import write_json
from training.checkpoint import CheckpointStore, load_checkpoint, load_newest
from training.manifest import FORMAT, CheckpointError, Manifest, read_manifest, write_manifest
from training.resources import hash_state
from training.rowlog import RowLog

Said = list[str]


def make_state(step: int, capacity: int = 8) -> dict[str, Any]:
    """A small state in which every number follows from the step; the ring gets three rows a step."""
    rows = np.zeros((capacity, 2), np.float32)
    for row in range(max(0, 3 * step - capacity), 3 * step):
        rows[row % capacity] = (row, -row)
    return {
        "weights": torch.full((3,), float(step)),
        "noise": np.array([step], np.uint32),
        "buffer": RowLog(rows, 3 * step),
        "counts": {"step": step, "names": ("a", None, True)},
    }


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture
def store(tmp_path: Path, said: Said) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", 3, said.append)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def save_steps(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, make_state(step), {"env_step": step})


def list_names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.rglob(pattern) if path.is_file())


def flip_bit(path: Path, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(data)


def test_a_state_comes_back_as_it_was(store: CheckpointStore, folder: Path) -> None:
    path = store.save(2, make_state(2), {"env_step": 8, "resume": "exact"})
    assert path == folder / "step_00000002.pt"
    checkpoint = load_newest(folder)
    assert checkpoint is not None
    assert hash_state(checkpoint.state) == hash_state(make_state(2))
    assert (checkpoint.path, checkpoint.step) == (path, 2)
    assert checkpoint.facts == {"env_step": 8, "resume": "exact"}


def test_without_any_checkpoint_there_is_none(store: CheckpointStore, folder: Path) -> None:
    assert load_newest(folder) is None
    assert store.resume() is None
    assert store.is_empty()


def test_the_newest_wins_and_the_last_ones_are_kept(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2, 3, 4, 5)
    assert list_names(folder, "*.pt") == [f"step_0000000{step}.pt" for step in (3, 4, 5)]
    assert list_names(folder, "*.json") == [f"step_0000000{step}.json" for step in (3, 4, 5)]
    newest = load_newest(folder)
    assert newest is not None
    assert newest.step == 5
    for step in (3, 4, 5):
        state = load_checkpoint(folder / f"step_{step:08d}.pt").state
        assert hash_state(state) == hash_state(make_state(step))


def test_rows_are_written_once_and_segments_leave_with_the_ring(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2)
    assert [(folder / "replay" / name).stat().st_size for name in list_names(folder, "*.rows")] == [24, 24]
    save_steps(store, 3, 4, 5, 6, 7)
    # Rows 13 to 20 are in the ring of step 7; the oldest kept checkpoint, of step 5, has rows 7 to 14.
    firsts = [int(name.split("_")[0]) for name in list_names(folder, "*.rows")]
    assert firsts == [6, 9, 12, 15, 18]


def test_rows_are_not_written_again_after_a_resume(store: CheckpointStore, folder: Path, said: Said) -> None:
    save_steps(store, 1, 2)
    resumed = CheckpointStore(folder, 3, said.append)
    resumed.resume()
    save_steps(resumed, 3)
    assert [int(name.split("_")[0]) for name in list_names(folder, "*.rows")] == [0, 3, 6]


def test_more_rows_than_the_ring_holds_between_two_saves(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 30)
    newest = load_newest(folder)
    assert newest is not None
    assert hash_state(newest.state) == hash_state(make_state(30))


def test_a_ring_that_was_emptied_is_written_anew(store: CheckpointStore, folder: Path) -> None:
    store.save(1, {"buffer": make_state(5)["buffer"]}, {})
    store.save(2, {"buffer": make_state(1)["buffer"]}, {})
    newest = load_newest(folder)
    assert newest is not None
    assert hash_state(newest.state) == hash_state({"buffer": make_state(1)["buffer"]})


def tear(folder: Path) -> None:
    path = folder / "step_00000003.pt"
    path.write_bytes(path.read_bytes()[:-10])


def newest_segment(folder: Path) -> Path:
    return max((folder / "replay").glob("*.rows"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (tear, "bytes instead of"),
    "bit in the file": (lambda folder: flip_bit(folder / "step_00000003.pt"), "content changed"),
    "bit in the manifest": (lambda folder: flip_bit(folder / "step_00000003.json"), "manifest"),
    "bit in the format": (lambda folder: flip_bit(folder / "step_00000003.json", 11), "manifest"),
    "empty manifest": (lambda folder: (folder / "step_00000003.json").write_text(""), "is no manifest"),
    "manifest of another kind": (lambda folder: (folder / "step_00000003.json").write_text("[]"), "is no manifest"),
    "bit in a segment": (lambda folder: flip_bit(newest_segment(folder)), "isn't what was written"),
    "no segment": (lambda folder: newest_segment(folder).unlink(), "is missing"),
    "no file": (lambda folder: (folder / "step_00000003.pt").unlink(), "the file is missing"),
    "no manifest": (lambda folder: (folder / "step_00000003.json").unlink(), "save was cut off"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_is_taken(
    store: CheckpointStore, folder: Path, said: Said, kind: str
) -> None:
    save_steps(store, 1, 2, 3)
    damage, reason = DAMAGE[kind]
    damage(folder)
    reported: Said = []
    looked = load_newest(folder, report=reported.append)
    assert looked is not None
    assert looked.step == 2
    assert not list_names(folder, "*.invalid")
    resumed = CheckpointStore(folder, 3, said.append)
    checkpoint = resumed.resume()
    assert checkpoint is not None
    assert hash_state(checkpoint.state) == hash_state(make_state(2))
    assert len(said) == len(reported) == 1
    assert "step_00000003.pt" in said[0]
    assert reason in said[0]
    assert reason in reported[0]
    assert list_names(folder, "*.invalid")
    save_steps(resumed, 3, 4)
    newest = load_newest(folder)
    assert newest is not None
    assert hash_state(newest.state) == hash_state(make_state(4))


def test_what_is_kept_aside_is_never_written_over(store: CheckpointStore, folder: Path, said: Said) -> None:
    save_steps(store, 1, 2, 3)
    for life in (1, 2):
        flip_bit(folder / "step_00000003.pt")
        resumed = CheckpointStore(folder, 3, said.append)
        resumed.resume()
        assert len(list_names(folder, "step_00000003.pt*.invalid")) == life
        save_steps(resumed, 3)


def test_an_older_damaged_checkpoint_is_named_when_asked_for(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2, 3)
    tear(folder)
    with pytest.raises(CheckpointError, match=r"step_00000003\.pt: .*; use step_00000002\.pt instead"):
        load_checkpoint(folder / "step_00000003.pt")


def test_checkpoints_of_which_none_is_valid_are_an_error_and_stay_where_they_are(
    store: CheckpointStore, folder: Path, said: Said
) -> None:
    save_steps(store, 1, 2)
    flip_bit(folder / "step_00000001.pt")
    (folder / "step_00000002.pt").unlink()
    before = list_names(folder)
    with pytest.raises(CheckpointError) as caught:
        CheckpointStore(folder, 3, said.append).resume()
    for words in ("step_00000001.pt: its content", "step_00000002.pt: its manifest", "continue_training: false"):
        assert words in str(caught.value)
    assert list_names(folder) == before


def test_a_first_save_that_was_cut_off_is_no_checkpoint(store: CheckpointStore, folder: Path, said: Said) -> None:
    save_steps(store, 1)
    (folder / "step_00000001.json").unlink()
    assert CheckpointStore(folder, 3, said.append).resume() is None
    assert list_names(folder, "*.invalid") == ["step_00000001.pt.invalid"]


class Hostile:
    """Would run a command when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("step", [1, 3])
def test_a_hostile_checkpoint_with_the_right_hash_runs_no_code(
    store: CheckpointStore, folder: Path, said: Said, tmp_path: Path, step: int
) -> None:
    save_steps(store, *range(1, step + 1))
    path, witness = folder / f"step_{step:08d}.pt", tmp_path / "it ran"
    buffer = io.BytesIO()
    torch.save({"weights": Hostile(witness)}, buffer)
    content = buffer.getvalue()
    path.write_bytes(content)
    write_manifest(path, Manifest(step, hashlib.sha256(content).hexdigest(), len(content), {}, False, {}))
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        load_checkpoint(path)
    if step == 1:
        with pytest.raises(CheckpointError, match="more than tensors and plain values"):
            CheckpointStore(folder, 3, said.append).resume()
    else:
        checkpoint = CheckpointStore(folder, 3, said.append).resume()
        assert checkpoint is not None
        assert checkpoint.step == 2
    assert not witness.exists()


def test_a_segment_outside_its_folder_is_refused(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2)
    path = folder / "step_00000002.json"
    content = json.loads(path.read_bytes())
    content["replay"]["buffer"]["segments"][0]["file"] = "../../secret.rows"
    del content["seal"]
    content["seal"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(path, content)
    with pytest.raises(CheckpointError, match="lacks something"):
        load_checkpoint(path.with_suffix(".pt"))


def test_a_newer_format_is_refused_and_not_taken_for_damage(store: CheckpointStore, folder: Path, said: Said) -> None:
    save_steps(store, 1, 2)
    path = folder / "step_00000002.json"
    content = json.loads(path.read_bytes()) | {"format": FORMAT + 1}
    del content["seal"]
    write_json(path, content | {"seal": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()})
    with pytest.raises(CheckpointError, match="newer format"):
        CheckpointStore(folder, 3, said.append).resume()
    assert not list_names(folder, "*.invalid")


def test_the_best_policy_has_no_replay_data(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1)
    store.save_best(1, make_state(1), {"mean": 5.0})
    save_steps(store, 2, 3, 4, 5)
    with pytest.raises(CheckpointError, match="no replay data"):
        load_checkpoint(folder / "best_00000001.pt")
    best = load_checkpoint(folder / "best_00000001.pt", with_replay=False)
    assert torch.equal(best.state["weights"], torch.ones(3))
    assert best.state["buffer"].total == 0
    assert best.state["buffer"].rows.shape == (8, 2)
    assert store.read_best() == {"mean": 5.0}


def test_a_damaged_best_policy_is_kept_aside(store: CheckpointStore, folder: Path, said: Said) -> None:
    assert store.read_best() is None
    store.save_best(1, make_state(1), {"mean": 5.0})
    flip_bit(folder / "best_00000001.pt")
    assert store.read_best() is None
    assert "best_00000001.pt.invalid" in said[0]
    store.save_best(2, make_state(2), {"mean": 6.0})
    assert store.read_best() == {"mean": 6.0}


@pytest.mark.parametrize("step", [1, 9])
def test_a_better_policy_takes_the_place_of_the_one_before_also_from_an_earlier_step(
    store: CheckpointStore, folder: Path, step: int
) -> None:
    store.save_best(5, make_state(5), {"mean": 5.0})
    store.save_best(step, make_state(step), {"mean": 6.0})
    assert list_names(folder, "best_*") == [f"best_{step:08d}.json", f"best_{step:08d}.pt"]
    assert store.read_best() == {"mean": 6.0}


def keep_two_bests(store: CheckpointStore, folder: Path) -> None:
    """What a kill leaves between the save of a better policy and the end of the one before."""
    store.save_best(1, make_state(1), {"mean": 5.0})
    before = {path: path.read_bytes() for path in folder.glob("best_*")}
    store.save_best(2, make_state(2), {"mean": 6.0})
    for path, content in before.items():
        path.write_bytes(content)


def test_of_two_best_policies_the_newer_one_stays(store: CheckpointStore, folder: Path, said: Said) -> None:
    keep_two_bests(store, folder)
    assert store.read_best() == {"mean": 6.0}
    assert list_names(folder, "best_*") == ["best_00000002.json", "best_00000002.pt"]
    assert not said


def test_a_damaged_best_policy_gives_way_to_the_one_before(store: CheckpointStore, folder: Path, said: Said) -> None:
    keep_two_bests(store, folder)
    flip_bit(folder / "best_00000002.pt")
    with pytest.raises(CheckpointError, match=r"use best_00000001\.pt instead"):
        load_checkpoint(folder / "best_00000002.pt", with_replay=False)
    assert store.read_best() == {"mean": 5.0}
    assert "best_00000002.pt.invalid" in said[0]


def test_the_error_about_a_best_policy_names_no_checkpoint_of_training(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2)
    store.save_best(1, make_state(1), {"mean": 5.0})
    flip_bit(folder / "best_00000001.pt")
    with pytest.raises(CheckpointError, match=r"no other best_\*\.pt there can be used") as caught:
        load_checkpoint(folder / "best_00000001.pt", with_replay=False)
    assert "step_" not in str(caught.value)


@pytest.mark.parametrize("call", range(4))
def test_a_full_disk_leaves_the_best_policy_before(
    store: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    save_steps(store, 1)
    store.save_best(1, make_state(1), {"mean": 5.0})
    left, real = [call], os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"best_00000002\.pt could not be written .*step_00000001\.pt"):
            store.save_best(2, make_state(2), {"mean": 6.0})
    assert (folder / "best_00000002.pt").exists() == (call == 3)  # then only the rename may not last
    assert store.read_best() == {"mean": 6.0 if call == 3 else 5.0}


def test_what_an_unreadable_manifest_may_need_is_not_deleted(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2, 3, 4)
    flip_bit(folder / "step_00000003.json")
    save_steps(store, 5)
    assert list_names(folder, "*.pt")[0] == "step_00000003.pt"
    flip_bit(folder / "step_00000003.json")
    assert hash_state(load_checkpoint(folder / "step_00000003.pt").state) == hash_state(make_state(3))


def test_dropped_replay_data_leave_checkpoints_for_evaluation(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1, 2)
    store.drop_replay()
    store.drop_replay()
    assert not list_names(folder, "*.rows")
    with pytest.raises(CheckpointError, match="keep_replay: true"):
        load_newest(folder)
    checkpoint = load_newest(folder, with_replay=False)
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert checkpoint.state["buffer"].total == 0


def test_permissions_follow_the_umask(store: CheckpointStore, folder: Path) -> None:
    before = os.umask(0o027)
    try:
        save_steps(store, 1)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}


@pytest.mark.parametrize("call", range(6))
def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(
    store: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch, said: Said, call: int
) -> None:
    save_steps(store, 1, 2)
    before = list_names(folder)
    calls: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"step_00000003\.pt") as caught:
            save_steps(store, 3)
    assert caught.value.errno == errno.ENOSPC
    assert "step_00000002.pt" in str(caught.value)
    assert "bytes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob(".*.tmp"))
    resumed = CheckpointStore(folder, 3, said.append).resume()
    assert resumed is not None
    if resumed.step == 2:
        assert list_names(folder) == before
    else:  # the very last call only makes the manifest's rename last through a loss of power
        assert call == 5
    assert hash_state(resumed.state) == hash_state(make_state(resumed.step))


def test_the_first_checkpoint_of_a_full_disk_says_that_there_is_none_before(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="there is no checkpoint before it"):
            save_steps(store, 1)
    assert not list_names(folder)
    save_steps(store, 1)
    assert read_manifest(folder / "step_00000001.pt").step == 1


def test_a_state_that_cannot_be_saved_changes_nothing(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 1)
    before = list_names(folder)
    with pytest.raises(TypeError, match="weights"):
        store.save(2, make_state(2) | {"weights": object()}, {})
    with pytest.raises(TypeError, match="buffer"):
        store.save(2, make_state(2) | {"buffer": RowLog(np.array([None]), 1)}, {})
    assert list_names(folder) == before


def list_steps(folder: Path) -> list[int]:
    return [int(name[5:13]) for name in list_names(folder, "step_*.pt")]


def test_the_newest_at_or_before_a_protected_step_outlives_newer_ones(folder: Path, said: Said) -> None:
    store = CheckpointStore(folder, 1, said.append)
    save_steps(store, 1, 2)
    store.protect(3)
    save_steps(store, 4, 5, 6)
    assert list_steps(folder) == [2, 6]
    store.protect(6)
    save_steps(store, 7)
    assert list_steps(folder) == [6, 7]


def test_a_resume_keeps_what_the_checkpoint_itself_says_is_protected(folder: Path, said: Said) -> None:
    store = CheckpointStore(folder, 1, said.append)
    save_steps(store, 2)
    store.protect(2)
    save_steps(store, 5)
    checkpoint = CheckpointStore(folder, 1, said.append).resume(lambda checkpoint: checkpoint.step - 2)
    assert checkpoint is not None
    assert (checkpoint.step, list_steps(folder)) == (5, [2, 5])
    CheckpointStore(folder, 1, said.append).resume()
    assert list_steps(folder) == [5]


def test_the_step_to_go_back_to_is_the_newest_valid_one_that_is_old_enough(
    store: CheckpointStore, folder: Path
) -> None:
    save_steps(store, 2, 4, 6)
    assert [store.find_step(at_most) for at_most in (9, 6, 5, 4, 3, 2)] == [6, 6, 4, 4, 2, 2]
    (folder / "step_00000004.pt").write_bytes(b"torn")
    assert store.find_step(5) == 2
    with pytest.raises(CheckpointError, match="at or before step 1"):
        store.find_step(1)


def test_going_back_deletes_what_is_newer_and_goes_on_from_there(store: CheckpointStore, folder: Path) -> None:
    save_steps(store, 2, 4, 6)
    checkpoint = store.return_to(4)
    assert hash_state(checkpoint.state) == hash_state(make_state(4))
    assert list_steps(folder) == [2, 4]
    store.save(6, make_state(6), {"env_step": 6})
    newest = load_newest(folder)
    assert newest is not None
    assert hash_state(newest.state) == hash_state(make_state(6))
    store.return_to(2)
    assert list_steps(folder) == [2]
    needed = [segment for log in read_manifest(folder / "step_00000002.pt").replay.values() for segment in log.segments]
    assert len(list_names(folder / "replay", "*.rows")) == len(needed)
