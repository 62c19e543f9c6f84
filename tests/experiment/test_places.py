"""Fixed places, and how many of them a command line asks for."""

from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from experiment.cli import main
from experiment.devices import CPU, Device, Gpu
from experiment.engines.local import Handle
from experiment.places import Choice, FixedPlaces
from experiment.run import Run
from experiment.schedule import Ending
from experiment.spec import load_spec
from experiment.sweep import choose_jobs
from run_experiment import build_config

GPUS = [Gpu(index, index, f"GPU-{index}", "A", 80) for index in range(2)]
OOM = Ending("oom", 86)


def make_runs(count: int) -> list[Run]:
    return [Run.create_path(Path("logs/x"), f"seed={index}", f"{index:016x}") for index in range(count)]


def begin(places: FixedPlaces, choice: Choice) -> Handle:
    handle = cast(Handle, SimpleNamespace(run=choice.run))
    places.begin(choice, handle)
    return handle


def start_all(places: FixedPlaces, waiting: list[Run]) -> dict[Run, tuple[int, Handle]]:
    started = {}
    while (choice := places.choose(waiting)) is not None:
        waiting.remove(choice.run)
        started[choice.run] = (choice.device, begin(places, choice))
    return started


def test_runs_start_in_plan_order_and_fill_all_devices_evenly() -> None:
    waiting = make_runs(9)
    started = start_all(FixedPlaces(2, 6), waiting)
    assert list(started) == make_runs(6)
    assert Counter(device for device, _ in started.values()) == {0: 3, 1: 3}


def test_a_run_that_is_to_be_alone_waits_for_all_others_and_nothing_joins_it() -> None:
    places, waiting = FixedPlaces(2, 4), make_runs(4)
    started = start_all(places, waiting)
    sick = make_runs(1)[0]
    assert places.had_company(started[sick][1], OOM)
    places.end(started.pop(sick)[1], OOM)
    places.isolate(sick, OOM)
    waiting += [sick, *make_runs(6)[4:]]
    started |= start_all(places, waiting)
    assert waiting == [sick, make_runs(6)[5]]
    places.end(started.popitem()[1][1], Ending("ok", 0))
    started |= start_all(places, waiting)
    assert waiting == [sick]
    for _, handle in started.values():
        assert start_all(places, waiting) == {}
        places.end(handle, Ending("ok", 0))
    choice = places.choose(waiting)
    assert choice is not None
    assert (choice.run, choice.remark) == (sick, "alone")
    handle = begin(places, choice)
    assert places.choose(make_runs(6)[5:]) is None
    assert not places.had_company(handle, OOM)


@pytest.mark.parametrize(
    ("words", "devices", "jobs"),
    [
        ({"jobs": None, "jobs_per_gpu": 3}, 2, 6),
        ({"jobs": 5, "jobs_per_gpu": None}, 2, 5),
        ({"jobs": None, "jobs_per_gpu": None}, 2, 7),
    ],
)
def test_flags_win_over_num_workers_and_jobs_per_gpu_counts_for_each(
    tmp_path: Path, words: dict[str, int | None], devices: int, jobs: int
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("meta_data: {script_path: x.py, num_workers: 7}\nvariables: {seed: [1]}\n")
    (tmp_path / "x.py").touch()
    path.write_text(path.read_text().replace("x.py", str(tmp_path / "x.py")))
    chosen = [Device(gpu) for gpu in GPUS[:devices]]
    assert choose_jobs(load_spec(path, ()), Namespace(**words), chosen) == jobs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-j", "2", "--jobs-per-gpu", "2"], "give one of them"),
        (["-j", "auto", "--jobs-per-gpu", "2"], "give one of them"),
        (["-g", "cpu", "--jobs-per-gpu", "2"], "-j auto finds out"),
        (["-j", "all"], "not a whole number of at least 1, nor auto"),
        (["-j", "0"], "not a whole number of at least 1, nor auto"),
    ],
)
def test_numbers_of_runs_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "x.yaml").write_text(
        "variables: {seed: [1]}\nconstants: {algorithm_name: ddpg, env_name: Pendulum-v1}\n"
    )
    with pytest.raises(SystemExit, match="2"):
        main(["-e", str(tmp_path / "x.yaml"), *words], build_config)
    assert message in capsys.readouterr().err


def test_without_readings_of_gpus_auto_starts_nothing_and_says_what_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work.py").touch()
    Path("x.yaml").write_text("meta_data: {script_path: work.py}\nvariables: {seed: [1]}\n")
    assert main(["-e", "x.yaml", "-g", "0", "-j", "auto"], build_config, lambda: GPUS) == 3
    error = capsys.readouterr().err
    assert "the memory of GPU GPU-0 can't be read" in error
    assert "--jobs-per-gpu N" in error
    assert not Path("logs").exists()


def test_the_cpu_is_one_device(tmp_path: Path) -> None:
    assert [device for device, _ in start_all(FixedPlaces(len([CPU]), 3), make_runs(5)).values()] == [0, 0, 0]
