"""The training loop with a counting fake: cadence, ends, and straight equals resumed whatever it is killed at."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from experiment.run import Run
from training import budget as budget_module
from training import session as session_module
from training.budget import WallBudget
from training.checkpoint import CheckpointStore, load_newest
from training.config import TrainerConfig
from training.evaluation import report_seeds, selection_seeds
from training.facts import list_differences
from training.health import HealthGuard
from training.loop import Outcome, fit
from training.manifest import CheckpointError, read_manifest
from training.metrics import Averages, MetricsError, MetricsLog, RecentEpisodes, TensorBoardView
from training.protocol import Episode, Evaluation, EvaluationStopped, References, StepResult, Treatment
from training.resources import Meter, hash_state
from training.rowlog import RowLog
from training.seeding import seed_everything
from training.session import Attempt, RunFolderError, Session
from training.signals import WINDOW_UPDATES


class Killed(BaseException):
    """The process is gone."""


class CountingTrainer:
    """Learns nothing, but every number of it depends on all steps before and on all global generators."""

    resume_mode: Literal["exact", "episode"] = "exact"
    resume_reason: str | None = None
    references: References | None = None

    def __init__(self, env_steps: int = 1, sick_at: int = 0) -> None:
        seed_everything(5)
        self.env_steps = env_steps
        self.sick_at = sick_at
        self.treatment = Treatment()
        self.values: dict[int, float] = {}
        self.loses_environment_at = 0
        self.steps = 0
        self.weights = torch.zeros(3)
        self.generator = np.random.Generator(np.random.PCG64(1))
        self.rows = np.zeros((16, 2))
        self.evaluated: list[tuple[int, tuple[int, ...]]] = []

    def train_step(self) -> StepResult:
        noise = self.generator.normal() + random.random() + np.random.rand()  # noqa: NPY002
        self.weights += torch.rand(3) * noise
        self.rows[self.steps % 16] = (self.steps, noise)
        self.steps += 1
        loss = self.weights.sum() if self.steps != self.sick_at else torch.tensor(float("nan"))
        metrics: dict[str, torch.Tensor | float] = {"train/critic_loss": loss}
        if self.steps % 2:
            metrics["noise"] = float(noise)
        episodes = [Episode(float(noise), 7, True)] if self.steps % 7 == 0 else []
        return StepResult(metrics, self.env_steps, 1, episodes)

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool]) -> Evaluation:
        self.evaluated.append((self.steps, tuple(seeds)))
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        if should_stop():
            raise EvaluationStopped
        value = self.values.get(self.steps, float(torch.sin(self.weights.sum() * 3)))
        return Evaluation(tuple(seeds), tuple(value + seed % 3 for seed in seeds), tuple(9 for _ in seeds))

    def components(self) -> dict[str, nn.Module]:
        return {"actor": nn.Linear(2, 1)}

    def treat(self, treatment: Treatment) -> None:
        self.treatment = treatment

    def redraw(self, number: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(100 + number))

    def state_dict(self) -> dict[str, Any]:
        if self.steps == self.loses_environment_at:
            self.resume_mode, self.resume_reason = "episode", "a file is open"
        return {
            "steps": self.steps,
            "weights": self.weights,
            "generator": self.generator.bit_generator.state,
            "buffer": RowLog(self.rows, self.steps),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.weights.copy_(state["weights"])
        self.generator.bit_generator.state = state["generator"]
        self.rows[:] = state["buffer"].rows
        assert state["buffer"].total == self.steps

    def close(self) -> None:
        pass


def make_config(**settings: Any) -> TrainerConfig:
    base = {
        "algorithm_name": "counting",
        "env_name": "none",
        "max_timesteps": 25,
        "learning_starts": 0,
        "batch_size": 1,
        "log_freq": 3,
        "eval_freq": 4,
        "save_freq": 6,
        "num_eval": 2,
        "num_final_eval": 2,
    }
    return TrainerConfig.from_settings(base | settings)


def make_run(parent: Path, name: str = "run") -> Run:
    run = Run(parent / name / "x__0123456789abcdef", "0123456789abcdef", "x")
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


class Life:
    """One attempt, with what it said."""

    def __init__(
        self, run: Run, config: TrainerConfig, trainer: CountingTrainer | None = None, number: int = 1
    ) -> None:
        self.run, self.config, self.number = run, config, number
        self.trainer = trainer or CountingTrainer()
        self.said: list[str] = []

    def fit(self, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        attempt = Attempt(self.number, "cpu", 1, "abc")
        return fit(self.trainer, self.run, self.config, attempt, should_stop=should_stop, say=self.said.append)


def read_rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def read_best(run: Run) -> Any:
    """What the manifest of the best policy says of it; there is never more than one."""
    paths = list(run.checkpoints_dir.glob("best_*.pt"))
    assert len(paths) <= 1
    return read_manifest(paths[0]).facts["best"] if paths else None


def read_result(run: Run) -> dict[str, Any]:
    """Everything of a finished run that may not depend on how often it was interrupted."""
    rows = [
        {name: value for name, value in row.items() if name != "wall_time" and not name.startswith("time/")}
        for row in read_rows(run)
    ]
    summary = json.loads(run.summary_path.read_bytes())
    for name in ("time", "throughput", "memory", "attempts"):
        del summary[name]
    newest = load_newest(run.checkpoints_dir, with_replay=False)
    assert newest is not None
    return {
        "rows": rows,
        "summary": summary,
        "best": read_best(run),
        "checkpoints": sorted(path.name for path in run.checkpoints_dir.glob("step_*.pt")),
        "state": hash_state(newest.state["trainer"]),
        "generators": hash_state(newest.state["generators"]),
        "replay": [path.name for path in run.checkpoints_dir.rglob("*.rows")],
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def clocks(run: Run, name: str) -> list[int]:
    return [row["env_step"] for row in read_rows(run) if name in row]


def test_a_run_writes_logs_evaluations_checkpoints_and_a_summary(run: Run) -> None:
    life = Life(run, make_config())
    assert life.fit() is Outcome.FINISHED
    assert clocks(run, "train/critic_loss") == [3, 6, 9, 12, 15, 18, 21, 24, 25]
    assert clocks(run, "eval/mean_reward") == [4, 8, 12, 16, 20, 24]
    assert sorted(path.name for path in run.checkpoints_dir.glob("*.pt")) == [
        f"best_{read_best(run)['step']:08d}.pt",
        "step_00000024.pt",
        "step_00000025.pt",
    ]
    assert life.trainer.evaluated == [(step, selection_seeds(2)) for step in range(4, 25, 4)] + [(25, report_seeds(2))]
    assert sum(line.startswith("Eval num_timesteps=") for line in life.said) == 6
    assert list(run.tensorboard_dir.iterdir())


def test_the_summary_has_what_its_contract_says(run: Run) -> None:
    Life(run, make_config()).fit()
    summary = json.loads(run.summary_path.read_bytes())
    assert set(summary) == {
        *("final_eval", "best_eval", "parameters", "memory", "time", "throughput", "steps", "env_steps", "updates"),
        *("attempts", "resume", "resume_reason", "backends", "guard", "device", "threads"),
        *("code_version", "state_hash", "parent"),
    }
    assert summary["final_eval"]["seeds"] == list(report_seeds(2))
    assert summary["final_eval"]["mean"] == pytest.approx(np.mean(summary["final_eval"]["returns"]))
    assert summary["best_eval"]["mean"] == max(row.get("eval/mean_reward", -9) for row in read_rows(run))
    assert summary["parameters"] == {"actor": 3}
    assert summary["backends"] == {}
    assert summary["memory"]["replay_bytes"] == 256
    assert (summary["steps"], summary["env_steps"], summary["updates"]) == (25, 25, 25)
    assert summary["guard"] == {
        "mode": "warn",
        "verdict": "healthy",
        "events": 0,
        "repaired": False,
        "decisions": [],
    }


class FreezingTrainer(CountingTrainer):
    """Stops its actor's learning on the way, as a trainer of two phases may."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(2, 1)

    def train_step(self) -> StepResult:
        self.actor.requires_grad_(self.steps < 5)
        return super().train_step()

    def components(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}


