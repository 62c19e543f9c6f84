"""What a run takes over from the one that it begins from: all its state, or its networks alone.

Everything is copied: the parent's folder is read and never written, and once the run has a checkpoint of its own it
needs its parent no more. Killed before that, it begins from its parent again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from experiment.files import write_atomically, write_json
from experiment.identity import TAKES_WEIGHTS
from experiment.parents import Parent, ParentError
from experiment.problems import Fault, SettingsError
from experiment.run import Run
from training.checkpoint import Checkpoint, load_newest
from training.config import TrainerConfig
from training.manifest import manifest_path, read_manifest
from training.metrics import divide_rows
from training.protocol import TakesWeights, Trainer
from training.weights import WeightsError


@contextmanager
def refusing(parent: Parent) -> Iterator[None]:
    """Turn what is wrong with a parent, its files or its sizes, into what is wrong with the setting that names it."""
    try:
        yield
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError([Fault((parent.key,), f"{parent.key}: {error}")]) from error


def inherit(
    parent: Parent, run: Run, config: TrainerConfig, trainer: Trainer, say: Callable[[str], None]
) -> Checkpoint | None:
    """Give the parent's checkpoint where all of it is gone on with; None where the trainer has its networks now.

    Raises:
        ParentError, CheckpointError, MetricsError: it can't be begun from; the files of the run don't matter yet.
    """
    if parent.continues:
        return _inherit_everything(parent, run, config, say)
    _inherit_weights(parent, run, trainer, say)
    return None


def _inherit_weights(parent: Parent, run: Run, trainer: Trainer, say: Callable[[str], None]) -> None:
    """Give a fresh trainer the networks of the parent's newest checkpoint."""
    checkpoint = _read_newest(parent, say)
    if not isinstance(trainer, TakesWeights):
        raise ParentError("this trainer can't begin with the networks of another run: it has no take_weights")
    try:
        trainer.take_weights(checkpoint.state["trainer"])
    except WeightsError as error:
        raise ParentError(f"the networks of run {parent.run.id} ({parent.run.label}) don't fit: {error}") from error
    _write_down(parent, run, checkpoint)
    say(f"Begins with the networks of run {parent.run.id} ({parent.run.label}) at its step {checkpoint.step:,}, alone")


def _inherit_everything(parent: Parent, run: Run, config: TrainerConfig, say: Callable[[str], None]) -> Checkpoint:
    """Give the parent's newest checkpoint, to be gone on from in a folder that has its curve and its best policy."""
    checkpoint, settings = _read_complete(parent, say), parent.settings
    rows, _ = divide_rows(parent.run.metrics_path, checkpoint.state["session"]["metrics"])
    if settings["num_eval"] == config.num_eval:
        _copy_best(parent.run, run)
    else:
        # Over other episodes its mean is not to be compared with.
        checkpoint.state["session"]["best"] = None
    _copy_view(parent.run, run)
    write_atomically(run.metrics_path, [rows])
    _write_down(parent, run, checkpoint)
    say(
        f"Goes on from run {parent.run.id} ({parent.run.label}) with all its state: max_timesteps was "
        f"{settings['max_timesteps']:,} and is {config.max_timesteps:,}"
    )
    return checkpoint


def _read_newest(parent: Parent, say: Callable[[str], None]) -> Checkpoint:
    """Give the newest valid checkpoint without its replay data; that the run isn't going on is looked at too."""
    _ = parent.newest
    checkpoint = load_newest(parent.run.checkpoints_dir, with_replay=False, report=say)
    if checkpoint is None:
        raise ParentError(f"run {parent.run.id} ({parent.run.label}) has no checkpoint")
    return checkpoint


def _read_complete(parent: Parent, say: Callable[[str], None]) -> Checkpoint:
    newest = _read_newest(parent, say)
    if not any(log.total for log in newest.replay.values()):
        return newest
    if read_manifest(newest.path).replay_dropped:
        raise ParentError(parent.explain_lost_replay())
    complete = load_newest(parent.run.checkpoints_dir, report=say)
    assert complete is not None
    return complete


def _copy_best(parent: Run, run: Run) -> None:
    """Copy the parent's best policy; the manifest last, since it alone makes it one."""
    run.checkpoints_dir.mkdir(exist_ok=True)
    for manifest in sorted(parent.checkpoints_dir.glob("best_*.json")):
        path = manifest.with_suffix(".pt")
        for file in (path, manifest_path(path)):
            if file.exists():
                write_atomically(run.checkpoints_dir / file.name, [file.read_bytes()])


def _copy_view(parent: Run, run: Run) -> None:
    """Copy what TensorBoard shows of the parent's curve. A view: what a kill cuts short is copied anew."""
    if not parent.tensorboard_dir.is_dir():
        return
    run.tensorboard_dir.mkdir(exist_ok=True)
    for path in sorted(parent.tensorboard_dir.iterdir()):
        if path.is_file():
            shutil.copyfile(path, run.tensorboard_dir / path.name)


def _write_down(parent: Parent, run: Run, checkpoint: Checkpoint) -> None:
    """Keep which checkpoint of which run this one began from."""
    facts: dict[str, Any] = {
        "id": parent.run.id,
        "label": parent.run.label,
        "experiment": parent.run.experiment_dir.resolve().name,
        "takes": "weights" if parent.key == TAKES_WEIGHTS else "everything",
        "step": checkpoint.step,
        "sha256": read_manifest(checkpoint.path).sha256,
    }
    write_json(run.parent_path, facts)
