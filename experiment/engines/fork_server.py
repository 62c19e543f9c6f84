"""A process that has imported what runs need, and forks itself for each of them.

`train.py --fork-server` becomes it. It is asked through a socket by the runner that started it, and ends with it. A run
that is forked has all that one of its own process has: a supervisor (a first fork), a session, an environment, a log,
generators that it seeds itself. What it doesn't pay is the import of torch, more than a second of CPU time.

A fork copies one thread and no device: so this process has one thread, and never touches CUDA or NVML. That is looked
at before each fork, and where it isn't so, the answer says why; the runner then starts a process as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiment.supervise import CANNOT_START, Job, Supervisor

MAX_MESSAGE = 1 << 20
DRIVERS = ("libcuda.so", "libnvidia-ml.so")
CRASHED = 1

Enter = Callable[[Sequence[str]], int]
"""Runs the training's `main` on the words of its command line, and gives its exit code."""


def serve(descriptor: int, enter: Enter, preload: Callable[[], None]) -> int:
    """Import what runs need, then fork one for each request until the runner is gone.

    Args:
        descriptor: our end of the runner's socket.
        enter: runs the training in a forked process.
        preload: imports everything that can be imported before it is known what a run is.
    """
    with socket.socket(fileno=descriptor) as runner:
        try:
            preload()
        except Exception as error:
            traceback.print_exc()
            _answer(runner, {"failed": f"{type(error).__name__}: {error}"})
            return 1
        # What is there now stays, so nobody need look at it again; looking would copy its pages into each fork.
        gc.collect()
        gc.freeze()
        kept = {descriptor for descriptor in _list_descriptors() if _is_open(descriptor)} - {runner.fileno()}
        ended = _hear_children()
        _answer(runner, {"ready": True})
        while True:
            ready, _, _ = select.select([runner.fileno(), ended], [], [])
            if ended in ready:
                os.read(ended, 4096)
                _reap()
            if runner.fileno() in ready and not _attend(runner, enter, kept):
                return 0


def find_obstacle(root: Path = Path("/")) -> str | None:
    """Say why this process must not be forked now; None where it may."""
    threads = os.listdir(root / "proc/self/task")
    if len(threads) != 1:
        return f"what was imported has started threads ({len(threads) - 1})"
    mapped = (root / "proc/self/maps").read_text()
    drivers = [driver for driver in DRIVERS if driver in mapped]
    return f"what was imported has loaded {', '.join(drivers)}" if drivers else None


def _attend(runner: socket.socket, enter: Enter, kept: set[int]) -> bool:
    """Do what the runner asks; False when it is gone."""
    message, descriptors, _, _ = socket.recv_fds(runner, MAX_MESSAGE, 2)
    if not message:
        return False
    if obstacle := find_obstacle():
        _close(descriptors)
        _answer(runner, {"refused": obstacle})
        return True
    lock, control = descriptors
    request = json.loads(message)
    job = Job(**request["job"], lock_fd=lock, control_fd=control)
    pid = os.fork()
    if pid == 0:
        runner.close()
        _supervise(job, request["environment"], enter, kept)
    _close(descriptors)
    # Nobody but us reaps it, so the number is still its own.
    pidfd = os.pidfd_open(pid)
    _answer(runner, {"pid": pid}, [pidfd])
    os.close(pidfd)
    return True


def _supervise(job: Job, environment: Mapping[str, str], enter: Enter, kept: set[int]) -> NoReturn:
    """Be the supervisor of a run, and end with it."""
    returncode = CRASHED
    try:
        os.setsid()
        Supervisor(job, lambda job: _train(job, environment, enter, kept)).run()
        returncode = 0
    except OSError as error:
        message = f"{error.filename or job.run_dir}: {error.strerror}; how the run ended is not written down\n"
        os.write(2, message.encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(returncode)


def _train(job: Job, environment: Mapping[str, str], enter: Enter, kept: set[int]) -> NoReturn:
    """Be the training, as if its command had been started with this environment, and end with it."""
    returncode = CANNOT_START
    try:
        for descriptor in _list_descriptors() - kept - {job.lock_fd}:
            with contextlib.suppress(OSError):  # the one for looking is closed
                os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        os.environ["GRIDPILOT_LOCK_FD"] = str(job.lock_fd)
        sys.argv = list(job.command[1:])
        returncode = _enter_as_main(enter)
        _finish()
    except BaseException:
        traceback.print_exc()
        returncode = CRASHED
    finally:
        # Not the interpreter's way out: it would visit, and so copy, every page that is shared with the server.
        os._exit(returncode)


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
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def _hear_children() -> int:
    """Turn the end of a child into a byte to be read. Gives the end to read from."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _list_descriptors() -> set[int]:
    """Give what this process has open, and one that was open for looking."""
    return set(map(int, os.listdir("/proc/self/fd")))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _answer(runner: socket.socket, answer: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    try:
        socket.send_fds(runner, [json.dumps(answer).encode()], descriptors)
    except (BrokenPipeError, ConnectionResetError):
        return  # The runner is gone; reading from it says so next.