def test_parameters_that_stop_learning_on_the_way_are_counted(run: Run) -> None:
    first = Life(run, make_config(), FreezingTrainer())
    assert first.fit(lambda: first.trainer.steps >= 16) is Outcome.STOPPED
    assert Life(run, make_config(), FreezingTrainer(), number=2).fit() is Outcome.FINISHED
    assert json.loads(run.summary_path.read_bytes())["parameters"] == {"actor": 3}


def test_scores_are_written_beside_returns_where_there_are_references(run: Run) -> None:
    trainer = CountingTrainer()
    trainer.references = References(random=-3.0, expert=5.0)
    Life(run, make_config(), trainer).fit()
    rows = [row for row in read_rows(run) if "eval/mean_reward" in row]
    assert [row["eval/normalized_score"] for row in rows] == pytest.approx(
        [100 * (row["eval/mean_reward"] + 3) / 8 for row in rows]
    )
    final = json.loads(run.summary_path.read_bytes())["final_eval"]
    assert final["normalized_score"] == pytest.approx(100 * (final["mean"] + 3) / 8)
    assert final["references"] == {"random": -3.0, "expert": 5.0}


def test_nothing_is_said_of_scores_without_references(run: Run) -> None:
    Life(run, make_config()).fit()
    assert not any("eval/normalized_score" in row for row in read_rows(run))
    final = json.loads(run.summary_path.read_bytes())["final_eval"]
    assert set(final) == {"mean", "std", "returns", "lengths", "seeds"}


class MeasuringTrainer(CountingTrainer):
    """In an environment that reports of each episode whether it succeeded, and a distance."""

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool]) -> Evaluation:
        measures = {"is_success": tuple(float(seed % 2) for seed in seeds), "distance": (float(self.steps),) * 2}
        return replace(super().evaluate(seeds, should_stop), measures=measures)


def test_measures_are_written_beside_returns(run: Run) -> None:
    life = Life(run, make_config(), MeasuringTrainer())
    life.fit()
    rows = {row["step"]: row for row in read_rows(run) if "eval/mean_reward" in row}
    assert [row["eval/distance"] for row in rows.values()] == [4.0, 8.0, 12.0, 16.0, 20.0, 24.0]
    assert {row["eval/success_rate"] for row in rows.values()} == {0.5}
    assert life.said.count("Success rate: 50.00%") == 6
    summary = json.loads(run.summary_path.read_bytes())
    final, best = summary["final_eval"], summary["best_eval"]
    assert (final["success_rate"], final["distance"]) == (0.5, 25.0)
    assert final["measures"] == {"is_success": [0.0, 1.0], "distance": [25.0, 25.0]}
    assert best == {
        "step": best["step"],
        "mean": rows[best["step"]]["eval/mean_reward"],
        "success_rate": 0.5,
        "distance": best["step"],
    }


def test_measures_outlive_a_stop(tmp_path: Path) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "stopped")
    Life(straight, make_config(), MeasuringTrainer()).fit()
    first = Life(run, make_config(), MeasuringTrainer())
    assert first.fit(lambda: first.trainer.steps >= 24) is Outcome.STOPPED
    assert Life(run, make_config(), MeasuringTrainer(), number=2).fit() is Outcome.FINISHED
    assert read_result(run) | {"checkpoints": 0} == read_result(straight) | {"checkpoints": 0}


def test_updates_and_environment_steps_have_a_throughput_each(run: Run) -> None:
    Life(run, make_config(), CountingTrainer(env_steps=4)).fit()
    summary = json.loads(run.summary_path.read_bytes())
    assert (summary["env_steps"], summary["updates"]) == (28, 7)
    wall_s = summary["time"]["wall_s"]
    assert summary["throughput"] == {"env_steps_per_s": 28 / wall_s, "updates_per_s": 7 / wall_s}


def test_speed_is_measured_since_the_row_before_and_not_over_attempts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(run, make_config())
    # Two steps a second, and 100 s that went by before each attempt.
    monkeypatch.setattr(Meter, "wall_s", lambda meter: 100 * life.number + life.trainer.steps / 2)
    assert life.fit(lambda: life.trainer.steps >= 16) is Outcome.STOPPED
    life = Life(run, make_config(), number=2)
    assert life.fit() is Outcome.FINISHED
    assert {row["time/fps"] for row in read_rows(run) if "time/fps" in row} == {2.0}


def test_how_a_run_resumes_is_asked_for_when_it_is_written_down(run: Run) -> None:
    life = Life(run, make_config(keep_last=9))
    life.trainer.loses_environment_at = 12
    life.fit()
    modes = [read_manifest(path).facts["resume"] for path in sorted(run.checkpoints_dir.glob("step_*.pt"))]
    assert modes == ["exact", "episode", "episode", "episode", "episode"]
    reasons = [read_manifest(path).facts["resume_reason"] for path in sorted(run.checkpoints_dir.glob("step_*.pt"))]
    assert reasons == [None, *["a file is open"] * 4]
    summary = json.loads(run.summary_path.read_bytes())
    assert (summary["resume"], summary["resume_reason"]) == ("episode", "a file is open")


