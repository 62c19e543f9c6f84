"""Runs that run out of memory in a sweep, with real processes that only say so."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from experiment.devices import CPU, Device
from experiment.engines.local import Handle, Limits, LocalEngine, Work
from experiment.launch import launch_runs
from experiment.measure import Shape, Tree
from experiment.outcomes import Request, SweepResult
from experiment.packed import Instruments, Packing
from experiment.packing import Peak, Record
from experiment.progress import Tally
from experiment.run import Run, State

GIB = 2**30
IF_FIRST = "import os, sys\nif os.environ['GRIDPILOT_ATTEMPT'] == '1':\n    "


class Lines:
    """A view that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def update(self, handles: Sequence[Handle], tally: Tally) -> None:
        pass

    def close(self) -> None:
        pass


def make_runs(folder: Path, count: int) -> list[Run]:
    return [Run.create_path(folder, f"seed={index}", f"{index:016x}") for index in range(count)]


def launch(
    runs: Sequence[Run], write: Callable[[Run], str], jobs: int, packing: Packing | None = None, retries: int = 0
) -> tuple[SweepResult, list[str]]:
    def make_work(run: Run, device: Device) -> Work:
        return Work("seed: 1\n", (sys.executable, "-IS", "-c", write(run)), is_foreign=False)

    request = Request(
        work=make_work,
        jobs=jobs,
        retries=retries,
        rerun=(),
        code_version="v1",
        stop_path=runs[0].experiment_dir / "stop.json",
        stop_seen=None,
        rerun_command=lambda run: f"rerun {run.id}",
        packing=packing,
    )
    view = Lines()
    engine = LocalEngine(Limits(threads=1), lambda: "v1")
    return launch_runs(runs, engine, [CPU], request, view), view.lines


def read_events(runs: Sequence[Run]) -> list[tuple[str, str, int]]:
    rows = [json.loads(line) for line in runs[0].events_path.read_text().splitlines()]
    return [(row["event"], row["run"], row["attempt"]) for row in rows]


def meet(folder: Path) -> tuple[str, str]:
    """Code for two runs that wait for each other, so that both surely run at a time."""
    fifo = folder / "meeting"
    os.mkfifo(fifo)
    return f"open({str(fifo)!r}).read()", f"open({str(fifo)!r}, 'w').close()"


def test_a_run_out_of_memory_is_tried_again_alone_and_the_others_finish(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    wait, come = meet(tmp_path)
    codes = {runs[0].id: f"{IF_FIRST}{wait}; sys.exit(86)", runs[1].id: come}
    result, lines = launch(runs, lambda run: codes.get(run.id, "0"), jobs=2)
    assert result.exit_code == 0
    assert [run.last_attempt() for run in runs] == [2, 1, 1, 1]
    events = read_events(runs)
    again = events.index(("started", runs[0].id, 2))
    assert {event for event in events[:again] if event[0] == "ended"} >= {("ended", run.id, 1) for run in runs}
    assert any("once more alone" in line for line in lines)
    assert any(line.startswith("started seed=0") and line.endswith("attempt 2, alone)") for line in lines)
    ending = runs[0].read_exit(1)
    assert ending is not None
    assert ending["reason"] == "oom"


def test_a_run_that_runs_out_of_memory_alone_too_has_failed_and_harms_no_other(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 3)
    wait, come = meet(tmp_path)
    codes = {runs[0].id: f"{IF_FIRST}{wait}\nsys.exit(86)", runs[1].id: come}
    result, lines = launch(runs, lambda run: codes.get(run.id, "0"), jobs=2)
    assert result.exit_code == 1
    assert [outcome.state for outcome in result.outcomes] == [State.FAILED, State.DONE, State.DONE]
    assert runs[0].last_attempt() == 2
    assert runs[0].status().reason == "oom"
    assert any(line.startswith("FAILED  seed=0 (oom)") for line in lines)


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2)])
def test_a_run_that_was_alone_already_is_tried_again_only_if_asked_for(
    tmp_path: Path, retries: int, attempts: int
) -> None:
    runs = make_runs(tmp_path, 2)
    result, _ = launch(runs, lambda run: f"raise SystemExit({86 if run == runs[0] else 0})", 1, retries=retries)
    assert result.exit_code == 1
    assert [run.last_attempt() for run in runs] == [attempts, 1]


def make_packing(runs: Sequence[Run], known: Mapping[str, Record], cores: int = 8) -> Packing:
    """Packing on a machine of 16 GiB whose runs all have one shape and take nothing that can be read."""
    instruments = Instruments(
        free_ram=lambda: 16 * GIB,
        trees=lambda pids: {pid: Tree(0, 0, frozenset({pid})) for pid in pids},
        gpu=lambda uuid: pytest.fail(f"{uuid} is no GPU of ours"),
        clock=lambda: 0.0,
        cores=cores,
    )
    return Packing({run.id: Shape("same") for run in runs}, known, {}, {}, {}, 1, instruments)


def test_the_first_of_a_packed_sweep_is_measured_alone_and_the_others_then_share(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 3)
    wait, come = meet(tmp_path)
    codes = {runs[1].id: wait, runs[2].id: come}
    result, lines = launch(runs, lambda run: codes.get(run.id, "0"), 8, make_packing(runs, {}))
    assert result.exit_code == 0
    started = [line for line in lines if line.startswith("started")]
    assert started[0] == f"started seed=0  ({runs[0].id} on cpu, canary)"
    assert not any("canary" in line for line in started[1:])
    assert any(line.startswith("8 at a time fit on the CPU like seed=0: ") for line in lines)
    first_end = read_events(runs).index(("ended", runs[0].id, 1))
    assert first_end == 1


def test_a_packed_run_out_of_memory_is_tried_again_alone(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    wait, come = meet(tmp_path)
    codes = {runs[0].id: f"{IF_FIRST}{wait}; sys.exit(86)", runs[1].id: come}
    known = {"same": Record(Peak(0, GIB), Peak(0, GIB), 3)}
    result, lines = launch(runs, lambda run: codes.get(run.id, "0"), 8, make_packing(runs, known))
    assert result.exit_code == 0
    events = read_events(runs)
    assert events[-2:] == [("started", runs[0].id, 2), ("ended", runs[0].id, 2)]
    assert any("attempt 2, alone)" in line for line in lines)
