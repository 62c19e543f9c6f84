"""What is known before anything starts, as a user asks for it: `-n` and `--smoke`."""

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

ROOT = Path(__file__).parents[2]
DDPG = "algorithm_name: ddpg, env_name: Pendulum-v1, hidden_dims: [16], batch_size: 8, num_eval: 1, num_final_eval: 1"
WIDE = """\
import gymnasium as gym
import numpy as np


class Wide(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (3000,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = np.zeros(3000, np.float32)
        return self.obs, {}

    def step(self, action):
        return self.obs, 0.0, False, False, {}


gym.register("Wide-v0", entry_point=Wide, max_episode_steps=50)
"""
FORGETFUL = """\
from rl import ddpg
from rl.ddpg_config import DDPGConfig
from training.trainers import TrainerEntry


class Config(DDPGConfig):
    algorithm_name: str


class Forgetful(ddpg.DDPGTrainer):
    def load_state_dict(self, state):
        raise RuntimeError("where did I leave it?")


def build_trainer(config, device):
    return Forgetful(config, device)


TRAINERS = {"forgetful": TrainerEntry("forgetful:Config", "forgetful:build_trainer", "rl.ddpg:count_parameters")}
"""


def make_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def run(folder: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "run_experiment.py"), *words, "-g", "cpu"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "TMPDIR": str(make_folder(folder / "tmp"))},
    )
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


def write_spec(folder: Path, constants: str, variables: str = "seed: [0]", meta: str = "") -> None:
    (folder / "train.py").symlink_to(ROOT / "train.py")
    (folder / "spec.yaml").write_text(f"meta_data: {{{meta}}}\nconstants: {{{constants}}}\nvariables:\n  {variables}\n")


def read_rows(folder: Path, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(folder, "-e", "spec.yaml", "-n", "--json", *words).stdout.splitlines()]


def test_memory_that_is_predicted_comes_near_what_a_run_with_a_large_buffer_takes(tmp_path: Path) -> None:
    """A transition of Wide-v0 has 24,016 bytes, and 5,000 of them 115 MiB."""
    (tmp_path / "wide.py").write_text(WIDE)
    sizes = "env_name: Wide-v0, max_timesteps: 5000, learning_starts: 4990, eval_freq: 0, num_final_eval: 0"
    write_spec(tmp_path, f"algorithm_name: ddpg, {sizes}, save_freq: 0, hidden_dims: [32]", meta="imports: [wide]")
    (row,) = read_rows(tmp_path)
    predicted = row["memory"]
    assert (predicted["gpu_bytes"], predicted["measured"]) == (None, False)
    assert row["hours"] is None
    run(tmp_path, "-e", "spec.yaml", "--plain", "--no-report")
    (summary,) = tmp_path.glob("logs/spec/*/summary.json")
    measured = json.loads(summary.read_text())["memory"]["peak_rss_bytes"]
    assert 0.9 * measured <= predicted["host_bytes"] <= 1.4 * measured
    assert measured > 5_000 * 24_016 + 150 * 2**20
    (again,) = read_rows(tmp_path)
    assert again["memory"] == {"host_bytes": measured, "gpu_bytes": None, "measured": True}


def test_hours_are_known_once_a_run_is_done_exactly_for_its_like_and_about_for_its_shape(tmp_path: Path) -> None:
    learning = "max_timesteps: 40, learning_starts: 10"
    write_spec(tmp_path, f"{DDPG}, {learning}", "seed: [0, 1]\n  batch_size: [8, 16]\n  hidden_dims: [[16], [8]]")
    assert {row["hours"] for row in read_rows(tmp_path)} == {None}
    chosen = ("--only", "seed=0", "--only", "batch_size=8", "--only", "hidden_dims=[16]")
    run(tmp_path, "-e", "spec.yaml", *chosen, "--plain", "--no-report")
    (summary,) = tmp_path.glob("logs/spec/*/summary.json")
    hours = json.loads(summary.read_text())["time"]["wall_s"] / 3600
    rows = read_rows(tmp_path)
    told = {(row["settings"]["batch_size"], tuple(row["settings"]["hidden_dims"])): row for row in rows[4:]}
    assert [row["settings"]["seed"] for row in rows[4:]] == [1] * 4
    assert told[8, (16,)]["hours"] == pytest.approx(hours, abs=1e-6)
    assert told[16, (16,)]["hours"] == pytest.approx(hours, abs=1e-6)
    assert [told[size, (16,)]["hours_by_nearest"] for size in (8, 16)] == [False, True]
    assert [told[size, (8,)]["hours"] for size in (8, 16)] == [None, None]
    text = run(tmp_path, "-e", "spec.yaml", "-n", "-j", "2").stdout
    assert "of training left in 3 runs (2 by the nearest run, 4 more not known)" in text
    assert "2 at a time on cpu" in text