def test_rows_average_over_the_steps_since_the_row_before(run: Run) -> None:
    Life(run, make_config(max_timesteps=4, log_freq=2, eval_freq=0, save_freq=0)).fit()
    reference = CountingTrainer()
    losses = [float(reference.train_step().metrics["train/critic_loss"]) for _ in range(4)]
    rows = read_rows(run)
    assert [row["train/critic_loss"] for row in rows] == [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    assert [row["train/n_updates"] for row in rows] == [2, 4]
    assert all(row["time/fps"] > 0 for row in rows)


@pytest.mark.parametrize("env_steps", [4, 5])
def test_several_environments_step_over_multiples_without_missing_one(run: Run, env_steps: int) -> None:
    Life(run, make_config(), CountingTrainer(env_steps)).fit()
    assert clocks(run, "eval/mean_reward") == ([4, 8, 12, 16, 20, 24, 28] if env_steps == 4 else [5, 10, 15, 20, 25])
    assert json.loads(run.summary_path.read_bytes())["env_steps"] == (28 if env_steps == 4 else 25)


def test_training_steps_count_for_a_trainer_that_does_not_act(run: Run) -> None:
    Life(run, make_config(), CountingTrainer(env_steps=0)).fit()
    rows = read_rows(run)
    assert [row["step"] for row in rows if "eval/mean_reward" in row] == [4, 8, 12, 16, 20, 24]
    assert {row["env_step"] for row in rows} == {0}
    assert json.loads(run.summary_path.read_bytes())["steps"] == 25


def test_a_frequency_of_zero_means_never_but_the_end_is_saved(run: Run) -> None:
    life = Life(run, make_config(log_freq=0, eval_freq=0, save_freq=0))
    assert life.fit() is Outcome.FINISHED
    assert not run.metrics_path.exists()
    assert [path.name for path in run.checkpoints_dir.glob("*.pt")] == ["step_00000025.pt"]
    assert json.loads(run.summary_path.read_bytes())["best_eval"] is None


def test_replay_data_go_when_the_run_is_done_unless_they_are_to_be_kept(tmp_path: Path) -> None:
    dropped, kept = make_run(tmp_path, "dropped"), make_run(tmp_path, "kept")
    Life(dropped, make_config()).fit()
    Life(kept, make_config(keep_replay=True)).fit()
    assert not list(dropped.checkpoints_dir.rglob("*.rows"))
    with pytest.raises(CheckpointError, match="keep_replay"):
        load_newest(dropped.checkpoints_dir)
    newest = load_newest(kept.checkpoints_dir)
    assert newest is not None
    assert newest.state["trainer"]["buffer"].total == 25


class SlowTrainer(CountingTrainer):
    """Steps of one second, the second one of three, and evaluations of a thousand, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0

    def train_step(self) -> StepResult:
        self.clock += 3.0 if self.steps == 1 else 1.0
        return super().train_step()

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool]) -> Evaluation:
        self.clock += 1000.0
        return super().evaluate(seeds, should_stop)


class Clock:
    """Stands in for the module `time`."""

    def __init__(self, trainer: SlowTrainer) -> None:
        self.trainer = trainer

    def perf_counter(self) -> float:
        return self.trainer.clock


@pytest.fixture
def slow_life(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Life]:
    def make(run: Run, number: int = 1, **settings: Any) -> Life:
        trainer = SlowTrainer()
        monkeypatch.setattr(budget_module, "time", Clock(trainer))
        return Life(run, make_config(**settings), trainer, number)

    return make


def test_a_wall_budget_ends_a_run_by_the_time_of_its_steps_alone(run: Run, slow_life: Callable[..., Life]) -> None:
    """Three seconds for the second step, one for each other: the tenth second is that of step 8."""
    life = slow_life(run, wall_budget_s=10)
    assert life.fit() is Outcome.FINISHED
    assert life.trainer.steps == 8
    assert clocks(run, "train/critic_loss") == [3, 6, 8]
    assert clocks(run, "eval/mean_reward") == [4, 8]
    newest = load_newest(run.checkpoints_dir, with_replay=False)
    assert newest is not None
    assert newest.step == 8
    assert newest.state["session"]["budget"] == {"spent_s": 10.0, "is_spent": True}
    assert json.loads(run.summary_path.read_bytes())["steps"] == 8


def test_a_run_ends_by_its_clock_where_that_comes_before_its_budget(run: Run, slow_life: Callable[..., Life]) -> None:
    life = slow_life(run, wall_budget_s=28)
    assert life.fit() is Outcome.FINISHED
    assert life.trainer.steps == 25


@pytest.mark.parametrize("stop_at", [0, 1, 2, 6, 7, 8])
def test_a_wall_budget_goes_on_where_an_attempt_before_left_it(
    tmp_path: Path, slow_life: Callable[..., Life], stop_at: int
) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "stopped")
    slow_life(straight, wall_budget_s=10).fit()
    first = slow_life(run, wall_budget_s=10)
    first.fit(lambda: first.trainer.steps >= stop_at)
    last = slow_life(run, number=2, wall_budget_s=10)
    assert last.fit() is Outcome.FINISHED
    assert last.trainer.steps == 8
    assert read_result(run) | {"checkpoints": 0} == read_result(straight) | {"checkpoints": 0}


def test_a_budget_that_is_spent_stays_so_whatever_the_clock_says_next(run: Run, slow_life: Callable[..., Life]) -> None:
    """The final evaluation is cut short after the last step; the next attempt takes no further one."""
    first = slow_life(run, wall_budget_s=10)
    assert first.fit(lambda: (8, report_seeds(2)) in first.trainer.evaluated) is Outcome.STOPPED
    last = slow_life(run, number=2, wall_budget_s=10)
    assert last.fit() is Outcome.FINISHED
    assert last.trainer.evaluated == [(8, report_seeds(2))]


def test_training_rows_say_how_busy_the_gpu_of_the_run_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(device: str) -> dict[str, float]:
        asked.append(device)
        return {"time/gpu_utilisation": 37.0}

    monkeypatch.setattr(session_module, "read_gpu_utilisation", read)
    Life(run, make_config()).fit()
    assert clocks(run, "time/gpu_utilisation") == clocks(run, "train/critic_loss")
    assert set(asked) == {"cpu"}


def test_evaluation_on_or_off_gives_the_same_bits(tmp_path: Path) -> None:
    often, never = make_run(tmp_path, "often"), make_run(tmp_path, "never")
    Life(often, make_config(eval_freq=1)).fit()
    Life(never, make_config(eval_freq=0)).fit()
    for name in ("state", "generators"):
        assert read_result(often)[name] == read_result(never)[name]
    rows = [row for row in read_result(often)["rows"] if "eval/mean_reward" not in row]
    assert rows == read_result(never)["rows"]


def test_saving_often_or_never_gives_the_same_bits(tmp_path: Path) -> None:
    often, never = make_run(tmp_path, "often"), make_run(tmp_path, "never")
    Life(often, make_config(save_freq=1)).fit()
    Life(never, make_config(save_freq=0)).fit()
    for name in ("state", "generators", "rows", "summary"):
        assert read_result(often)[name] == read_result(never)[name]


@pytest.mark.parametrize("stop_at", [0, 1, 5, 6, 12, 24, 25])
def test_a_stop_request_ends_in_a_checkpoint_and_is_gone_on_from(tmp_path: Path, stop_at: int) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "stopped")
    Life(straight, make_config()).fit()
    first = Life(run, make_config())
    assert first.fit(lambda: first.trainer.steps >= stop_at) is Outcome.STOPPED
    assert first.trainer.steps == stop_at
    newest = load_newest(run.checkpoints_dir)
    assert newest is not None
    assert newest.step == stop_at
    assert not run.summary_path.exists()
    second = Life(run, make_config(), number=2)
    assert second.fit(lambda: True) is Outcome.STOPPED  # at once again: nothing is lost or written twice
    third = Life(run, make_config(), number=3)
    assert third.fit() is Outcome.FINISHED
    assert f"Resumed from step {stop_at}" in third.said
    assert read_result(run) | {"checkpoints": 0} == read_result(straight) | {"checkpoints": 0}
    assert json.loads(run.summary_path.read_bytes())["attempts"] == 3


EVALUATIONS: list[tuple[dict[str, Any], int]] = [
    ({}, 4),  # neither a row nor a checkpoint falls on it
    ({}, 12),  # both do
    ({"max_timesteps": 24}, 24),  # and it is the last step
    ({"max_timesteps": 24, "save_freq": 7, "log_freq": 0}, 24),
    ({"max_timesteps": 24, "save_freq": 0, "keep_last": 1}, 24),
]


@pytest.mark.parametrize(("settings", "step"), EVALUATIONS)
@pytest.mark.parametrize("again", ["", "stopped", "killed"])
def test_an_evaluation_that_a_stop_cut_short_is_made_up_for_first(
    tmp_path: Path, settings: dict[str, Any], step: int, again: str
) -> None:
    config, seeds = make_config(**settings), selection_seeds(2)
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "stopped")
    Life(straight, config).fit()
    for number in (1, 2) if again == "stopped" else (1,):
        life = Life(run, config, number=number)
        assert life.fit(partial(life.trainer.evaluated.__contains__, (step, seeds))) is Outcome.STOPPED
        assert life.trainer.evaluated[-1] == (step, seeds)
        assert f"Evaluation at step {step} cut short; it comes first when the run goes on" in life.said
        assert step not in [row["step"] for row in read_rows(run) if "eval/mean_reward" in row]
        newest = load_newest(run.checkpoints_dir)
        assert newest is not None
        assert newest.step == step
    if again == "killed":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointStore, "save_best", kill)
            patch.setattr(CountingTrainer, "train_step", kill)
            patch.setattr(session_module, "write_json", kill)
            with pytest.raises(Killed):
                Life(run, config, number=2).fit()
        assert [row["step"] for row in read_rows(run) if "eval/mean_reward" in row][-1] == step
    last = Life(run, config, number=3)
    assert last.fit() is Outcome.FINISHED
    assert last.trainer.evaluated[0] == (step, seeds)
    assert read_result(run) | {"checkpoints": 0} == read_result(straight) | {"checkpoints": 0}


def kill(*args: Any) -> None:
    raise Killed


def test_an_evaluation_is_made_up_for_in_the_same_attempt_where_the_wish_to_stop_goes_away(tmp_path: Path) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "asked")
    Life(straight, make_config()).fit()
    life = Life(run, make_config())
    assert life.fit(lambda: [at for at, _ in life.trainer.evaluated] == [4] and not life.said) is Outcome.FINISHED
    assert [at for at, _ in life.trainer.evaluated][:3] == [4, 4, 8]
    assert read_result(run) == read_result(straight)


def test_a_final_evaluation_that_a_stop_cut_short_leaves_no_summary(tmp_path: Path) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "stopped")
    Life(straight, make_config()).fit()
    life = Life(run, make_config())
    assert life.fit(lambda: (25, report_seeds(2)) in life.trainer.evaluated) is Outcome.STOPPED
    assert not run.summary_path.exists()
    again = Life(run, make_config(), number=2)
    assert again.fit() is Outcome.FINISHED
    assert again.trainer.evaluated == [(25, report_seeds(2))]
    assert read_result(run) == read_result(straight)


def test_a_sick_run_is_not_saved_because_a_stop_cut_its_evaluation_short(run: Run) -> None:
    life = Life(run, make_config(guard="stop"), CountingTrainer(sick_at=12))
    assert life.fit(lambda: (12, selection_seeds(2)) in life.trainer.evaluated) is Outcome.UNHEALTHY
    newest = load_newest(run.checkpoints_dir)
    assert newest is not None
    assert newest.step == 6


def test_the_guard_looks_at_an_owed_evaluation_before_anything_is_trained(run: Run) -> None:
    first = Life(run, make_config(guard="stop"))
    assert first.fit(lambda: (8, selection_seeds(2)) in first.trainer.evaluated) is Outcome.STOPPED
    second = Life(run, make_config(guard="stop"), number=2)
    second.trainer.values = {8: float("nan")}
    assert second.fit() is Outcome.UNHEALTHY
    assert second.trainer.steps == 8


POINTS: list[tuple[Any, str]] = [
    (CountingTrainer, "train_step"),
    (CountingTrainer, "evaluate"),
    (CountingTrainer, "state_dict"),
    (CountingTrainer, "load_state_dict"),
    (MetricsLog, "write"),
    (MetricsLog, "_append"),
    (MetricsLog, "_cut"),
    (MetricsLog, "sync"),
    (CheckpointStore, "save"),
    (CheckpointStore, "save_best"),
    (CheckpointStore, "_rotate"),
    (CheckpointStore, "drop_replay"),
    (Session, "clean_up"),
    (session_module, "write_json"),
    (session_module, "write_global_generators"),
]


def kill_at(patch: pytest.MonkeyPatch, moment: int) -> Iterator[int]:
    """Count the moments before and after each call of `POINTS`, and raise at one of them."""
    counter = itertools.count()

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == moment:
                raise Killed
            result = real(*args, **kwargs)
            if next(counter) == moment:
                raise Killed
            return result

        return call

    for owner, name in POINTS:
        patch.setattr(owner, name, wrap(getattr(owner, name)))
    return counter


@pytest.fixture
def no_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard has a thread of its own, which simulated kills don't reach."""
    monkeypatch.setattr(session_module, "MetricsLog", lambda path, view: MetricsLog(path))


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the disk in tests of hundreds of runs, where only exceptions are simulated."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("no_view", "no_fsync")
@pytest.mark.parametrize("settings", [{}, {"eval_freq": 5, "save_freq": 4, "keep_last": 1}], ids=["apart", "together"])
def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = make_config(max_timesteps=13, **settings)
    straight = make_run(tmp_path, "straight")
    with pytest.MonkeyPatch.context() as patch:
        counter = kill_at(patch, -1)
        Life(straight, config).fit()
        moments = next(counter)
    expected = read_result(straight)
    assert moments > 80
    for moment in range(moments):
        run = make_run(tmp_path, str(moment))
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            with pytest.raises(Killed):
                Life(run, config).fit()
        assert Life(run, config, number=2).fit() is Outcome.FINISHED
        assert read_result(run) == expected, f"killed at moment {moment}"


@pytest.mark.usefixtures("no_view", "no_fsync")
def test_a_resume_that_is_killed_is_resumed_again(tmp_path: Path) -> None:
    config = make_config(max_timesteps=13)
    straight = make_run(tmp_path, "straight")
    Life(straight, config).fit()
    expected = read_result(straight)
    for first, second in itertools.product((40, 70), range(24)):
        run = make_run(tmp_path, f"{first}-{second}")
        for number, moment in enumerate((first, second)):
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, moment)
                with pytest.raises(Killed):
                    Life(run, config, number=number).fit()
        assert Life(run, config, number=3).fit() is Outcome.FINISHED
        assert read_result(run) == expected, f"killed at {first} and {second}"


