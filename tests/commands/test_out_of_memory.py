"""A sweep of our trainer, one run of which takes more memory than it may."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# An environment that has address space taken with each step. No memory is touched, and snapshots of it don't have any.
HUNGRY = """
import os

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import PendulumEnv

HOARD = []


class HungryPendulum(PendulumEnv):
    def __init__(self, mib=0, once=False, **more):
        super().__init__(**more)
        self.mib = 0 if once and os.environ.get("GRIDPILOT_ATTEMPT") == "2" else mib

    def step(self, action):
        if self.mib:
            HOARD.append(np.empty(self.mib * 2**20, dtype=np.uint8))
        return super().step(action)


gymnasium.register("Hungry-v0", HungryPendulum, max_episode_steps=200)
"""
SPEC = """
meta_data: {imports: [hungry]}
constants:
  algorithm_name: ddpg
  env_name: Hungry-v0
  max_timesteps: 60
  learning_starts: 10
  batch_size: 8
  num_eval: 1
  num_final_eval: 1
  env_kwargs: {once: ONCE}
cases:
  - {seed: 1, env_kwargs.mib: 1024}
  - {seed: 2, env_kwargs.mib: 0}
  - {seed: 3, env_kwargs.mib: 0}
"""


def sweep(folder: Path, once: bool, *words: str) -> subprocess.CompletedProcess[str]:
    """Write the spec and what it needs, and run it."""
    (folder / "train.py").symlink_to(ROOT / "train.py")
    (folder / "hungry.py").write_text(HUNGRY)
    (folder / "spec.yaml").write_text(SPEC.replace("ONCE", str(once).lower()))
    return launch(folder, *words)


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the spec with 40 GiB of address space for each process, where a trainer takes a few."""
    limit = 40 * 2**30
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", "-g", "cpu", "--plain"]
    return subprocess.run(
        [*command, "--no-report", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(folder)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )


def read_endings(folder: Path, label: str) -> list[dict[str, Any]]:
    (run,) = folder.glob(f"logs/spec/*{label}*")
    return [json.loads(path.read_text()) for path in sorted(run.glob("attempts/*/exit.json"))]


@pytest.mark.parametrize("once", [False, True])
def test_a_run_out_of_memory_is_retried_alone_while_the_others_finish(tmp_path: Path, once: bool) -> None:
    answer = sweep(tmp_path, once, "-j", "2")
    hungry = read_endings(tmp_path, "seed=1,")
    assert hungry[0]["reason"] == "oom", answer.stdout + answer.stderr
    assert hungry[0]["returncode"] == 86
    assert [ending["reason"] for ending in hungry[1:]] == ["ok" if once else "oom"]
    assert answer.returncode == (0 if once else 1)
    assert answer.stdout.count("done    ") == (3 if once else 2)
    alone = next(line for line in answer.stdout.splitlines() if "attempt 2, alone)" in line)
    assert answer.stdout.index(alone) > answer.stdout.index("done    ")
    if not once:
        assert "(oom): " in answer.stdout.splitlines()[-4], answer.stdout


def test_as_many_run_as_fit_and_none_is_measured_again(tmp_path: Path) -> None:
    answer = sweep(tmp_path, True, "-j", "auto", "--only", "env_kwargs.mib=0")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    # Both at once where there is a second core, for twice what is predicted of each fits.
    assert ", canary)" in answer.stdout
    assert "at a time fit on the CPU like seed=" in answer.stdout
    again = launch(tmp_path, "-j", "auto", "--only", "env_kwargs.mib=0", "--rerun", "all")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "started" in again.stdout
    assert "canary" not in again.stdout
