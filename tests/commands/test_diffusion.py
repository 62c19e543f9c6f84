"""The guide's grid in small, as a user runs it: one command, stopped and gone on with, and a report of all of it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
    first = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in a shell's background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert first.stdout is not None
    while not (line := first.stdout.readline()).startswith("done"):
        assert line, "the runner ended before any run did"
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=240)
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


GUIDES_COMMAND = "python run_experiment.py -e exp_specs/vae_diffusion_rl_example.yaml -g 0"
SECOND_TERMINAL = "python run_experiment.py -e exp_specs/vae_diffusion_rl_example.yaml -g 1"
OWN_SPEC = "python run_experiment.py -e exp_specs/my_vae_rl_config.yaml -g 0"
SMALL = {
    "max_timesteps": 300,
    "rl_warmup_steps": 250,
    "rl_collect_freq": 20,
    "rl_collect_steps": 40,
    "rl_update_freq": 10,
    "eval_freq": 150,
    "num_eval": 2,
    "num_final_eval": 4,
    "batch_size": 64,
    "num_envs": 2,
}
"""What of the guide's example is made smaller: counts alone. Sizes of networks and what is swept stay."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in which the guide's commands can be typed as they stand there, with data and logs of its own."""
    (tmp_path / "exp_specs").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "exp_specs")
    for name in ("run_experiment.py", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


Terminal = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def type_command(project: Path) -> Iterator[Terminal]:
    """Give a function that starts a command of the guide with smaller counts; what still runs at the end is stopped."""
    runners: list[subprocess.Popen[str]] = []

    def start(command: str, **settings: Any) -> subprocess.Popen[str]:
        program, *words = shlex.split(command)
        assert program == "python"
        words += [word for key, value in (SMALL | settings).items() for word in ("-o", f"{key}={value}")]
        runner = subprocess.Popen(
            [sys.executable, *words, "--plain"],
            cwd=project,
            env={key: value for key, value in os.environ.items() if key != "GRIDPILOT_DATA"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell has what runs in its background ignore Ctrl-C, and these tests may do so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        runner.terminate()
        runner.communicate()


def wait_for_young_run(runner: subprocess.Popen[str], logs: Path) -> None:
    """Return when some runs are done and another one has a checkpoint of its first third."""
    deadline = time.monotonic() + 1200
    while len(list(logs.glob("*/exit.json"))) < 3 or not find_half_done(logs, SMALL["max_timesteps"] // 3):
        assert time.monotonic() < deadline
        try:
            runner.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(runner.stdout.read() if runner.stdout else "")


def find_half_done(logs: Path, before: int) -> list[Path]:
    """Give the runs that have a checkpoint, the newest of a step before `before`, and nothing of an end."""
    newest: dict[Path, int] = {}
    for path in logs.glob("*/checkpoints/step_*.pt"):
        step, folder = int(path.stem.removeprefix("step_")), path.parents[1]
        newest[folder] = max(step, newest.get(folder, 0))
    return [folder for folder, step in newest.items() if step < before and not (folder / "summary.json").exists()]


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def describe_combination(row: Mapping[str, Any]) -> tuple[int, int, bool, float]:
    online = str(row["online_training"]).lower() == "true"
    return int(row["seed"]), int(row["vae_latent_dim"]), online, float(row["rl_learning_rate"])


GRID = set(itertools.product((100, 200, 300), (32, 64, 128), (False, True), (1e-4, 3e-4, 1e-3)))


def check_report(logs: Path, grid: set[tuple[int, int, bool, float]]) -> None:
    """See that the report names each combination with its run, and with that run's return."""
    returns = {
        path.parent.name.rpartition("__")[2]: json.loads(path.read_text())["final_eval"]["mean"]
        for path in logs.glob("*/summary.json")
    }
    rows = read_table(logs / "report/runs.csv")
    assert len(rows) == len(grid)
    assert {describe_combination(row) for row in rows} == grid
    assert {row["id"] for row in rows} == set(returns)
    assert all(float(row["final_mean"]) == returns[row["id"]] for row in rows)
    text, page = ((logs / "report" / name).read_text() for name in ("report.md", "report.html"))
    for row in rows:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row['label']} |"))
        assert line.endswith(f"| {row['id']} |")
        assert "| DONE |" in line
        assert row["label"] in page
    for path in logs.glob("*/config.yaml"):
        assert path.parent.name.rpartition("__")[2] in returns
    arms = read_table(logs / "report/returns.csv")
    seeds = len({seed for seed, *_ in grid})
    assert [(arm["planned"], arm["finished"]) for arm in arms] == [(str(seeds), str(seeds))] * (len(grid) // seeds)


@pytest.mark.slow
def test_the_guides_example_is_stopped_goes_on_and_reports_all_54_combinations(
    project: Path, type_command: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    started, logs = time.monotonic(), project / "logs/vae_diffusion_rl_example"
    runner = type_command(GUIDES_COMMAND)
    wait_for_young_run(runner, logs)
    runner.send_signal(signal.SIGINT)
    said, _ = runner.communicate(timeout=600)
    assert runner.returncode == 130, said
    before = {path.parent.name: path.read_bytes() for path in logs.glob("*/summary.json")}
    finished = {path.parent.name for path in logs.glob("*/exit.json")}
    stopped = {folder.name for folder in find_half_done(logs, SMALL["max_timesteps"])}
    assert 3 <= len(finished) < 36
    assert stopped

    runner = type_command(GUIDES_COMMAND)
    said, _ = runner.communicate(timeout=3000)
    assert runner.returncode == 0, said
    summaries = {path.parent.name: path.read_bytes() for path in logs.glob("*/summary.json")}
    assert len(list(logs.glob("*/exit.json"))) == len(summaries) == 36
    assert {name: summaries[name] for name in finished} == {name: before[name] for name in finished}
    attempts = {name: len(list((logs / name / "attempts").iterdir())) for name in summaries}
    assert {attempts[name] for name in finished} == {1}
    assert {attempts[name] for name in stopped} == {2}
    for name in stopped:
        assert "Resumed from step" in (logs / name / "attempts/002/console.log").read_text()
        assert json.loads(summaries[name])["attempts"] == 2
    for name, content in summaries.items():
        # 50 online steps: collections at 0, 20 and 40, of 40 steps in 2 environments; passes of one batch at 0, 10, ...
        acts = "online_training=true" in name
        summary = json.loads(content)
        assert (summary["steps"], summary["env_steps"]) == (300, 3 * 40 * 2 if acts else 0)
        assert summary["updates"] == (250 + 5 if acts else 300)
        assert summary["guard"]["verdict"] == "healthy"
    check_report(logs, GRID)
    with capsys.disabled():
        print(
            f"\nthe guide's example in small: stopped with {len(finished)} runs done and {len(stopped)} under way, "
            f"all 36 done after {time.monotonic() - started:.0f} s"
        )


@pytest.mark.slow
def test_the_guides_two_terminals_share_one_grid(project: Path, type_command: Terminal) -> None:
    """Where there is no second GPU both are on the CPU, each with its own processes."""
    logs = project / "logs/vae_diffusion_rl_example"
    small = {"seed": "[100]", "vae_latent_dim": "[32, 64]", "max_timesteps": 60, "rl_warmup_steps": 40, "eval_freq": 60}
    runners = [type_command(command, **small) for command in (GUIDES_COMMAND, SECOND_TERMINAL)]
    said = [runner.communicate(timeout=1200)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    assert all("8 done" in text for text in said), said
    assert all("started" in text for text in said), said
    endings = list(logs.glob("*/attempts/*/exit.json"))
    assert len(endings) == len(list(logs.glob("*/exit.json"))) == 8
    check_report(logs, {point for point in GRID if point[0] == 100 and point[1] in (32, 64)})


@pytest.mark.slow
def test_the_guides_own_spec_is_copied_changed_and_run(project: Path, type_command: Terminal) -> None:
    copied = "cp exp_specs/vae_diffusion_rl_example.yaml exp_specs/my_vae_rl_config.yaml"
    subprocess.run(shlex.split(copied), cwd=project, check=True)
    spec = project / "exp_specs/my_vae_rl_config.yaml"
    changed = spec.read_text().replace("seed: [100, 200, 300]", "seed: [7]").replace("[32, 64, 128]", "[8]")
    spec.write_text(changed.replace("[1e-4, 3e-4, 1e-3]", "[3e-4]"))
    runner = type_command(OWN_SPEC, max_timesteps=60, rl_warmup_steps=40, eval_freq=60)
    said, _ = runner.communicate(timeout=600)
    assert runner.returncode == 0, said
    check_report(project / "logs/my_vae_rl_config", {(7, 8, False, 3e-4), (7, 8, True, 3e-4)})


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
