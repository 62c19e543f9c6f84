"""Runs that begin from others, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiment.loader import load_yaml
from tests.commands.test_run_experiment import ROOT, run

SPEC = """\
meta_data: {{exp_name: {name}, extend: {extend}}}
constants: {{algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: {length}, learning_starts: 10, batch_size: 8,
  hidden_dims: [8, 8], noise_type: ou, eval_freq: 30, log_freq: 10, save_freq: 20, num_eval: 1, num_final_eval: 1,
  keep_replay: true}}
variables: {{seed: [1]}}
"""


def launch(folder: Path, name: str, length: int, extend: bool = False, *words: str, expect: int = 0) -> str:
    (folder / "spec.yaml").write_text(SPEC.format(name=name, length=length, extend=str(extend).lower()))
    answer = run(folder, "-e", "spec.yaml", *(words or ("-g", "cpu", "--plain", "--no-report")), expect=expect)
    return answer.stdout + answer.stderr


def read(folder: Path) -> dict[str, Any]:
    """What a run came to that may not depend on how it came there."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: row[key] for key in row if key != "wall_time" and not key.startswith("time/")} for row in rows]
    summary = json.loads((folder / "summary.json").read_bytes())
    names = ("state_hash", "final_eval", "best_eval", "guard", "steps", "env_steps", "updates")
    return {"rows": rows} | {name: summary[name] for name in names}


def train(folder: Path, *words: str, expect: int = 0) -> str:
    command = [sys.executable, str(ROOT / "train.py"), *words]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stdout + answer.stderr


def test_a_longer_launch_goes_on_from_finished_runs_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    launch(tmp_path, "straight", 120)
    launch(tmp_path, "sweep", 60)
    (parent,) = tmp_path.glob("logs/sweep/seed=1__*")
    parent_id = parent.name[-16:]
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    hint = "note: 1 of these runs is there with max_timesteps 60; meta_data.extend: true goes on from them"
    assert hint in launch(tmp_path, "sweep", 120, False, "-n", "--no-count")
    shown = launch(tmp_path, "sweep", 120, True, "-n", "--no-count")
    assert f"note: 1 run goes on with all the state of another, from step 60: {parent_id}" in shown
    assert f"PENDING, from {parent_id}" in shown
    said = launch(tmp_path, "sweep", 120, True)
    assert f"note: 1 run goes on with all the state of another, from step 60: {parent_id}" in said
    (child,) = [path for path in tmp_path.glob("logs/sweep/seed=1__*") if path != parent]
    (straight,) = tmp_path.glob("logs/straight/seed=1__*")
    assert read(child) == read(straight)
    assert child.name != straight.name
    assert {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()} == before
    assert load_yaml(child / "config.yaml").data["init_from"] == parent_id
    assert json.loads((child / "attempts/001/start.json").read_bytes())["parent"] == parent_id
    again = launch(tmp_path, "sweep", 120, True)
    assert "1 runs: 1 done, 0 to run" in again
    status = run(tmp_path, "status", "-e", "spec.yaml").stdout
    assert f"seed=1  (from {parent_id})" in status
    assert f"run {parent_id}, at its step 60, with all its state" in run(tmp_path, "why", child.name[-16:]).stdout


def test_a_single_run_begins_with_the_networks_of_another_or_says_why_not(tmp_path: Path) -> None:
    flags = "--env_name Pendulum-v1 --max_timesteps 30 --learning_starts 10 --batch_size 8 --num_final_eval 0"
    sac = f"--algorithm_name sac {flags} --eval_freq 0 --exp-name one"
    train(tmp_path, *f"{sac} --hidden_dims 8 8".split())
    (parent,) = tmp_path.glob("logs/one/sac__*")
    began = f"Begins with the networks of run {parent.name[-16:]} (sac) at its step 30, alone"
    named = f"--init_weights_from {parent.relative_to(tmp_path)}"
    assert began in train(tmp_path, *f"{sac} --hidden_dims 8 8 --seed 3 {named}".split())
    said = train(tmp_path, *f"{sac} --hidden_dims 16 8 {named}".split(), expect=2)
    assert "init_weights_from: the networks of run" in said
    assert "(sac) don't fit: actor is of other sizes there" in said
    said = train(
        tmp_path, *f"{sac} --hidden_dims 8 8 --seed 3 --init_from {parent.relative_to(tmp_path)}".split(), expect=2
    )
    assert "can't be gone on with under other settings: seed is 3 here and 0 there" in said
    longer = f"{sac} --hidden_dims 8 8 --init_from {parent.relative_to(tmp_path)}".replace(
        "timesteps 30", "timesteps 60"
    )
    said = train(tmp_path, *longer.split(), expect=2)
    assert "its replay data were dropped when it was done; keep_replay: true would have kept them" in said


def test_a_run_that_goes_on_can_be_verified_and_reproduced(tmp_path: Path) -> None:
    """In folders of their own, from which its parent is found all the same."""
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    launch(tmp_path, "sweep", 60)
    (parent,) = tmp_path.glob("logs/sweep/seed=1__*")
    said = launch(tmp_path, "sweep", 120, True, "-g", "cpu", "--plain", "--verify-resume")
    assert "THE SAME: killed and resumed 2 times" in said
    launch(tmp_path, "sweep", 120, True)
    (child,) = [path for path in tmp_path.glob("logs/sweep/seed=1__*") if path != parent]
    run(tmp_path, "reproduce", child.name[-16:], "--with-current-code", "--plain")
