"""Sweeps of our trainers, forked and as fresh processes: the same to the bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cores import take_two_cores

ROOT = Path(__file__).parents[2]
SPECS = {
    "ddpg": {"batch_size": 16, "hidden_dims": [16]},
    "tdmpc2": {
        "batch_size": 4,
        "mlp_dim": 16,
        "latent_dim": 16,
        "enc_dim": 16,
        "num_samples": 16,
        "num_elites": 4,
        "num_pi_trajs": 4,
    },
}


def run_sweep(folder: Path, settings: dict[str, Any], words: list[str]) -> str:
    spec = {
        "meta_data": {"exp_name": "sweep"},
        "constants": {
            "env_name": "Pendulum-v1",
            "max_timesteps": 90,
            "learning_starts": 60,
            "num_eval": 1,
            "eval_freq": 80,
            "num_final_eval": 1,
        }
        | settings,
        "variables": {"seed": [1, 2]},
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", "-g", "cpu", "-j", "2", "--plain"]
    done = subprocess.run(
        [*command, "--no-report", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=take_two_cores,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_results(folder: Path) -> dict[str, Any]:
    results = {}
    for run in folder.glob("logs/sweep/*__*"):
        summary = json.loads((run / "summary.json").read_text())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if k != "wall_time" and not k.startswith("time/")} for row in rows]
        results[run.name] = (summary["state_hash"], summary["final_eval"], summary["best_eval"], kept)
    return results


def count_started(folder: Path) -> list[bool]:
    events = [json.loads(line) for line in (folder / "logs/sweep/events.jsonl").read_text().splitlines()]
    return [event["warm"] for event in events if event["event"] == "started"]


@pytest.mark.parametrize("name", list(SPECS))
def test_a_forked_run_gives_the_bits_of_a_fresh_process(tmp_path: Path, name: str) -> None:
    results = {}
    for way, words in (("warm", []), ("fresh", ["--no-warm"])):
        folder = tmp_path / way
        folder.mkdir()
        run_sweep(folder, {"algorithm_name": name} | SPECS[name], words)
        assert count_started(folder) == [way == "warm"] * 2
        results[way] = read_results(folder)
    assert len(results["warm"]) == 2
    assert results["warm"] == results["fresh"]
