"""`--verify-resume` and `reproduce` as a user types them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.run import Run, find_runs
from tests.commands.test_run_experiment import ROOT, write_work
from tests.commands.test_run_experiment import run as run_command

CODE = ("experiment", "training", "envs", "rl", "native")
SPEC = """\
meta_data: {{imports: [planted]}}
constants: {{algorithm_name: {name}, env_name: Pendulum-v1, max_timesteps: 1500, learning_starts: 200, batch_size: 16,
  hidden_dims: [16, 16], num_eval: 1, num_final_eval: 2, noise_type: ou}}
"""
PLANTED = """\
from typing import Literal

from rl.ddpg_config import DDPGConfig
from training.trainers import TrainerEntry


class Config(DDPGConfig):
    algorithm_name: Literal["planted"]


TRAINERS = {"planted": TrainerEntry("planted:Config", "planted_trainer:build_trainer", "rl.ddpg:count_parameters")}
"""
TRAINER = """\
import time

from rl.ddpg import DDPGTrainer


def build_trainer(config, device):
    return Trainer(config, device)


class Trainer(DDPGTrainer):
    fading = 1.0

    def _choose_actions(self, obs):
        self.fading *= 0.999
        return super()._choose_actions(obs) * FACTOR
"""
FORGETS, FOLLOWS_THE_CLOCK = "self.fading", "(1 - time.time() % 1 / 1000)"


@pytest.fixture(autouse=True)
def temporaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary ones, of this test alone."""
    folder = tmp_path / "temporaries"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def plant(folder: Path, factor: str) -> None:
    """Write a trainer of the user's own, whose actions are multiplied by something, and a spec that takes it."""
    (folder / "planted.py").write_text(PLANTED)
    (folder / "planted_trainer.py").write_text(TRAINER.replace("FACTOR", factor))
    (folder / "spec.yaml").write_text(SPEC.format(name="planted"))


def test_a_run_that_resumes_to_the_bit_is_found_the_same(tmp_path: Path, temporaries: Path) -> None:
    text = SPEC.format(name="ddpg").replace("meta_data: {imports: [planted]}\n", "")
    (tmp_path / "spec.yaml").write_text(text + "variables: {seed: [1, 2], tau: [0.01, 0.02]}\n")
    words = ("-e", "spec.yaml", "-g", "cpu", "--plain", "--verify-resume", "--only", "seed=2", "-o", "save_freq=0")
    said = run_command(tmp_path, *words).stdout
    assert "note: with this save_freq no checkpoint leaves half of the run to resume; it is 150 for this check" in said
    assert "note: the first of 2 runs is checked; --only chooses another" in said
    assert "seed=2,tau=0.01 (" in said
    assert said.count("(signal): ended by SIGKILL; trying again") == 2
    assert "killed by SIGKILL, time 2: at step" in said
    assert "110 rows are the same from the first on" in said
    assert said.splitlines()[-1].startswith("THE SAME: killed and resumed 2 times")
    assert list(temporaries.iterdir()) == []
    assert not (tmp_path / "logs").exists()


def test_a_trainer_that_forgets_what_its_actions_follow_is_found_out(
    tmp_path: Path, temporaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, FORGETS)
    with (tmp_path / "spec.yaml").open("a") as file:
        file.write("variables: {seed: [1, 2]}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = run_command(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", "--verify-resume", expect=1).stdout
    assert "DIFFERENT: a run that was killed and resumed does not end as one that is left alone." in said
    (row,) = [line for line in said.splitlines() if line.startswith("  metrics.jsonl: row ")]
    assert " in the straight run and " in row
    assert "it was last resumed from step " in said
    assert "state_hash is " in said
    assert "  trainer/buffer/rows: of 1,500 rows, " in said
    (kept,) = temporaries.iterdir()
    assert said.splitlines()[-1] == f"kept: {kept}"
    assert {path.name for path in kept.glob("*/*")} == {"straight", "killed"}


def test_what_can_not_be_verified_is_refused_with_its_reason(tmp_path: Path, temporaries: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.format(name="ddpg").replace("meta_data: {imports: [planted]}\n", ""))
    verify = ("-e", "spec.yaml", "-g", "cpu", "--verify-resume")
    by_time = run_command(tmp_path, *verify, "-o", "wall_budget_s=5.0", expect=2).stderr
    assert "wall_budget_s ends a run by time" in by_time
    short = run_command(
        tmp_path, *verify, "-o", "max_timesteps=5", "-o", "learning_starts=2", "-o", "batch_size=1", expect=2
    ).stderr
    assert "max_timesteps (5) leaves no room to be killed in" in short
    assert "--verify-resume doesn't read --rerun" in run_command(tmp_path, *verify, "--rerun", "all", expect=2).stderr
    write_work(tmp_path, "")
    assert "how work.py resumes is its own affair" in run_command(tmp_path, *verify, expect=2).stderr
    assert list(temporaries.iterdir()) == []


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@e")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def call(project: Path, *words: str, expect: int = 0) -> tuple[str, str]:
    """Run a project's own command, and give what it printed."""
    command = [sys.executable, "run_experiment.py", *words]
    answer = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=240)
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stdout, answer.stderr


def train(project: Path) -> None:
    """Train the run of a project, on one thread."""
    command = [sys.executable, "train.py", "-e", "spec.yaml"]
    subprocess.run(command, cwd=project, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)


