"""The runner is killed at random moments, again and again: no run is lost, none is doubled, no process is left."""

import json
import os
import random
import select
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = 24
LEAVES_WITHIN_S = 5.0

# Each run marks that it is alive by a lock of its own, so that two lives of one run at a time would be seen. A third
# of them leave processes behind that ignore SIGTERM and have detached themselves.
SCRIPT = """
import fcntl, os, random, signal, sys, time
run_dir = os.environ["GRIDPILOT_RUN_DIR"]
truth = os.open("truth.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
name = os.path.basename(run_dir)
alive = open(run_dir + "/alive", "w")
try:
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(truth, f"DOUBLE {name}\\n".encode())
    raise SystemExit(1)
os.set_inheritable(alive.fileno(), False)
os.write(truth, f"START {name}\\n".encode())
if random.random() < 0.34 and os.fork() == 0:
    alive.close()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.pause()
deadline = time.monotonic() + random.uniform(0.0, 0.4)
while time.monotonic() < deadline:
    sum(range(1000))
os.write(truth, f"END {name}\\n".encode())
"""
SPEC = """
meta_data: {exp_name: chaos, script_path: work.py, num_workers: 4}
variables:
  index: [%s]
"""


def make_project(folder: Path) -> None:
    folder.mkdir()
    (folder / "work.py").write_text(SCRIPT)
    (folder / "spec.yaml").write_text(SPEC % ", ".join(map(str, range(RUNS))))


def start_runner(folder: Path, mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", "-g", "cpu", "--plain"],
        cwd=folder,
        env=os.environ | {"GRIDPILOT_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def list_processes(mark: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mark.encode() in Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def wait_until_gone(mark: str) -> float:
    """Give the seconds until no process with the mark is left; fails after twice the time allowed."""
    started = time.monotonic()
    while processes := list_processes(mark):
        waited = time.monotonic() - started
        assert waited < 2 * LEAVES_WITHIN_S, f"still there: {processes}"
        descriptors = []
        for pid in processes:
            try:
                descriptors.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
        select.select(descriptors, [], [], 0.2)
        for descriptor in descriptors:
            os.close(descriptor)
    return time.monotonic() - started


def check_sweep(folder: Path) -> None:
    """Each run has exactly one finished attempt, and was never alive twice at a time."""
    runs = [path for path in (folder / "logs/chaos").iterdir() if "__" in path.name]
    assert len(runs) == RUNS
    for run in runs:
        endings = [json.loads(path.read_text()) for path in run.glob("attempts/*/exit.json")]
        assert sum(ending["ok"] for ending in endings) == 1, run
        assert json.loads((run / "exit.json").read_text())["ok"]
    words = Counter(line.split()[0] for line in (folder / "truth.log").read_text().splitlines())
    assert words["DOUBLE"] == 0
    assert words["END"] >= RUNS


def torture(folder: Path, runners: int, kills: int, seed: int) -> tuple[int, float]:
    """Kill runners at random moments until so many kills were made; give sweeps completed and the longest clean-up."""
    generator = random.Random(seed)
    killed = sweeps = 0
    longest = 0.0
    while killed < kills:
        project = folder / f"sweep{sweeps}"
        make_project(project)
        finished = False
        while not finished:
            mark = uuid.uuid4().hex
            alive = [start_runner(project, mark) for _ in range(runners)]
            try:
                alive[0].wait(generator.uniform(0.15, 2.0) if killed < kills else None)
                finished = alive[0].returncode == 0
            except subprocess.TimeoutExpired:
                pass
            for runner in alive:
                if not finished and runner.poll() is None:
                    runner.kill()
                    killed += 1
                runner.wait()
            longest = max(longest, wait_until_gone(mark))
        check_sweep(project)
        sweeps += 1
    return sweeps, longest


@pytest.mark.parametrize("runners", [1, 2])
def test_no_run_is_lost_or_doubled_when_runners_are_killed(tmp_path: Path, runners: int) -> None:
    sweeps, longest = torture(tmp_path, runners, kills=6, seed=runners)
    assert sweeps >= 1
    assert longest < LEAVES_WITHIN_S


@pytest.mark.slow
@pytest.mark.parametrize("runners", [1, 2])
def test_no_run_is_lost_or_doubled_in_two_hundred_kills(
    tmp_path: Path, runners: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps, longest = torture(tmp_path, runners, kills=200, seed=runners)
    with capsys.disabled():
        print(f"\n{runners} runner(s): 200 kills over {sweeps} sweeps of {RUNS}; all gone {longest:.2f} s after a kill")
    assert longest < LEAVES_WITHIN_S