def limit_operations(patch: pytest.MonkeyPatch, allowed: int) -> Callable[[], int]:
    """Let so many file operations through; all later ones raise, those of clean-ups too. Gives how many were made."""
    made = 0

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            if made >= allowed:
                raise Killed
            made += 1
            return real(*args, **kwargs)

        return operation

    for name in ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "truncate"):
        patch.setattr(os, name, guard(getattr(os, name)))
    opener = guard(io.open)
    patch.setattr(io, "open", opener)
    patch.setattr(builtins, "open", opener)
    return lambda: made


@pytest.mark.usefixtures("no_view")
def test_a_run_killed_between_any_two_file_operations_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = make_config(max_timesteps=10, save_freq=4, log_freq=5, eval_freq=5, keep_last=1)
    straight = make_run(tmp_path, "straight")
    with pytest.MonkeyPatch.context() as patch:
        count = limit_operations(patch, 10**9)
        Life(straight, config).fit()
        total = count()
    expected = read_result(straight)
    for allowed in range(total):
        run = make_run(tmp_path, str(allowed))
        with pytest.MonkeyPatch.context() as patch:
            limit_operations(patch, allowed)
            with pytest.raises(Killed):
                Life(run, config).fit()
        assert Life(run, config, number=2).fit() is Outcome.FINISHED
        assert read_result(run) == expected, f"killed before operation {allowed}"