def find_run(project: Path) -> Run:
    (run,) = find_runs(project / "logs/spec")
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a run in it, made by code that was neither committed nor, in part, known to git."""
    project = tmp_path_factory.mktemp("trained") / "project"
    for name in CODE:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "run_experiment.py"):
        shutil.copy(ROOT / name, project / name)
    (project / ".gitignore").write_text("__pycache__/\nlogs/\n")
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "Begin")
    plant(project, "0.5")
    with (project / "rl/noise.py").open("a") as file:
        file.write("\n# Not committed.\n")
    train(project)
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


def test_a_run_is_reproduced_by_the_code_that_made_it_whatever_the_tree_is_by_now(
    project: Path, temporaries: Path
) -> None:
    run = find_run(project)
    (project / "planted_trainer.py").write_text(TRAINER.replace("FACTOR", "0.75"))
    (project / "rl/new.py").write_text("")
    git(project, "commit", "-qam", "Go on")
    # As if an attempt before had been of other code.
    shutil.copytree(run.attempt_dir(1), run.attempt_dir(2))
    first = run.attempt_dir(1) / "start.json"
    first.write_text(json.dumps(json.loads(first.read_text()) | {"code_version": "0123456789abcdef"}))
    before = git(project, "status", "--porcelain"), git(project, "rev-parse", "HEAD")
    said, _ = call(project, "reproduce", run.id[:8], "--plain")
    assert "note: its attempts were of different code (1 by 0123456789abcdef, 2 by " in said
    assert "note: the code that is here is not that which made the run:\n" in said
    assert "  planted_trainer.py has changed\n  rl/new.py is new\n" in said
    assert "110 rows are the same from the first on\nTHE SAME: " in said
    assert (git(project, "status", "--porcelain"), git(project, "rev-parse", "HEAD")) == before
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert not (project / ".git/worktrees").exists()
    assert list(temporaries.iterdir()) == []


def test_the_code_that_is_here_is_run_where_that_is_asked_for(project: Path, temporaries: Path) -> None:
    run = find_run(project)
    (project / "planted_trainer.py").write_text(TRAINER.replace("FACTOR", "0.75"))
    said, _ = call(project, "reproduce", run.id, "--plain", "--with-current-code", expect=1)
    assert "  planted_trainer.py has changed\n" in said
    assert "DIFFERENT: trained again, this run comes to something else.\n" in said
    assert "  metrics.jsonl: row " in said
    assert "  packages, Python, host and CPU are as they were\n" in said
    (kept,) = temporaries.iterdir()
    assert said.splitlines()[-1] == f"kept: {kept}"
    assert not (project / ".git/worktrees").exists()


def test_a_run_that_follows_the_clock_can_not_be_reproduced(project: Path) -> None:
    plant(project, FOLLOWS_THE_CLOCK)
    shutil.rmtree(project / "logs")
    train(project)
    run = find_run(project)
    environment = json.loads((run.experiment_dir / "env.json").read_text())
    environment["packages"]["torch"] = "1.0"
    (run.experiment_dir / "env.json").write_text(json.dumps(environment | {"cpu": "an abacus"}))
    said, _ = call(project, "reproduce", run.id, "--plain", expect=1)
    assert "the code that is here is not" not in said
    (row,) = [line for line in said.splitlines() if line.startswith("  metrics.jsonl: row ")]
    assert " in the stored run and " in row
    assert "  around it is not as it was:\n    cpu: an abacus then, " in said
    assert "    torch 1.0 then, " in said


def test_what_can_not_be_reproduced_is_refused_with_its_reason(project: Path, temporaries: Path) -> None:
    run = find_run(project)
    summary = json.loads(run.summary_path.read_text())
    run.summary_path.write_text(json.dumps(summary | {"device": "cuda"}))
    assert "was trained on cuda" in call(project, "reproduce", run.id, "-g", "cpu", expect=3)[1]
    run.summary_path.write_text(json.dumps(summary))

    (project / "planted_trainer.py").write_text("")
    stored = run.experiment_dir / "code" / summary["code_version"]
    diff = (stored / "diff").read_bytes()
    (stored / "diff").write_text("")
    assert "can't be rebuilt: what was stored makes the version " in call(project, "reproduce", run.id, expect=2)[1]
    (stored / "diff").write_bytes(diff)
    (stored / "commit").write_text(40 * "0")
    gone = call(project, "reproduce", run.id, expect=2)[1]
    assert f"the repository {project} has no commit {40 * '0'}: fetch it" in gone
    assert "--with-current-code trains it by the code that is here" in gone
    shutil.rmtree(project / ".git")
    assert "not a git repository" in call(project, "reproduce", run.id, expect=2)[1]

    run.exit_path.unlink()
    assert "only a finished run can be reproduced" in call(project, "reproduce", run.id, expect=2)[1]
    assert "reproduce: give a run's id" in call(project, "reproduce", expect=2)[1]
    assert "reproduce doesn't read --only" in call(project, "reproduce", run.id, "--only", "seed=1", expect=2)[1]
    assert "--with-current-code goes with" in call(project, "-e", "spec.yaml", "--with-current-code", expect=2)[1]
    assert list(temporaries.iterdir()) == []


def test_a_script_of_the_users_own_can_not_be_reproduced(tmp_path: Path) -> None:
    write_work(tmp_path, "", "index: [1]")
    run_command(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    run = find_run(tmp_path)
    said = run_command(tmp_path, "reproduce", run.id, expect=2).stderr
    assert f"index=1 ({run.id}) was made by work.py: " in said


def test_a_reproduction_that_is_ended_leaves_no_worktree(project: Path, temporaries: Path) -> None:
    command = [sys.executable, "-u", "run_experiment.py", "reproduce", find_run(project).id, "--plain"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("started "):
                break
        assert len(git(project, "worktree", "list").splitlines()) == 2
        os.kill(process.pid, signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 143
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert not (project / ".git/worktrees").exists()
    assert list(temporaries.iterdir()) == []
