"""Which run to start where, so that memory and cores suffice: pure, without a clock, files or processes.

The first run of each shape (settings that take the same memory) is a canary: it has its device to itself until what it
takes has been measured. From then on runs of that shape are packed, each with its peak and some headroom reserved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

MIB = 2**20
MAX_PASSED = 16
"""So many starts of later runs may pass a run that doesn't fit; then a device is kept free for it."""
PREDICTION_FACTOR = 2
"""A run that was only predicted shares a device if there is room for so many times the prediction."""


class Alone(Enum):
    """What a run that ran out of memory has to itself when it is tried again."""

    DEVICE = "device"
    MACHINE = "machine"


class Kind(Enum):
    """How a run is placed: among others, to be measured, or alone after it ran out of memory."""

    PACKED = "packed"
    CANARY = "canary"
    ALONE = "alone"


@dataclass(frozen=True)
class Need:
    """What is reserved for a run: memory of its device (0 on the CPU), memory and cores of the machine."""

    gpu_bytes: int
    ram_bytes: int
    cores: int


@dataclass(frozen=True)
class Peak:
    """The most memory that a run was seen to take, or is predicted to: of its device, and of the machine."""

    gpu_bytes: int
    ram_bytes: int

    def join(self, other: Peak) -> Peak:
        """Give the larger of each."""
        return Peak(max(self.gpu_bytes, other.gpu_bytes), max(self.ram_bytes, other.ram_bytes))

    def meet(self, other: Peak) -> Peak:
        """Give the smaller of each."""
        return Peak(min(self.gpu_bytes, other.gpu_bytes), min(self.ram_bytes, other.ram_bytes))


@dataclass(frozen=True)
class Record:
    """What is known of a shape: the highest and the lowest peak, and of how many runs that were seen to their end.

    With 0 of them it is a first reading of one that still ran.
    """

    high: Peak
    low: Peak
    runs: int

    def add(self, peak: Peak) -> Record:
        """Give the record with one more run that was seen to its end."""
        if self.runs == 0:
            return Record(peak, peak, 1)
        return Record(self.high.join(peak), self.low.meet(peak), self.runs + 1)


@dataclass(frozen=True)
class Room:
    """What there is for all our runs together: what they hold already, and what is free.

    Attributes:
        gpus: bytes of each device's own memory; a single 0 where runs are on the CPU.
        ram_bytes: of the machine.
        cores: of the machine.
        gone: devices that are not there any more.
    """

    gpus: tuple[int, ...]
    ram_bytes: int
    cores: int
    gone: frozenset[int] = frozenset()

    def list_devices(self) -> list[int]:
        """Give the numbers of the devices that are there."""
        return [device for device in range(len(self.gpus)) if device not in self.gone]


@dataclass(frozen=True)
class Wish:
    """A run that waits for a place.

    Attributes:
        key: names it.
        shape: the same for runs that take the same memory.
        cores: how many it keeps busy.
        predicted: what it may take, by arithmetic; None where nobody can say.
        alone: what it has to itself, having run out of memory before.
    """

    key: str
    shape: str
    cores: int = 1
    predicted: Peak | None = None
    alone: Alone | None = None


@dataclass(frozen=True)
class Placement:
    """A run and its device. `passed` names those before it that had no place."""

    wish: Wish
    device: int
    kind: Kind
    passed: tuple[str, ...] = ()


MEASURED, EARLY, DOUBTED = 0.10, 0.20, 0.30
"""Headroom as a share of the peak: of runs seen to their end, of one that still runs, after one ran out of memory."""
SPREAD_RUNS, LEAST = 3, 0.02
"""From so many measured runs on, their spread is the headroom, between `LEAST` and `MEASURED`."""
CONSTANT = 128 * MIB
"""Headroom beside the share."""


