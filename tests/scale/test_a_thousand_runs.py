"""The commands on experiments of a thousand runs. Times are of the CPU: what others do on the machine isn't ours."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from experiment.run import Run, claim_run, find_runs
from tests.commands.test_run_experiment import ROOT, RUNNER
from tests.scale.many_runs import GRID, RANDOM, ManyRuns

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Answer:
    """What a command printed, the CPU seconds that it and its children took, the most memory that one of them had."""

    text: str
    cpu_s: float
    peak_bytes: int


@pytest.fixture(scope="module")
def many() -> Iterator[Path]:
    """A folder with a grid of a thousand runs in every state, some held, and a search whose thousand runs are done."""
    # Twenty thousand names are made and removed at once in memory, and in a minute on a disk that others write to.
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and shutil.disk_usage(memory).free > 256 * MEBIBYTE else None
    with TemporaryDirectory(prefix="thousand-runs-", dir=place) as folder:
        builder = ManyRuns(Path(folder))
        builder.write(GRID)
        builder.write(RANDOM, only_done=True)
        yield builder.root
        builder.close()


# The kernel counts the memory of whoever starts a program as the program's own, and ours may be large by now.
SMALL_STARTER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def run(folder: Path, *words: str) -> Answer:
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", SMALL_STARTER, sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    text, _, kibibytes = process.stdout.read().rstrip().rpartition("\n")
    process.stdout.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, text
    return Answer(text + "\n", used.ru_utime + used.ru_stime, int(kibibytes) * 1024)


def test_the_status_of_a_thousand_runs_takes_less_than_a_second(many: Path) -> None:
    answer = run(many, str(RUNNER), "status", "-e", "logs/grid", "--json")
    states = Counter(json.loads(line)["status"] for line in answer.text.splitlines())
    assert states == {"DONE": 946, "RUNNING": 4, "FAILED": 10, "STOPPED": 10, "LOST": 10, "PENDING": 20}
    assert answer.cpu_s < 1
    answer = run(many, str(RUNNER), "status", "-e", "random.yaml")
    assert "\n1000 DONE\n" in answer.text
    assert answer.cpu_s < 1


def test_one_of_a_thousand_runs_is_found_at_once(many: Path) -> None:
    wanted = next(found for found in find_runs(many / "logs/random") if found.is_done())
    for view in ("why", "logs"):
        answer = run(many, str(RUNNER), view, wanted.id)
        assert wanted.label in answer.text
        assert answer.cpu_s < 1


def test_what_may_go_of_a_thousand_runs_is_found_in_little_time(many: Path) -> None:
    answer = run(many, str(RUNNER), "gc", "-e", "logs/grid")
    # Of each of the finished runs that have checkpoints the older one with its manifest.
    assert "\n196 files, " in answer.text
    assert answer.cpu_s < 2


def test_a_thousand_finished_runs_are_shown_and_launched_again_in_little_time(many: Path) -> None:
    answer = run(many, str(RUNNER), "-e", "random.yaml", "-n", "--no-count")
    assert answer.text.endswith("1000 runs: 1000 DONE; in logs/random\n")
    assert answer.cpu_s < 2
    answer = run(many, str(RUNNER), "-e", "random.yaml", "-g", "cpu", "--no-report")
    assert answer.text.endswith("\n1000 done\n")
    assert answer.cpu_s < 4


def test_the_report_of_a_hundred_arms_is_made_in_time_and_says_what_it_shows(many: Path) -> None:
    answer = run(many, "-m", "analysis.report", "logs/grid")
    assert answer.cpu_s < 20
    assert answer.peak_bytes < 1000 * MEBIBYTE
    assert answer.text.startswith("946 of 1000 runs finished. Best: learning_rate=0.001, batch_size=192, IQM")
    assert "... and 80 more rows" in answer.text
    report = many / "logs/grid/report"
    with (report / "returns.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 100
    with (report / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1000
    said = (
        "Of 100 arms, the 8 best and the 4 worst by their final returns, best first. 33 that can't be ranked are left"
    )
    assert said in (report / "report.md").read_text()
    assert (report / "returns_map.png").exists()


def test_the_report_of_two_hundred_random_points_shows_returns_over_each_variable(many: Path) -> None:
    answer = run(many, "-m", "analysis.report", "logs/random")
    assert answer.cpu_s < 20
    assert answer.peak_bytes < 1000 * MEBIBYTE
    report = many / "logs/random/report"
    with (report / "random_variables.csv").open() as file:
        assert [row["variable"] for row in csv.DictReader(file)] == ["learning_rate", "batch_size", "tau", "noise_type"]
    assert (report / "random_variables.png").exists()
    assert {path.stem for path in report.glob("returns*.csv")} == {"returns"}


def test_a_run_is_claimed_without_a_look_at_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (tmp_path / f"seed={number}__{number:016x}").mkdir()
    opened: list[Path] = []

    def note(folder: Path, run_id: str, label: str) -> Run:
        opened.append(folder)
        return Run(folder, run_id, label)

    wanted = Run.create_path(tmp_path, "renamed=7", f"{7:016x}")
    monkeypatch.setattr("experiment.run.Run", note)
    found, lock = claim_run(wanted)
    assert lock is not None
    os.close(lock)
    assert found.folder.name == f"seed=7__{7:016x}"
    assert opened == [found.folder]
