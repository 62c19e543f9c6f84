"""`gc`: what nothing needs any more, what it takes up, and, when asked, away with it.

A file may go only where no command of ours would read it again: not a resume, nor a report, `play.py` on the newest or
the best policy, a run of the stored code, or a run that begins from it. What is listed under a run's lock is what is
deleted under it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment.files import append_event, find_temporaries
from experiment.locks import acquire_lock
from experiment.parents import find_needed
from experiment.run import Run, State
from experiment.stored import Stored, list_segments, list_set_aside, list_stored
from experiment.views import list_lines, read_plan

LOOSE_AGE_S = 86_400.0
"""A file in progress that no lock guards is taken for left behind when nobody has written to it for a day."""

TEMPORARY = "half written by a process that was killed"
OLDER = "an older checkpoint; {} is whole"
UNFINISHED = "a save that was cut off"
SET_ASIDE = "was broken and kept aside; the run finished without it"
SEGMENT = "replay data that no checkpoint needs"
ARCHIVED = "replay data of an earlier life, from which nothing goes on"


@dataclass(frozen=True)
class Garbage:
    """One file that may go, and why."""

    path: Path
    reason: str
    size: int


@dataclass(frozen=True)
class Cleanup:
    """What may go, in the order in which it goes: cut short anywhere, what stays is whole.

    Attributes:
        files: to be deleted.
        marks: checkpoints that stay and have to say first that they have no replay data any more.
    """

    files: Sequence[Garbage]
    marks: Sequence[Stored] = ()

    def carry_out(self) -> None:
        """Delete the files.

        Raises:
            OSError: one can't be deleted; the rest stays for another time.
        """
        for stored in self.marks:
            stored.note_replay_dropped()
        for garbage in self.files:
            garbage.path.unlink(missing_ok=True)


def collect_garbage(experiment_dirs: Sequence[Path], delete: bool) -> None:
    """Print what may go from experiments and what that frees; with `delete`, it goes.

    Raises:
        ViewError: a folder holds no experiment, or its plan is cut short.
        OSError: a file can't be deleted.
    """
    files = [garbage for experiment_dir in experiment_dirs for garbage in _clean_experiment(experiment_dir, delete)]
    if not files:
        print("nothing may go: every file is still needed")
        return
    what = _sum_up(files)
    print(f"deleted {what}" if delete else f"{what} may go; --yes deletes them")


def _clean_experiment(experiment_dir: Path, delete: bool) -> Sequence[Garbage]:
    """Give what went, or may go, having printed it."""
    print(experiment_dir)
    lines = list(list_lines(experiment_dir))
    needed = find_needed(experiment_dir)
    keeping, now = _find_keeping(experiment_dir), time.time()
    files: list[Garbage] = []
    for run in (line.run for line in lines if line.planned and line.run.folder.is_dir()):
        if run.id in needed:
            print(f"  {run.id}  its newest checkpoint stays: {_say_needed(needed[run.id])}  {run.label}")
        files += _clean_run(run, run.id in keeping, now, delete)
    abandoned = find_abandoned(find_temporaries(experiment_dir), now)
    _show("beside its runs", abandoned, experiment_dir)
    files += abandoned
    if delete:
        Cleanup(abandoned).carry_out()
    for run in (line.run for line in lines if not line.planned):
        size = show_size(_measure(run.folder))
        decide = f"needed: {_say_needed(needed[run.id])};" if run.id in needed else "left as it is, for you to decide:"
        print(f"  {run.id}  {decide} not in the plan any more, {size}: {run.folder}")
    if delete and files:
        append_event(experiment_dir / "events.jsonl", "cleaned", files=len(files), bytes=_count_bytes(files))
    return files


def _clean_run(run: Run, keeps_older: bool, now: float, delete: bool) -> Sequence[Garbage]:
    """Clean a run, with its lock where files are to go. One that somebody runs is left alone."""
    status = run.status()
    lock = acquire_lock(run.lock_path) if delete and status.state is not State.RUNNING else None
    if status.state is State.RUNNING or (delete and lock is None):
        print(f"  {run.id}  left alone: somebody runs it  {run.label}")
        return ()
    try:
        # With the lock ours, nothing of it changes between here and the deletion.
        cleanup = find_garbage(run, keeps_older, now)
        _show(f"{run.id}  {run.rest_status()}  {run.label}", cleanup.files, run.folder)
        if delete:
            cleanup.carry_out()
    finally:
        if lock is not None:
            os.close(lock)
    return cleanup.files


def find_garbage(run: Run, keeps_older: bool, now: float) -> Cleanup:
    """Give what may go from a run that nobody runs (or whose lock is ours), at a time in seconds.

    Args:
        run: of a run that isn't DONE only temporary files go: any checkpoint may be the one that it goes on from.
        keeps_older: whether its settings ask for older checkpoints, to be evaluated as they were then.
    """
    temporaries = [_weigh(path, TEMPORARY) for path in run.list_temporaries()]
    temporaries += find_abandoned(run.list_loose_temporaries(), now)
    if not run.is_done():
        return Cleanup(temporaries)
    cleanups = [_judge(run.checkpoints_dir, keeps_older, is_archive=False)]
    cleanups += [_judge(folder, keeps_older, is_archive=True) for folder in run.list_archived_checkpoints()]
    files = [garbage for cleanup in cleanups for garbage in cleanup.files]
    return Cleanup([*files, *temporaries], [stored for cleanup in cleanups for stored in cleanup.marks])


def find_abandoned(temporaries: Sequence[Path], now: float) -> list[Garbage]:
    """Give the files in progress, guarded by no lock, that nobody has written to for a day before a time in seconds."""
    found = []
    for path in temporaries:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # It was finished just now.
        if now - status.st_mtime > LOOSE_AGE_S:
            found.append(Garbage(path, TEMPORARY, status.st_size))
    return found


def _judge(checkpoints: Path, keeps_older: bool, is_archive: bool) -> Cleanup:
    """Give what may go from the checkpoints of a life that is over: all but its newest whole ones of both kinds."""
    old_steps, steps = _divide(list_stored(checkpoints, "step"), keeps_older)
    old_bests, bests = _divide(list_stored(checkpoints, "best"), older_stay=False)
    files, kept = [*old_steps, *old_bests], [*steps, *bests]
    is_ours = any(stored.manifest is not None for stored in steps)
    if not is_ours or any(stored.manifest is None and not stored.is_unfinished() for stored in kept):
        # What such a checkpoint needs isn't known, so no replay data go, nor what was kept aside.
        return Cleanup(files)
    files += [_weigh(path, SET_ASIDE) for path in list_set_aside(checkpoints)]
    needed = {file for stored in kept for file in stored.segments()}
    segments = list_segments(checkpoints)
    files += [_weigh(path, SEGMENT) for path in segments if path.name not in needed]
    if not is_archive:
        return Cleanup(files)
    files += [_weigh(path, ARCHIVED) for path in segments if path.name in needed]
    return Cleanup(files, [stored for stored in kept if stored.segments()])


def _divide(there: Sequence[Stored], older_stay: bool) -> tuple[list[Garbage], list[Stored]]:
    """Divide checkpoints of one kind, newest first, into files that may go and checkpoints that stay."""
    if len(there) < 2:
        return [], list(there)
    whole = next((number for number, stored in enumerate(there) if stored.is_whole()), len(there) - 1)
    kept = list(there[: whole + 1])
    files: list[Garbage] = []
    for stored in there[whole + 1 :]:
        if older_stay and not stored.is_unfinished():
            kept.append(stored)
            continue
        reason = UNFINISHED if stored.is_unfinished() else OLDER.format(there[whole].path.stem)
        # The manifest goes first: without it, what a kill leaves here is no checkpoint.
        files += [_weigh(path, reason) for path in (stored.manifest_path, stored.path) if path.exists()]
    return files, kept


def _find_keeping(experiment_dir: Path) -> set[str]:
    """Give the ids of the runs whose settings say themselves how many checkpoints are to be kept."""
    return {row["id"] for row in read_plan(experiment_dir) if "keep_last" in row["settings"]}


def _say_needed(children: Sequence[str]) -> str:
    more = f" and {len(children) - 1} more" if len(children) > 1 else ""
    return f"run {children[0]}{more} will begin from it"


def _weigh(path: Path, reason: str) -> Garbage:
    return Garbage(path, reason, path.lstat().st_size)


def _measure(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _sum_up(files: Sequence[Garbage]) -> str:
    return f"{len(files)} file{'s' * (len(files) > 1)}, {show_size(_count_bytes(files))}"


def _count_bytes(files: Sequence[Garbage]) -> int:
    return sum(garbage.size for garbage in files)


def _show(heading: str, files: Sequence[Garbage], folder: Path) -> None:
    if files:
        print(f"  {heading}")
    for garbage in files:
        print(f"    {show_size(garbage.size):>9}  {garbage.path.relative_to(folder)}: {garbage.reason}")


def show_size(size: float) -> str:
    """Give a number of bytes as people read it, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
