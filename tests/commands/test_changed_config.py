"""A changed config can't go on under an old id."""

import os
import subprocess
import sys
from pathlib import Path

from experiment.run import find_runs

ROOT = Path(__file__).parents[2]
SETTINGS = "--algorithm_name ddpg --env_name Pendulum-v1 --max_timesteps 30 --learning_starts 9 --batch_size 8"


def train(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *words]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)


def test_an_edited_config_trains_another_run_and_leaves_the_old_one_alone(tmp_path: Path) -> None:
    assert train(tmp_path, *SETTINGS.split()).returncode == 0
    experiment_dir = tmp_path / "logs/ddpg_Pendulum-v1"
    (old,) = find_runs(experiment_dir)
    summary = old.summary_path.read_bytes()
    old.config_path.write_text(old.config_path.read_text().replace("seed: 0", "seed: 1"))
    assert train(tmp_path, "-e", str(old.config_path)).returncode == 0
    ids = {run.id for run in find_runs(experiment_dir)}
    assert len(ids) == 2
    assert old.id in ids
    assert old.summary_path.read_bytes() == summary
    assert old.last_attempt() == 1


def test_a_config_edited_under_a_running_launch_is_refused(tmp_path: Path) -> None:
    assert train(tmp_path, *SETTINGS.split()).returncode == 0
    (run,) = find_runs(tmp_path / "logs/ddpg_Pendulum-v1")
    run.config_path.write_text(run.config_path.read_text().replace("seed: 0", "seed: 1"))
    answer = train(tmp_path, "-e", str(run.config_path), GRIDPILOT_RUN_DIR=str(run.folder))
    assert answer.returncode == 2
    assert "was changed: its settings have the id" in answer.stderr
    assert len(list(find_runs(run.experiment_dir))) == 1
