"""Runs that are trained only to be compared: in a folder that goes away, by the launcher that all runs have."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from experiment.devices import Device
from experiment.engines.local import Limits, LocalEngine, Work, last_lines
from experiment.launch import launch_runs
from experiment.outcomes import Request, SweepResult
from experiment.progress import View
from experiment.run import Run

ENDS_BY = (signal.SIGTERM, signal.SIGHUP)
FAILED = 1
SHOWN_LINES = 12


class ScratchFolder:
    """A folder of our own among the system's temporary ones (`TMPDIR` moves it). It goes unless it is to be kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_kept = False

    def keep(self) -> None:
        """Leave it there, to be looked into."""
        self.is_kept = True


@contextmanager
def make_scratch(purpose: str) -> Iterator[ScratchFolder]:
    """Make a scratch folder, and remove it however its use ends, SIGTERM and SIGHUP included."""
    # What is ignored stays so: `nohup` means it.
    heard = [number for number in ENDS_BY if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _leave) for number in heard}
    folder = ScratchFolder(Path(tempfile.mkdtemp(prefix=f"gridpilot-{purpose}-")).resolve())
    try:
        yield folder
    finally:
        if not folder.is_kept:
            shutil.rmtree(folder.path, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@dataclass(frozen=True)
class Training:
    """What to train in a scratch folder.

    Attributes:
        config_text: of `config.yaml`.
        script: the `train.py` to start.
        device: where.
        threads: how many.
        find_code_version: gives what `start.json` is to say of the code.
    """

    config_text: str
    script: Path
    device: Device
    threads: int
    find_code_version: Callable[[], str]

    def train(self, run: Run, view: View) -> SweepResult:
        """Train a run to its end under a supervisor. As in any launch, one that is killed goes on."""

        def make_work(placed: Run, _: Device) -> Work:
            return Work(self.config_text, (sys.executable, str(self.script), "-e", str(placed.config_path)), False)

        request = Request(
            work=make_work,
            jobs=1,
            retries=0,
            rerun=(),
            code_version=self.find_code_version(),
            stop_path=run.experiment_dir / "stop.json",
            stop_seen=None,
            rerun_command=lambda placed: f"{sys.executable} {self.script} -e {placed.config_path}",
        )
        engine = LocalEngine(Limits(threads=self.threads), self.find_code_version)
        return launch_runs([run], engine, [self.device], request, view)


def say_untrained(name: str, run: Run, code: int, scratch: ScratchFolder) -> int:
    """Say that a run did not come to its end, and give the exit code; its folder is kept where it failed."""
    if code != FAILED:
        print(f"the {name} run did not come to its end; nothing was compared", file=sys.stderr)
        return code
    scratch.keep()
    log = run.console_path(run.last_attempt())
    print(f"FAILED: the {name} run could not be trained to its end; nothing was compared. Its log ends so:")
    for line in last_lines(log, SHOWN_LINES):
        print(f"  | {line}")
    print(f"kept: {scratch.path}")
    return FAILED
