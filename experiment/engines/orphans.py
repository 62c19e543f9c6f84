"""What a run leaves when even its supervisor was killed: it comes to us, and we end it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection

from experiment.supervise import PR_SET_CHILD_SUBREAPER, list_children


class OrphanKeeper:
    """Makes this process the parent of what its descendants leave behind, and tells these from its own children."""

    def __init__(self) -> None:
        self._before: frozenset[int] = frozenset()

    def adopt(self) -> None:
        """From now on, orphans among our descendants become our children."""
        self._before = frozenset(list_children(os.getpid()))
        _set_subreaper(True)

    def release(self) -> None:
        """No longer adopt any."""
        _set_subreaper(False)

    def reap(self, wanted: Collection[int]) -> None:
        """Let go of those who have come to us and have ended."""
        for pid in set(list_children(os.getpid())) - self._before - set(wanted):
            os.waitpid(pid, os.WNOHANG)

    def kill(self, wanted: Collection[int]) -> None:
        """Kill every child that we didn't have before and that isn't wanted, and what it leaves in turn."""
        while orphans := set(list_children(os.getpid())) - self._before - set(wanted):
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                os.waitpid(pid, 0)


def _set_subreaper(is_one: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0)