class Packer:
    """The ledger: what runs where, what is known of each shape, and which run to start next."""

    def __init__(self, known: Mapping[str, Record], durations: Mapping[str, float]) -> None:
        """Begin with nothing running.

        Args:
            known: peaks of the shapes that were measured before.
            durations: seconds that a run of a shape takes, for those that are known.
        """
        self.known = dict(known)
        self.durations = dict(durations)
        self.placed: dict[str, Placement] = {}
        self._held: dict[str, Peak] = {}
        self._doubts: dict[str, int] = {}
        self._padded: dict[str, Peak] = {}
        self._passed: Counter[str] = Counter()

    def choose(self, wishes: Iterable[Wish], room: Room) -> Placement | None:
        """Give the next run to start, with its device; None where nothing can start now.

        Canaries come first, then the longest runs, then plan order. Where an earlier one doesn't fit, a later one may
        pass it, but only so often: then it comes first, and what it needs is kept for it as it becomes free. For a
        canary a device is kept at once.

        Args:
            wishes: the waiting runs, in plan order.
            room: what there is now.
        """
        if not room.list_devices():
            return None
        use = self._sum_up(room)
        passed: list[str] = []
        for wish in self._sort(wishes):
            device = self._find_device(wish, room, use)
            if device is not None:
                return Placement(wish, device, self._kind(wish), tuple(passed))
            if wish.alone is not None or self._is_being_measured(wish.shape):
                continue
            passed.append(wish.key)
            if not use.is_held and (wish.shape not in self.known or self._passed[wish.key] >= MAX_PASSED):
                # Where the least is reserved, it will be free soonest.
                device = min(room.list_devices(), key=use.load)
                use.add(device, self.reserve(wish, device, room), self._is_closed(wish))
                use.is_held = True
        return None

    def begin(self, placement: Placement) -> None:
        """Note that a run has started where `choose` said."""
        self.placed[placement.wish.key] = placement
        self._passed.update(placement.passed)
        del self._passed[placement.wish.key]

    def end(self, key: str) -> None:
        """Note that a run is over; what it held is free."""
        del self.placed[key]
        self._held.pop(key, None)

    def hold(self, key: str, peak: Peak) -> None:
        """Note the most that a running run has taken so far; no less is reserved for it."""
        self._held[key] = peak

    def learn(self, shape: str, peak: Peak) -> None:
        """Note what a run of a shape took, which was seen to its end."""
        record = self.known.get(shape)
        self.known[shape] = Record(peak, peak, 1) if record is None else record.add(peak)
        self._doubts[shape] = max(0, self._doubts.get(shape, 0) - 1)
        self._padded.pop(shape, None)

    def guess(self, shape: str, peak: Peak) -> None:
        """Note what a run that still runs has taken by now, where no run of its shape was seen to its end."""
        record = self.known.get(shape)
        if record is None or record.runs == 0:
            peak = peak if record is None else record.high.join(peak)
            self.known[shape] = Record(peak, peak, 0)
            self._padded.pop(shape, None)

    def doubt(self, shape: str, peak: Peak) -> None:
        """Note that a run of a shape ran out of memory beside others, having taken so much.

        More is reserved for that shape until some more runs of it have come to their end.
        """
        self._doubts[shape] = SPREAD_RUNS
        self._padded.pop(shape, None)
        if record := self.known.get(shape):
            self.known[shape] = replace(record, high=record.high.join(peak))

    def reserve(self, wish: Wish, device: int, room: Room) -> Need:
        """Give what a run has reserved on a device, or would have.

        One of which nothing is known has all of its device, and of the machine's memory the share of one device.
        """
        if wish.shape in self.known:
            need = self._padded.get(wish.shape) or self._pad(wish.shape)
        elif self._may_share(wish):
            assert wish.predicted is not None
            need = wish.predicted
            need = Peak(need.gpu_bytes * PREDICTION_FACTOR, need.ram_bytes * PREDICTION_FACTOR)
        else:
            need = Peak(room.gpus[device], room.ram_bytes // len(room.gpus))
        if held := self._held.get(wish.key):
            need = need.join(held)
        return Need(need.gpu_bytes, need.ram_bytes, wish.cores)

    def count_fitting(self, shape: str, cores: int, device: int, room: Room) -> int:
        """Give how many runs of a known shape fit on an empty device of an empty machine, at least one."""
        need = self.reserve(Wish("", shape, cores), device, room)
        pairs = [(room.gpus[device], need.gpu_bytes), (room.ram_bytes, need.ram_bytes), (room.cores, need.cores)]
        return max(1, min(there // each for there, each in pairs if each))

    def _pad(self, shape: str) -> Peak:
        record = self.known[shape]
        high, low = record.high, record.low
        self._padded[shape] = Peak(
            pad(high.gpu_bytes, self._find_margin(shape, high.gpu_bytes, low.gpu_bytes)),
            pad(high.ram_bytes, self._find_margin(shape, high.ram_bytes, low.ram_bytes)),
        )
        return self._padded[shape]

    def _find_margin(self, shape: str, high: int, low: int) -> float:
        if self._doubts.get(shape):
            return DOUBTED
        runs = self.known[shape].runs
        if runs == 0:
            return EARLY
        return MEASURED if runs < SPREAD_RUNS or not low else min(MEASURED, max(LEAST, high / low - 1))

    def _sort(self, wishes: Iterable[Wish]) -> list[Wish]:
        """Give the first of each kind of waiting runs, the most urgent first: the others can't start before it."""
        firsts: dict[tuple[str, int, Alone | None], Wish] = {}
        for wish in wishes:
            firsts.setdefault((wish.shape, wish.cores, wish.alone), wish)
        return sorted(firsts.values(), key=self._urgency)

    def _urgency(self, wish: Wish) -> tuple[int, float]:
        if wish.alone is not None:
            # Last, when devices become empty by themselves, rather than emptying one for it.
            return 4, 0.0
        if self._passed[wish.key] >= MAX_PASSED:
            return 0, 0.0
        if wish.shape not in self.known:
            return (3 if self._is_being_measured(wish.shape) else 1), 0.0
        return 2, -self.durations.get(wish.shape, 0.0)

    def _is_being_measured(self, shape: str) -> bool:
        return shape not in self.known and any(placed.wish.shape == shape for placed in self.placed.values())

    def _kind(self, wish: Wish) -> Kind:
        if wish.alone is not None:
            return Kind.ALONE
        return Kind.PACKED if wish.shape in self.known else Kind.CANARY

    def _may_share(self, wish: Wish) -> bool:
        return wish.predicted is not None and not self._doubts.get(wish.shape)

    def _sum_up(self, room: Room) -> Use:
        use = Use(room)
        for other in self.placed.values():
            use.add(other.device, self.reserve(other.wish, other.device, room), self._is_closed(other.wish))
            use.is_closed |= other.wish.alone is Alone.MACHINE
        return use

    def _find_device(self, wish: Wish, room: Room, use: Use) -> int | None:
        """Give the device for a run: that with the least reserved of those where it fits."""
        if use.is_closed or (wish.alone is Alone.MACHINE and self.placed):
            return None
        to_itself = wish.alone is not None or (wish.shape not in self.known and not self._may_share(wish))
        fitting = [
            device
            for device in room.list_devices()
            if use.fits(device, self.reserve(wish, device, room)) and not (to_itself and use.runs[device])
        ]
        return min(fitting, key=use.load, default=None)

    def _is_closed(self, wish: Wish) -> bool:
        """Tell whether nothing may join a run on its device."""
        return wish.alone is not None or (wish.shape not in self.known and not self._may_share(wish))


class Use:
    """What is reserved in all: on each device, and of the machine. `is_held` once a place is kept for a waiting run."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.gpus = [0] * len(room.gpus)
        self.runs = [0] * len(room.gpus)
        self.closed: set[int] = set()
        self.ram_bytes = self.cores = 0
        self.is_closed = self.is_held = False

    def add(self, device: int, need: Need, is_closed: bool) -> None:
        """Count a run; one that is closed has its device to itself from now on."""
        self.gpus[device] += need.gpu_bytes
        self.runs[device] += 1
        self.ram_bytes += need.ram_bytes
        self.cores += need.cores
        if is_closed:
            self.closed.add(device)

    def fits(self, device: int, need: Need) -> bool:
        """Tell whether a run may start beside the others. One too big for all there is may, with all to itself."""
        if device in self.closed:
            return False
        if self.runs[device] and self.gpus[device] + need.gpu_bytes > self.room.gpus[device]:
            return False
        if not any(self.runs):
            return True
        is_enough = self.ram_bytes + need.ram_bytes <= self.room.ram_bytes
        return is_enough and self.cores + need.cores <= self.room.cores

    def load(self, device: int) -> tuple[int, int]:
        """Give what is reserved of a device, to be compared."""
        return self.gpus[device], self.runs[device]


def pad(size: int, share: float) -> int:
    """Give a size with its headroom; nothing for nothing."""
    return int(size * (1 + share)) + CONSTANT if size else 0
