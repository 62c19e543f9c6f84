"""Packing on a machine that is made up: what its instruments say, and what is done about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from experiment.devices import CPU, Device, DeviceError, Gpu, GpuReading
from experiment.engines.local import Handle
from experiment.measure import Shape, Tree, predict_peak
from experiment.packed import Instruments, PackedPlaces, Packing
from experiment.packing import Peak, Record
from experiment.parents import Parent
from experiment.preflight import Footprint
from experiment.run import Run
from experiment.schedule import Ending

GIB = 2**30
GPUS = [Device(Gpu(index, index, f"GPU-{index}", "A", 24 * GIB)) for index in range(2)]
DONE, OOM, KILLED = Ending("ok", 0), Ending("oom", 86), Ending("oom", -9)


@dataclass
class Machine:
    """Readings that a test sets, in GiB; `by_pid` of the GPUs, `trees` of processes."""

    now: float = 0.0
    free_ram: float = 60.0
    cores: int = 16
    trees: dict[int, tuple[float, float]] = field(default_factory=dict)
    used: list[float] = field(default_factory=lambda: [0.0, 0.0])
    by_pid: dict[int, float] = field(default_factory=dict)
    is_broken: bool = False

    def read_trees(self, pids: Sequence[int]) -> Mapping[int, Tree]:
        sizes = {pid: self.trees.get(pid, (0.0, 0.0)) for pid in pids}
        return {
            pid: Tree(int(now * GIB), int(peak * GIB), frozenset({pid, pid + 1})) for pid, (now, peak) in sizes.items()
        }

    def read_gpu(self, uuid: str) -> GpuReading:
        if self.is_broken:
            raise DeviceError("it is broken")
        used = int(self.used[int(uuid[-1])] * GIB)
        return GpuReading(24 * GIB - used, used, {pid: int(size * GIB) for pid, size in self.by_pid.items()})

    def instruments(self) -> Instruments:
        return Instruments(
            lambda: int(self.free_ram * GIB), self.read_trees, self.read_gpu, lambda: self.now, self.cores
        )


class Sweep:
    """Runs of one shape in a folder, started and ended by hand."""

    def __init__(
        self,
        folder: Path,
        machine: Machine,
        devices: Sequence[Device],
        known: Peak | None = None,
        predicted: Peak | None = None,
        kinds: str = "a",
        parents: Mapping[str, Parent] | None = None,
    ) -> None:
        self.folder, self.machine, self.devices = folder, machine, devices
        self.waiting = [Run.create_path(folder, f"seed={index}", f"{index:016x}") for index in range(40)]
        kind = {run.id: kinds[number % len(kinds)] for number, run in enumerate(self.waiting)}
        records = {"a": Record(known, known, 3)} if known else {}
        shapes = {run.id: Shape(kind[run.id], 1000, 0, evaluates=False, saves=True) for run in self.waiting}
        guesses = {run.id: predicted for run in self.waiting} if predicted else {}
        packing = Packing(shapes, records, {}, guesses, parents or {}, 1, machine.instruments())
        self.places = PackedPlaces(devices, packing)
        self.handles: dict[str, Handle] = {}

    def start(self) -> list[tuple[int, str]]:
        """Start what may start; the device and the remark of each."""
        started = []
        while (choice := self.places.choose(self.waiting)) is not None:
            self.waiting.remove(choice.run)
            pid = 100 + 10 * int(choice.run.id, 16)
            handle = SimpleNamespace(run=choice.run, attempt=1, device=self.devices[choice.device], pid=pid)
            self.handles[choice.run.id] = cast(Handle, handle)
            self.places.begin(choice, self.handles[choice.run.id])
            started.append((choice.device, choice.remark))
        return started

    def look(self) -> list[str]:
        self.machine.now += 1.0
        return self.places.look(list(self.handles.values()))

    def end(self, number: int, ending: Ending = DONE) -> dict[str, int]:
        return self.places.end(self.handles.pop(f"{number:016x}"), ending)

    def cycle(self, number: int) -> None:
        """Let a run save its first checkpoint, at a tenth of its steps."""
        run = self.handles[f"{number:016x}"].run
        run.checkpoints_dir.mkdir(parents=True)
        (run.checkpoints_dir / "step_00000100.json").touch()
        run.metrics_path.write_text(json.dumps({"step": 100}) + "\n")


def test_the_canary_is_joined_once_it_has_saved_and_its_memory_is_known(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Machine(free_ram=16, cores=32), [CPU])
    assert sweep.start() == [(0, "canary")]
    sweep.machine.trees[100] = (1.5, 2.0)
    assert sweep.look() == []
    assert sweep.start() == []
    sweep.cycle(0)
    (said,) = sweep.look()
    # 17.5 GiB, of which each gets 2 * 1.2 + 0.125.
    assert said == "6 at a time fit on the CPU like seed=0: 2.5 GiB of 17.5 GiB of RAM, 1 of 32 cores each"
    assert sweep.start() == [(0, "")] * 5


def test_shapes_of_which_something_is_predicted_are_measured_side_by_side(tmp_path: Path) -> None:
    unknown = Sweep(tmp_path / "unknown", Machine(free_ram=16, cores=32), [CPU], kinds="abc")
    assert unknown.start() == [(0, "canary")]
    predicted = Sweep(
        tmp_path / "predicted", Machine(free_ram=16, cores=32), [CPU], predicted=Peak(0, 2 * GIB), kinds="abc"
    )
    # Twice its prediction is kept for each that starts before its shape is known.
    assert predicted.start() == [(0, "canary")] * 4


def test_what_is_predicted_of_a_gpu_has_room_for_cuda_too() -> None:
    assert predict_peak(Footprint(GIB, None)) == Peak(0, GIB)
    assert predict_peak(Footprint(GIB, GIB)) == Peak(int(1.2 * GIB) + 700 * 2**20, GIB)


def test_gpu_memory_is_that_of_a_runs_processes_as_nvml_tells_it(tmp_path: Path) -> None:
    machine = Machine()
    sweep = Sweep(tmp_path, machine, GPUS)
    assert sweep.start() == [(0, "canary"), (1, "canary")]
    machine.used, machine.by_pid = [9.0, 5.0], {101: 5.0, 111: 5.0, 9999: 4.0}
    sweep.look()
    sweep.cycle(0)
    (said,) = sweep.look()
    assert said.startswith("3 at a time fit on GPU 0 like seed=0: 6.1 GiB of its 20.0 GiB")
    assert sorted(sweep.start()) == [(0, ""), (0, ""), (1, ""), (1, "")]


def test_where_nvml_names_no_process_of_ours_all_that_came_since_is_ours(tmp_path: Path) -> None:
    machine = Machine(used=[4.0, 0.0])
    sweep = Sweep(tmp_path, machine, GPUS[:1])
    sweep.start()
    machine.used = [9.0, 0.0]
    sweep.look()
    assert sweep.end(0)["peak_gpu_bytes"] == 5 * GIB
    machine.used = [4.0, 0.0]
    sweep.look()
    assert len(sweep.start()) == 3


def test_what_others_take_is_not_there_for_us(tmp_path: Path) -> None:
    machine = Machine(free_ram=10, cores=64)
    sweep = Sweep(tmp_path, machine, [CPU], known=Peak(0, GIB))
    assert len(sweep.start()) == 8
    machine.free_ram = 1
    machine.trees = {handle.pid: (1.0, 1.0) for handle in sweep.handles.values()}
    sweep.look()
    sweep.end(0)
    assert sweep.start() == []


def test_a_run_that_takes_more_than_its_shape_did_has_that_much_reserved(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Machine(free_ram=10, cores=4), [CPU], known=Peak(0, GIB))
    assert len(sweep.start()) == 4
    sweep.machine.trees = {100: (0.0, 7.0)}
    sweep.look()
    sweep.end(1)
    sweep.end(2)
    assert len(sweep.start()) == 1


@pytest.mark.parametrize(("ending", "alone_on"), [(OOM, 0), (KILLED, None)])
def test_what_ran_out_of_gpu_memory_has_a_device_to_itself_and_of_ram_the_machine(
    tmp_path: Path, ending: Ending, alone_on: int | None
) -> None:
    sweep = Sweep(tmp_path, Machine(cores=4), GPUS, known=Peak(5 * GIB, GIB))
    sweep.waiting = sweep.waiting[:4]
    sweep.start()
    sick = sweep.handles[f"{0:016x}"]
    assert sweep.places.had_company(sick, ending)
    sweep.end(0, ending)
    sweep.places.isolate(sick.run, ending)
    sweep.waiting.append(sick.run)
    assert sweep.start() == []
    sweep.end(2)
    assert sweep.start() == ([] if alone_on is None else [(alone_on, "alone")])
    if alone_on is None:
        sweep.end(1)
        sweep.end(3)
        assert sweep.start() == [(0, "alone")]


def test_a_device_that_is_gone_gets_no_more_runs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Machine(cores=2), GPUS, known=Peak(5 * GIB, GIB))
    assert {device for device, _ in sweep.start()} == {0, 1}
    handles = list(sweep.handles.values())
    assert sweep.places.retire(handles[0])
    sweep.end(0)
    assert sweep.start() == [(1, "")]
    assert not sweep.places.retire(handles[1])
    sweep.end(1)
    sweep.end(2)
    assert sweep.start() == []


def test_a_run_that_goes_on_with_another_has_as_many_cores_kept_as_that_one_had_threads(tmp_path: Path) -> None:
    parent = Run.create_path(tmp_path / "before", "long", "f" * 16)
    parent.attempt_dir(1).mkdir(parents=True)
    parent.start_path(1).write_text(json.dumps({"threads": 3}))
    heirs = {f"{index:016x}": Parent(parent, "init_from") for index in range(40)}
    sweep = Sweep(tmp_path, Machine(cores=7), [CPU], known=Peak(0, GIB), parents=heirs)
    assert len(sweep.start()) == 2


def test_nothing_joins_on_a_gpu_that_can_not_be_read_and_one_run_still_goes_at_a_time(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Machine(), GPUS[:1], known=Peak(5 * GIB, GIB))
    sweep.machine.is_broken = True
    sweep.look()
    assert len(sweep.start()) == 1
    sweep.end(0)
    assert len(sweep.start()) == 1


def test_a_run_too_short_for_a_reading_of_its_gpu_memory_teaches_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Machine(), GPUS[:1])
    sweep.start()
    sweep.end(0)
    assert sweep.start() == [(0, "canary")]
