"""The guide's grid in small, as a user runs it: one command, stopped and gone on with, and a report of all of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.controllers import CONTROLLERS
from envs.episodes import Header, RecordedEpisode, gather_episodes, write_episodes
from envs.make import make_env
from experiment.plan import plan_runs
from experiment.spec import load_spec
from run_experiment import build_config

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "exp_specs/vae_diffusion_rl_example.yaml"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Eight noisy episodes of the pendulum."""
    controller, env, generator = (
        CONTROLLERS["pendulum_energy"][1],
        make_env("Pendulum-v1", {}),
        np.random.default_rng(0),
    )
    episodes = []
    for seed in range(8):
        obs, _ = env.reset(seed=seed)
        frames, actions, rewards, over = [obs], [], [], False
        while not over:
            action = 2 * np.clip(controller(obs) + generator.standard_normal(1), -1, 1).astype(np.float32)
            obs, reward, _, over, _ = env.step(action)
            frames.append(obs)
            actions.append(action)
            rewards.append([float(reward)])
        parts = (np.array(part, dtype=np.float32) for part in (frames, actions))
        observations, done = (part[:, None] for part in parts)
        episodes.append(RecordedEpisode(observations, done, np.array(rewards, dtype=np.float32), terminated=False))
    env.close()
    bound = np.full((1, 1), 2, dtype=np.float32)
    header = Header("Pendulum-v1", {}, -bound, bound, {"kind": "scripted:pendulum_energy"})
    write_episodes(tmp_path / "noisy.h5", gather_episodes(header, episodes))
    return tmp_path / "noisy.h5"


def test_the_guides_example_is_36_runs_in_54_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = plan_runs(load_spec(EXAMPLE), tmp_path, build_config)
    assert plan.combinations == 54
    assert len({run.id for run in plan.runs}) == 36


def test_the_quick_grid_runs_stops_goes_on_and_reports_every_combination(tmp_path: Path, dataset: Path) -> None:
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", str(ROOT / "exp_specs/diffusion/quick.yaml")]
    command += ["-g", "0", "-j", "2", "--plain", "-o", f"dataset={dataset}"]
    logs = tmp_path / "logs/diffusion_quick"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while not (line := first.stdout.readline()).startswith("done"):
        assert line, "the runner ended before any run did"
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    done_at_first = len(list(logs.glob("*/exit.json")))
    assert 1 <= done_at_first < 12
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=240)
    assert len(list(logs.glob("*/exit.json"))) == 12
    with (logs / "report/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    online = [path for path in logs.glob("*online_training=true*") if path.is_dir()]
    assert len(online) == 8
    for run in online:
        names = set().union(*(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()))
        assert {
            "loss",
            "diffusion_loss",
            "vae_loss",
            "vae_recon_loss",
            "vae_kl_loss",
            "policy_loss",
            "value_loss",
        } <= names
        summary = json.loads((run / "summary.json").read_text())
        # 20 online steps: collections at 0 and 10, of 8 steps in 2 environments; passes at 0, 5, 10 and 15.
        assert (summary["env_steps"], summary["updates"]) == (2 * 8 * 2, 40 + 4)
        assert len(summary["final_eval"]["returns"]) == 4


@pytest.mark.slow
def test_acting_improves_what_was_learnt_from_noisy_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The spec's three seeds, or those in `LEARNING_SEEDS` ("7,8,9")."""
    seeds = os.environ.get("LEARNING_SEEDS", "100,200,300")
    spec = str(ROOT / "exp_specs/diffusion/pendulum.yaml")
    words = ["-e", spec, "-g", "cpu", "-j", "2", "--plain", "-o", f"seed=[{seeds}]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "run_experiment.py"), *words]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=3000)
    means: dict[str, dict[str, float]] = {"offline": {}, "without": {}, "with": {}}
    for path in (tmp_path / "logs/diffusion_pendulum").glob("*/summary.json"):
        label = path.parent.name
        kind = "offline" if "online_training=false" in label else "without" if "weight=0.0" in label else "with"
        means[kind][label.split(",")[0]] = json.loads(path.read_text())["final_eval"]["mean"]
    with capsys.disabled():
        print(f"\ndiffusion, Pendulum-v1: {means}")
    assert len(means["with"]) == len(seeds.split(","))
    for seed, offline in means["offline"].items():
        assert means["with"][seed] >= -300
        assert abs(means["without"][seed] - offline) <= 60
