"""THE training loop: resume, step, log, evaluate, save, until the clock or the budget has run out; then the summary.

A crash between any two of these calls is made good by the next attempt: a checkpoint is whole or not there, rows newer
than the checkpoint are cut, an evaluation that a checkpoint has seen is not repeated, one that a stop cut short is made
up for before anything else, and the summary comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from enum import StrEnum

from experiment.run import Run
from training.config import TrainerConfig
from training.evaluation import report_seeds
from training.protocol import Trainer
from training.session import Attempt, Session


class Outcome(StrEnum):
    """How an attempt ended: the run is done, it was asked to stop and has checkpointed, or the guard ended it."""

    FINISHED = "finished"
    STOPPED = "stopped"
    UNHEALTHY = "unhealthy"


def fit(
    trainer: Trainer,
    run: Run,
    config: TrainerConfig,
    attempt: Attempt,
    *,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Outcome:
    """Train until the run is over, from the newest checkpoint if there is one, and write the run's files.

    Args:
        trainer: freshly built; left open.
        run: its folder exists, and its lock is held by this process.
        config: gives the cadence; see `training.counters.Progress` for what it counts.
        attempt: this start of the run.
        should_stop: asked before each step, also of evaluations; True ends the attempt with a checkpoint.
        say: prints a line for people.

    Raises:
        CheckpointError, MetricsError, RunFolderError: the run's files can't be gone on from.
        OSError: the disk is full; checkpoints before stay valid.
    """
    with closing(Session(trainer, run, config, attempt, say)) as session:
        if session.is_summarised():
            session.clean_up()
            return Outcome.FINISHED
        session.begin()
        while session.owes_evaluation or not session.is_over():
            if should_stop():
                session.save()
                return Outcome.STOPPED
            if not session.owes_evaluation:
                session.progress.step += 1
                session.take(session.train())
                if session.guard.wants_roll_back and not session.guard.wants_stop:
                    session.roll_back()
                    continue
                if session.is_due(config.log_every) or (session.is_over() and config.log_every):
                    session.log()
                session.owes_evaluation = session.is_due(config.eval_every)
            if session.owes_evaluation and not session.guard.wants_stop:
                session.evaluate(should_stop)
            if session.guard.wants_stop:
                return Outcome.UNHEALTHY
            if session.is_due(config.save_every) or session.is_over():
                session.save()
        evaluation = None
        if config.num_final_eval:
            evaluation = session.run_episodes(report_seeds(config.num_final_eval), should_stop)
            if evaluation is None:
                return Outcome.STOPPED
        session.write_summary(evaluation)
        if session.guard.wants_stop:
            return Outcome.UNHEALTHY
        session.clean_up()
        return Outcome.FINISHED
