"""One run: its identity, its folder, every path that it may write, and its status, derived from files and locks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from experiment.files import find_temporaries, name_target, read_json, write_json
from experiment.identity import ID_LENGTH
from experiment.locks import acquire_lock, is_locked, wait_for_lock

MAX_LABEL = 120
_FOLDER = re.compile(rf"(?P<label>.*)__(?P<id>[0-9a-f]{{{ID_LENGTH}}})")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")


class State(StrEnum):
    """What a run is doing, as derived by `Run.status`."""

    DONE = "DONE"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    LOST = "LOST"
    PENDING = "PENDING"


@dataclass(frozen=True)
class RunStatus:
    """A run's state; for FAILED the reason in `exit.json`; the number of the last attempt, 0 for none."""

    state: State
    reason: str | None = None
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else str(self.state)


@dataclass(frozen=True)
class Run:
    """One cell of a grid. Only this class knows the names of a run's files."""

    folder: Path
    id: str
    label: str

    @classmethod
    def create_path(cls, experiment_dir: Path, label: str, run_id: str) -> Run:
        """Give the run with this id, in the folder that a new one would get. Makes nothing."""
        return cls(experiment_dir / f"{safe_label(label)}__{run_id}", run_id, label)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Give the run that lives in a folder.

        Raises:
            ValueError: the folder's name doesn't end in `__<id>`.
        """
        match = _FOLDER.fullmatch(folder.name)
        if match is None:
            raise ValueError(f"{folder} is not a run folder: its name has to end in __<{ID_LENGTH} hexadecimal digits>")
        return cls(folder, match["id"], match["label"])

    @property
    def experiment_dir(self) -> Path:
        return self.folder.parent

    @property
    def config_path(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def lock_path(self) -> Path:
        return self.folder / "lock"

    @property
    def exit_path(self) -> Path:
        return self.folder / "exit.json"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        return self.folder / "summary.json"

    @property
    def parent_path(self) -> Path:
        """From which checkpoint of which other run it began; not there for a run that began as new."""
        return self.folder / "parent.json"

    @property
    def checkpoints_dir(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def samples_path(self) -> Path:
        """The picture that `play.py samples` draws."""
        return self.folder / "samples.png"

    @property
    def inside_dir(self) -> Path:
        """What `play.py trace` keeps of a policy's networks at work, and what analyses make of it."""
        return self.folder / "inside"

    @property
    def trace_path(self) -> Path:
        return self.inside_dir / "trace.npz"

    @property
    def repairs_path(self) -> Path:
        """What the training-health guard keeps over a roll-back; beside the checkpoints, with which it is archived."""
        return self.checkpoints_dir / "repairs.json"

    @property
    def tensorboard_dir(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def attempts_dir(self) -> Path:
        return self.folder / "attempts"

    @property
    def events_path(self) -> Path:
        return self.experiment_dir / "events.jsonl"

    def attempt_dir(self, attempt: int) -> Path:
        return self.attempts_dir / f"{attempt:03d}"

    def console_path(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "console.log"

    def start_path(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "start.json"

    def archive_dir(self, attempt: int) -> Path:
        """What the run had written by the end of an attempt, where it has started again since."""
        return self.attempt_dir(attempt) / "archive"

    def list_archived_checkpoints(self) -> list[Path]:
        """Give the `checkpoints/` of earlier lives of the run."""
        folders = [self.archive_dir(number) / "checkpoints" for number in range(1, self.last_attempt() + 1)]
        return [folder for folder in folders if folder.is_dir()]

    def list_temporaries(self) -> list[Path]:
        """Give the files that holders of the run's lock have in progress, or left half written when killed."""
        results = (self.exit_path, self.metrics_path, self.parent_path, self.summary_path)
        theirs = {path.name for path in (self.config_path, *results, self._archiving_path)}
        found = [path for path in find_temporaries(self.folder) if name_target(path) in theirs]
        for number in range(1, self.last_attempt() + 1):
            found += find_temporaries(self.attempt_dir(number))
        for checkpoints in (self.checkpoints_dir, *self.list_archived_checkpoints()):
            found += find_temporaries(checkpoints) + find_temporaries(checkpoints / "replay")
        return found

    def list_loose_temporaries(self) -> list[Path]:
        """Give the same of those who need no lock: pictures and analyses of a policy."""
        theirs = set(self.list_temporaries())
        loose = find_temporaries(self.folder) + find_temporaries(self.inside_dir)
        return [path for path in loose if path not in theirs]

    def last_attempt(self) -> int:
        """Give the number of the last attempt, 0 where none was started."""
        try:
            names = os.listdir(self.attempts_dir)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return max((int(name) for name in names if name.isdigit()), default=0)

    def read_start(self, attempt: int) -> dict[str, Any]:
        """Give what was known when an attempt started; empty where it was killed before saying so."""
        return read_json(self.start_path(attempt)) or {}

    def read_exit(self, attempt: int) -> dict[str, Any] | None:
        """Give how an attempt ended, None where it didn't live to say."""
        return read_json(self.attempt_dir(attempt) / "exit.json")

    def archive(self, attempt: int) -> None:
        """Move what the run has written into one of its attempts, so that it can start again and nothing is lost.

        A note says that the move is under way, so that whoever claims the run next completes it if we are killed. To be
        called by whoever holds the lock.
        """
        write_json(self._archiving_path, {"attempt": attempt})
        self.finish_archive()

    def finish_archive(self) -> None:
        """Complete a move that was begun; nothing where none was. To be called by whoever holds the lock."""
        note = read_json(self._archiving_path)
        if note is None:
            return
        target = self.archive_dir(note["attempt"])
        target.mkdir(parents=True, exist_ok=True)
        curve = (self.parent_path, self.metrics_path, self.tensorboard_dir)
        results = (self.exit_path, self.summary_path, self.checkpoints_dir, *curve, self.samples_path, self.inside_dir)
        for path in results:
            if path.exists() and not (target / path.name).exists():
                path.replace(target / path.name)
        self._archiving_path.unlink()

    @property
    def _archiving_path(self) -> Path:
        return self.folder / ".archiving.json"

    def is_done(self) -> bool:
        """Tell whether the run has finished and its results are in their place."""
        return self.exit_path.exists() and not self._archiving_path.exists()

    def status(self) -> RunStatus:
        """Derive what the run is doing from its files and its lock; nothing is stored anywhere."""
        # The number comes first: who compares it later must see that somebody has started another attempt since.
        attempt = self.last_attempt()
        if not self.is_done() and is_locked(self.lock_path):
            return RunStatus(State.RUNNING, attempt=attempt)
        return self._derive_rest(attempt)

    def rest_status(self) -> RunStatus:
        """Derive the status of a run that nobody else is running (or whose lock is ours)."""
        return self._derive_rest(self.last_attempt())

    def count_failures(self, since: int) -> int:
        """Give how many attempts after a number failed, or ended without a word; stops don't count."""
        endings = [self.read_exit(attempt) for attempt in range(since + 1, self.last_attempt() + 1)]
        return sum(ending is None or not (ending["ok"] or ending["reason"] == "requeue") for ending in endings)

    def _derive_rest(self, attempt: int) -> RunStatus:
        if self.is_done():
            return RunStatus(State.DONE, attempt=attempt)
        if attempt == 0:
            return RunStatus(State.PENDING)
        ending = self.read_exit(attempt)
        if ending is None or ending["ok"]:
            return RunStatus(State.LOST, attempt=attempt)
        if ending["reason"] == "requeue":
            return RunStatus(State.STOPPED, attempt=attempt)
        return RunStatus(State.FAILED, ending["reason"], attempt)


def safe_label(label: str) -> str:
    """Give a label that is a good folder name: no separators, blanks or quotes, at most `MAX_LABEL` characters."""
    return _UNSAFE.sub("-", label).strip("-.")[:MAX_LABEL].rstrip("-.") or "run"


def find_runs(experiment_dir: Path) -> Iterator[Run]:
    """Give every run folder of an experiment, in the order of their names."""
    try:
        names = sorted(entry.name for entry in os.scandir(experiment_dir) if entry.is_dir())
    except FileNotFoundError:
        return
    for name in names:
        if match := _FOLDER.fullmatch(name):
            yield Run(experiment_dir / name, match["id"], match["label"])


def find_folder(run: Run) -> Run:
    """Give the run in the folder that its id has by now, whatever the label; of several, a finished one first."""
    # By the ends of names alone: a launch of a thousand runs comes here a thousand times.
    ending = f"__{run.id}"
    try:
        names = sorted(name for name in os.listdir(run.experiment_dir) if name.endswith(ending))
    except FileNotFoundError:
        return run
    folders = [run.experiment_dir / name for name in names]
    there = [Run(folder, run.id, run.label) for folder in folders if folder.is_dir()]
    return min(there, key=lambda found: not found.is_done(), default=run)


def claim_run(run: Run) -> tuple[Run, int | None]:
    """Take a run's lock, making its folder where there is none; None instead of the lock where somebody runs it.

    Folders are found or made one at a time in an experiment, so that two runners that label an id differently still
    come to the same folder. The run is given as it was found.

    Raises:
        OSError: the folder can't be written.
    """
    run.experiment_dir.mkdir(parents=True, exist_ok=True)
    turn = wait_for_lock(run.experiment_dir / ".folders.lock")
    try:
        run = find_folder(run)
        run.folder.mkdir(exist_ok=True)
        lock = acquire_lock(run.lock_path)
        if lock is not None:
            run.finish_archive()
        return run, lock
    finally:
        os.close(turn)
