"""`play.py evaluate` as a user types it: runs and reference policies, other environments, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import play
from analysis.statistics import wilson_interval

ROOT = Path(__file__).parents[2]
PLAY = str(ROOT / "play.py")
GATES = '''
"""A gate to walk through, and a pilot that knows where it is."""
import os
import signal
import gymnasium as gym
import numpy as np
from envs.pilots import PILOTS


class GateEnv(gym.Env):
    """Observes the time; succeeds where the mean action comes near to the gate. Reports measures at its end."""

    def __init__(self, width=0.5, sees_gate=False, dies=False, forgets=False, marks=""):
        self.observation_space = gym.spaces.Box(-2, 2, (2 if sees_gate else 1,))
        self.action_space = gym.spaces.Box(-4, 4, (1,))
        self.width, self.sees_gate, self.dies, self.forgets, self.marks = width, sees_gate, dies, forgets, marks

    def observe(self):
        return np.array([self.time, self.gate][: 2 if self.sees_gate else 1], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time, self.sum, self.length = seed, 0.0, 0.0, 0
        self.gate = float(self.np_random.uniform(-1, 1))
        self.last = int(self.np_random.integers(3, 9))
        return self.observe(), {}

    def step(self, action):
        if self.marks:
            with open(self.marks, "a") as file:
                file.write(f"{os.getpid()}\\n")
        if self.dies and self.seed == 2000020:
            os.kill(os.getpid(), signal.SIGKILL)
        self.length += 1
        self.sum += float(action[0])
        miss = abs(self.sum / self.length - self.gate)
        over = self.length == self.last and not self.marks
        info = {"is_success": miss < self.width, "tracking_error": miss} if over else {}
        if self.forgets and self.seed % 2:
            info = {}
        return self.observe(), -miss, over, False, info


def begin_through_the_gate(env, generator):
    gate = env.unwrapped.gate
    return lambda obs: np.array([gate / 4 + generator.normal(0, 0.05)])


gym.register("Gate-v0", GateEnv, max_episode_steps=10**8)
PILOTS["gatekeeper"] = (("Gate-v0",), begin_through_the_gate)
'''
TD3 = {
    "algorithm_name": "td3",
    "max_timesteps": 60,
    "learning_starts": 20,
    "batch_size": 16,
    "hidden_dims": [16, 16],
    "eval_freq": 30,
    "num_eval": 2,
    "num_final_eval": 20,
    "env_name": "Gate-v0",
    "env_kwargs": {"width": 0.4},
    "eval_env_kwargs": {"width": 0.3},
    "device": "cpu",
}


def find_environment(folder: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{ROOT}"}


def evaluate(folder: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, PLAY, "evaluate", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=find_environment(folder),
    )
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


def pilot(folder: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return evaluate(folder, "--policy", "scripted:gatekeeper", "--imports", "gates", *words, expect=expect)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gates.py").write_text(GATES)
    return tmp_path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small TD3 run on gates that it is evaluated on as narrower ones, trained to its end."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "gates.py").write_text(GATES)
    spec = {"meta_data": {"exp_name": "small", "imports": ["gates"]}, "constants": TD3, "variables": {"seed": [1]}}
    (folder / "spec.yaml").write_text(json.dumps(spec))
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-e", "spec.yaml"],
        cwd=folder,
        check=True,
        capture_output=True,
        env=find_environment(folder),
    )
    (found,) = (folder / "logs" / "small").glob("*__*")
    return found


def read(path: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def test_a_run_is_evaluated_as_its_own_final_evaluation_and_named_with_its_hashes(run_folder: Path) -> None:
    folder = run_folder.parents[2]
    out = folder / "results" / "own.json"
    answer = evaluate(folder, str(run_folder), "--episodes", "20", "--json", str(out))
    final = read(run_folder / "summary.json")["final_eval"]
    written = read(out)
    assert [row["return"] for row in written["episodes"]] == final["returns"]
    assert [row["seed"] for row in written["episodes"]] == final["seeds"]
    assert [row["is_success"] for row in written["episodes"]] == final["measures"]["is_success"]
    assert written["summary"]["tracking_error"] == final["tracking_error"]
    assert written["env_kwargs"] == {"width": 0.3}
    policy = written["policy"]
    assert (policy["run"], policy["checkpoint"]) == (run_folder.name.rpartition("__")[2], "step_00000060")
    assert len(policy["weights_sha256"]) == len(policy["config_sha256"]) == 64
    assert {"code_version", "made"} <= set(written)
    assert f"{run_folder.name}, step_00000060, Gate-v0" in answer.stdout
    assert f"mean return {final['mean']:.1f} +/- {final['std']:.1f}" in answer.stdout


def test_another_environment_changes_what_is_evaluated_and_not_who_acts(run_folder: Path) -> None:
    folder = run_folder.parents[2]
    wide, narrow = folder / "wide.json", folder / "narrow.json"
    evaluate(folder, str(run_folder), "--env-kwargs", "width=9.0", "--json", str(wide))
    evaluate(folder, str(run_folder), "--env-kwargs", "width=0.0", "--json", str(narrow))
    assert read(wide)["policy"] == read(narrow)["policy"]
    assert [read(path)["summary"]["success_rate"] for path in (wide, narrow)] == [1.0, 0.0]
    assert read(wide)["env_kwargs"] == {"width": 9.0}
    answer = evaluate(folder, str(run_folder), "--env-kwargs", "sees_gate=true", expect=2)
    assert answer.stderr.startswith("--env-kwargs: with ")
    assert "Gate-v0 observes Box(-2.0, 2.0, (2,), float32), and Box(-2.0, 2.0, (1,), float32)" in answer.stderr
    assert answer.stderr.count("both must be the same") == 1
    answer = evaluate(folder, str(run_folder), "--env-kwargs", "widht=1.0", "--workers", "4", expect=2)
    assert answer.stderr == "--env-kwargs.widht: Gate-v0 has no argument 'widht'; did you mean 'width'?\n"


@pytest.mark.parametrize("who", ["run", "pilot"])
def test_any_number_of_processes_gives_the_same_numbers(run_folder: Path, tmp_path: Path, who: str) -> None:
    folder = run_folder.parents[2]
    words = {"run": [str(run_folder)], "pilot": ["--policy", "scripted:gatekeeper", "--imports", "gates"]}[who]
    written = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        evaluate(folder, *words, "--episodes", "20", "--workers", workers, "--json", str(out))
        written.append(read(out) | {"made": None})
    assert written[0] == written[1]
    assert len({row["return"] for row in written[0]["episodes"]}) == 20


def test_success_and_its_interval_and_other_means_are_told(folder: Path) -> None:
    answer = pilot(folder, "--episodes", "30", "--env-kwargs", "width=0.08", "--json", "a.json")
    written = read(folder / "a.json")
    successes = int(sum(row["is_success"] for row in written["episodes"]))
    assert 0 < successes < 30
    interval = wilson_interval(successes, 30)
    summary = written["summary"]
    assert summary["success_rate"] == pytest.approx(successes / 30)
    assert summary["success_interval"] == [interval.low, interval.high]
    lines = answer.stdout.splitlines()
    assert lines[0] == 'scripted:gatekeeper, Gate-v0 {"width": 0.08}'
    assert lines[1].startswith("30 episodes on the report seeds: mean return ")
    assert lines[2] == (
        f"success rate {100 * successes / 30:.1f} %, {100 * interval.low:.1f} to {100 * interval.high:.1f} % "
        "(Wilson's 95 % interval)"
    )
    assert lines[3] == f"means: tracking_error {summary['tracking_error']:.4g}"
    assert written["policy"] == {"kind": "scripted", "name": "gatekeeper"}
    assert summary["mean_length"] == sum(row["length"] for row in written["episodes"]) / 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give either the folder of a run or --policy"),
        ("some --policy random", "give either the folder of a run or --policy"),
        ("some --env Pendulum-v1", "--env: a run brings its own"),
        ("some --imports gates", "--imports: a run brings its own"),
        ("some --workers 0", "--workers: give 1 or more"),
        ("some --episodes 2000000", "--episodes: there are 1,000,000 report seeds"),
        ("--policy random --env Pendulum-v1 --env-kwargs g", "--env-kwargs takes key=value"),
    ],
)
def test_bad_usage_is_told_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    try:
        code: int | str | None = play.main(["evaluate", *words.split()])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--policy randm --env Pendulum-v1", 2, "neither 'random' nor 'scripted:<name>'; did you mean 'random'?"),
        ("--policy random --env Pendulum-v9 --workers 2", 2, "did you mean 'Pendulum-v1'"),
        ("--policy random --env Gate-v0 --imports gaits", 2, "'gaits' can't be imported"),
        (
            "--policy random --env Gate-v0 --imports gates --env-kwargs forgets=true",
            1,
            "info['is_success'] is missing in the last step of 8 of 16 episodes, first with seed 2000001",
        ),
    ],
)
def test_what_can_not_be_evaluated_is_told_once_and_nothing_is_written(
    folder: Path, words: str, code: int, said: str
) -> None:
    answer = evaluate(folder, *words.split(), "--json", "out.json", expect=code)
    assert answer.stderr.count(said) == 1
    assert not (folder / "out.json").exists()


def test_a_process_that_dies_ends_the_evaluation(folder: Path) -> None:
    answer = pilot(folder, "--env-kwargs", "dies=true", "--workers", "2", expect=1)
    assert "a process that evaluates ended on the way, with exit code -9" in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_is_left_after_a_stop(folder: Path, number: signal.Signals) -> None:
    marks = folder / "marks"
    kwargs = ["--env-kwargs", f"marks={marks}", "--workers", "2", "--episodes", "64"]
    command = [sys.executable, PLAY, "evaluate", "--policy", "scripted:gatekeeper", "--imports", "gates", *kwargs]
    process = subprocess.Popen(
        command, cwd=folder, env=find_environment(folder), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(pids := read_whole_lines(marks)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert "Traceback" not in said
    for pid in map(int, pids):
        while is_running(pid):
            assert time.monotonic() < deadline, "an evaluating process outlived its command"


def read_whole_lines(path: Path) -> set[str]:
    """Give a growing file's distinct lines without a last one that is half written: half a pid is another's pid."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {line.strip() for line in lines if line.endswith("\n")}


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
