"""What one attempt keeps next to the trainer: counters, curve, guard, best policy, checkpoints, and the summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from experiment.files import now_text, read_json, write_json
from experiment.parents import open_parent
from experiment.run import Run
from training.budget import WallBudget
from training.checkpoint import Checkpoint, CheckpointStore
from training.config import TrainerConfig
from training.counters import Progress
from training.evaluation import (
    describe_evaluation,
    selection_seeds,
    summarise_evaluation,
    write_out_evaluation,
    write_out_means,
)
from training.facts import describe_trainer, find_backends, list_differences
from training.health import HealthGuard
from training.inheritance import inherit, refusing
from training.metrics import Averages, MetricsLog, RecentEpisodes
from training.protocol import Evaluation, EvaluationStopped, StepResult, Trainer
from training.resources import Meter, count_parameters, hash_state, measure_replay_bytes, read_gpu_utilisation
from training.seeding import read_global_generators, undisturbed_generators, write_global_generators


class RunFolderError(ValueError):
    """A run folder that can't be trained in as asked. The message says what is there and what to do."""


@dataclass(frozen=True)
class Attempt:
    """What is known about this start of the run and goes into its summary.

    Attributes:
        number: counts from 1.
        device: what it trains on, as a user would name it.
        threads: of torch, on the CPU.
        code_version: of Gridpilot and what it imports.
    """

    number: int
    device: str
    threads: int
    code_version: str


