"""Runs on this machine: each under a supervisor of its own, which dies with the runner."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiment import supervise
from experiment.devices import Device
from experiment.engines.environment import make_base_environment
from experiment.engines.orphans import OrphanKeeper
from experiment.engines.warm import Forked, WarmLauncher
from experiment.files import now_text, write_atomically, write_json
from experiment.parents import Parent
from experiment.run import Run
from experiment.schedule import Ending

TAIL_BYTES = 8192


@dataclass(frozen=True)
class Work:
    """What to start for one run: the text of its `config.yaml` and, given that file's path, a command."""

    config_text: str
    command: tuple[str, ...]
    is_foreign: bool
    """True for a script that isn't our trainer: it sets `CUDA_VISIBLE_DEVICES` itself, from `-g`, and its exit code 3
    means nothing in particular."""
    parent: Parent | None = None
    """The run that it begins from."""


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds, and how many threads a run gets."""

    threads: int
    timeout_s: float | None = None
    grace_s: float = 60.0
    orphan_grace_s: float = 2.0


class Handle:
    """A run in progress, as its runner sees it. `pidfd` becomes readable when it is over.

    `control` becomes readable when its training has ended well, before that is written down, or with `pidfd`.
    `pid` is its supervisor's. `can_move` tells whether exit code 3 would mean that the device is gone; `is_warm`
    whether it was forked.
    """

    def __init__(
        self,
        run: Run,
        attempt: int,
        device: Device,
        supervisor: subprocess.Popen[bytes] | Forked,
        control: int,
        *,
        can_move: bool,
    ) -> None:
        self.run = run
        self.attempt = attempt
        self.device = device
        self.can_move = can_move
        self.is_warm = isinstance(supervisor, Forked)
        self.pid = supervisor.pid
        self.pidfd = supervisor.pidfd if isinstance(supervisor, Forked) else os.pidfd_open(supervisor.pid)
        self._supervisor = supervisor
        self.control = control

    def has_ended_well(self) -> bool:
        """Tell, once `control` is readable, whether the training has ended well and left its place."""
        try:
            return os.read(self.control, 1) == supervise.ENDED_WELL
        except ConnectionResetError:
            return False

    def ask_to_stop(self) -> None:
        """Let the training checkpoint and end."""
        self._send(b"T")

    def kill(self) -> None:
        """End it at once, with everything that it started."""
        self._send(b"K")

    def _send(self, wish: bytes) -> None:
        try:
            os.write(self.control, wish)
        except (BrokenPipeError, ConnectionResetError):
            return  # It is over already; its pidfd says so too.

    def collect(self) -> Ending:
        """Give how it ended, once `pidfd` is readable, and let go of it."""
        self._reap()
        os.close(self.pidfd)
        os.close(self.control)
        ending = self.run.read_exit(self.attempt)
        if ending is None:
            return Ending("lost", None, "its supervisor was killed, or could not write exit.json")
        return describe_ending(ending, self.run.console_path(self.attempt))

    def _reap(self) -> None:
        if isinstance(self._supervisor, subprocess.Popen):
            self._supervisor.wait()
            return
        # Its parent is the fork server, or we are, if that was killed meanwhile.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)


def describe_ending(ending: Mapping[str, Any], console: Path) -> Ending:
    """Give how an attempt ended, with what says it best: the signal that ended it, or the last line of its log."""
    returncode = int(ending["returncode"])
    if returncode < 0:
        if ending["reason"] == "oom":
            return Ending("oom", returncode, "killed by the kernel, which was out of memory")
        return Ending(ending["reason"], returncode, f"ended by {signal.Signals(-returncode).name}")
    return Ending(ending["reason"], returncode, last_line(console))


class LocalEngine:
    """Starts runs on this machine. Used as a context, it leaves nothing behind: no fork server, no orphans.

    Args:
        limits: of each run.
        find_code_version: gives that of the code as it is now.
        warm: forks runs where that can be done; None for processes of their own throughout.
    """

    def __init__(self, limits: Limits, find_code_version: Callable[[], str], warm: WarmLauncher | None = None) -> None:
        self.limits = limits
        self.find_code_version = find_code_version
        self.warm = warm
        self._remarks: list[str] = []
        self._told = 0
        self._orphans = OrphanKeeper()

    def __enter__(self) -> LocalEngine:
        self._orphans.adopt()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.warm is not None:
            self.warm.close()
        if error is None:
            # All runs have ended. After an error some may still write their checkpoints.
            self._orphans.kill(())
        self._orphans.release()

    def look_at_code(self, handles: Collection[Handle]) -> None:
        """See whether the code was edited: what is forked from now on has then imported it as it is now.

        Args:
            handles: of the runs in progress.
        """
        if self.warm is None:
            return
        server = self.server_pid
        self.warm.renew(self.find_code_version())
        if server != self.server_pid:
            self._orphans.reap(self._list_wanted(handles))

    def start(self, run: Run, lock: int, work: Work, device: Device) -> Handle:
        """Start the next attempt of a run whose lock we hold; the lock goes over to its supervisor.

        Raises:
            StartUnknownError: the fork server died on the way; the lock tells whether the run was started.
            OSError: the disk is full, or the folder can't be written. The lock is released.
        """
        try:
            reader, writer = (end.detach() for end in socket.socketpair())
        except OSError:
            os.close(lock)
            raise
        try:
            threads = choose_threads(run, self.limits.threads, work.parent)
            warm = self._choose_warm(make_environment(run, 0, work, device, threads), work)
            # Code that a fork has imported can't change any more; a process will import it as it is now.
            version = self.find_code_version() if warm is None else warm.code_version
            attempt = prepare_attempt(
                run, work.config_text, work.command, device.name, threads, version, work.parent, durable=False
            )
            job = supervise.Job(
                lock_fd=lock,
                control_fd=reader,
                run_dir=str(run.folder),
                attempt=attempt,
                command=list(work.command),
                timeout_s=self.limits.timeout_s,
                grace_s=self.limits.grace_s,
                orphan_grace_s=self.limits.orphan_grace_s,
            )
            supervisor = self._start_supervisor(job, make_environment(run, attempt, work, device, threads), warm)
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            os.close(lock)
        return Handle(run, attempt, device, supervisor, writer, can_move=not work.is_foreign and device.gpu is not None)

    def _choose_warm(self, environment: Mapping[str, str], work: Work) -> WarmLauncher | None:
        """Give what forks a run that is started with this environment; None where it can't be forked."""
        if self.warm is None or work.is_foreign:
            return None
        refusal = self.warm.explain_refusal(environment) or self.warm.make_ready(self.find_code_version)
        if refusal is not None:
            self._remark_on(refusal)
            return None
        return self.warm

    def _remark_on(self, refusal: str) -> None:
        remark = f"runs are started as processes of their own, not forked: {refusal}"
        if remark not in self._remarks:
            self._remarks.append(remark)

    def _start_supervisor(
        self, job: supervise.Job, environment: Mapping[str, str], warm: WarmLauncher | None
    ) -> subprocess.Popen[bytes] | Forked:
        if warm is not None:
            forked = warm.start(job, environment)
            if isinstance(forked, Forked):
                return forked
            self._remark_on(forked)
        return subprocess.Popen(
            [sys.executable, "-IS", supervise.__file__, json.dumps(asdict(job))],
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=[job.lock_fd, job.control_fd],
            start_new_session=True,
        )

    def take_remarks(self) -> list[str]:
        """Give what there is to say about how runs are started, each sentence once."""
        remarks = self._remarks[self._told :]
        self._told = len(self._remarks)
        return remarks

    @property
    def server_pid(self) -> int | None:
        """The fork server, None where there is none now."""
        return None if self.warm is None else self.warm.server_pid

    def clear_orphans(self, handles: Collection[Handle]) -> None:
        """Kill what a run has left whose supervisor was killed, and so can't do it.

        Args:
            handles: of the runs in progress.
        """
        self._orphans.kill(self._list_wanted(handles))

    def _list_wanted(self, handles: Collection[Handle]) -> set[int]:
        wanted = {handle.pid for handle in handles}
        return wanted if self.server_pid is None else wanted | {self.server_pid}


