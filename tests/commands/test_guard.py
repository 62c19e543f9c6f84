"""The training-health guard on real runs: what is sick is seen in time, what is healthy is left alone.

Each test prints what it measured. The environment variable `GUARD_SEED` (default 0) moves the seeds of all, so that
whoever checks can choose others: `GUARD_SEED=100 pytest -m slow tests/commands/test_guard.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv

from experiment.run import Run, find_runs
from rl.buffers import ReplayBuffer
from train import build_config, find_trainer
from training.checkpoint import load_checkpoint
from training.config import TrainerConfig
from training.health import LIMITS
from training.loop import Outcome, fit
from training.resources import hash_state
from training.seeding import seed_everything
from training.session import Attempt
from training.signals import WINDOW_UPDATES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SEED = int(os.environ.get("GUARD_SEED", "0"))
ALGORITHMS = ("ddpg", "td3", "sac")
SCALES = (1e-3, 1.0, 1e3)
CAUGHT_WITHIN = 2000
"""Updates from the begin of a disease to its first decision."""
LEARNING_STARTS = 500
SICKENS_AT = 2000
"""Environment step from which a planted environment is another one."""


class PlantedPendulum(PendulumEnv):
    """A pendulum whose rewards, numbers or episodes change from a step on, counted over the environment's whole life.

    Args:
        scale: of all rewards.
        factor: of rewards from `SICKENS_AT` on.
        broken: what isn't a number at step `SICKENS_AT`: `reward`, `obs`, or nothing.
        length: steps after which the task ends; 0 for never.
        longer: factor of `length` from `longer_from` on.
        reward: `dense` is the pendulum's; `late` a hundredth of it and, from step 3,000 on, 100 in one of 300 steps;
            `first` nothing but 1 in these; `none` never anything.
    """

    def __init__(
        self,
        scale: float = 1.0,
        factor: float = 1.0,
        broken: str = "",
        length: int = 0,
        longer: int = 1,
        longer_from: int = 0,
        reward: str = "dense",
    ) -> None:
        super().__init__()
        self.scale, self.factor, self.broken, self.reward = scale, factor, broken, reward
        self.length, self.longer, self.longer_from = length, longer, longer_from
        self.taken = self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.time = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, dense, _, _, info = super().step(action)
        self.taken += 1
        self.time += 1
        reward = self.choose_reward(float(dense)) * self.scale
        if self.taken >= SICKENS_AT:
            reward *= self.factor
        if self.taken == SICKENS_AT:
            obs = obs * float("nan") if self.broken == "obs" else obs
            reward = float("nan") if self.broken == "reward" else reward
        length = self.length * (self.longer if self.taken >= self.longer_from else 1)
        return obs, reward, length > 0 and self.time >= length, False, info

    def choose_reward(self, dense: float) -> float:
        rare = self.taken >= 3000 and self.np_random.random() < 1 / 300
        if self.reward == "late":  # small ones, and a first large one after 3,000 steps
            return 100.0 if rare else 0.01 * dense
        if self.reward == "first":  # nothing at all before the first one
            return 1.0 if rare else 0.0
        return 0.0 if self.reward == "none" else dense


@pytest.fixture(autouse=True)
def _planted_environments() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gym.register("Planted-v0", PlantedPendulum, max_episode_steps=200)
    gym.register("PlantedLong-v0", PlantedPendulum, max_episode_steps=100_000)
    yield
    for name in ("Planted-v0", "PlantedLong-v0"):
        del gym.registry[name]
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Course:
    """How a run went.

    Attributes:
        decisions: of the guard, from `events.jsonl`.
        signals: see `read_signals`.
    """

    outcome: Outcome
    decisions: list[dict[str, Any]]
    signals: Mapping[str, tuple[float, float]]
    run: Run

    def describe(self) -> str:
        """Say what was seen first, and the largest signals."""
        seen = "nothing decided"
        if self.decisions:
            first = self.decisions[0]
            seen = f"{first['metric']} {first['value']} at update {first['updates']} ({first['verdict']})"
        return f"{seen}; " + ", ".join(
            f"{name} {most:.3g} ({twice:.3g})" for name, (most, twice) in self.signals.items()
        )


def make_config(algorithm: str, env_name: str, **settings: Any) -> TrainerConfig:
    base = {
        "algorithm_name": algorithm,
        "env_name": env_name,
        "learning_starts": LEARNING_STARTS,
        "max_timesteps": LEARNING_STARTS + CAUGHT_WITHIN,
        "hidden_dims": [32, 32],
        "batch_size": 64,
        "learning_rate": 1e-3,
        "seed": SEED,
        "eval_freq": 0,
        "save_freq": 0,
        "log_freq": 125,
        "num_final_eval": 1,
    }
    return build_config(base | settings)


def train(folder: Path, config: TrainerConfig, *, stop_when: Callable[[Run], bool] = lambda run: False) -> Course:
    """Train as `train.py` does, in this process."""
    run = Run(folder / "experiment" / "x__0123456789abcdef", "0123456789abcdef", "x")
    run.folder.mkdir(parents=True)
    seed_everything(config.seed)
    trainer = find_trainer({"algorithm_name": config.algorithm_name}).build_trainer(config, torch.device("cpu"))
    try:
        with np.errstate(all="ignore"):
            attempt = Attempt(1, "cpu", 1, "abc")
            outcome = fit(trainer, run, config, attempt, should_stop=lambda: stop_when(run), say=lambda line: None)
    finally:
        trainer.close()
    return Course(outcome, read_events(run), read_signals(run), run)


def read_events(run: Run) -> list[dict[str, Any]]:
    if not run.events_path.exists():
        return []
    return [json.loads(line) for line in run.events_path.read_text().splitlines()]


def read_signals(run: Run) -> dict[str, tuple[float, float]]:
    """Give of each signal the largest value, and the largest that two values one after the other both reached."""
    windows: dict[float, dict[str, float]] = {}
    for row in map(json.loads, run.metrics_path.read_text().splitlines()):
        values = {name.removeprefix("health/"): float(value) for name, value in row.items() if "health/" in name}
        windows.setdefault(row.get("train/n_updates", 0) // WINDOW_UPDATES, values)
    signals = {}
    limited = {name for window in windows.values() for limit in LIMITS for name in limit.find_signals(window)}
    for name in sorted(limited):
        values = [window[name] for window in windows.values() if name in window]
        if values:
            signals[name] = max(values), max(map(min, pairwise(values)), default=0.0)
    return signals


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[Course], None]:
    def say(course: Course) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {course.describe()}", end="")

    return say


def stops_after_seen(run: Run) -> bool:
    """What a sick run does after the guard has spoken isn't looked at."""
    return run.events_path.exists()


