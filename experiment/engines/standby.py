"""A supervisor and its training, forked before it is known for which run: both wait until they are told."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from experiment.supervise import (
    CANNOT_START,
    Job,
    Supervisor,
    fork_training,
    open_log,
    see_through,
    tell_runner,
    use_log,
)

PR_SET_NAME = 15
SHOWN_DIGITS = 9
"""Of a run's id: the kernel keeps 15 bytes of a name."""
MAX_MESSAGE = 1 << 20
CRASHED = 1

Enter = Callable[[Sequence[str]], int]
"""Runs the training's `main` on the words of its command line, and gives its exit code."""


@dataclass(frozen=True)
class Play:
    """What a training does.

    Attributes:
        enter: runs it.
        rehearse: does what every run begins with and keeps nothing of it. The process that waits does this, so that it
            has copies of the pages that are written to on the way, and need not make them when a run is to begin.
    """

    enter: Enter
    rehearse: Callable[[], None]


@dataclass(frozen=True)
class Standby:
    """A pair in waiting, as the process sees it that has forked it. `pid` and `pidfd` are the supervisor's."""

    pid: int
    pidfd: int
    _socket: socket.socket

    @classmethod
    def fork(cls, play: Play, private: Collection[int]) -> Standby:
        """Fork a pair that ends with us, unless it was started.

        Args:
            play: what the training does.
            private: descriptors of ours that the pair must not have.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            signal.set_wakeup_fd(-1)
            for descriptor in private:
                os.close(descriptor)
            _supervise(theirs, play)
        theirs.close()
        # Nobody but us reaps it, so the number is still its own.
        return cls(pid, os.pidfd_open(pid), ours)

    def list_descriptors(self) -> list[int]:
        """Give what is open for this pair in the process that has forked it."""
        return [self.pidfd, self._socket.fileno()]

    def is_alive(self) -> bool:
        """Tell whether the supervisor is there. Its socket may outlive it by a moment, in the training."""
        return not select.select([self.pidfd], [], [], 0)[0]

    def start(self, request: bytes, descriptors: Sequence[int]) -> None:
        """Tell the pair what to do.

        Args:
            request: JSON with the `job` and the training's `environment`.
            descriptors: of the run's lock, and of the pipe that the runner's wishes come from.

        Raises:
            BrokenPipeError: it was killed.
        """
        socket.send_fds(self._socket, [request], descriptors)

    def close(self) -> None:
        """Let go of it: a pair that was started goes on."""
        self._socket.close()
        os.close(self.pidfd)


def _supervise(server: socket.socket, play: Play) -> NoReturn:
    """Be a supervisor: wait for a job, see it through, and end with it."""
    returncode = CRASHED
    try:
        os.setsid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        training = fork_training()
        if training == 0:
            server.close()
            ours.close()
            _train(theirs, play)
        theirs.close()
        request, descriptors, _, _ = socket.recv_fds(server, MAX_MESSAGE, 2)
        server.close()
        if request:
            lock, control = descriptors
            _name_process("watch", json.loads(request)["job"]["run_dir"])
            job = Job(**json.loads(request)["job"], lock_fd=lock, control_fd=control)
            returncode = see_through(Supervisor(job, lambda job: _start(job, request, ours, training)))
        else:
            returncode = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # The training that waits for us dies with us.
        os._exit(returncode)


def _start(job: Job, request: bytes, waiting: socket.socket, training: int) -> int:
    with waiting:
        log = open_log(job)
        socket.send_fds(waiting, [request], [job.lock_fd, log, job.control_fd])
        os.close(log)
    return training


def _train(supervisor: socket.socket, play: Play) -> NoReturn:
    """Be the training, as if its command had been started with its environment, and end with it."""
    returncode = CANNOT_START
    try:
        # Python ignores it from its beginning, and raises BrokenPipeError instead.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        # What fails there has only not helped; if a run can't do it either, it will say so.
        with contextlib.suppress(Exception):
            play.rehearse()
        with supervisor:
            message, descriptors, _, _ = socket.recv_fds(supervisor, MAX_MESSAGE, 3)
        if message:
            request = json.loads(message)
            lock, log, control = descriptors
            os.set_inheritable(control, False)
            use_log(log)
            os.close(log)
            _name_process("train", request["job"]["run_dir"])
            _take_environment(request["environment"] | {"GRIDPILOT_LOCK_FD": str(lock)})
            sys.argv = list(request["job"]["command"][1:])
            returncode = _enter_as_main(play.enter)
            _finish()
            if returncode == 0:
                # Now: giving back the memory takes longer than all that the runner has to do before the next begins.
                tell_runner(control)
    except BaseException:
        traceback.print_exc()
        returncode = CRASHED
    finally:
        # Not the interpreter's way out: it would visit, and so copy, every page that is shared with the server.
        os._exit(returncode)


def _name_process(what: str, run_dir: str) -> None:
    """Let `ps -o comm` and `top` tell forks apart, which all have the server's command line: `train 0123456789`."""
    run_id = run_dir.rpartition("__")[2]
    ctypes.CDLL(None).prctl(PR_SET_NAME, f"{what} {run_id[:SHOWN_DIGITS]}".encode(), 0, 0, 0)


def _take_environment(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _enter_as_main(enter: Enter) -> int:
    try:
        return enter(sys.argv[1:])
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        sys.stderr.write(f"{ending.code}\n")
        return 1


def _finish() -> None:
    """Do what an interpreter does at its end: wait for threads, call what was registered, write what is buffered."""
    # Not by joining them: pools of threads are told here that there is no more work.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
