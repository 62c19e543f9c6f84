"""Which runners are at work in an experiment's folder: each holds the lock of a file of its own there while it lives.

The file's first line says who it is, the others are its plan, since `plan.jsonl` is that of the last launch alone.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiment.files import now_text
from experiment.locks import acquire_lock, is_locked

FOLDER = ".runners"
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
    """Give who wrote a file; None where it has left since."""
    try:
        with path.open(encoding="utf-8") as lines:
            return Runner(**json.loads(next(lines)))
    except FileNotFoundError:
        return None
