"""Whoever takes part in a sweep of forked runs is killed at random: every run is done once, to the same bits.

Runner, fork server, supervisors and trainings are killed by SIGKILL, one at a time, at random moments. The training
itself writes down which steps it takes, so that it shows whether a run went on from its checkpoint.
"""

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experiment.locks import is_locked
from tests.chaos.test_chaos import LEAVES_WITHIN_S, list_processes, wait_until_gone
from tests.cores import take_two_cores

ROOT = Path(__file__).parents[2]
RUNS, STEPS = 8, 12
PARTS = {"runner": 1, "server": 2, "watch": 6, "train": 6}
"""Who is killed how often, relative to each other: supervisors and trainings are there for a part of the time alone."""

TRAINER = """
import fcntl, os, time
from typing import Literal
from training.config import TrainerConfig
from training.trainers import TrainerEntry

TRAINERS = {"steps": TrainerEntry("steps:Config", "steps:build_trainer", "steps:count_parameters")}
STEP_S = 0.05


class Config(TrainerConfig):
    algorithm_name: Literal["steps"]


def count_parameters(config):
    return {}


def write(word):
    log = os.open("truth.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{os.path.basename(os.environ['GRIDPILOT_RUN_DIR'])} {os.getpid()} {word}\\n".encode())
    os.close(log)


def build_trainer(config, device):
    import torch
    from training.protocol import StepResult

    # A lock of its own, so that two lives of one run at a time would be seen.
    alive = open(os.environ["GRIDPILOT_RUN_DIR"] + "/alive", "w")
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        write("DOUBLE")
        raise

    class Stepper:
        references = None
        resume_mode = "exact"
        resume_reason = None

        def __init__(self):
            self.alive = alive
            self.step, self.value = 0, torch.rand(8)

        def train_step(self):
            self.step += 1
            write(self.step)
            until = time.process_time() + STEP_S
            value = self.value + torch.rand(8)
            while time.process_time() < until:
                self.value = torch.sin(value * self.step)
            return StepResult({"train/value": self.value.sum()}, updates=1)

        def components(self):
            return {}

        def state_dict(self):
            return {"step": self.step, "value": self.value}

        def load_state_dict(self, state):
            self.step, self.value = state["step"], state["value"]

        def treat(self, treatment):
            pass

        def redraw(self, number):
            pass

        def close(self):
            pass

    return Stepper()
"""
SPEC = f"""
meta_data: {{exp_name: chaos, imports: [steps], num_workers: 2}}
constants: {{algorithm_name: steps, env_name: none, max_timesteps: {STEPS}, learning_starts: 0, save_freq: 1,
  keep_last: 1, eval_freq: 0, num_final_eval: 0, log_freq: 4}}
variables:
  seed: {list(range(RUNS))}
"""


