"""`--detach`: the runner goes on without the terminal that it was started from.

The process forks before anything that may start threads or touch a GPU (the devices are not listed yet), rather than
being started a second time: what was checked is then what runs, although a spec is edited in between, and nothing is
checked twice. Until it has begun, what the new process says and its exit code are those of the command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOG_NAME = "runner.log"


@dataclass(frozen=True)
class Background:
    """The runner's side: it belongs to a session of its own, and still speaks to the terminal until `confirm`."""

    pipe: int

    def confirm(self, farewell: str, log: Path, heading: str) -> None:
        """Leave the terminal: from here on lines go to the log, under a heading, and nobody waits for the exit code.

        Args:
            farewell: what the command prints before it ends.
            log: is appended to.
            heading: a line.

        Raises:
            OSError: the log can't be written.
            KeyboardInterrupt: the command was ended while it waited, so nothing shall go on.
        """
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.write(out, heading.encode() + b"\n")
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            os.write(self.pipe, farewell.encode())
        except BrokenPipeError:
            raise KeyboardInterrupt from None
        for source, target in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(out)
        os.close(self.pipe)


def run_in_background(work: Callable[[Background], int]) -> int:
    """Do work in a new process that outlives this one and its terminal.

    Returns twice: in this process, with 0 once the work has confirmed that it has begun, or with its exit code where
    it ended before; and in the new one, with the exit code of the work, for whoever called us to end with. A hang-up is
    ignored there, as under `nohup`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return work(Background(writer))
    os.close(writer)
    try:
        return _wait(pid, reader)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        return 130


def _wait(pid: int, reader: int) -> int:
    """Give the terminal's command its ending: what the new process says farewell with, or how it ended instead."""
    farewell = b""
    while chunk := os.read(reader, 65536):
        farewell += chunk
    os.close(reader)
    if farewell:
        sys.stdout.write(farewell.decode())
        sys.stdout.flush()
        return 0
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        sys.stderr.write(f"the runner was ended by {signal.Signals(-code).name} before it began\n")
        return 128 - code
    return code