def test_a_corrupted_newest_checkpoint_costs_only_time(tmp_path: Path) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "run")
    Life(straight, make_config()).fit()
    first = Life(run, make_config())
    first.fit(lambda: first.trainer.steps >= 15)
    (run.checkpoints_dir / "step_00000015.pt").write_bytes(b"torn")
    second = Life(run, make_config(), number=2)
    assert second.fit() is Outcome.FINISHED
    assert "Resumed from step 12" in second.said
    assert any("step_00000015.pt is not used" in line for line in second.said)
    assert read_result(run) == read_result(straight)


def test_a_finished_run_is_not_trained_or_evaluated_again(run: Run) -> None:
    Life(run, make_config()).fit()
    before = read_result(run)
    again = Life(run, make_config(), number=2)
    assert again.fit() is Outcome.FINISHED
    assert again.trainer.steps == 0
    assert not again.trainer.evaluated
    assert read_result(run) == before


def test_only_the_final_evaluation_is_left_after_the_last_checkpoint(run: Run) -> None:
    Life(run, make_config(keep_replay=True)).fit()
    run.summary_path.unlink()
    again = Life(run, make_config(), number=2)
    assert again.fit() is Outcome.FINISHED
    assert again.trainer.evaluated == [(25, report_seeds(2))]
    assert run.summary_path.exists()


def test_rows_without_a_checkpoint_are_dropped_and_said(run: Run) -> None:
    def stop() -> bool:
        raise Killed

    config = make_config(save_freq=0)
    first = Life(run, config)
    with pytest.raises(Killed):
        first.fit(lambda: first.trainer.steps >= 10 and stop())
    assert len(read_rows(run)) == 5
    second = Life(run, config, number=2)
    assert second.fit() is Outcome.FINISHED
    assert "No checkpoint yet: training begins again, 5 earlier metric rows are dropped" in second.said
    assert clocks(run, "eval/mean_reward") == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("leftover", ["metrics.jsonl", "summary.json", "checkpoints/step_00000006.pt"])
def test_without_continue_training_an_earlier_life_must_be_out_of_the_way(run: Run, leftover: str) -> None:
    path = run.folder / leftover
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}\n")
    with pytest.raises(RunFolderError, match="continue_training: true"):
        Life(run, make_config(continue_training=False)).fit()
    assert path.read_text() == "{}\n"


def test_without_continue_training_a_clean_folder_is_trained_in(run: Run) -> None:
    assert Life(run, make_config(continue_training=False)).fit() is Outcome.FINISHED


def test_a_curve_that_the_checkpoint_does_not_know_is_refused(run: Run) -> None:
    first = Life(run, make_config())
    first.fit(lambda: first.trainer.steps >= 15)
    run.metrics_path.write_text("")
    with pytest.raises(MetricsError, match=r"metrics\.jsonl"):
        Life(run, make_config(), number=2).fit()


def test_the_summary_names_the_policy_that_is_in_the_best_file(run: Run) -> None:
    """Also where a resumed run doesn't repeat itself to the bit, and never comes by that policy again."""

    def stop() -> bool:
        raise Killed

    first = Life(run, make_config(save_freq=6, eval_freq=1))
    first.trainer.values = {9: 100.0}
    with pytest.raises(Killed):
        first.fit(lambda: first.trainer.steps >= 10 and stop())
    assert Life(run, make_config(save_freq=6, eval_freq=1), number=2).fit() is Outcome.FINISHED
    assert json.loads(run.summary_path.read_bytes())["best_eval"] == read_best(run)
    assert read_best(run)["step"] == 9


def test_without_a_best_file_the_one_that_the_checkpoint_knows_counts(run: Run) -> None:
    values = {4: 100.0}
    first = Life(run, make_config())
    first.trainer.values = values
    first.fit(lambda: first.trainer.steps >= 15)
    for path in run.checkpoints_dir.glob("best_*"):
        path.unlink()
    second = Life(run, make_config(), number=2)
    second.trainer.values = values
    second.fit()
    assert json.loads(run.summary_path.read_bytes())["best_eval"]["step"] == 4
    assert read_best(run) is None


@pytest.mark.parametrize("first", [float("nan"), float("inf"), float("-inf")])
def test_a_first_evaluation_that_is_not_finite_is_never_the_best(run: Run, first: float) -> None:
    life = Life(run, make_config())
    life.trainer.values = {4: first, 12: 50.0}
    with np.errstate(invalid="ignore"):
        life.fit()
    assert json.loads(run.summary_path.read_bytes())["best_eval"]["step"] == read_best(run)["step"] == 12


