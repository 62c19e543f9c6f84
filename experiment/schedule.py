"""What to do next, as pure functions of what is known: no clock, no files, no processes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

BREAKER_RUNS = 5
"""So many first runs failing alike mean that the rest would fail too."""


class Verdict(Enum):
    """What becomes of a run after an attempt of it ended."""

    DONE = "done"
    FAILED = "failed"
    RETRY = "retry"
    STOPPED = "stopped"
    MOVE = "move"
    ALONE = "alone"


@dataclass(frozen=True)
class Ending:
    """How one attempt ended. `message` is the last line of its traceback, the class of the error in front."""

    reason: str
    returncode: int | None
    message: str = ""


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time: which of the chosen devices, and which of that device's places."""

    device: int
    place: int


def make_slots(devices: int, jobs: int) -> list[Slot]:
    """Give places for `jobs` runs at a time, spread over the devices so that each fills up last."""
    return [Slot(number % devices, number // devices) for number in range(jobs)]


def decide_after(
    ending: Ending, retries_left: int, stopping: bool, can_move: bool, had_company: bool = False
) -> Verdict:
    """Say what becomes of a run whose attempt ended so.

    Settings that were refused (`config`) are never tried again.

    Args:
        ending: how it ended.
        retries_left: what `count_retries` grants, less what was used.
        stopping: whether nothing is to be started any more.
        can_move: whether exit code 3 means a vanished device (our trainer, on a GPU): the run moves to another one.
        had_company: whether others of ours ran beside it: out of memory, it is tried once more alone.
    """
    if ending.reason == "ok":
        return Verdict.DONE
    if ending.reason == "requeue" or (stopping and ending.reason == "lost"):
        return Verdict.STOPPED
    if stopping:
        return Verdict.FAILED
    if can_move and ending.returncode == DEVICE_GONE:
        return Verdict.MOVE
    if ending.reason == "oom" and had_company:
        return Verdict.ALONE
    if ending.reason != "config" and retries_left > 0:
        return Verdict.RETRY
    return Verdict.FAILED


def count_retries(ending: Ending, asked: int, resumes: int) -> int:
    """Give how often a run may be tried again after such an ending: as asked for, but killed from outside, some times.

    SIGKILL, or the death of its supervisor, says nothing against a run: it goes on from its checkpoint.
    """
    return max(asked, resumes) if was_killed(ending) else asked


def was_killed(ending: Ending) -> bool:
    """Tell whether an attempt was killed from outside, it or its supervisor."""
    return ending.reason == "lost" or (ending.reason == "signal" and ending.returncode == KILLED)


def move_slot(gone: Slot, left: Sequence[Slot], devices: int, gone_devices: Collection[int]) -> Slot | None:
    """Give the place that takes over from one whose device is gone: on a device that has none yet, if there is one."""
    used = {slot.device for slot in left} | set(gone_devices)
    unused = [device for device in range(devices) if device not in used]
    return Slot(unused[0], gone.place) if unused else None


DEVICE_GONE = 3
KILLED = -9
RESUMES_AFTER_KILL = 2


def is_hopeless(endings: Sequence[Ending], runs: int) -> bool:
    """Tell whether the first finished runs of a larger sweep all failed with the same class and message."""
    if runs <= BREAKER_RUNS or len(endings) != BREAKER_RUNS:
        return False
    first = endings[0]
    return first.reason != "ok" and all(
        (ending.reason, ending.message) == (first.reason, first.message) for ending in endings
    )


def count_threads(cores: int, jobs: int) -> int:
    """Give the threads for each of so many runs at a time: two threads on a busy core are slower than one."""
    return max(1, cores // jobs)


class Company:
    """Which of the running runs ever had another one beside them, on their device and on the machine."""

    def __init__(self) -> None:
        self._devices: dict[str, int] = {}
        self._on_device: set[str] = set()
        self._on_machine: set[str] = set()

    def begin(self, key: str, device: int) -> None:
        """Note that a run has started on a device."""
        for other, there in self._devices.items():
            self._on_machine |= {key, other}
            if there == device:
                self._on_device |= {key, other}
        self._devices[key] = device

    def end(self, key: str) -> None:
        """Forget a run that is over."""
        del self._devices[key]
        self._on_device.discard(key)
        self._on_machine.discard(key)

    def mattered(self, key: str, ending: Ending) -> bool:
        """Tell whether others may have taken the memory that a run lacked: any at all, if the kernel killed it."""
        return key in (self._on_machine if ending.returncode == KILLED else self._on_device)
