"""Checkpoints: saved whole or not at all, hashed, the newest valid one taken, and never a line of code run from them.

A checkpoint is `step_<8 digits>.pt` (the number counts finished training steps) and, written after it, a manifest
`step_<8 digits>.json` with the hash of that file and of every replay segment it needs. Without its manifest, a `.pt` is
a save that was cut off. The best policy so far is such a pair, `best_<8 digits>`, without replay data. Replay segments
are in `replay/` (see `training.segments`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from experiment.files import sync_folder, write_atomically
from training.manifest import (
    CheckpointError,
    InvalidCheckpointError,
    Manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from training.segments import (
    SegmentError,
    StoredLog,
    delete_other_segments,
    empty_row_log,
    read_row_log,
    write_segments,
)
from training.state import find_row_logs, pack_state, unpack_state

_FILE = re.compile(r"(step|best)_(\d{8,})\.(pt|json)")
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, LookupError, EOFError, TypeError, ValueError, AttributeError)

Kind = Literal["step", "best"]


@dataclass(frozen=True)
class Checkpoint:
    """A state as it was saved, on the CPU; `facts` is what else was written into the manifest.

    `replay` tells where the rows of each `RowLog` in the state are on disk.
    """

    path: Path
    step: int
    state: Any
    facts: Mapping[str, Any]
    replay: Mapping[str, StoredLog]


def load_checkpoint(path: Path, *, with_replay: bool = True) -> Checkpoint:
    """Read one checkpoint, `step_<8 digits>.pt` or `best_<8 digits>.pt`.

    Args:
        path: the `.pt` file; its manifest is beside it.
        with_replay: False leaves replay data unread: the state's `RowLog`s are empty, good for evaluation alone.

    Raises:
        CheckpointError: the file or a segment is missing, cut short or changed, of a newer format, holds code, or its
            replay data were dropped. The message names the newest other one of its kind that can be used.
    """
    try:
        return _read(path, with_replay)
    except InvalidCheckpointError as error:
        kind: Kind = "best" if path.name.startswith("best_") else "step"
        others = [other for other in _list_checkpoints(path.parent, kind) if other != path]
        usable = next((other.name for other in others if _is_valid(other, with_replay)), None)
        advice = f"use {usable} instead" if usable else f"no other {kind}_*.pt there can be used"
        raise CheckpointError(f"{path}: {error}; {advice}") from error


def load_newest(
    folder: Path, *, with_replay: bool = True, report: Callable[[str], None] | None = None
) -> Checkpoint | None:
    """Read the newest valid checkpoint of a folder, None where none was ever finished. Changes nothing on disk.

    Args:
        folder: a run's `checkpoints/`.
        with_replay: as in `load_checkpoint`.
        report: told about each newer one that isn't valid, a line each.

    Raises:
        CheckpointError: there are checkpoints and none can be used; the message has the reason for each.
    """
    checkpoint, rejected = _find_newest(folder, with_replay)
    for path, reason in rejected.items():
        if report is not None:
            report(f"{path} is not used: {reason}")
    return checkpoint


class CheckpointStore:
    """The checkpoints of the run that is being trained: whoever uses it holds the run's lock.

    Args:
        folder: the run's `checkpoints/`; made by the first save.
        keep_last: how many checkpoints stay.
        report: told what was found wrong on disk, a line each.
    """

    def __init__(self, folder: Path, keep_last: int, report: Callable[[str], None]) -> None:
        self._folder = folder
        self._replay_folder = folder / "replay"
        self._keep_last = keep_last
        self._report = report
        self._protected: int | None = None
        self._last: Path | None = None
        self._replay: Mapping[str, StoredLog] = {}

    def is_empty(self) -> bool:
        """Tell whether no checkpoint was ever begun here."""
        return not _list_checkpoints(self._folder)

    def resume(self, find_protected: Callable[[Checkpoint], int | None] = lambda _: None) -> Checkpoint | None:
        """Read the newest valid checkpoint and go on from it; None where none was ever finished.

        Newer ones that aren't valid are kept aside as `*.invalid`; what killed saves left behind is swept.

        Args:
            find_protected: gives the step that `protect` was last told, from the checkpoint itself.

        Raises:
            CheckpointError: as `load_newest`; nothing was moved.
        """
        checkpoint, rejected = _find_newest(self._folder, with_replay=True)
        for leftover in [*self._folder.glob(".*.tmp"), *self._replay_folder.glob(".*.tmp")]:
            leftover.unlink()
        for path, reason in rejected.items():
            aside = _set_aside(path)
            self._report(f"{path} is not used and kept as {aside.name}: {reason}")
        if checkpoint is not None:
            self._last, self._replay = checkpoint.path, checkpoint.replay
            self._protected = find_protected(checkpoint)
            self._rotate()
        return checkpoint

    def save(self, step: int, state: object, facts: Mapping[str, Any]) -> Path:
        """Save a state after `step` finished training steps, then drop checkpoints beyond `keep_last`.

        Of each `RowLog` only the rows added since the last save or resume are written.

        Args:
            step: more than that of any checkpoint before.
            state: see `training.state`.
            facts: plain JSON values for the manifest.

        Raises:
            TypeError: the state has a leaf that can't be saved; the message has its path.
            OSError: the disk is full or can't be written; the checkpoints before stay valid.
        """
        path = self._folder / f"step_{step:08d}.pt"
        assert not path.exists(), f"{path} is there already"
        logs, packed = find_row_logs(state), _to_bytes(state)
        try:
            self._make_folders()
            replay = {
                key: write_segments(self._replay_folder, log, self._replay.get(key), key) for key, log in logs.items()
            }
            _write_pair(path, step, packed, replay, facts, replay_dropped=False)
        except OSError as error:
            self._withdraw(path)
            raise self._explain(error, path, len(packed)) from error
        self._last, self._replay = path, replay
        self._rotate()
        return path

    def protect(self, step: int) -> None:
        """Keep the newest checkpoint at or before a step, however many newer ones there are."""
        self._protected = step

    def find_step(self, at_most: int) -> int:
        """Give the step of the newest valid checkpoint at or before a step.

        Raises:
            CheckpointError: there is none.
        """
        for path in _list_checkpoints(self._folder):
            if _step_of(path) <= at_most and _is_valid(path, with_replay=True):
                return _step_of(path)
        raise CheckpointError(f"{self._folder}: no checkpoint at or before step {at_most:,} can be used to go back to")

    def return_to(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step and go on from it; newer ones are deleted first.

        Raises:
            CheckpointError: it can't be used.
        """
        for path in _list_checkpoints(self._folder):
            if _step_of(path) > step:
                _delete_pair(path)
        checkpoint = load_checkpoint(self._folder / f"step_{step:08d}.pt")
        self._last, self._replay = checkpoint.path, checkpoint.replay
        self._delete_unneeded_segments()
        return checkpoint

    def save_best(self, step: int, state: object, facts: Mapping[str, Any]) -> Path:
        """Save the best state so far as `best_<8 digits>.pt`, without rows of `RowLog`s, then delete the one before.

        Raises:
            OSError: as `save`.
        """
        path = self._folder / f"best_{step:08d}.pt"
        packed = _to_bytes(state)
        replay = {
            key: StoredLog(log.rows.dtype.str, log.rows.shape, log.total, ())
            for key, log in find_row_logs(state).items()
        }
        try:
            self._make_folders()
            _write_pair(path, step, packed, replay, facts, replay_dropped=True)
        except OSError as error:
            self._withdraw(path)
            raise self._explain(error, path, len(packed)) from error
        self._delete_other_bests(path)
        return path

    def read_best(self) -> Mapping[str, Any] | None:
        """Give the facts of the newest valid best policy, None where there is none.

        Those that aren't valid are kept aside; older ones, which a kill left there, are deleted.
        """
        for path in _list_checkpoints(self._folder, "best"):
            try:
                facts = _read(path, with_replay=False).facts
            except InvalidCheckpointError as error:
                self._report(f"{path} is not used and kept as {_set_aside(path).name}: {error}")
            else:
                self._delete_other_bests(path)
                return facts
        return None

    def _delete_other_bests(self, kept: Path) -> None:
        for path in _list_checkpoints(self._folder, "best"):
            if path != kept:
                _delete_pair(path)

    def drop_replay(self) -> None:
        """Delete replay data; the checkpoints stay good for evaluation and say that they can't be trained on."""
        paths = _list_checkpoints(self._folder)
        for path in paths:
            with contextlib.suppress(InvalidCheckpointError):
                write_manifest(path, replace(read_manifest(path), replay_dropped=True))
        # Only after every manifest says so: a checkpoint never misses data that it claims to have.
        delete_other_segments(self._replay_folder, [])

    def _make_folders(self) -> None:
        if not self._replay_folder.is_dir():
            self._replay_folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder)
            sync_folder(self._folder.parent)

    def _withdraw(self, path: Path) -> None:
        """Remove what a failed save left, to give the space back; the error that is under way matters more."""
        with contextlib.suppress(OSError):
            if not manifest_path(path).exists():
                path.unlink(missing_ok=True)
            self._delete_unneeded_segments()

    def _explain(self, error: OSError, path: Path, size: int) -> OSError:
        last = f"the last good checkpoint is {self._last.name}" if self._last else "there is no checkpoint before it"
        return OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}): it needs {size:,} bytes and its new replay rows; {last}; "
            "make room and start the run again, it goes on from there",
        )

    def _rotate(self) -> None:
        paths = _list_checkpoints(self._folder)
        finished = [path for path in paths if manifest_path(path).exists()]
        kept = finished[: self._keep_last]
        if self._protected is not None:
            kept += [path for path in finished if _step_of(path) <= self._protected][:1]
        for path in paths:
            if path not in kept:
                _delete_pair(path)
        self._delete_unneeded_segments()

    def _delete_unneeded_segments(self) -> None:
        needed: list[StoredLog] = []
        for path in _list_checkpoints(self._folder):
            if not manifest_path(path).exists():
                continue
            try:
                needed += read_manifest(path).replay.values()
            except (InvalidCheckpointError, CheckpointError):
                return  # what an unreadable manifest needs isn't known, so nothing goes
        delete_other_segments(self._replay_folder, needed)


