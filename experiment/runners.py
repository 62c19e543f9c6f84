"""Which runners are at work in an experiment's folder: each holds the lock of a file of its own there while it lives.

The file's first line says who it is, the others are its plan, since `plan.jsonl` is that of the last launch alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from experiment.files import now_text
from experiment.lock_check import LocklessFolderError
from experiment.locks import acquire_lock, is_locked

FOLDER = ".runners"
FRESH_S = 60.0
BEATS_WITHIN_S = 4.0
"""A runner touches its file about once a second, and never while it starts a run."""
POLL_S = 0.25
_PLAN_CHUNK = 1 << 20


@dataclass(frozen=True)
class Runner:
    """A runner, as it describes itself.

    Attributes:
        pid: on its host.
        host: the machine that it works on.
        started: ISO time at which it entered the folder.
        command: what was typed, ready to paste.
        code_version: of the code that it began with.
        log: where its lines go; None for the terminal that it was started from.
    """

    pid: int
    host: str
    started: str
    command: str
    code_version: str
    log: str | None = None

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@dataclass(frozen=True)
class Presence:
    """A runner's stay in an experiment's folder, until it leaves or dies."""

    runner: Runner
    path: Path
    lock: int

    def beat(self) -> None:
        """Say that we live, to runners that can't see our lock: see `refuse_unseen`."""
        with contextlib.suppress(OSError):  # a full disk is told by those who write
            os.utime(self.lock)

    def leave(self) -> None:
        """End the stay."""
        self.path.unlink(missing_ok=True)
        os.close(self.lock)


def enter(experiment_dir: Path, command: str, code_version: str, plan: Path, log: Path | None) -> Presence:
    """Make this process known as a runner of an experiment, and clear away what runners that were killed have left.

    Args:
        experiment_dir: must be there.
        command: what was typed.
        code_version: of the code that this runner begins with.
        plan: the `plan.jsonl` that this launch wrote.
        log: where its lines go; None for the terminal.

    Raises:
        OSError: the folder can't be written.
    """
    folder = experiment_dir / FOLDER
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.jsonl"):
        # It was locked before it got its name, so nobody is still about to lock it.
        if not is_locked(path):
            path.unlink(missing_ok=True)
    name = f"{secrets.token_hex(8)}.jsonl"
    temporary = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    lock = acquire_lock(temporary)
    assert lock is not None, temporary
    runner = Runner(os.getpid(), platform.node(), now_text(), command, code_version, None if log is None else str(log))
    try:
        with plan.open("rb") as rows, os.fdopen(os.dup(lock), "wb") as file:
            file.write(json.dumps(asdict(runner)).encode() + b"\n")
            while chunk := rows.read(_PLAN_CHUNK):
                file.write(chunk)
        temporary.rename(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        os.close(lock)
        raise
    return Presence(runner, folder / name, lock)


def refuse_unseen(experiment_dir: Path) -> None:
    """Refuse a folder in which a runner of another machine is at work whose lock is not seen here.

    There every machine has locks of its own (NFS with `local_lock`, say), each passes a test of its own, and runs would
    be done twice. Returns at once unless an unlocked file of another host was touched within the last minute; whether
    somebody still touches it takes a few seconds to see, once, since whoever enters next clears it away.

    Raises:
        LocklessFolderError: there is such a runner.
        OSError: the folder can't be written.
    """
    unseen = [path for path in (experiment_dir / FOLDER).glob("*.jsonl") if not is_locked(path)]
    runners = {path: _read_runner(path) for path in unseen}
    now = _read_clock(experiment_dir) if unseen else 0.0
    times = {
        path: _read_time(path)
        for path, runner in runners.items()
        if runner is not None and runner.host != platform.node() and now - _read_time(path) < FRESH_S
    }
    deadline = time.monotonic() + BEATS_WITHIN_S
    while times and time.monotonic() < deadline:
        time.sleep(POLL_S)
        for path, before in times.items():
            if _read_time(path) > before:
                fault = f"the lock of a runner at work ({runners[path]}) is not seen on {platform.node()}"
                raise LocklessFolderError(experiment_dir, fault)


def _read_time(path: Path) -> float:
    """Give when a file was last touched, 0 where it is gone. It is opened: only then does NFS ask its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def _read_clock(folder: Path) -> float:
    """Give the time by the clock of a folder's file system, which may be another machine's."""
    path = folder / f".clock.{secrets.token_hex(4)}.tmp"
    with path.open("xb") as file:
        now = os.fstat(file.fileno()).st_mtime
    path.unlink()
    return now


def list_runners(experiment_dir: Path) -> list[Runner]:
    """Give the runners that are at work in an experiment's folder, in the order in which they came."""
    runners = [_read_runner(path) for path in _list_present(experiment_dir)]
    return sorted((runner for runner in runners if runner is not None), key=lambda runner: runner.started)


def read_plans(experiment_dir: Path) -> Iterator[str]:
    """Give the lines of the plans of all runners that are at work there."""
    for path in _list_present(experiment_dir):
        try:
            with path.open(encoding="utf-8") as rows:
                next(rows, "")
                yield from rows
        except FileNotFoundError:  # it has just left
            continue


def describe_others(experiment_dir: Path, own: Presence, ids: Iterable[str]) -> list[str]:
    """Give a line for each other runner that is at work there: that runs are shared, and how it differs.

    Args:
        experiment_dir: the folder.
        own: is left out.
        ids: of all runs of our spec.
    """
    lines = []
    ours = set(ids)
    for path in _list_present(experiment_dir):
        runner = _read_runner(path)
        if path == own.path or runner is None:
            continue
        try:
            with path.open(encoding="utf-8") as rows:
                next(rows, "")
                theirs = {json.loads(row)["id"] for row in rows}
        except FileNotFoundError:
            continue
        line = f"another runner ({runner}) works in {experiment_dir}; runs are shared"
        lines.append(line + _say_difference(own.runner, runner, ours, theirs))
    return lines


def say_runners(runners: Sequence[Runner]) -> list[str]:
    """Give a line for each runner: who, since when, and where what it says is to be read."""
    return [
        f"runner {runner} since {runner.started}: {runner.log or 'the terminal it was started from has its lines'}"
        for runner in runners
    ]


def _say_difference(own: Runner, other: Runner, ours: set[str], theirs: set[str]) -> str:
    parts = []
    if only_theirs := len(theirs - ours):
        parts.append(f"{only_theirs} of its {len(theirs)} runs are not in this spec")
    if only_ours := len(ours - theirs):
        parts.append(f"{only_ours} of the {len(ours)} here are not in its")
    if own.code_version != other.code_version:
        parts.append(f"it began with other code ({other.code_version}, here {own.code_version})")
    return f": {', '.join(parts)}" if parts else ""


def _list_present(experiment_dir: Path) -> list[Path]:
    return [path for path in sorted((experiment_dir / FOLDER).glob("*.jsonl")) if is_locked(path)]


def _read_runner(path: Path) -> Runner | None:
    """Give who wrote a file; None where it has left since, or the machine lost power before the disk had its text."""
    try:
        with path.open(encoding="utf-8") as lines:
            said = json.loads(next(lines, ""))
    except (FileNotFoundError, ValueError):
        return None
    # One of other code than ours may say more of itself.
    return Runner(**{field.name: said[field.name] for field in fields(Runner)})