def make_environment(run: Run, attempt: int, work: Work, device: Device, threads: int) -> dict[str, str]:
    """Give the variables that a training process is started with."""
    environment = make_base_environment(threads)
    environment |= {"GRIDPILOT_RUN_DIR": str(run.folder.absolute()), "GRIDPILOT_ATTEMPT": str(attempt)}
    return environment if work.is_foreign else environment | device.environment()


def choose_threads(run: Run, wanted: int, parent: Parent | None = None) -> int:
    """Give the number of threads of a run: that of its first attempt, since sums depend on it to the last bit.

    A run that goes on with the state of another has the threads of that one.
    """
    before = parent.run.read_start(1) if parent is not None and parent.continues else {}
    return int(run.read_start(1).get("threads", before.get("threads", wanted)))


def prepare_attempt(
    run: Run,
    config_text: str,
    command: Sequence[str],
    device: str,
    threads: int,
    code_version: str,
    parent: Parent | None = None,
    *,
    durable: bool = True,
) -> int:
    """Write a run's `config.yaml` and the `start.json` of its next attempt, whose number is given. Needs the lock."""
    attempt = run.last_attempt() + 1
    write_atomically(run.config_path, [config_text.encode()], durable=durable)
    run.attempt_dir(attempt).mkdir(parents=True)
    start = {
        "attempt": attempt,
        "id": run.id,
        "label": run.label,
        "host": platform.node(),
        "device": device,
        "threads": threads,
        "code_version": code_version,
        "command": list(command),
        "started": now_text(),
    }
    start |= {} if parent is None else {"parent": parent.run.id}
    write_json(run.start_path(attempt), start, durable=durable)
    return attempt


def build_command(script: str, config_path: Path, device: Device, is_foreign: bool) -> tuple[str, ...]:
    """Give the command that trains one run.

    Our trainer finds its one device visible. Another script is told the physical index (-1 for the CPU) and hides the
    other devices itself.
    """
    command = (sys.executable, script, "-e", str(config_path))
    if not is_foreign:
        return command
    return (*command, "-g", str(-1 if device.gpu is None else device.gpu.physical))


def last_lines(path: Path, count: int) -> Sequence[str]:
    """Give the last lines of a log that are not blank; none where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def last_line(path: Path) -> str:
    """Give the last line of a log that isn't blank: of a traceback, the class and the message."""
    lines = last_lines(path, 1)
    return lines[0].strip() if lines else "it wrote nothing"
