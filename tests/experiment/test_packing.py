"""The packer alone, and on simulated machines."""

from __future__ import annotations

import heapq
import random
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from experiment.packing import (
    CONSTANT,
    MAX_PASSED,
    MEASURED,
    SPREAD_RUNS,
    Alone,
    Kind,
    Packer,
    Peak,
    Placement,
    Record,
    Room,
    Wish,
)

GIB = 2**30


def gib(size: float) -> int:
    return int(size * GIB)


def make_room(*gpus: float, ram: float = 64, cores: int = 64) -> Room:
    return Room(tuple(map(gib, gpus)), gib(ram), cores)


def make_packer(**known: tuple[float, float]) -> Packer:
    """A packer that knows shapes by measured runs that all took the same."""
    peaks = {shape: Peak(gib(gpu), gib(ram)) for shape, (gpu, ram) in known.items()}
    return Packer({shape: Record(peak, peak, SPREAD_RUNS) for shape, peak in peaks.items()}, {})


def start_all(packer: Packer, wishes: list[Wish], room: Room) -> list[Placement]:
    """Start what can start, and take it out of the list."""
    started = []
    while (placement := packer.choose(wishes, room)) is not None:
        packer.begin(placement)
        wishes.remove(placement.wish)
        started.append(placement)
    return started


def make_wishes(shape: str, count: int, **more: object) -> list[Wish]:
    return [Wish(f"{shape}{number}", shape, **more) for number in range(count)]  # type: ignore[arg-type]


def test_the_first_run_of_a_shape_has_its_device_to_itself_until_its_peak_is_known() -> None:
    packer, room = Packer({}, {}), make_room(24)
    wishes = make_wishes("a", 3)
    (canary,) = start_all(packer, wishes, room)
    assert (canary.wish.key, canary.kind) == ("a0", Kind.CANARY)
    packer.guess("a", Peak(gib(2), gib(1)))
    joined = start_all(packer, wishes, room)
    assert [(placement.wish.key, placement.kind) for placement in joined] == [("a1", Kind.PACKED), ("a2", Kind.PACKED)]


def test_a_device_is_emptied_for_the_next_canary_at_once() -> None:
    packer, room = make_packer(a=(2, 1)), make_room(24, 24)
    wishes = make_wishes("a", 4)
    start_all(packer, wishes, room)
    wishes = [*make_wishes("a", 9)[4:], Wish("canary", "b")]
    assert {placement.device for placement in start_all(packer, wishes, room)} == {1}
    packer.end("a0")
    assert start_all(packer, wishes, room) == []
    packer.end("a2")
    assert [placement.wish.key for placement in start_all(packer, wishes, room)] == ["canary"]


def test_canaries_of_different_shapes_are_on_different_devices_at_a_time() -> None:
    wishes = [*make_wishes("a", 2), *make_wishes("b", 2), *make_wishes("c", 2)]
    started = start_all(Packer({}, {}), wishes, make_room(24, 24))
    assert [(placement.wish.key, placement.device) for placement in started] == [("a0", 0), ("b0", 1)]


def test_devices_that_would_be_idle_measure_more_runs_of_an_unknown_shape() -> None:
    started = start_all(Packer({}, {}), make_wishes("a", 9), make_room(24, 24, 24))
    assert sorted(placement.device for placement in started) == [0, 1, 2]


def test_a_shape_that_was_measured_before_needs_no_canary() -> None:
    started = start_all(make_packer(a=(2, 1)), make_wishes("a", 3), make_room(24))
    assert [placement.kind for placement in started] == [Kind.PACKED] * 3


@pytest.mark.parametrize(
    ("room", "need", "fitting"),
    [
        (make_room(24), (5, 1), 4),
        (make_room(24, 24), (5, 1), 8),
        (make_room(24, ram=8), (1, 3), 2),
        (make_room(0, ram=8), (0, 1), 6),
        (make_room(0, ram=64, cores=3), (0, 1), 3),
    ],
)
def test_as_many_run_as_fit_with_headroom_into_the_scarcest_resource(
    room: Room, need: tuple[float, float], fitting: int
) -> None:
    packer = make_packer(a=need)
    assert len(start_all(packer, make_wishes("a", 99), room)) == fitting
    assert packer.count_fitting("a", 1, 0, room) == fitting // len(room.gpus)