def _list_checkpoints(folder: Path, kind: Kind = "step") -> list[Path]:
    """Give the `.pt` path of everything that is or was to be a checkpoint of this kind, newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = {match[2] for match in map(_FILE.fullmatch, names) if match is not None and match[1] == kind}
    return [folder / f"{kind}_{step}.pt" for step in sorted(steps, key=int, reverse=True)]


def _step_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _delete_pair(path: Path) -> None:
    # The manifest goes first: without it, what a kill leaves here is no checkpoint.
    manifest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _find_newest(folder: Path, with_replay: bool) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Give the newest valid checkpoint and the newer ones that aren't, each with its reason."""
    rejected: dict[Path, InvalidCheckpointError] = {}
    for path in _list_checkpoints(folder):
        try:
            return _read(path, with_replay), {other: str(reason) for other, reason in rejected.items()}
        except InvalidCheckpointError as error:
            rejected[path] = error
    # A single file without its manifest is a first save that was cut off: the run has no checkpoint yet.
    if len(rejected) > 1 or any(not error.unfinished for error in rejected.values()):
        reasons = "\n".join(f"  {path.name}: {error}" for path, error in rejected.items())
        raise CheckpointError(
            f"{folder}: none of the checkpoints can be used:\n{reasons}\n"
            "put back a good copy of the folder, or train from the start with continue_training: false"
        )
    return None, {path: str(error) for path, error in rejected.items()}


