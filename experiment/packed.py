"""As many runs at a time as fit (`-j auto`): the packer's decisions, on what is measured of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from experiment.devices import Device, DeviceError, Gpu, GpuMeter, GpuReading, count_cores
from experiment.engines.local import Handle, choose_threads
from experiment.measure import Shape, Tree, has_cycled, predict_growth, read_peak, read_trees
from experiment.memory import read_free_memory
from experiment.packing import Alone, Kind, Packer, Peak, Placement, Record, Room, Wish
from experiment.parents import Parent
from experiment.places import Choice
from experiment.progress import read_progress
from experiment.run import Run
from experiment.schedule import KILLED, Company, Ending
from experiment.stored import find_saved_step

LOOK_EVERY_S = 1.0
GIB = 2**30


@dataclass(frozen=True)
class Instruments:
    """What this machine is asked by.

    Attributes:
        free_ram: gives bytes that can still be had.
        trees: gives the memory of processes and their descendants.
        gpu: gives how the memory of a GPU is used, by its UUID; raises DeviceError.
        clock: gives seconds.
        cores: that this process may use.
    """

    free_ram: Callable[[], int]
    trees: Callable[[Sequence[int]], Mapping[int, Tree]]
    gpu: Callable[[str], GpuReading]
    clock: Callable[[], float]
    cores: int


def make_instruments() -> Instruments:
    """Give those of this machine."""
    return Instruments(read_free_memory, read_trees, GpuMeter().read, time.monotonic, count_cores())


@dataclass(frozen=True)
class Packing:
    """What packing goes by.

    Attributes:
        shapes: of each run, by its id.
        known: what runs that are done have taken, by the key of their shape.
        durations: seconds that they took.
        predicted: what runs may take, by arithmetic, by their ids; of scripts that aren't ours nothing.
        parents: runs that others begin from, by the ids of those.
        threads: of each run that has neither begun before nor goes on with another; as many cores are kept for it.
        instruments: what is asked.
    """

    shapes: Mapping[str, Shape]
    known: Mapping[str, Record]
    durations: Mapping[str, float]
    predicted: Mapping[str, Peak]
    parents: Mapping[str, Parent]
    threads: int
    instruments: Instruments


@dataclass
class Watched:
    """A run in progress. `by_pid` and `by_difference` are its GPU memory at its peak, as told by NVML in two ways."""

    handle: Handle
    placement: Placement
    started: float
    first_step: int
    ram_bytes: int = 0
    by_pid: int = 0
    by_difference: int = 0
    has_cycled: bool = False

    def peak(self) -> Peak:
        """Give the most that it has taken so far."""
        return Peak(self.by_pid or self.by_difference, self.ram_bytes)


class PackedPlaces:
    """Places for as many runs as fit."""

    def __init__(self, devices: Sequence[Device], packing: Packing) -> None:
        """Begin with nothing running."""
        self._devices = devices
        self._packing = packing
        self._packer = Packer(packing.known, packing.durations)
        self._company = Company()
        self._wishes: dict[str, Wish] = {}
        self._watched: dict[str, Watched] = {}
        self._vacated: set[str] = set()
        self._gone: set[int] = set()
        self._remarks: list[str] = []
        self._said: dict[str, int] = {}
        self._used_by_others = [0] * len(devices)
        self._looked = packing.instruments.clock()
        self._room = self._measure()

    def choose(self, waiting: Collection[Run]) -> Choice | None:
        """Give the run that the packer would start now."""
        placement = self._packer.choose(map(self._wish, waiting), self._room)
        if placement is None or (placement.kind is Kind.ALONE and self._vacated):
            return None
        run = next(run for run in waiting if run.id == placement.wish.key)
        remarks = {Kind.PACKED: "", Kind.CANARY: "canary", Kind.ALONE: "alone"}
        return Choice(run, placement.device, placement, remarks[placement.kind])

    def begin(self, choice: Choice, handle: Handle) -> None:
        """Note that a run that was chosen has started, and watch it."""
        assert isinstance(choice.place, Placement)
        now = self._packing.instruments.clock()
        self._packer.begin(choice.place)
        self._company.begin(handle.run.id, choice.device)
        self._watched[handle.run.id] = Watched(handle, choice.place, now, find_saved_step(handle.run.checkpoints_dir))

    def vacate(self, handle: Handle) -> None:
        """Let others have what a training took that is over, unless how many fit is to be learnt from it first."""
        if self._watched[handle.run.id].placement.wish.shape in self._packer.known:
            self._release(handle.run.id)

    def _release(self, run_id: str) -> None:
        self._packer.end(run_id)
        self._company.end(run_id)
        self._vacated.add(run_id)

    def had_company(self, handle: Handle, ending: Ending) -> bool:
        """Tell whether others may have taken what a run lacked that has just ended."""
        return self._company.mattered(handle.run.id, ending)

    def end(self, handle: Handle, ending: Ending) -> dict[str, int]:
        """Note that a run is over, and learn from it. Gives its peaks."""
        if handle.run.id not in self._vacated:
            self._release(handle.run.id)
        self._vacated.remove(handle.run.id)
        watched = self._watched.pop(handle.run.id)
        own = handle.run.read_exit(handle.attempt) or {}
        peak = watched.peak().join(Peak(0, int(own.get("peak_rss_bytes", 0))))
        wish = watched.placement.wish
        if ending.reason == "ok" and not peak.gpu_bytes:
            # It was too short for a reading.
            peak = peak.join(read_peak(handle.run))
        if ending.reason == "oom":
            self._packer.doubt(wish.shape, peak)
        elif ending.reason == "ok" and self._tells(watched, peak):
            self._packer.learn(wish.shape, peak)
            self._packer.durations[wish.shape] = self._packing.instruments.clock() - watched.started
            self._say_fit(watched)
        peaks = {"peak_ram_bytes": peak.ram_bytes, "peak_gpu_bytes": peak.gpu_bytes}
        return {name: size for name, size in peaks.items() if size}

    def isolate(self, run: Run, ending: Ending) -> None:
        """Let a run start alone from now on: on its device, or on the machine, if that was what ran out of memory."""
        on_gpu = self._devices[0].gpu is not None and ending.returncode != KILLED
        alone = Alone.DEVICE if on_gpu else Alone.MACHINE
        self._wishes[run.id] = replace(self._wish(run), alone=alone)

    def retire(self, handle: Handle) -> bool:
        """Use a device no more, which is gone; False where no other is left."""
        self._gone.add(self._watched[handle.run.id].placement.device)
        self._room = self._measure()
        return bool(self._room.list_devices())

    def look(self, handles: Sequence[Handle]) -> list[str]:
        """Read what runs take, once a second, and tell what follows from it."""
        now = self._packing.instruments.clock()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._room = self._measure()
            for watched in self._watched.values():
                if watched.handle.run.id in self._vacated:
                    continue
                self._packer.hold(watched.handle.run.id, watched.peak())
                self._look_for_cycle(watched)
        remarks, self._remarks = self._remarks, []
        return remarks

    def _wish(self, run: Run) -> Wish:
        if run.id not in self._wishes:
            cores = choose_threads(run, self._packing.threads, self._packing.parents.get(run.id))
            shape, predicted = self._packing.shapes[run.id].key, self._packing.predicted.get(run.id)
            self._wishes[run.id] = Wish(run.id, shape, cores, predicted)
        return self._wishes[run.id]

    def _tells(self, watched: Watched, peak: Peak) -> bool:
        """Tell whether a run's peak is that of its shape; not so of one that had next to nothing left to do."""
        is_read = self._devices[0].gpu is None or peak.gpu_bytes > 0
        return is_read and (watched.first_step == 0 or watched.has_cycled)

    def _look_for_cycle(self, watched: Watched) -> None:
        """See whether a run has shown what it takes, and how long."""
        run, shape = watched.handle.run, self._packing.shapes[watched.handle.run.id]
        if watched.has_cycled or not has_cycled(run, shape, watched.first_step):
            return
        watched.has_cycled = True
        peak = watched.peak()
        self._packer.guess(shape.key, Peak(peak.gpu_bytes, peak.ram_bytes + predict_growth(run, shape)))
        step = read_progress(run).step
        if shape.steps and step and watched.first_step == 0:
            seconds = self._packing.instruments.clock() - watched.started
            self._packer.durations.setdefault(shape.key, seconds * shape.steps / step)
        self._say_fit(watched)

    def _measure(self) -> Room:
        """Give what there is for all our runs together: what is free, and what they hold now."""
        instruments = self._packing.instruments
        trees = instruments.trees([watched.handle.pid for watched in self._watched.values()])
        for watched in self._watched.values():
            watched.ram_bytes = max(watched.ram_bytes, trees[watched.handle.pid].peak_bytes)
        ram = instruments.free_ram() + sum(tree.now_bytes for tree in trees.values())
        gpus = [self._measure_gpu(number, device.gpu, trees) for number, device in enumerate(self._devices)]
        return Room(tuple(gpus), ram, instruments.cores, frozenset(self._gone))

    def _measure_gpu(self, number: int, gpu: Gpu | None, trees: Mapping[int, Tree]) -> int:
        """Give what there is for our runs on a device, and note what each has.

        NVML may name no process of ours, in a container: then all that is used beyond what others used before is ours.
        """
        if gpu is None or number in self._gone:
            return 0
        try:
            reading = self._packing.instruments.gpu(gpu.uuid)
        except DeviceError:
            # Nothing is to join what runs there; by itself a run may still start.
            return 0
        here = [watched for watched in self._watched.values() if watched.placement.device == number]
        if not here:
            self._used_by_others[number] = reading.used_bytes
        ours = {watched.handle.pid: 0 for watched in here}
        for pid in ours:
            ours[pid] = sum(reading.by_pid.get(member, 0) for member in trees[pid].pids)
        for watched in here:
            watched.by_pid = max(watched.by_pid, ours[watched.handle.pid])
        held = sum(ours.values())
        if not held:
            held = max(0, reading.used_bytes - self._used_by_others[number])
            if len(here) == 1:
                here[0].by_difference = max(here[0].by_difference, held)
        return reading.free_bytes + held

    def _say_fit(self, watched: Watched) -> None:
        """Say how many of a shape fit, where that is news."""
        wish, device = watched.placement.wish, watched.placement.device
        count = self._packer.count_fitting(wish.shape, wish.cores, device, self._room)
        if self._said.get(wish.shape) == count:
            return
        self._said[wish.shape] = count
        need = self._packer.reserve(Wish("", wish.shape, wish.cores), device, self._room)
        parts = [f"{_say_gib(need.ram_bytes)} of {_say_gib(self._room.ram_bytes)} of RAM"]
        if need.gpu_bytes:
            parts.insert(0, f"{_say_gib(need.gpu_bytes)} of its {_say_gib(self._room.gpus[device])}")
        parts.append(f"{need.cores} of {self._room.cores} cores")
        name = self._devices[device].name
        where = "the CPU" if name == "cpu" else f"GPU {name}"
        label = watched.handle.run.label
        self._remarks.append(f"{count} at a time fit on {where} like {label}: {', '.join(parts)} each")


def _say_gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"