def test_headroom_is_larger_while_the_canary_runs_and_smaller_once_runs_are_known_to_be_alike() -> None:
    packer, room, wish = Packer({}, {}), make_room(24), Wish("x", "a")
    packer.guess("a", Peak(gib(4), gib(4)))
    early = packer.reserve(wish, 0, room)
    packer.learn("a", Peak(gib(4), gib(4)))
    measured = packer.reserve(wish, 0, room)
    for _ in range(SPREAD_RUNS):
        packer.learn("a", Peak(gib(4), gib(4)))
    alike = packer.reserve(wish, 0, room)
    assert early.gpu_bytes > measured.gpu_bytes > alike.gpu_bytes > gib(4)
    assert measured.ram_bytes == int(gib(4) * (1 + MEASURED)) + CONSTANT


def test_runs_that_differ_keep_their_headroom() -> None:
    packer, room = Packer({}, {}), make_room(24)
    for size in (3.7, 4.0, 3.8, 3.9):
        packer.learn("a", Peak(gib(size), gib(1)))
    assert packer.reserve(Wish("x", "a"), 0, room).gpu_bytes >= gib(4 * 1.08)


def test_no_less_is_reserved_for_a_run_than_it_was_seen_to_take() -> None:
    packer, room = make_packer(a=(2, 1)), make_room(10)
    wishes = make_wishes("a", 9)
    packer.begin(Placement(wishes.pop(), 0, Kind.PACKED))
    packer.hold("a8", Peak(gib(7), gib(1)))
    assert len(start_all(packer, wishes, room)) == 1
    packer.end("a8")
    assert len(start_all(packer, wishes, room)) == 3


def test_a_predicted_shape_shares_a_device_with_measured_ones_if_twice_its_prediction_fits() -> None:
    packer, room = make_packer(a=(2, 1)), make_room(24)
    wishes = make_wishes("a", 1)
    start_all(packer, wishes, room)
    wishes = [*make_wishes("b", 2, predicted=Peak(gib(9), gib(1))), *make_wishes("a", 3)[1:]]
    canary, joining = start_all(packer, wishes, room)
    assert (canary.wish.key, canary.kind) == ("b0", Kind.CANARY)
    # 24 GiB hold 2 GiB and some for each of a, and 18 for b.
    assert (joining.wish.key, joining.kind) == ("a1", Kind.PACKED)
    packer.end("b0")
    other = Wish("c0", "c", predicted=Peak(gib(11.5), gib(1)))
    assert start_all(packer, [other], room) == []


def test_a_run_that_is_too_big_for_everything_still_runs_alone() -> None:
    packer = make_packer(a=(30, 90), b=(1, 1))
    wishes = [*make_wishes("a", 1, cores=99), *make_wishes("b", 2)]
    assert [placement.wish.key for placement in start_all(packer, wishes, make_room(24))] == ["a0"]
    packer.end("a0")
    assert len(start_all(packer, wishes, make_room(24))) == 2


def test_a_run_that_ran_out_of_memory_has_its_device_to_itself_and_goes_last() -> None:
    packer, room = make_packer(a=(2, 1)), make_room(24, 24)
    wishes = [Wish("sick", "a", alone=Alone.DEVICE), *make_wishes("a", 4)]
    started = start_all(packer, wishes, room)
    assert "sick" not in [placement.wish.key for placement in started]
    for placement in started:
        packer.end(placement.wish.key)
    wishes += make_wishes("a", 1)
    first, alone = start_all(packer, wishes, room)
    assert (alone.wish.key, alone.kind) == ("sick", Kind.ALONE)
    assert first.device != alone.device
    wishes += make_wishes("a", 99)
    assert {placement.device for placement in start_all(packer, wishes, room)} == {first.device}


def test_a_run_that_is_alone_on_the_machine_waits_for_all_others_and_nothing_joins_it() -> None:
    packer, room = make_packer(a=(2, 1)), make_room(24, 24)
    wishes = make_wishes("a", 1)
    start_all(packer, wishes, room)
    wishes = [Wish("sick", "a", alone=Alone.MACHINE)]
    assert start_all(packer, wishes, room) == []
    packer.end("a0")
    assert len(start_all(packer, wishes, room)) == 1
    assert start_all(packer, make_wishes("a", 5), room) == []


