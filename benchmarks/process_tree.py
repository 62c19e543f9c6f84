"""What a program and everything that it starts take of the processors, whoever waits for them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOOK_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Taken:
    """What a program took: its exit code, seconds by the wall's clock, and at least so many by the processors'."""

    code: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Process:
    """One line of the process table; pids are used again, with their start they aren't."""

    pid: int
    parent: int
    start: int
    cpu_s: float


class ProcessTree:
    """Looks at a process and its offspring again and again, and adds up their CPU time.

    What a process does after the last look at it is missed.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[tuple[int, int], float] = {}

    def look(self) -> list[Process]:
        """Give those that are there now; who was one of them stays one, also when its parent is gone."""
        table = list_processes()
        members = {one.pid for one in table if (one.pid, one.start) in self._seen}
        if not self._seen:
            members.add(self._root)
        count = 0
        while count < len(members):
            count = len(members)
            members |= {one.pid for one in table if one.parent in members}
        alive = [one for one in table if one.pid in members]
        self._seen |= {(one.pid, one.start): one.cpu_s for one in alive}
        return alive

    @property
    def cpu_s(self) -> float:
        """Give the sum over all that were ever seen."""
        return sum(self._seen.values())

    def kill(self) -> None:
        """End all of it that is left."""
        for one in self.look():
            try:
                os.kill(one.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it went by itself


def list_processes() -> list[Process]:
    """Give the process table, without those that end while it is read."""
    table = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = (Path("/proc") / name / "stat").read_bytes()
            except OSError:
                continue
            fields = stat.rpartition(b")")[2].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / TICKS
            table.append(Process(int(name), int(fields[1]), int(fields[19]), cpu_s))
    return table


def run_watched(
    words: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    said: IO[str],
    prepare: Callable[[], None],
    limit_s: float,
) -> Taken:
    """Run a program to its end, and watch what comes of it; nothing of it is left.

    The kernel's sum for children lacks those that nobody waits for, which is most of a Ray; ours lacks the ends of
    short ones. Both only ever lack something, so the larger is taken.

    Args:
        words: the command line.
        folder: the working folder.
        env: its whole environment.
        said: where its output goes.
        prepare: called in the new process before the program.
        limit_s: it is killed after so long.

    Raises:
        TimeoutExpired: it was.
    """
    before, started = sum_children(), time.perf_counter()
    process = subprocess.Popen(words, cwd=folder, env=env, stdout=said, stderr=said, preexec_fn=prepare)
    tree = ProcessTree(process.pid)
    try:
        while (wall_s := time.perf_counter() - started) < limit_s:
            tree.look()
            try:
                code = process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            wall_s = time.perf_counter() - started
            return Taken(code, wall_s, max(tree.cpu_s, sum_children() - before))
        raise subprocess.TimeoutExpired(words, wall_s)
    finally:
        tree.kill()
        process.wait()


def sum_children() -> float:
    """Give the CPU seconds of all children that were waited for, and of theirs."""
    told = resource.getrusage(resource.RUSAGE_CHILDREN)
    return told.ru_utime + told.ru_stime