def test_settings_that_cannot_fit_are_named_in_the_spec_before_anything_starts(tmp_path: Path) -> None:
    write_spec(tmp_path, f"{DDPG}, max_timesteps: 100000000000", "buffer_size: [1000, 100000000000]")
    for words in (("-n",), ("--plain",), ("--smoke",)):
        answer = run(tmp_path, "-e", "spec.yaml", *words, expect=2)
        assert "spec.yaml:4:23: buffer_size: 100,000,000,000 transitions of 36 bytes are 3,352.8 GiB" in answer.stderr
        assert "(1 of 2 runs)" in answer.stderr
        assert not (tmp_path / "logs").exists()
    shown = run(tmp_path, "-e", "spec.yaml", "-n", "--no-count")
    assert "2 runs: 2 PENDING" in shown.stdout


def test_networks_that_cannot_fit_are_named_by_a_dry_run(tmp_path: Path) -> None:
    write_spec(tmp_path, f"{DDPG}, max_timesteps: 20000", "hidden_dims: [[16], [200000, 200000]]")
    answer = run(tmp_path, "-e", "spec.yaml", "-n", expect=2)
    assert "spec.yaml:4:23: hidden_dims: training is estimated to take" in answer.stderr
    assert "(1 of 2 runs)" in answer.stderr


def test_a_smoke_run_learns_stops_goes_on_evaluates_and_leaves_nothing(tmp_path: Path) -> None:
    write_spec(tmp_path, DDPG, "learning_rate: [1e-4, 1e-3]\n  seed: [0, 1, 2]\n  noise_type: [gaussian, ou]")
    answer = run(tmp_path, "-e", "spec.yaml", "--smoke", "-j", "2")
    lines = answer.stdout.splitlines()
    assert lines[0] == "2 kinds of run, 2 at a time on cpu"
    assert [line.split()[0] for line in lines[1:3]] == ["ok", "ok"]
    assert all("(and 5 like it)" in line and "peak" in line and "predicted" in line for line in lines[1:3])
    assert lines[3:] == ["2 ok"]
    assert not list(tmp_path.glob("tmp/*"))
    assert not (tmp_path / "logs").exists()


def test_a_trainer_that_cannot_resume_fails_a_smoke_run_and_what_it_wrote_is_kept(tmp_path: Path) -> None:
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    write_spec(tmp_path, DDPG, "algorithm_name: [ddpg, forgetful]", "imports: [forgetful]")
    answer = run(tmp_path, "-e", "spec.yaml", "--smoke", "-j", "2", expect=1)
    assert "ok      algorithm_name=ddpg" in answer.stdout
    failed = "FAILED  algorithm_name=forgetful: error after it went on from its checkpoint: RuntimeError: where did I"
    assert failed in answer.stdout
    assert "        | RuntimeError: where did I leave it?" in answer.stdout
    (scratch,) = tmp_path.glob("tmp/gridpilot-smoke-*")
    assert f"1 ok, 1 failed; kept: {scratch}" in answer.stdout
    assert len(list(scratch.glob("spec/*/config.yaml"))) == 2


def test_a_smoke_run_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    write_spec(tmp_path, DDPG)
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", "--smoke", "-g", "cpu"]
    place = os.environ | {"TMPDIR": str(make_folder(tmp_path / "tmp"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=place, **pipes) as smoke:
        assert smoke.stdout is not None
        assert smoke.stdout.readline() == "1 kind of run, 1 at a time on cpu\n"
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("tmp/*/*/*/attempts/001/console.log")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        smoke.send_signal(signal.SIGINT)
        assert smoke.wait(timeout=90) == 130
        assert smoke.stderr is not None
        assert smoke.stderr.read() == "Stopped; what the short runs wrote is deleted.\n"
    assert not list(tmp_path.glob("tmp/*"))


def test_a_script_that_is_not_ours_is_not_cut_short(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("")
    (tmp_path / "spec.yaml").write_text("meta_data: {script_path: work.py}\nvariables:\n  index: [0]\n")
    answer = run(tmp_path, "-e", "spec.yaml", "--smoke", expect=2)
    assert "work.py is not ours" in answer.stderr
    assert not (tmp_path / "logs").exists()
    answer = run(tmp_path, "-e", "spec.yaml", "--smoke", "-n", expect=2)
    assert "give one of them" in answer.stderr


SPECS = """
ddpg/residual_track ddpg/batch_ladder_samples td3/pendulum sac/pendulum offline/pendulum tdmpc2/pendulum
vmamba_td3/memory_cue diffusion/quick
"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.split())
def test_specs_of_every_trainer_pass(tmp_path: Path, spec: str) -> None:
    words = ("-e", str(ROOT / f"exp_specs/{spec}.yaml"), "--smoke", "--log-root", str(tmp_path))
    answer = subprocess.run(
        [sys.executable, "run_experiment.py", *words, "-g", "cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_not_asked_for_what_this_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(WIDE)
    short = "max_timesteps: 20, learning_starts: 10, eval_freq: 0, num_final_eval: 0, hidden_dims: [8], batch_size: 4"
    write_spec(tmp_path, f"algorithm_name: ddpg, env_name: Wide-v0, {short}", meta="imports: [wide]")
    run(tmp_path, "-e", "spec.yaml", "--plain", "--no-report")
    (tmp_path / "wide.py").unlink()
    again = run(tmp_path, "-e", "spec.yaml", "--plain", "--no-report")
    assert "1 done" in again.stdout
    refused = run(tmp_path, "-e", "spec.yaml", "--plain", "--no-report", "--rerun", "all", expect=2)
    assert "wide" in refused.stderr
