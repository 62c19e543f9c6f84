"""A process that has imported what runs need, and forks itself for each of them.

`train.py --fork-server` becomes it. It is asked through a socket by the runner that started it, and ends with it. A run
that is forked has all that one of its own process has: a supervisor (a first fork), a session, an environment, a log,
generators that it seeds itself. What it doesn't pay is the import of torch, more than a second of CPU time. The two
forks are made beforehand (`standby.py`), so that the end of one run and the start of the next are milliseconds apart.

A fork copies one thread and no device: so this process has one thread, and never touches CUDA or NVML. That is looked
at before each fork, and where it isn't so, the answer says why; the runner then starts a process as usual.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.engines.standby import MAX_MESSAGE, Play, Standby

PAUSE_S = 0.05
"""After a start, before the next pair is forked: the run that begins needs the processor more."""
DRIVERS = ("libcuda.so", "libnvidia-ml.so")


@dataclass(frozen=True)
class Parts:
    """What a server is made of.

    Attributes:
        preload: imports everything that can be imported before it is known what a run is.
        play: what a run does.
        pairs: of processes to keep waiting.
    """

    preload: Callable[[], None]
    play: Play
    pairs: int


def serve(descriptor: int, parts: Parts) -> int:
    """Import what runs need, then fork one for each request until the runner is gone.

    `descriptor` is our end of the runner's socket.
    """
    with socket.socket(fileno=descriptor) as runner:
        try:
            parts.preload()
        except Exception as error:
            traceback.print_exc()
            _answer(runner, {"failed": f"{type(error).__name__}: {error}"})
            return 1
        _settle_memory()
        _answer(runner, {"ready": True})
        ForkServer(runner, parts.play, parts.pairs).run()
        return 0


class ForkServer:
    """Answers requests, with pairs of processes waiting for the next ones."""

    def __init__(self, runner: socket.socket, play: Play, pairs: int) -> None:
        self._runner = runner
        self._play = play
        self._pairs = pairs
        self._ended, self._wakeup = _hear_children()
        self._waiting: deque[Standby] = deque()
        self._started: set[int] = set()

    def run(self) -> None:
        """Answer until the runner is gone."""
        while True:
            lacks_pair = len(self._waiting) < self._pairs and find_obstacle() is None
            ready, _, _ = select.select([self._runner.fileno(), self._ended], [], [], PAUSE_S if lacks_pair else None)
            if lacks_pair and not ready:
                self._waiting.append(self._fork(self._play))
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._started = {pid for pid in self._started if os.waitpid(pid, os.WNOHANG) == (0, 0)}
            if self._runner.fileno() in ready and not self._attend():
                return

    def _attend(self) -> bool:
        """Do what the runner asks; False when it is gone."""
        request, descriptors, _, _ = socket.recv_fds(self._runner, MAX_MESSAGE, 2)
        if not request:
            return False
        if not self._waiting and (obstacle := find_obstacle()):
            _answer(self._runner, {"refused": obstacle})
        else:
            pair = self._start(request, descriptors)
            self._started.add(pair.pid)
            _answer(self._runner, {"pid": pair.pid}, [pair.pidfd])
            pair.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _start(self, request: bytes, descriptors: Sequence[int]) -> Standby:
        """Give a request to a pair that waits for one, or, where there is none that nobody has killed, to a new one."""
        while self._waiting:
            pair = self._waiting.popleft()
            if pair.is_alive():
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    pair.start(request, descriptors)
                    return pair
            self._started.add(pair.pid)
            pair.close()
        # There is no time for a rehearsal.
        pair = self._fork(Play(self._play.enter, lambda: None), descriptors)
        pair.start(request, descriptors)
        return pair

    def _fork(self, play: Play, request: Sequence[int] = ()) -> Standby:
        """Fork a pair that has none of our descriptors; those of a request are given to it like any other's."""
        others = [descriptor for pair in self._waiting for descriptor in pair.list_descriptors()]
        return Standby.fork(play, private=(self._runner.fileno(), self._ended, self._wakeup, *others, *request))


def find_obstacle(root: Path = Path("/")) -> str | None:
    """Say why this process must not be forked now; None where it may."""
    threads = os.listdir(root / "proc/self/task")
    if len(threads) != 1:
        return f"what was imported has started threads ({len(threads) - 1})"
    mapped = (root / "proc/self/maps").read_text()
    drivers = [driver for driver in DRIVERS if driver in mapped]
    return f"what was imported has loaded {', '.join(drivers)}" if drivers else None


def _settle_memory() -> None:
    """Leave what is imported alone from here on: looking at it would copy its pages into each fork."""
    # Finalizers of what was imported are for the end of this process; a fork that ran them would pay 20 ms.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    gc.collect()
    gc.freeze()


def _hear_children() -> tuple[int, int]:
    """Turn the end of a child into a byte to be read. Gives the ends to read from and to write to."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader, writer


def _answer(runner: socket.socket, answer: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    try:
        socket.send_fds(runner, [json.dumps(answer).encode()], descriptors)
    except (BrokenPipeError, ConnectionResetError):
        return  # The runner is gone; reading from it says so next.