def test_of_two_equal_evaluations_the_first_is_the_best(run: Run) -> None:
    life = Life(run, make_config())
    life.trainer.values = {8: 50.0, 16: 50.0}
    life.fit()
    assert json.loads(run.summary_path.read_bytes())["best_eval"]["step"] == read_best(run)["step"] == 8


def test_rows_reach_the_disk_before_the_checkpoint_that_counts_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Life(run, make_config(max_timesteps=6, eval_freq=0)).fit()
    manifest = next(place for place, name in enumerate(order) if name.startswith(".step_00000006.json"))
    assert "metrics.jsonl" in order[:manifest]


def test_other_threads_or_devices_are_told_at_a_resume(run: Run) -> None:
    first = Life(run, make_config())
    first.fit(lambda: first.trainer.steps >= 15)
    said: list[str] = []
    attempt = Attempt(2, "cuda:0", 4, "abc")
    fit(CountingTrainer(), run, make_config(), attempt, should_stop=lambda: False, say=said.append)
    assert [line.split(":")[0] for line in said if " was " in line] == [
        "device was cpu and is cuda",
        "threads was 1 and is 4 now",
    ]


class ChoosingTrainer(CountingTrainer):
    """Has two ways to add numbers."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def describe_backends(self) -> dict[str, str]:
        return {"addition": self.backend}


def test_what_a_trainer_computes_with_is_said_once_and_kept(run: Run) -> None:
    life = Life(run, make_config(), ChoosingTrainer("fingers (10 of them)"))
    life.fit()
    assert [line for line in life.said if "fingers" in line] == ["addition: fingers (10 of them)"]
    assert life.said[0] == "addition: fingers (10 of them)"
    kept = {"addition": "fingers (10 of them)"}
    assert json.loads(run.summary_path.read_bytes())["backends"] == kept
    paths = list(run.checkpoints_dir.glob("*.pt"))
    assert len(paths) > 1
    assert all(read_manifest(path).facts["backends"] == kept for path in paths)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("abacus", ["addition was fingers and is abacus now: results may differ in their last digits"]),
        ("fingers", []),
    ],
)
def test_another_way_to_compute_is_told_at_a_resume(run: Run, second: str, told: list[str]) -> None:
    first = Life(run, make_config(), ChoosingTrainer("fingers"))
    first.fit(lambda: first.trainer.steps >= 15)
    life = Life(run, make_config(), ChoosingTrainer(second), number=2)
    life.fit()
    assert [line for line in life.said if " was " in line] == told


def test_checkpoints_from_before_ways_to_compute_were_kept_can_be_gone_on_from() -> None:
    before = {"device": "cpu", "threads": 1, "torch": "2"}
    assert list_differences(before, before | {"backends": {"addition": "abacus"}}) == []
    assert list_differences(before | {"backends": {}}, before | {"backends": {"addition": "abacus"}}) == []


def read_guard_events(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.events_path.read_text().splitlines()]


def test_the_guard_warns_once_and_the_run_goes_on(run: Run) -> None:
    first = Life(run, make_config(guard="warn"), CountingTrainer(sick_at=4))
    assert first.fit(lambda: first.trainer.steps >= 10) is Outcome.STOPPED
    second = Life(run, make_config(guard="warn"), CountingTrainer(sick_at=13), number=2)
    assert second.fit() is Outcome.FINISHED
    assert [row["train/critic_loss"] for row in read_rows(run) if "train/critic_loss" in row].count("nan") == 2
    assert [event["metric"] for event in read_guard_events(run)] == ["train/critic_loss"]
    guard = json.loads(run.summary_path.read_bytes())["guard"]
    assert (guard["verdict"], guard["events"], guard["repaired"]) == ("non-finite", 1, False)


def test_the_guard_stops_a_run_before_it_saves_what_is_broken(run: Run) -> None:
    life = Life(run, make_config(guard="stop"), CountingTrainer(sick_at=12))
    assert life.fit() is Outcome.UNHEALTHY
    assert life.trainer.steps == 12
    newest = load_newest(run.checkpoints_dir)
    assert newest is not None
    assert newest.step == 6
    assert not run.summary_path.exists()
    assert read_guard_events(run)[0]["step"] == 12
    again = Life(run, make_config(guard="stop"), CountingTrainer(sick_at=12), number=2)
    assert again.fit() is Outcome.UNHEALTHY
    assert again.trainer.steps == 12


def test_a_run_without_a_final_evaluation_ends_and_says_so(run: Run) -> None:
    life = Life(run, make_config(num_final_eval=0, eval_freq=0), CountingTrainer())
    assert life.fit() is Outcome.FINISHED
    assert life.trainer.evaluated == []
    summary = json.loads(run.summary_path.read_bytes())
    assert summary["final_eval"] is None
    assert summary["steps"] == 25


@pytest.mark.parametrize(("guard", "outcome"), [("warn", Outcome.FINISHED), ("stop", Outcome.UNHEALTHY)])
def test_a_final_evaluation_that_is_not_finite_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, guard: str, outcome: Outcome
) -> None:
    def evaluate(trainer: CountingTrainer, seeds: Sequence[int], should_stop: Callable[[], bool]) -> Evaluation:
        return Evaluation(tuple(seeds), tuple(float("inf") for _ in seeds), tuple(1 for _ in seeds))

    monkeypatch.setattr(CountingTrainer, "evaluate", evaluate)
    config = make_config(guard=guard, eval_freq=0)
    with np.errstate(invalid="ignore"):
        assert Life(run, config).fit() is outcome
    if outcome is Outcome.FINISHED:
        summary = json.loads(run.summary_path.read_bytes())
        assert summary["final_eval"]["mean"] == "inf"
        assert summary["guard"]["verdict"] == "non-finite"
    else:
        assert not run.summary_path.exists()


def test_a_full_disk_during_a_save_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, run = make_run(tmp_path, "straight"), make_run(tmp_path, "run")
    Life(straight, make_config()).fit()
    life = Life(run, make_config())

    def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        if life.trainer.steps == 18:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device"):
            life.fit()
    newest = load_newest(run.checkpoints_dir)
    assert newest is not None
    assert newest.step == 12
    assert Life(run, make_config(), number=2).fit() is Outcome.FINISHED
    assert read_result(run) == read_result(straight)


def test_every_attribute_of_a_stateful_object_is_saved_or_declared_transient(run: Run) -> None:
    life = Life(run, make_config())
    session = Session(life.trainer, run, life.config, Attempt(1, "cpu", 1, "abc"), print)
    guard = HealthGuard("warn", run.events_path, run.id, print)
    for stateful in (
        session,
        guard,
        MetricsLog(run.metrics_path),
        Averages(),
        RecentEpisodes(),
        Meter(),
        WallBudget(1),
    ):
        attributes = set(vars(stateful))
        assert attributes >= type(stateful).TRANSIENT, f"{type(stateful).__name__} declares what it has not"
        saved = {name.lstrip("_") for name in attributes - type(stateful).TRANSIENT}
        assert saved == set(stateful.state_dict()), type(stateful).__name__
    assert set(vars(TensorBoardView(run.tensorboard_dir))) == TensorBoardView.TRANSIENT


def test_loading_a_state_gives_every_part_of_it_back(run: Run) -> None:
    life = Life(run, make_config())
    life.fit(lambda: life.trainer.steps >= 15)
    newest = load_newest(run.checkpoints_dir)
    assert newest is not None
    session = Session(CountingTrainer(), run, life.config, Attempt(2, "cpu", 1, "abc"), print)
    newest.state["session"]["owes_evaluation"] = True
    newest.state["session"]["meter"] |= {"wall_before": 1e6, "cpu_before": 2e6, "rss_before": 2**50, "gpu_before": 7}
    session.load_state_dict(newest.state["session"])
    meter = session.state_dict()["meter"]
    assert 1e6 < meter["wall_before"] < 1e6 + 1000
    assert 2e6 < meter["cpu_before"] < 2e6 + 1000
    assert (meter["rss_before"], meter["gpu_before"]) == (2**50, 7)
    for name, part in session.state_dict().items():
        if name != "meter":
            assert hash_state(part) == hash_state(newest.state["session"][name]), name


Sickness = Callable[[int, Treatment], bool]


class SickTrainer(CountingTrainer):
    """Each of its steps is a window of the guard's, and bad where `is_sick` says so, of the step and the treatment.

    With `updates` a part of a window, one bad step makes it bad.
    """

    def __init__(self, is_sick: Sickness) -> None:
        super().__init__()
        self.is_sick = is_sick
        self.loses_environment_at = -1  # never; it is asked for its state at step 0 too
        self.updates = WINDOW_UPDATES
        self.skips_at = 0
        self.treatments: list[Treatment] = []
        self.found: list[tuple[int, str]] = []

    def train_step(self) -> StepResult:
        result = super().train_step()
        self.weights += self.treatment.learning_rate_factor + 10 * self.treatment.batch_halvings
        vitals = {"stuck_share": 10.0 * self.is_sick(self.steps, self.treatment)}
        if self.steps == self.skips_at:
            vitals["skips"] = 1.0
        return replace(result, updates=self.updates, vitals=vitals)

    def treat(self, treatment: Treatment) -> None:
        super().treat(treatment)
        if treatment != Treatment() and treatment not in self.treatments:
            self.treatments.append(treatment)

    def redraw(self, number: int) -> None:
        self.found.append((self.steps, hash_state(self.state_dict())))
        super().redraw(number)


def is_cured_by(roll_backs: int, since: int = 8) -> Sickness:
    """Sick from a step on, until so many roll-backs were made."""
    return lambda step, treatment: step >= since and treatment.learning_rate_factor > 0.5**roll_backs


def make_repair_config(**settings: Any) -> TrainerConfig:
    return make_config(**({"guard": "repair", "save_freq": 2} | settings))


def read_actions(run: Run) -> list[tuple[int, str]]:
    return [(event["step"], event["action"]) for event in read_guard_events(run)]


def test_a_roll_back_gives_the_exact_bits_of_the_last_healthy_checkpoint(run: Run) -> None:
    """Of step 6: the one of step 8 is newer, and lies behind the first bad window."""
    life = Life(run, make_repair_config(keep_last=5), SickTrainer(is_cured_by(1)))
    saved: dict[int, str] = {}
    real = CheckpointStore.save

    def save(store: CheckpointStore, step: int, state: Any, facts: Any) -> Path:
        saved.setdefault(step, hash_state(state["trainer"]))
        return real(store, step, state, facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", save)
        assert life.fit() is Outcome.FINISHED
    assert list(saved)[:5] == [0, 2, 4, 6, 8]
    assert life.trainer.found == [(6, saved[6])]
    assert life.trainer.treatments == [Treatment(0.5, 0)]
    assert read_actions(run) == [(9, "roll_back")]
    assert "Resumed from step 6" in life.said


def test_rows_of_what_was_rolled_back_are_cut(run: Run) -> None:
    Life(run, make_repair_config(log_freq=1), SickTrainer(is_cured_by(1))).fit()
    assert clocks(run, "train/critic_loss") == list(range(1, 26))
    assert clocks(run, "eval/mean_reward") == [4, 8, 12, 16, 20, 24]
    rows = [row for row in read_rows(run) if "health/stuck_actor" in row]
    assert {row["health/stuck_actor"] for row in rows} == {0.0}
    assert sum(row["train/n_updates"] == 25 * WINDOW_UPDATES for row in rows) == 1


def test_tensorboard_forgets_what_was_rolled_back(run: Run) -> None:
    Life(run, make_repair_config(log_freq=1), SickTrainer(is_cured_by(1))).fit()
    view = EventAccumulator(str(run.tensorboard_dir))
    view.Reload()
    points = view.Scalars("health/stuck_actor")
    assert [point.step for point in points] == list(range(1, 26))
    assert {point.value for point in points} == {0.0}


def test_what_a_run_went_on_to_is_another_stream_and_not_what_it_came_from(tmp_path: Path) -> None:
    repaired, never_sick = make_run(tmp_path, "repaired"), make_run(tmp_path, "never")
    Life(repaired, make_repair_config(), SickTrainer(is_cured_by(1))).fit()
    Life(never_sick, make_repair_config(), SickTrainer(lambda step, treatment: False)).fit()
    assert read_result(repaired)["state"] != read_result(never_sick)["state"]
    noises = [[row["noise"] for row in read_rows(run) if "noise" in row] for run in (repaired, never_sick)]
    assert noises[0][:2] == noises[1][:2]
    assert not set(noises[0][2:]) & set(noises[1][2:])


def test_the_checkpoint_to_go_back_to_outlives_newer_ones(run: Run) -> None:
    """With `keep_last: 1`, and a checkpoint behind each window, the bad ones too."""
    seen: list[list[int]] = []
    life = Life(run, make_repair_config(keep_last=1, save_freq=1), SickTrainer(is_cured_by(1)))
    real = CheckpointStore._rotate

    def rotate(store: CheckpointStore) -> None:
        real(store)
        seen.append(sorted(int(path.stem[5:]) for path in run.checkpoints_dir.glob("step_*.pt")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "_rotate", rotate)
        assert life.fit() is Outcome.FINISHED
    assert [7, 8] in seen
    assert life.trainer.found[0][0] == 7
    assert all(len(steps) <= 2 for steps in seen)
    assert seen[-1] == [25]


def test_a_second_alarm_before_any_healthy_window_goes_back_to_the_same_checkpoint(run: Run) -> None:
    """Of step 7, in the midst of a window that turned out healthy, and that is bad from there on whatever is done."""
    life = Life(
        run,
        make_repair_config(keep_last=1, save_freq=7),
        SickTrainer(lambda step, treatment: step >= (9 if treatment == Treatment() else 8)),
    )
    life.trainer.updates = WINDOW_UPDATES // 2
    assert life.fit() is Outcome.UNHEALTHY
    assert [step for step, _ in life.trainer.found] == [7, 7, 7]
    assert len({bits for _, bits in life.trainer.found}) == 1
    assert life.trainer.treatments == [Treatment(0.5, 0), Treatment(0.25, 0), Treatment(0.125, 1)]
    assert [action for _, action in read_actions(run)] == ["roll_back", "roll_back", "drop_rung", "stop"]
    assert not run.summary_path.exists()
    newest = load_newest(run.checkpoints_dir)
    assert newest is not None
    assert newest.step == 7


def test_a_stop_for_the_environments_sake_comes_before_a_roll_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(run, make_repair_config(), SickTrainer(is_cured_by(1)))
    real = SickTrainer.train_step

    def train_step(trainer: SickTrainer) -> StepResult:
        result = real(trainer)
        return replace(result, faults=["nan"] * 21) if trainer.steps == 9 else result

    monkeypatch.setattr(SickTrainer, "train_step", train_step)
    assert life.fit() is Outcome.UNHEALTHY
    assert life.trainer.steps == 9
    assert life.trainer.found == []


def test_decisions_and_the_mark_outlive_roll_backs(run: Run) -> None:
    Life(run, make_repair_config(), SickTrainer(is_cured_by(2))).fit()
    guard = json.loads(run.summary_path.read_bytes())["guard"]
    assert (guard["mode"], guard["verdict"], guard["events"], guard["repaired"]) == ("repair", "stuck-actor", 2, True)
    assert [(each["step"], each["action"]) for each in guard["decisions"]] == [(9, "roll_back"), (9, "roll_back")]
    assert guard["decisions"] == [
        {name: value for name, value in event.items() if name not in ("time", "event", "run")}
        for event in read_guard_events(run)
    ]


def test_a_run_that_needs_no_repair_is_not_marked(tmp_path: Path) -> None:
    repaired, warned = make_run(tmp_path, "repair"), make_run(tmp_path, "warn")
    for run, guard in ((repaired, "repair"), (warned, "warn")):
        Life(run, make_repair_config(guard=guard), SickTrainer(lambda step, treatment: step == 8)).fit()
    assert not json.loads(repaired.summary_path.read_bytes())["guard"]["repaired"]
    for name in ("rows", "state", "generators"):
        assert read_result(repaired)[name] == read_result(warned)[name]


def test_a_step_left_out_in_the_last_window_marks_the_run(run: Run) -> None:
    """Also where that window never ends."""
    life = Life(run, make_repair_config(), SickTrainer(lambda step, treatment: False))
    life.trainer.skips_at = 25
    life.trainer.updates = 9
    assert life.fit() is Outcome.FINISHED
    assert json.loads(run.summary_path.read_bytes())["guard"]["repaired"]


REPAIRS = [
    pytest.param({"save_freq": 3, "max_timesteps": 4, "eval_freq": 0}, is_cured_by(1, since=3), id="once"),
    pytest.param({"save_freq": 1, "max_timesteps": 4}, is_cured_by(2, since=3), id="twice", marks=pytest.mark.slow),
    pytest.param({"save_freq": 3, "max_timesteps": 9}, is_cured_by(3, since=6), id="thrice", marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("no_view", "no_fsync")
@pytest.mark.parametrize(("settings", "is_sick"), REPAIRS)
def test_a_repaired_run_killed_at_any_moment_ends_like_one_that_was_not(
    tmp_path: Path, settings: dict[str, Any], is_sick: Sickness
) -> None:
    config = make_repair_config(**({"eval_freq": 4, "log_freq": 4, "keep_last": 1} | settings))
    straight = make_run(tmp_path, "straight")
    bad: list[int] = []

    def note(step: int, treatment: Treatment) -> bool:
        sick = is_sick(step, treatment)
        bad.extend([count()] if sick else [])
        return sick

    with pytest.MonkeyPatch.context() as patch:
        count = limit_operations(patch, 10**9)
        assert Life(straight, config, SickTrainer(note)).fit() is Outcome.FINISHED
        total = count()
    expected = read_result(straight)
    assert expected["summary"]["guard"]["repaired"]
    for allowed in range(bad[0], total):  # before that nothing is new
        run = make_run(tmp_path, str(allowed))
        with pytest.MonkeyPatch.context() as patch:
            limit_operations(patch, allowed)
            with pytest.raises(Killed):
                Life(run, config, SickTrainer(is_sick)).fit()
        assert Life(run, config, SickTrainer(is_sick), number=2).fit() is Outcome.FINISHED
        assert read_result(run) == expected, f"killed before operation {allowed}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_view", "no_fsync")
def test_a_repaired_run_killed_twice_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """The second time in the midst of completing what the first kill interrupted."""
    config = make_repair_config(max_timesteps=5, eval_freq=0, log_freq=4, keep_last=1, save_freq=3)
    is_sick = is_cured_by(1, since=4)
    straight = make_run(tmp_path, "straight")
    Life(straight, config, SickTrainer(is_sick)).fit()
    expected = read_result(straight)
    for first in range(2):  # before anything newer is deleted, and in the midst of it
        killed = False
        for second in itertools.count(1):
            run = make_run(tmp_path, f"{first}-{second}")
            with pytest.MonkeyPatch.context() as patch:
                kill_after_noting_a_repair(patch, run, first)
                with pytest.raises(Killed):
                    Life(run, config, SickTrainer(is_sick)).fit()
            with pytest.MonkeyPatch.context() as patch:
                limit_operations(patch, second)
                try:
                    Life(run, config, SickTrainer(is_sick), number=2).fit()
                except Killed:
                    killed = True
                else:
                    break
            assert Life(run, config, SickTrainer(is_sick), number=3).fit() is Outcome.FINISHED
            assert read_result(run) == expected, f"killed at {first} and {second}"
        assert killed


def kill_after_noting_a_repair(patch: pytest.MonkeyPatch, run: Run, more: int) -> None:
    """Raise so many deletions after `repairs.json` was written, and at all that come later."""
    left = more

    def unlink(path: Any, *args: Any, real: Callable[..., None] = os.unlink, **kwargs: Any) -> None:
        nonlocal left
        if run.repairs_path.exists():
            if left == 0:
                raise Killed
            left -= 1
        real(path, *args, **kwargs)

    patch.setattr(os, "unlink", unlink)