def _is_valid(path: Path, with_replay: bool) -> bool:
    try:
        _read(path, with_replay)
    except (InvalidCheckpointError, CheckpointError):
        return False
    return True


def _read(path: Path, with_replay: bool) -> Checkpoint:
    manifest = read_manifest(path)
    if with_replay and manifest.replay_dropped:
        raise CheckpointError(
            f"{path} has no replay data any more (they are dropped when a run is done, unless keep_replay: true, and "
            "a best_*.pt never has them): it can be evaluated (with_replay=False) but not trained on"
        )
    packed, logs = _read_verified(path, manifest), manifest.replay
    try:
        tree = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
        folder = path.parent / "replay"
        state = unpack_state(
            tree, lambda key: read_row_log(folder, logs[key]) if with_replay else empty_row_log(logs[key])
        )
    except SegmentError as error:
        raise InvalidCheckpointError(str(error)) from error
    except _UNREADABLE as error:
        if "allocate memory" in str(error):
            raise
        raise InvalidCheckpointError(
            f"it holds more than tensors and plain values, or isn't readable ({_first_line(error)})"
        ) from error
    return Checkpoint(path, manifest.step, state, manifest.facts, logs)


def _read_verified(path: Path, manifest: Manifest) -> bytes:
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise InvalidCheckpointError("its manifest is there but the file is missing") from None
    if len(packed) != manifest.bytes:
        raise InvalidCheckpointError(f"it has {len(packed):,} bytes instead of {manifest.bytes:,}")
    if hashlib.sha256(packed).hexdigest() != manifest.sha256:
        raise InvalidCheckpointError("its content changed after it was written (the SHA-256 differs)")
    return packed


def _write_pair(
    path: Path,
    step: int,
    packed: bytes,
    replay: Mapping[str, StoredLog],
    facts: Mapping[str, Any],
    replay_dropped: bool,
) -> None:
    write_atomically(path, [packed])
    write_manifest(path, Manifest(step, hashlib.sha256(packed).hexdigest(), len(packed), replay, replay_dropped, facts))


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint and its manifest to `*.invalid` names that are free, and give the first one."""
    number = 1
    while True:
        suffix = ".invalid" if number == 1 else f".{number}.invalid"
        asides = {file: file.with_name(file.name + suffix) for file in (path, manifest_path(path))}
        if not any(aside.exists() for aside in asides.values()):
            break
        number += 1
    for file, aside in asides.items():
        if file.exists():
            file.rename(aside)
    return asides[path]


def _to_bytes(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(pack_state(state), buffer)
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
