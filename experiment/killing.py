"""Kills a run's training in its midst, to see whether it goes on as if nothing had been."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experiment.files import read_newest_rows
from experiment.locks import list_holders
from experiment.run import Run
from experiment.stored import find_saved_step
from experiment.supervise import read_parent

LOOK_MS = 3
"""Between two looks at how far a training is."""
FIND_S = 0.02
TAIL_BYTES = 16384


@dataclass(frozen=True)
class Kill:
    """Where a training was when it was killed: the step of its last metric row, and that of its newest checkpoint."""

    step: int
    checkpoint: int

    def __str__(self) -> str:
        return f"at step {self.step:,}, its newest checkpoint being of step {self.checkpoint:,}"


def kill_training(run: Run, moments: Sequence[float], over: threading.Event) -> list[Kill]:
    """Kill the training of a run once for each moment, and give where it was then.

    Each time it is SIGKILL, without a word before, to the training process alone: its supervisor sees what it would see
    of any training that is killed from outside, and what goes on with it is up to the launcher.

    Args:
        run: launched at the same time, by somebody else.
        moments: steps, rising. A training is killed once it has passed the step, has a checkpoint, and has since
            then written rows that no attempt before has written.
        over: set when the launch has ended.
    """
    kills: list[Kill] = []
    for moment in moments:
        after = kills[-1].step if kills else 0
        while not over.is_set():
            training = _open_training(run)
            if training is None:
                over.wait(FIND_S)
                continue
            try:
                kill = _kill_past(run, training, max(moment, after + 1))
            finally:
                os.close(training)
            if kill is not None:
                kills.append(kill)
                break
    return kills


def _open_training(run: Run) -> int | None:
    """Give a pidfd of the process that trains a run now; None where there is none (yet)."""
    pid = find_training(run.lock_path)
    if pid is None:
        return None
    with suppress(ProcessLookupError):
        training = os.pidfd_open(pid)
        if find_training(run.lock_path) == pid:
            return training
        os.close(training)
    return None


def find_training(lock_path: Path) -> int | None:
    """Give the pid of the process that trains under a lock: it shares the lock with its parent, the supervisor."""
    parents = {pid: read_parent(pid) for pid in list_holders(lock_path) if pid != os.getpid()}
    supervisors = {pid for pid, parent in parents.items() if parent not in parents}
    return next((pid for pid, parent in parents.items() if parent in supervisors), None)


def _kill_past(run: Run, training: int, least: float) -> Kill | None:
    """Kill a training at the first moment past a step that isn't a checkpoint; None where it ends before."""
    poll = select.poll()
    poll.register(training, select.POLLIN)
    seen = 0
    while not poll.poll(LOOK_MS):
        size = run.metrics_path.stat().st_size if run.metrics_path.exists() else 0
        if size == seen:
            continue
        seen = size
        if read_last_step(run) >= least and 0 < find_saved_step(run.checkpoints_dir) < read_last_step(run):
            signal.pidfd_send_signal(training, signal.SIGKILL)
            poll.poll()
            return Kill(read_last_step(run), find_saved_step(run.checkpoints_dir))
    return None


def read_last_step(run: Run) -> int:
    """Give the training step of a run's last whole metric row, 0 without one."""
    row = next(read_newest_rows(run.metrics_path, TAIL_BYTES), None)
    return 0 if row is None else int(row["step"])
