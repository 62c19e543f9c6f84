"""Where waiting runs go: a fixed number at a time on each device. `packed.py` has as many as fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from experiment.engines.local import Handle
from experiment.packing import Placement
from experiment.run import Run
from experiment.schedule import Company, Ending, Slot, make_slots, move_slot


@dataclass(frozen=True)
class Choice:
    """The next run to start, and where. `remark` is what there is to say about that; empty for the usual."""

    run: Run
    device: int
    place: Slot | Placement
    remark: str = ""


class Places(Protocol):
    """Knows what runs where, and chooses what starts next."""

    def choose(self, waiting: Collection[Run]) -> Choice | None:
        """Give one of the waiting runs and its device; None where none can start now."""
        ...

    def begin(self, choice: Choice, handle: Handle) -> None:
        """Note that a run that was chosen has started."""
        ...

    def vacate(self, handle: Handle) -> None:
        """Note that a training has ended well, so that its place can be taken; `end` follows when that is written."""
        ...

    def had_company(self, handle: Handle, ending: Ending) -> bool:
        """Tell whether others may have taken what a run lacked that has just ended. To be asked before `end`."""
        ...

    def end(self, handle: Handle, ending: Ending) -> dict[str, int]:
        """Note that a run is over. Gives what was measured of it, by name."""
        ...

    def isolate(self, run: Run, ending: Ending) -> None:
        """Let a run start alone from now on: it ran out of memory beside others."""
        ...

    def retire(self, handle: Handle) -> bool:
        """Use a device no more, which is gone; False where no other is left. To be called before `end`."""
        ...

    def look(self, handles: Sequence[Handle]) -> list[str]:
        """See how much memory the running runs take. Gives what there is to say about it."""
        ...


class FixedPlaces:
    """So many runs at a time, spread over the devices, whatever they take."""

    def __init__(self, devices: int, jobs: int) -> None:
        self._devices = devices
        self._free = make_slots(devices, jobs)
        self._taken: dict[str, Slot] = {}
        self._vacated: set[str] = set()
        self._gone: set[int] = set()
        self._lost: set[str] = set()
        self._alone: set[str] = set()
        self._company = Company()

    def choose(self, waiting: Collection[Run]) -> Choice | None:
        """Give the first waiting run, while a place is free; one that is to be alone when all others are done."""
        if not self._free or any(run_id in self._alone for run_id in self._taken):
            return None
        run = next((run for run in waiting if run.id not in self._alone), None)
        if run is not None:
            return Choice(run, self._free[0].device, self._free[0])
        run = next(iter(waiting), None)
        if run is None or self._taken or self._vacated:
            return None
        return Choice(run, self._free[0].device, self._free[0], "alone")

    def begin(self, choice: Choice, handle: Handle) -> None:
        """Note that a run that was chosen has started."""
        assert isinstance(choice.place, Slot)
        self._free.remove(choice.place)
        self._taken[handle.run.id] = choice.place
        self._company.begin(handle.run.id, choice.device)

    def had_company(self, handle: Handle, ending: Ending) -> bool:
        """Tell whether others may have taken what a run lacked that has just ended."""
        return self._company.mattered(handle.run.id, ending)

    def vacate(self, handle: Handle) -> None:
        """Give the place of a training that is over to the next run, unless its device is gone."""
        self._company.end(handle.run.id)
        self._vacated.add(handle.run.id)
        slot = self._taken.pop(handle.run.id)
        if handle.run.id in self._lost:
            self._lost.remove(handle.run.id)
        else:
            self._free.append(slot)

    def end(self, handle: Handle, ending: Ending) -> dict[str, int]:
        """Give the place of a run that is over to the next one."""
        if handle.run.id in self._taken:
            self.vacate(handle)
        self._vacated.remove(handle.run.id)
        return {}

    def isolate(self, run: Run, ending: Ending) -> None:
        """Let a run start when nothing else of ours runs, and nothing beside it."""
        self._alone.add(run.id)

    def retire(self, handle: Handle) -> bool:
        """Use a device no more; a device that has no place yet takes over."""
        slot = self._taken[handle.run.id]
        self._lost.add(handle.run.id)
        self._gone.add(slot.device)
        self._free = [place for place in self._free if place.device != slot.device]
        others = [place for place in (*self._free, *self._taken.values()) if place.device != slot.device]
        taken_over = move_slot(slot, others, self._devices, self._gone)
        if taken_over is not None:
            self._free.append(taken_over)
        return bool(others or taken_over)

    def look(self, handles: Sequence[Handle]) -> list[str]:
        """Measure nothing: the places are fixed."""
        return []