@dataclass
class Sweep:
    """One sweep in a folder of its own, launched as often as it takes."""

    folder: Path
    mark: str = ""
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "steps.py").write_text(TRAINER)
        (self.folder / "spec.yaml").write_text(SPEC)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        self.mark = uuid.uuid4().hex
        command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", "-g", "cpu", "--plain"]
        with (self.folder / "runner.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--no-report", *(words or ("--retry", "1000"))],
                cwd=self.folder,
                env=os.environ | {"GRIDPILOT_TEST_MARK": self.mark, "PYTHONPATH": str(self.folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=take_two_cores,
            )

    def run(self, generator: random.Random, kills: int) -> None:
        """Launch it until it is done, killing one of its processes at a time, so often in all."""
        while True:
            runner = self.start()
            while runner.poll() is None:
                left = kills - sum(self.kills.values())
                try:
                    runner.wait(generator.uniform(0.0, 0.6) if left > 0 else None)
                except subprocess.TimeoutExpired:
                    self.kill_one(generator, runner)
            assert wait_until_gone(self.mark) < LEAVES_WITHIN_S
            if runner.returncode == 0:
                return
            assert runner.returncode == -9, (self.folder / "runner.log").read_text()

    def kill_one(self, generator: random.Random, runner: subprocess.Popen[bytes]) -> None:
        """Kill one process of a part that is drawn first, so that each part has its share."""
        parts = defaultdict(list)
        for pid in list_processes(self.mark):
            parts[name_part(pid, runner.pid)].append(pid)
        (part,) = generator.choices(list(PARTS), list(PARTS.values()))
        if parts[part]:
            try:
                os.kill(generator.choice(sorted(parts[part])), 9)
            except ProcessLookupError:
                return
            self.kills[part] += 1

    def read_steps(self) -> dict[str, list[list[int]]]:
        """Give the steps of each run, a list for each life of it."""
        lives: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for line in (self.folder / "truth.log").read_text().splitlines():
            name, pid, word = line.split()
            lives[name][pid].append(int(word))
        return {name: list(own.values()) for name, own in lives.items()}

    def check(self, expected: dict[str, object]) -> None:
        runs = sorted((self.folder / "logs/chaos").glob("*__*"))
        assert len(runs) == RUNS
        steps = self.read_steps()
        for run in runs:
            endings = [json.loads(path.read_text()) for path in run.glob("attempts/*/exit.json")]
            assert sum(ending["ok"] for ending in endings) == 1, run
            assert json.loads((run / "exit.json").read_text())["ok"]
            assert not is_locked(run / "lock")
            assert json.loads((run / "summary.json").read_text())["state_hash"] == expected[run.name]
            check_lives(steps[run.name])


def check_lives(lives: list[list[int]]) -> None:
    """Each life goes on from the checkpoint of the last step, or repeats that step where it wasn't saved yet."""
    last = 0
    for life in lives:
        assert life[0] in (last, last + 1) or (last == 0 and life[0] == 1), lives
        assert life == list(range(life[0], life[0] + len(life))), lives
        last = life[-1]
    assert last == STEPS, lives


def name_part(pid: int, runner: int) -> str:
    if pid == runner:
        return "runner"
    try:
        name = Path(f"/proc/{pid}/comm").read_text().split()[0]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return "gone"
    if name in PARTS:
        return name
    return "server" if b"--fork-server" in words else "other"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The final state of each run of a sweep that nobody disturbs, by name."""
    sweep = Sweep(tmp_path_factory.mktemp("straight") / "sweep")
    sweep.run(random.Random(0), kills=0)
    assert all(len(lives) == 1 for lives in sweep.read_steps().values())
    return {
        path.parent.name: json.loads(path.read_text())["state_hash"]
        for path in sweep.folder.glob("logs/chaos/*/summary.json")
    }


def test_no_run_is_lost_or_doubled_when_anything_is_killed(tmp_path: Path, expected: dict[str, object]) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.run(random.Random(5), kills=8)
    assert sum(sweep.kills.values()) >= 1
    sweep.check(expected)


def test_a_sweep_gets_over_the_chaos_that_it_was_asked_to_make(tmp_path: Path, expected: dict[str, object]) -> None:
    sweep = Sweep(tmp_path / "sweep")
    runner = sweep.start("--chaos", "0.5")
    assert runner.wait(180) == 0
    assert wait_until_gone(sweep.mark) < LEAVES_WITHIN_S
    sweep.check(expected)
    told = [line for line in (sweep.folder / "runner.log").read_text().splitlines() if line.startswith("chaos: killed")]
    # The last line sums up the others.
    assert len(told) - 1 == sum(int(word) for word in told[-1].replace(",", "").split() if word.isdecimal()) > 0


@pytest.mark.slow
def test_no_run_is_lost_or_doubled_in_five_hundred_kills(
    tmp_path: Path, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    generator = random.Random(int(os.environ.get("CHAOS_SEED", "0")))
    kills: Counter[str] = Counter()
    started, sweeps = time.monotonic(), 0
    while sum(kills.values()) < 500 or sweeps < 20:
        sweep = Sweep(tmp_path / f"sweep{sweeps}")
        sweep.run(generator, kills=25)
        sweep.check(expected)
        kills += sweep.kills
        sweeps += 1
    with capsys.disabled():
        minutes = (time.monotonic() - started) / 60
        print(f"\n{sum(kills.values())} kills over {sweeps} sweeps of {RUNS} runs, {dict(kills)}, in {minutes:.0f} min")


def test_lives_that_lose_or_repeat_steps_are_seen() -> None:
    check_lives([[1, 2, 3], [3, 4, 5], [6, *range(7, STEPS + 1)]])
    for wrong in ([[1, 2, 3], [5, *range(6, STEPS + 1)]], [[1, 2, 3], list(range(1, STEPS + 1))], [[1, 2]]):
        with pytest.raises(AssertionError):
            check_lives(wrong)