def check_caught(course: Course, begins_at: int) -> None:
    first = course.decisions[0]
    assert begins_at < first["updates"] <= begins_at + CAUGHT_WITHIN


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_learning_rate_of_1_is_caught(tmp_path: Path, tell: Any, algorithm: str, scale: float) -> None:
    config = make_config(algorithm, "Planted-v0", env_kwargs={"scale": scale}, learning_rate=1.0)
    course = train(tmp_path, config, stop_when=stops_after_seen)
    tell(course)
    check_caught(course, 0)


def test_a_learning_rate_of_1_is_caught_on_the_half_cheetah(tmp_path: Path, tell: Any) -> None:
    course = train(tmp_path, make_config("ddpg", "HalfCheetah-v5", learning_rate=1.0), stop_when=stops_after_seen)
    tell(course)
    check_caught(course, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_discount_above_1_is_caught(tmp_path: Path, tell: Any, algorithm: str) -> None:
    config = make_config(algorithm, "Planted-v0")
    object.__setattr__(config, "discount", 1.2)
    course = train(tmp_path, config, stop_when=stops_after_seen)
    tell(course)
    check_caught(course, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rewards_that_become_a_million_times_as_large_are_caught(tmp_path: Path, tell: Any, algorithm: str) -> None:
    steps = SICKENS_AT + CAUGHT_WITHIN
    config = make_config(algorithm, "Planted-v0", env_kwargs={"factor": 1e6}, max_timesteps=steps)
    course = train(tmp_path, config, stop_when=stops_after_seen)
    tell(course)
    check_caught(course, SICKENS_AT - LEARNING_STARTS)


@pytest.mark.parametrize("broken", ["reward", "obs"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_no_number_is_caught_at_once_and_laid_at_the_environments_door(
    tmp_path: Path, tell: Any, algorithm: str, broken: str
) -> None:
    config = make_config(algorithm, "Planted-v0", env_kwargs={"broken": broken}, max_timesteps=SICKENS_AT + 10)
    course = train(tmp_path, config, stop_when=stops_after_seen)
    tell(course)
    first = course.decisions[0]
    assert (first["verdict"], first["step"]) == ("environment", SICKENS_AT)
    assert "episode 10, step 200" in first["metric"]


HEALTHY = [("ddpg", SEED + number) for number in range(5)] + [
    (algorithm, SEED + number) for algorithm in ("td3", "sac") for number in range(2)
]


@pytest.mark.parametrize("episodes", ["short", "longer"])
@pytest.mark.parametrize(("algorithm", "seed"), HEALTHY)
def test_a_healthy_run_is_left_alone_at_every_scale(
    tmp_path: Path, tell: Any, algorithm: str, seed: int, episodes: str
) -> None:
    """Episodes of 20 steps, which in one case become 200 times as long in the middle of the run."""
    steps = LEARNING_STARTS + 5000
    kwargs = {"length": 20} | ({"longer": 200, "longer_from": steps // 2} if episodes == "longer" else {})
    for scale in SCALES:
        config = make_config(
            algorithm, "PlantedLong-v0", env_kwargs=kwargs | {"scale": scale}, seed=seed, max_timesteps=steps
        )
        course = train(tmp_path / str(scale), config)
        tell(course)
        assert course.outcome is Outcome.FINISHED
        assert course.decisions == []


@pytest.mark.parametrize("reward", ["late", "first", "none"])
@pytest.mark.parametrize("length", [0, 20])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rewards_that_come_late_or_never_are_no_alarm(
    tmp_path: Path, tell: Any, algorithm: str, length: int, reward: str
) -> None:
    env_kwargs = {"reward": reward, "length": length}
    config = make_config(
        algorithm, "Planted-v0", env_kwargs=env_kwargs, max_timesteps=LEARNING_STARTS + 6000, buffer_size=10_000
    )
    course = train(tmp_path, config)
    tell(course)
    assert course.decisions == []


@pytest.mark.parametrize("seed", [SEED + 3, SEED + 4])
def test_the_first_hill_that_is_climbed_is_no_alarm(tmp_path: Path, tell: Any, seed: int) -> None:
    noise = {"noise_type": "ou", "noise_std": 0.5}
    config = make_config("ddpg", "MountainCarContinuous-v0", **noise, seed=seed, max_timesteps=10_000)
    course = train(tmp_path, config)
    tell(course)
    assert course.decisions == []


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_ends_that_the_critic_is_not_told_about_are_caught(
    tmp_path: Path, tell: Any, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """The commonest of bugs: values of 5 steps become those of endless episodes, and nothing else looks wrong."""

    def add(buffer: Any, obs: Any, action: Any, reward: float, terminated: bool, *rest: Any) -> None:
        real(buffer, obs, action, reward, False, *rest)

    real = ReplayBuffer.add
    monkeypatch.setattr(ReplayBuffer, "add", add)
    config = make_config(algorithm, "PlantedLong-v0", env_kwargs={"length": 5}, tau=0.02, max_timesteps=6000)
    course = train(tmp_path, config)
    tell(course)
    assert course.decisions[0]["verdict"] == "value-bias"


def list_repairs(decisions: list[dict[str, Any]]) -> list[str]:
    """Give what was done, in order; several alarms at once lead to one thing, and so do two of a kind in a row."""
    actions = [each["action"] for each in decisions if each["action"] in ("roll_back", "drop_rung", "stop")]
    return [action for action, _ in groupby(actions)]


def read_state(run: Run) -> Mapping[str, Any]:
    """Give what the newest checkpoint holds: of the trainer, and of the guard."""
    state = load_checkpoint(max(run.checkpoints_dir.glob("step_*.pt"))).state
    return {"trainer": state["trainer"], "guard": state["session"]["guard"], "generators": state["generators"]}


def read_rows(run: Run) -> list[dict[str, Any]]:
    """Give the metrics without what the clock on the wall decides."""
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "wall_time" and not k.startswith("time/")} for row in rows]


def read_decisions(run: Run) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == "guard"]


def drop_times(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key not in ("time", "run")} for each in decisions]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_beyond_repair_goes_back_three_times_then_stops_and_does_so_again(
    tmp_path: Path, tell: Any, algorithm: str
) -> None:
    """With a learning rate of 10, which is one of 1.25 after three halvings."""
    settings = {"guard": "repair", "learning_rate": 10.0, "save_freq": 250, "keep_last": 1, "max_timesteps": 4000}
    courses = [train(tmp_path / name, make_config(algorithm, "Planted-v0", **settings)) for name in "ab"]
    tell(courses[0])
    for course in courses:
        assert course.outcome is Outcome.UNHEALTHY
        assert list_repairs(course.decisions) == ["roll_back", "drop_rung", "stop"]
        assert not course.run.summary_path.exists()
        kept = json.loads(course.run.repairs_path.read_text())
        assert (kept["roll_backs"], kept["to_step"]) == (3, 500)
    first, second = courses
    assert hash_state(read_state(first.run)) == hash_state(read_state(second.run))
    assert read_rows(first.run) == read_rows(second.run)
    assert drop_times(first.decisions) == drop_times(second.decisions)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_repaired_run_that_ends_well_is_marked(tmp_path: Path, tell: Any, algorithm: str) -> None:
    settings = {"guard": "repair", "env_kwargs": {"broken": "reward"}, "max_timesteps": SICKENS_AT + 10}
    course = train(tmp_path, make_config(algorithm, "Planted-v0", **settings))
    tell(course)
    assert course.outcome is Outcome.FINISHED
    guard = json.loads(course.run.summary_path.read_text())["guard"]
    assert (guard["verdict"], guard["repaired"]) == ("environment", True)
    assert [each["action"] for each in guard["decisions"]] == ["discard"]


KILLER = """
import os, pathlib, signal
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

class KillerEnv(PendulumEnv):
    \"\"\"Kills its process at one step of its life, if a file asks for it, which goes first.\"\"\"

    def __init__(self):
        super().__init__()
        self.taken = 0

    def step(self, action):
        self.taken += 1
        asked = pathlib.Path("kill")
        if self.taken == 437 and asked.exists():
            asked.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

gym.register("Killer-v0", KillerEnv, max_episode_steps=200)
"""
EVERYTHING = (
    "--env_name Killer-v0 --num_envs 2 --n_step 3 --normalize_obs true --normalize_reward true --hidden_dims 32 32 "
    "--batch_size 32 --learning_starts 500 --max_timesteps 4000 --save_freq 100 --log_freq 50 --eval_freq 300 "
    "--num_eval 1 --guard repair --learning_rate 10 --keep_last 1"
)


def run_program(folder: Path, algorithm: str) -> int:
    """Train as a user would, in a folder of its own, and give the exit code."""
    (folder / "killer.py").write_text(KILLER)
    words = [*algorithm.split(), *EVERYTHING.split(), f"--seed={SEED}", "--imports", "[killer]", "--log-root", "logs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    with (folder / "console.txt").open("ab") as console:
        program = [sys.executable, str(ROOT / "train.py"), *words]
        return subprocess.run(program, cwd=folder, stdout=console, stderr=console, env=environment).returncode


@pytest.mark.parametrize(
    "algorithm",
    [
        "--algorithm_name ddpg --noise_type ou",
        "--algorithm_name td3 --noise_type ou --policy_delay 3",
        "--algorithm_name sac",
    ],
    ids=["ddpg", "td3", "sac"],
)
def test_a_kill_between_two_bad_windows_changes_no_bit_and_no_decision(
    tmp_path: Path, tell: Any, algorithm: str
) -> None:
    """The first bad window ends with step 375, the kill comes in step 437, the second ends with step 500."""
    runs = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "killed":
            (folder / "kill").touch()
            assert run_program(folder, algorithm) == -signal.SIGKILL, (folder / "console.txt").read_text()
            (run,) = find_runs(next((folder / "logs").iterdir()))
            assert list_repairs(read_decisions(run)) == []
            assert max(read_state(run)["guard"]["over"].values()) == 1
        assert run_program(folder, algorithm) == 87, (folder / "console.txt").read_text()
        runs += find_runs(next((folder / "logs").iterdir()))
    straight, killed = runs
    tell(Course(Outcome.UNHEALTHY, read_decisions(killed), read_signals(killed), killed))
    assert killed.last_attempt() == 2
    assert killed.read_exit(2)["reason"] == "health"
    for run in runs:
        decisions = read_decisions(run)
        assert list_repairs(decisions) == ["roll_back", "drop_rung", "stop"]
        assert next(each["step"] for each in decisions if each["action"] == "roll_back") == 500
    # An attempt that repeats steps says again what it saw in them: what it kept has it once.
    kept = [json.loads(run.repairs_path.read_text()) for run in runs]
    assert kept[0] == kept[1]
    ends = [[each for each in drop_times(read_decisions(run)) if each["action"] == "stop"] for run in runs]
    assert ends[0] == ends[1] != []
    assert hash_state(read_state(straight)) == hash_state(read_state(killed))
    assert read_rows(straight) == read_rows(killed)