class Session:
    """One attempt at a run. `fit` drives it; nothing here decides when something happens.

    Args:
        trainer: freshly built.
        run: its folder exists, and its lock is held by this process.
        config: of the run.
        attempt: this start of it.
        say: prints a line for people.

    Attributes:
        progress: the run's counters.
        owes_evaluation: True from the step that an evaluation is due at until its row is written, over stops too.
        guard: of the run's health.
    """

    TRANSIENT: ClassVar = frozenset(
        {
            "_trainer",
            "_run",
            "_config",
            "_attempt",
            "_say",
            "_store",
            "_parameters",
            "_clock_before",
            "_saved_step",
            "_row_before",
            "_counts",
        }
    )

    def __init__(
        self, trainer: Trainer, run: Run, config: TrainerConfig, attempt: Attempt, say: Callable[[str], None]
    ) -> None:
        self._trainer, self._run, self._config, self._attempt, self._say = trainer, run, config, attempt, say
        self._store = CheckpointStore(run.checkpoints_dir, config.keep_last, say)
        self.progress = Progress()
        self.owes_evaluation = False
        # Now, since a trainer may stop some networks' learning on the way.
        with undisturbed_generators():
            self._parameters = count_parameters(trainer.components())
        self._averages = Averages()
        self._episodes = RecentEpisodes()
        self._metrics = MetricsLog(run.metrics_path, run.tensorboard_dir)
        self.guard = HealthGuard(config.guard, run.events_path, run.id, say, config.guard_limits)
        self._meter = Meter()
        self._budget = WallBudget(config.wall_limit_s)
        self._best: dict[str, Any] | None = None
        self._final_hash: str | None = None
        self._clock_before = 0
        self._saved_step: int | None = None
        self._row_before = (0, 0.0)
        self._counts: Mapping[str, int] = {}

    def is_over(self) -> bool:
        """Tell whether the clock has reached the end of training, or the time for training steps is spent."""
        return self.progress.clock >= self._config.max_timesteps or self._budget.is_spent

    def is_due(self, every: int) -> bool:
        """Tell whether the last step reached or passed a multiple of `every`; 0 means never."""
        return every > 0 and self.progress.clock // every > self._clock_before // every

    def begin(self) -> None:
        """Go on from the newest valid checkpoint, or start where there is none.

        Raises:
            RunFolderError: with `continue_training: false`, an earlier life of the run has left something.
            CheckpointError: there are checkpoints and none can be used.
            MetricsError: `metrics.jsonl` isn't what the checkpoint saw.
            SettingsError: what it is to begin from isn't there, or doesn't fit.
        """
        for name, backend in find_backends(self._trainer).items():
            self._say(f"{name}: {backend}")
        if not self._config.continue_training:
            self._refuse_leftovers()
            self._inherit()
        elif (checkpoint := self._store.resume(self._find_protected)) is not None:
            self._restore(checkpoint)
        else:
            if dropped := self._metrics.start_over():
                self._say(f"No checkpoint yet: training begins again, {dropped} earlier metric rows are dropped")
            self._inherit()
        if self.guard.may_repair:
            self._begin_repairing()
        self._row_before = (self.progress.clock, self._meter.wall_s())

    def _inherit(self) -> None:
        """Begin from the run that the settings name, if they name one, and need it no more from then on."""
        parent = open_parent(self._run, self._config.resolved())
        if parent is None:
            return
        with refusing(parent):
            if checkpoint := inherit(parent, self._run, self._config, self._trainer, self._say):
                self._restore(checkpoint)
                # There is nothing earlier here to go back to.
                self.guard.healthy_step = max(self.guard.healthy_step, checkpoint.step)
        self._saved_step = None
        self.save()

    def _find_protected(self, checkpoint: Checkpoint) -> int | None:
        """Give the step up to which the run was healthy as a checkpoint saw it, where the guard may go back there."""
        if not self.guard.may_repair:
            return None
        healthy_step: int = checkpoint.state["session"]["guard"]["healthy_step"]
        return healthy_step

    def _begin_repairing(self) -> None:
        """Make sure that there is a checkpoint to go back to, and finish a roll-back that was cut off."""
        if self._saved_step is None:
            self.save()
        kept = read_json(self._run.repairs_path)
        if kept is not None and kept["roll_backs"] > self.guard.roll_backs:
            self._complete_roll_back(kept)

    def roll_back(self) -> None:
        """Go back to the newest checkpoint of a healthy time, with other batches from there on.

        Everything is as after a resume from it, metric rows and replay data cut, but for the guard's decisions and the
        time that was spent. What a kill leaves half done, the next attempt completes.
        """
        to_step = self._store.find_step(self.guard.healthy_step)
        kept = self.guard.begin_roll_back(to_step)
        write_json(self._run.repairs_path, kept)
        self._complete_roll_back(kept)
        self._row_before = (self.progress.clock, self._meter.wall_s())

    def _complete_roll_back(self, kept: Mapping[str, Any]) -> None:
        meter, budget = self._meter.state_dict(), self._budget.state_dict()
        self._restore(self._store.return_to(kept["to_step"]))
        self._meter = Meter()
        self._meter.load_state_dict(meter)
        self._budget.load_state_dict(budget)
        self.guard.complete_roll_back(kept)
        self._trainer.treat(self.guard.treatment)
        self._trainer.redraw(self.guard.roll_backs)

    def _refuse_leftovers(self) -> None:
        run = self._run
        leftovers = [path for path in (run.metrics_path, run.summary_path) if path.exists() and path.stat().st_size]
        if not self._store.is_empty():
            leftovers.append(run.checkpoints_dir)
        if leftovers:
            raise RunFolderError(
                f"continue_training is false, but an earlier life of this run left {', '.join(map(str, leftovers))}: "
                "move it away, or go on from it with continue_training: true"
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._trainer.load_state_dict(checkpoint.state["trainer"])
        self.load_state_dict(checkpoint.state["session"])
        self._trainer.treat(self.guard.treatment)
        if (best := self._store.read_best()) is not None:
            # The file counts: it may be newer than the checkpoint, and then training comes by that policy again.
            self._best = dict(best["best"])
        self._saved_step = checkpoint.step
        self._say(f"Resumed from step {checkpoint.step:,}")
        for line in list_differences(checkpoint.facts, self._facts()):
            self._say(line)
        write_global_generators(checkpoint.state["generators"])

    def train(self) -> StepResult:
        """Have the trainer take a step, and count its time."""
        return self._budget.measure(self._trainer.train_step)

    def take(self, result: StepResult) -> None:
        """Count what a training step did, and keep its numbers for the next row."""
        progress = self.progress
        self._clock_before = progress.clock
        progress.clock += (result.env_steps or 1) if result.ticks is None else result.ticks
        progress.env_step += result.env_steps
        progress.updates += result.updates
        self._averages.add(result.metrics)
        self._counts = result.counts
        if result.episodes:
            self._episodes.add(result.episodes)
        self.guard.observe(progress.step, progress.updates, result)

    def log(self) -> None:
        """Write a training row: means since the row before, recent episodes, speed."""
        clock, wall = self.progress.clock, self._meter.wall_s()
        clock_before, wall_before = self._row_before
        self._row_before = (clock, wall)
        self._write_row(
            {
                **self._averages.take(),
                **self.guard.signals,
                **self._episodes.means(),
                **self._counts,
                "train/n_updates": self.progress.updates,
                "time/fps": (clock - clock_before) / max(wall - wall_before, 1e-9),
                **read_gpu_utilisation(self._attempt.device),
            }
        )

    def _write_row(self, values: Mapping[str, float]) -> None:
        progress, wall_time = self.progress, self._meter.wall_s()
        self._metrics.write(
            step=progress.step, env_step=progress.env_step, clock=progress.clock, wall_time=wall_time, values=values
        )
        self.guard.check(progress.step, progress.updates, values)

    def evaluate(self, should_stop: Callable[[], bool]) -> None:
        """Evaluate on the selection seeds, write a row, and keep the policy if it is the best so far.

        Where `should_stop` cuts it short, none of this is done and the evaluation stays owed.
        """
        evaluation = self.run_episodes(selection_seeds(self._config.num_eval), should_stop)
        if evaluation is None:
            self._say(f"Evaluation at step {self.progress.step:,} cut short; it comes first when the run goes on")
            return
        for line in describe_evaluation(evaluation, self.progress.clock):
            self._say(line)
        values = summarise_evaluation(evaluation, self._trainer.references)
        self._write_row(values)
        self.owes_evaluation = False
        mean = values["eval/mean_reward"]
        if math.isfinite(mean) and (self._best is None or mean > self._best["mean"]):
            self._best = {"step": self.progress.step, "mean": mean} | write_out_means(evaluation)
            self._store.save_best(self.progress.step, self._full_state(), self._facts() | {"best": self._best})

    def run_episodes(self, seeds: tuple[int, ...], should_stop: Callable[[], bool]) -> Evaluation | None:
        """Run one undisturbed episode per seed; None where `should_stop` cut them short."""
        try:
            with undisturbed_generators():
                return self._trainer.evaluate(seeds, should_stop)
        except EvaluationStopped:
            return None

    def save(self) -> None:
        """Write a checkpoint, unless the newest one is of this very step."""
        if self._saved_step != self.progress.step:
            # Of the last state, and kept with it: what a resumed environment recomputes (MuJoCo's contacts, say) may
            # differ in arrays that nothing reads until the next step.
            self._final_hash = hash_state(self._trainer.state_dict()) if self.is_over() else None
            self._metrics.sync()
            if self.guard.may_repair:
                self._store.protect(self.guard.healthy_step)
            self._store.save(self.progress.step, self._full_state(), self._facts())
            self._saved_step = self.progress.step

    def _full_state(self) -> dict[str, Any]:
        state = {"trainer": self._trainer.state_dict(), "session": self.state_dict()}
        return state | {"generators": read_global_generators()}

    def _facts(self) -> dict[str, Any]:
        attempt = self._attempt
        return vars(self.progress) | {
            "device": attempt.device,
            "threads": attempt.threads,
            "torch": str(torch.__version__),
            "code_version": attempt.code_version,
            # Asked for after the trainer gave its state: that is when it finds an environment that can't be saved.
            **describe_trainer(self._trainer),
            "saved": now_text(),
        }

    def write_summary(self, evaluation: Evaluation | None) -> None:
        """Write `summary.json` with the evaluation on the report seeds, unless the guard asks for an end first.

        Without an evaluation, where none was asked for, nothing is said of the last policy.
        """
        final = None if evaluation is None else self._conclude(evaluation)
        self.guard.finish(self.progress.step, self.progress.updates)
        if final is not None:
            self.guard.check(self.progress.step, self.progress.updates, {"final_eval/mean": float(final["mean"])})
        if not self.guard.wants_stop:
            write_json(self._run.summary_path, self._summarise(final))

    def _conclude(self, evaluation: Evaluation) -> dict[str, Any]:
        """Say and give what the last policy came to."""
        final = write_out_evaluation(evaluation, self._trainer.references)
        mean, std = float(final["mean"]), float(final["std"])
        self._say(f"Final evaluation on report seeds: episode_reward={mean:.1f} +/- {std:.1f}")
        return final

    def _summarise(self, final: dict[str, Any] | None) -> dict[str, Any]:
        progress, attempt, meter = self.progress, self._attempt, self._meter
        state, wall_s = self._trainer.state_dict(), meter.wall_s()
        return {
            "final_eval": final,
            "best_eval": self._best,
            "parameters": self._parameters,
            "memory": {
                "peak_rss_bytes": meter.peak_rss_bytes(),
                "peak_gpu_bytes": meter.peak_gpu_bytes(),
                "replay_bytes": measure_replay_bytes(state),
            },
            "time": {"wall_s": wall_s, "cpu_s": meter.cpu_s()},
            "throughput": {"env_steps_per_s": progress.env_step / wall_s, "updates_per_s": progress.updates / wall_s},
            "steps": progress.step,
            "env_steps": progress.env_step,
            "updates": progress.updates,
            "attempts": attempt.number,
            **describe_trainer(self._trainer),
            "guard": self.guard.summary(),
            "device": attempt.device,
            "threads": attempt.threads,
            "code_version": attempt.code_version,
            "state_hash": self._final_hash,
            "parent": read_json(self._run.parent_path),
        }

    def is_summarised(self) -> bool:
        """Tell whether a life before this one came to its end and may go on where it ended."""
        return self._config.continue_training and self._run.summary_path.exists()

    def clean_up(self) -> None:
        """Drop replay data of a finished run, unless they are to be kept."""
        if not self._config.keep_replay:
            self._store.drop_replay()

    def close(self) -> None:
        """Finish the views of the curve."""
        self._metrics.close()

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs, but for the trainer's own and the global generators."""
        return {
            "progress": dict(vars(self.progress)),
            "owes_evaluation": self.owes_evaluation,
            "averages": self._averages.state_dict(),
            "episodes": self._episodes.state_dict(),
            "metrics": self._metrics.state_dict(),
            "guard": self.guard.state_dict(),
            "meter": self._meter.state_dict(),
            "budget": self._budget.state_dict(),
            "best": self._best,
            "final_hash": self._final_hash,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; cuts `metrics.jsonl` back to it."""
        self.progress = Progress(**state["progress"])
        self.owes_evaluation = state["owes_evaluation"]
        self._averages.load_state_dict(state["averages"])
        self._episodes.load_state_dict(state["episodes"])
        self._metrics.load_state_dict(state["metrics"], self.progress.clock)
        self.guard.load_state_dict(state["guard"])
        self._meter.load_state_dict(state["meter"])
        self._budget.load_state_dict(state["budget"])
        self._best = state["best"]
        self._final_hash = state["final_hash"]
