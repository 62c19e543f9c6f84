"""`--chaos P`: kill what takes part in a sweep at random, to see that nothing gets lost by it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

from experiment.engines.local import Handle
from experiment.run import Run
from experiment.supervise import list_children

Kind: TypeAlias = Literal["training", "supervisor", "fork server"]


@dataclass(frozen=True)
class Part:
    """A process that takes part in a sweep, and the run that it is there for; None for the fork server.

    `pidfd` is its supervisor's own, which stays true when the pid has gone to somebody else; None for our descendants.
    """

    kind: Kind
    pid: int
    run: Run | None
    pidfd: int | None = None


def list_parts(handles: Sequence[Handle], server_pid: int | None) -> Iterator[Part]:
    """Give the processes that take part in a sweep now; the runner, without which nothing goes on, isn't among them."""
    for handle in handles:
        yield Part("supervisor", handle.pid, handle.run, handle.pidfd)
        yield from (Part("training", pid, handle.run) for pid in list_children(handle.pid))
    if server_pid is not None:
        yield Part("fork server", server_pid, None)


class Chaos:
    """Kills each part with the same probability in each second, and counts what it has killed.

    Args:
        probability: in (0, 1).
        generator: draws.
        clock: gives seconds.
    """

    def __init__(self, probability: float, generator: Random, clock: Callable[[], float] = time.monotonic) -> None:
        self._probability = probability
        self._generator = generator
        self._clock = clock
        self._struck = clock()
        self.kills: Counter[Kind] = Counter()

    def strike(self, handles: Sequence[Handle], server_pid: int | None) -> list[Part]:
        """Kill some of what takes part, once a second at most, and give those that were still there to be killed."""
        now = self._clock()
        if now - self._struck < 1.0:
            return []
        self._struck = now
        killed = []
        for part in list_parts(handles, server_pid):
            if self._generator.random() < self._probability and _kill(part):
                self.kills[part.kind] += 1
                killed.append(part)
        return killed

    def __str__(self) -> str:
        counts = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(self.kills.items())]
        return f"chaos: killed {', '.join(counts) or 'nothing'}"


def _kill(part: Part) -> bool:
    """Kill a process; False where it has ended."""
    try:
        pidfd = os.pidfd_open(part.pid) if part.pidfd is None else part.pidfd
    except ProcessLookupError:
        return False
    try:
        if select.select([pidfd], [], [], 0)[0]:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        if part.pidfd is None:
            os.close(pidfd)
    return True
