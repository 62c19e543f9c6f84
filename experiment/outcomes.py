"""What a launch was asked for, and what has become of its runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment.chaos import Chaos
from experiment.devices import Device
from experiment.engines.local import Work, describe_ending
from experiment.packed import Packing
from experiment.run import Run, RunStatus, State
from experiment.schedule import DEVICE_GONE, RESUMES_AFTER_KILL, Ending, was_killed


@dataclass(frozen=True)
class RunOutcome:
    """What became of one run: in this launch (`fresh`), before we came, or with another runner (`elsewhere`)."""

    run: Run
    state: State
    ending: Ending | None = None
    fresh: bool = True
    elsewhere: bool = False


@dataclass(frozen=True)
class SweepResult:
    """What became of all runs, and the exit code that says it."""

    outcomes: Sequence[RunOutcome]
    exit_code: int


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        work: gives what to start for a run on a device; called just before the run starts.
        jobs: how many runs at a time.
        retries: how many times a run that fails is tried again.
        rerun: ids of DONE or FAILED runs that are to run again.
        code_version: a FAILED run is tried again without being asked for when this has changed since.
        stop_path: a file whose change asks every runner of the experiment to stop.
        stop_seen: what was in it when the launch began.
        rerun_command: gives a command to paste that runs just one run again.
        beat: is called about once a second while the launch lives.
        chaos: kills what takes part; None for nobody.
        packing: what decides how many runs fit at a time; None where their number is fixed.
    """

    work: Callable[[Run, Device], Work]
    jobs: int
    retries: int
    rerun: Collection[str]
    code_version: str
    stop_path: Path
    stop_seen: bytes | None
    rerun_command: Callable[[Run], str]
    beat: Callable[[], None] = lambda: None
    packing: Packing | None = None
    chaos: Chaos | None = None

    @property
    def resumes(self) -> int:
        """How often a run is gone on with that was killed from outside: always, if we do it."""
        return RESUMES_AFTER_KILL if self.chaos is None else sys.maxsize


def find_checkpoint_step(run: Run) -> int:
    """Give the step of a run's newest checkpoint, 0 without one."""
    names = [re.fullmatch(r"step_(\d+)\.pt", path.name) for path in run.checkpoints_dir.glob("step_*.pt")]
    return max((int(name[1]) for name in names if name), default=0)


def is_settled(run: Run, status: RunStatus, request: Request) -> bool:
    """Tell whether a run is to be left as it is: done, or failed with this code and not asked for again."""
    if status.state is not State.FAILED:
        return status.state is State.DONE
    return not request.retries and is_left_failed(run, status, request.code_version, request.resumes)


def is_left_failed(run: Run, status: RunStatus, code_version: str, resumes: int = RESUMES_AFTER_KILL) -> bool:
    """Tell whether a run that failed is left so by a launch with this code that doesn't ask for it.

    One that was killed from outside, or whose device was gone, goes on; the former some times only.
    """
    if run.read_start(status.attempt).get("code_version") != code_version:
        return False
    ending = read_ending(run, status)
    if ending is not None and was_killed(ending):
        return run.count_failures(max(0, status.attempt - 1 - resumes)) > resumes
    return ending is None or ending.returncode != DEVICE_GONE


def read_stop_request(path: Path) -> bytes | None:
    """Give what is in the file by which runners are asked to stop, None where nobody ever asked."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def read_ending(run: Run, status: RunStatus) -> Ending | None:
    """Give how a run's last attempt ended, None where it didn't live to say."""
    ending = run.read_exit(status.attempt)
    if ending is None:
        return None
    return describe_ending(ending, run.console_path(status.attempt))
