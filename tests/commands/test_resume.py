"""Straight equals resumed: training killed at random moments ends in the bits of the training left alone."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiment.run import Run, State, find_runs
from training.checkpoint import load_checkpoint
from training.resources import hash_state

ROOT = Path(__file__).parents[2]
BASE = ["--algorithm_name", "ddpg", "--hidden_dims", "32", "32", "--batch_size", "32", "--noise_type", "ou"]


def start(folder: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(ROOT / "train.py"), *BASE, *settings, "--log-root", "logs"]
    console = (folder / "console.txt").open("ab")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with console:
        return subprocess.Popen(words, cwd=folder, stdout=console, stderr=console, env=environment)


def find_run(folder: Path) -> Run:
    (run,) = find_runs(next((folder / "logs").iterdir()))
    return run


def train_straight(folder: Path, settings: Sequence[str]) -> tuple[Run, float]:
    """Train to the end; give the run and the seconds that training itself took, the start of the process apart."""
    folder.mkdir()
    assert start(folder, settings).wait(900) == 0, (folder / "console.txt").read_text()
    run = find_run(folder)
    return run, json.loads(run.summary_path.read_text())["time"]["wall_s"]


def train_with_kills(folder: Path, settings: Sequence[str], kills: int, length_s: float, seed: int) -> Run:
    """Train to the end, killed at random moments on the way, each some way after training itself has begun."""
    folder.mkdir()
    generator = random.Random(seed)
    share = length_s / (kills + 1)
    for _ in range(kills):
        process = start(folder, settings)
        wait_for_training(folder, process)
        try:
            process.wait(generator.uniform(0.0, 2 * share))
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.wait() in (0, -9), (folder / "console.txt").read_text()
    assert start(folder, settings).wait(900) == 0, (folder / "console.txt").read_text()
    return find_run(folder)


def wait_for_training(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the attempt has written something: a row, a checkpoint, or that it resumed."""
    before = measure(folder)
    deadline = time.monotonic() + 120
    while process.poll() is None and measure(folder) == before:
        assert time.monotonic() < deadline
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue


def measure(folder: Path) -> tuple[int, int]:
    rows = sum(path.stat().st_size for path in folder.glob("logs/*/*/metrics.jsonl"))
    return rows, (folder / "console.txt").stat().st_size


def read_rows(run: Run) -> list[dict[str, Any]]:
    """Give the metrics without what the clock on the wall decides."""
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not is_clock(key)} for row in rows]


def is_clock(key: str) -> bool:
    return key == "wall_time" or key.startswith("time/")


def read_state(run: Run) -> Mapping[str, Any]:
    """Give what the last checkpoint says of the trainer: networks, optimizers, buffer, generators, environment."""
    newest = max(run.checkpoints_dir.glob("step_*.pt"))
    state = load_checkpoint(newest).state["trainer"]
    assert isinstance(state, dict)
    return state


def check_equal(straight: Run, resumed: Run) -> None:
    assert resumed.status().state is State.DONE
    first, second = read_state(straight), read_state(resumed)
    assert first.keys() == second.keys()
    differing = [key for key in first if hash_state({key: first[key]}) != hash_state({key: second[key]})]
    assert differing == []
    assert read_rows(straight) == read_rows(resumed)
    summaries = [json.loads(run.summary_path.read_text()) for run in (straight, resumed)]
    for key in ("final_eval", "best_eval", "state_hash", "parameters", "steps", "updates", "resume"):
        assert summaries[0][key] == summaries[1][key], key
    assert summaries[1]["resume"] == "exact"


def check_straight_equals_resumed(folder: Path, settings: Sequence[str], kills: int) -> Run:
    straight, length_s = train_straight(folder / "straight", settings)
    resumed = train_with_kills(folder / "resumed", settings, kills, length_s, seed=kills)
    check_equal(straight, resumed)
    return resumed


def test_a_pendulum_run_killed_twice_ends_in_the_same_bits(tmp_path: Path) -> None:
    settings = "--env_name Pendulum-v1 --max_timesteps 2500 --learning_starts 200 --save_freq 130 --keep_replay true"
    more = "--eval_freq 400 --num_eval 2 --log_freq 90"
    resumed = check_straight_equals_resumed(tmp_path, f"{settings} {more}".split(), kills=2)
    assert resumed.last_attempt() >= 2


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["Pendulum-v1", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"])
def test_a_run_killed_twenty_times_ends_in_the_same_bits(tmp_path: Path, environment: str) -> None:
    settings = f"--env_name {environment} --max_timesteps 6000 --learning_starts 500 --save_freq 100 --keep_replay true"
    more = "--eval_freq 700 --num_eval 3 --log_freq 150"
    resumed = check_straight_equals_resumed(tmp_path, f"{settings} {more}".split(), kills=20)
    # A kill may find the run finished; most must not.
    assert resumed.last_attempt() >= 15


@pytest.mark.parametrize("environment", ["Pendulum-v1", pytest.param("Humanoid-v5", marks=pytest.mark.slow)])
def test_evaluating_changes_no_bit_of_training(tmp_path: Path, environment: str) -> None:
    settings = f"--env_name {environment} --max_timesteps 900 --learning_starts 200 --keep_replay true".split()
    often, _ = train_straight(tmp_path / "often", [*settings, "--eval_freq", "100", "--num_eval", "2"])
    never, _ = train_straight(tmp_path / "never", [*settings, "--eval_freq", "0"])
    assert hash_state(dict(read_state(often))) == hash_state(dict(read_state(never)))


def test_training_stopped_by_sigterm_checkpoints_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = "--env_name Pendulum-v1 --max_timesteps 1500 --learning_starts 200 --save_freq 0 --keep_replay true"
    words = [*settings.split(), "--log_freq", "100", "--eval_freq", "0"]
    straight, _ = train_straight(tmp_path / "straight", words)
    folder = tmp_path / "stopped"
    folder.mkdir()
    process = start(folder, words)
    wait_for_training(folder, process)
    process.terminate()
    assert process.wait(60) == 75
    assert find_run(folder).status().state is State.STOPPED
    assert start(folder, words).wait(300) == 0
    check_equal(straight, find_run(folder))