def test_more_is_reserved_for_a_shape_that_ran_out_of_memory_until_some_more_were_measured() -> None:
    packer, room, wish = make_packer(a=(4, 1)), make_room(24), Wish("x", "a")
    before = packer.reserve(wish, 0, room)
    packer.doubt("a", Peak(gib(5), gib(1)))
    assert packer.reserve(wish, 0, room).gpu_bytes > gib(5 * 1.25) > before.gpu_bytes
    for _ in range(SPREAD_RUNS):
        packer.learn("a", Peak(gib(4), gib(1)))
    assert packer.reserve(wish, 0, room).gpu_bytes < gib(5 * 1.2)


def test_a_prediction_that_was_too_low_lets_its_shape_share_no_more() -> None:
    packer, room = make_packer(a=(2, 1)), make_room(24)
    start_all(packer, make_wishes("a", 1), room)
    wish = Wish("b0", "b", predicted=Peak(gib(1), gib(1)))
    assert packer.choose([wish], room) is not None
    packer.doubt("b", Peak(gib(9), gib(1)))
    assert packer.choose([wish], room) is None


@pytest.mark.parametrize(("shape", "least"), [("big", MAX_PASSED), ("unknown", 0)])
def test_small_runs_without_end_do_not_pass_a_run_that_waits_for_a_device(shape: str, least: int) -> None:
    packer, room = make_packer(small=(2, 1), big=(20, 1)), make_room(24, 24)
    packer.durations |= {"small": 1000.0, "big": 1.0}
    small = iter(make_wishes("small", 500))
    running = [placement.wish.key for placement in start_all(packer, [next(small) for _ in range(30)], room)]
    head, starts = Wish("head", shape), 0
    while "head" not in packer.placed:
        packer.end(running.pop(0))
        wishes = [head, *(next(small) for _ in range(3))]
        if shape == "big":
            packer.durations["small"] = 0.5
        started = start_all(packer, wishes, room)
        running += [placement.wish.key for placement in started]
        starts += len(started)
    assert least < starts <= least + 2 * 11


@dataclass(frozen=True)
class SimulatedRun:
    """A run as it truly is; the packer is told only what could be seen, when it could be seen.

    Times are in seconds since its start: `cycle_at` is when it has trained, saved and evaluated, `dies_at` when it runs
    out of memory if it shares its device then.
    """

    wish: Wish
    duration: float
    peak: Peak
    cycle_at: float
    early: Peak
    dies_at: float | None


@dataclass(frozen=True)
class Workload:
    runs: list[SimulatedRun]
    room: Room


def draw_workload(seed: int) -> Workload:
    """Draw a sweep and a machine.

    - 1 to 4 equal devices; one of eight workloads, half of those with one device, is on a CPU, where the device is the
      machine. GPUs have 16, 24, 48 or 80 GiB; per device there are 32, 64 or 128 GiB of RAM and 4, 8 or 16 cores.
    - 16 to 200 runs of 1 to 4 shapes with random shares, in the order of their shapes or mixed, one half each.
    - A quarter of the shapes take most of a device, 55 to 95 %, the others 3 to 45 % (on a CPU: of its RAM). Beside
      GPUs a run takes 1 to 25 % of a device's share of RAM. A quarter of the shapes keep two cores busy, the others
      one.
    - A shape's runs take from 60 to 480 s, uniform in the logarithm, and differ by up to 15 % in time, 1 % in GPU
      memory, 4 % in RAM, either way.
    - Each has trained, saved and evaluated after 10 to 25 % of its time. Its GPU memory is then within 3 % of its peak,
      its RAM within 10 %: what replay buffers still add is in the reading, being known (`measure.predict_growth`).
    - In half of the workloads shapes are predicted, wrong by up to 1.5 times either way.
    - In two of five workloads 0.5 % or 2 % of the runs run out of memory at some time after its first tenth, if they
      share their device, because somebody else took memory. They go on from their last tenth.
    """
    rng = random.Random(seed)
    devices, shapes = rng.randint(1, 4), rng.randint(1, 4)
    on_cpu = devices == 1 and rng.random() < 0.5
    gpu = 0 if on_cpu else gib(rng.choice([16, 24, 48, 80]))
    room = Room((gpu,) * devices, devices * gib(rng.choice([32, 64, 128])), devices * rng.choice([4, 8, 16]))
    deaths = rng.choice([0, 0, 0, 0.005, 0.02])
    is_predicted = rng.random() < 0.5
    draws = [draw_shape(rng, f"s{number}", room, deaths, is_predicted) for number in range(shapes)]
    picks = rng.choices(range(shapes), [rng.uniform(0.3, 1) for _ in draws], k=rng.randint(16, 200))
    if rng.random() < 0.5:
        picks.sort()
    return Workload([draws[pick](f"run{number}") for number, pick in enumerate(picks)], room)


def draw_shape(
    rng: random.Random, shape: str, room: Room, deaths: float, is_predicted: bool
) -> Callable[[str], SimulatedRun]:
    """Give what draws a run of a new shape."""
    share = rng.uniform(0.55, 0.95) if rng.random() < 0.25 else rng.uniform(0.03, 0.45)
    is_on_gpu = room.gpus[0] > 0
    ram = room.ram_bytes * (rng.uniform(0.01, 0.25) / len(room.gpus) if is_on_gpu else share)
    gpu = room.gpus[0] * share
    cores, seconds, cycle = rng.choice([1, 1, 1, 2]), 60 * 8 ** rng.random(), rng.uniform(0.1, 0.25)
    error = 1.5 ** rng.uniform(-1, 1)
    predicted = Peak(int(gpu * error), int(ram * error)) if is_predicted else None

    def draw_run(key: str) -> SimulatedRun:
        duration = seconds * rng.uniform(0.85, 1.15)
        peak = Peak(int(gpu * rng.uniform(0.99, 1.01)), int(ram * rng.uniform(0.96, 1.04)))
        early = Peak(int(peak.gpu_bytes * rng.uniform(0.97, 1)), int(peak.ram_bytes * rng.uniform(0.9, 1)))
        dies_at = rng.uniform(0.1, 1) * duration if rng.random() < deaths else None
        return SimulatedRun(Wish(key, shape, cores, predicted), duration, peak, cycle * duration, early, dies_at)

    return draw_run


class Simulation:
    """A machine on which runs start where a packer says. `now` is the makespan in the end."""

    def __init__(self, workload: Workload) -> None:
        self.room = workload.room
        self.truth = {run.wish.key: run for run in workload.runs}
        self.left = {run.wish.key: run.duration for run in workload.runs}
        self.waiting = [run.wish for run in workload.runs]
        self.packer = Packer({}, {})
        self.now = 0.0
        self.running: dict[str, tuple[Placement, float]] = {}
        self.events: list[tuple[float, int, str, str]] = []
        self.with_company: set[str] = set()
        self.starts = 0
        self.passed: Counter[str] = Counter()
        self.kept_since: dict[str, float] = {}
        self.longest_wait = 0.0

    def run(self) -> None:
        while self.waiting or self.running:
            for placement in start_all(self.packer, self.waiting, self.room):
                self.start(placement)
            self.now, _, what, key = heapq.heappop(self.events)
            if key not in self.running:
                continue
            if what == "cycle":
                self.show_cycle(self.truth[key])
            elif what == "end":
                self.end(self.truth[key])
            elif key in self.with_company and self.running[key][0].kind is not Kind.ALONE:
                self.die(self.truth[key])

    def start(self, placement: Placement) -> None:
        key = placement.wish.key
        run = self.truth[key]
        neighbours = [other for other, (there, _) in self.running.items() if there.device == placement.device]
        if placement.kind is Kind.ALONE or (placement.kind is Kind.CANARY and run.wish.predicted is None):
            assert not neighbours
        for other in neighbours:
            there = self.running[other][0]
            assert there.kind is not Kind.ALONE
            assert there.wish.shape in self.packer.known or there.wish.predicted is not None
            self.with_company |= {key, other}
        self.wait_on(placement)
        self.running[key] = (placement, self.now)
        self.check_use()
        self.schedule("end", key, self.left[key])
        if run.wish.shape not in self.packer.known:
            self.schedule("cycle", key, run.cycle_at)
        if run.dies_at is not None and placement.kind is not Kind.ALONE:
            self.schedule("die", key, run.dies_at)

    def wait_on(self, placement: Placement) -> None:
        """Note how long runs wait once they have been passed so often that a place is to be kept for them."""
        self.passed.update(placement.passed)
        for key in placement.passed:
            if self.passed[key] == MAX_PASSED:
                self.kept_since[key] = self.now
        waited = self.now - self.kept_since.pop(placement.wish.key, self.now)
        self.longest_wait = max(self.longest_wait, waited)

    def schedule(self, what: str, key: str, seconds: float) -> None:
        self.starts += 1
        heapq.heappush(self.events, (self.now + seconds, self.starts, what, key))

    def check_use(self) -> None:
        """Assert that everything that runs fits, at the peaks of all."""
        truths = {key: self.truth[key] for key in self.running}
        for device, size in enumerate(self.room.gpus):
            here = [truths[key].peak.gpu_bytes for key, (there, _) in self.running.items() if there.device == device]
            assert sum(here) <= size
        assert sum(run.peak.ram_bytes for run in truths.values()) <= self.room.ram_bytes
        assert sum(run.wish.cores for run in truths.values()) <= self.room.cores

    def show_cycle(self, run: SimulatedRun) -> None:
        self.packer.guess(run.wish.shape, run.early)
        self.packer.durations.setdefault(run.wish.shape, run.duration)

    def end(self, run: SimulatedRun) -> None:
        self.leave(run)
        self.packer.learn(run.wish.shape, run.peak)
        self.packer.durations[run.wish.shape] = run.duration

    def die(self, run: SimulatedRun) -> None:
        tenths = int(10 * (self.now - self.running[run.wish.key][1]) / run.duration)
        self.left[run.wish.key] = run.duration * (1 - tenths / 10)
        self.leave(run)
        self.events = [event for event in self.events if event[3] != run.wish.key]
        heapq.heapify(self.events)
        self.packer.doubt(run.wish.shape, run.peak)
        alone = Alone.DEVICE if self.room.gpus[0] else Alone.MACHINE
        self.waiting.append(Wish(run.wish.key, run.wish.shape, run.wish.cores, run.wish.predicted, alone))

    def leave(self, run: SimulatedRun) -> None:
        del self.running[run.wish.key]
        self.packer.end(run.wish.key)


def bound_makespan(workload: Workload) -> float:
    """Give the seconds below which no schedule can be: the longest run, and for each resource its work per capacity.

    Work is a run's true peak (or its cores) times its duration, nothing added for headroom, canaries or runs that die.
    Capacity is that of all devices for GPU memory, of the machine for RAM and cores. Beside the plain ratio, shares are
    also counted as `f(x)`, by functions for which `f(x1) + f(x2) + ... <= 1` whenever `x1 + x2 + ... <= 1` (dual
    feasible functions, Fekete and Schepers 2001): two runs that take 60 % of a device each can't share it, so that one
    of them counts as all of it.
    """
    room, runs = workload.room, workload.runs
    resources = [
        (len(room.gpus), [run.peak.gpu_bytes / room.gpus[0] for run in runs] if room.gpus[0] else []),
        (1, [run.peak.ram_bytes / room.ram_bytes for run in runs]),
        (1, [run.wish.cores / room.cores for run in runs]),
    ]
    bound = max(run.duration for run in runs)
    for count, shares in resources:
        pairs = [(share, run.duration) for share, run in zip(shares, runs, strict=False)]
        for k in range(13):
            bound = max(bound, sum(count_share(share, k) * duration for share, duration in pairs) / count)
    return bound


def count_share(share: float, k: int) -> float:
    """Give the dual feasible function of order k; the share itself for 0."""
    scaled = share * (k + 1)
    return share if k == 0 or scaled == int(scaled) else int(scaled) / k


def test_a_thousand_random_workloads_never_over_commit_never_starve_and_are_done_soon() -> None:
    ratios = []
    for seed in range(1000):
        workload = draw_workload(seed)
        simulation = Simulation(workload)
        simulation.run()
        # A run of each other shape may be ahead of it, each waiting for others to end.
        shapes = len({run.wish.shape for run in workload.runs})
        assert simulation.longest_wait <= shapes * max(run.duration for run in workload.runs)
        ratios.append(simulation.now / bound_makespan(workload))
    assert min(ratios) >= 1 - 1e-9
    assert statistics.median(ratios) <= 1.2
    assert max(ratios) <= 2.0, ratios.index(max(ratios))
