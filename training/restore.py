"""A run's trainer as it was at one of its checkpoints, to act and not to train on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from experiment.run import Run
from training.checkpoint import Checkpoint, load_checkpoint, load_newest
from training.manifest import CheckpointError
from training.protocol import Trainer

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)
_NAME = re.compile(r"((?:step|best)_\d{8,})(?:\.pt)?")


def restore_trainer(run: Run, which: str, build: Callable[[], AnyTrainer]) -> tuple[AnyTrainer, Checkpoint]:
    """Build a trainer and give it the state of a checkpoint, its replay data left out.

    Args:
        run: whose checkpoint.
        which: as for `read_checkpoint`.
        build: gives a fresh trainer of the run's config; to be closed by the caller.

    Raises:
        CheckpointError: there is no such checkpoint, or it can't be used.
    """
    checkpoint = read_checkpoint(run.checkpoints_dir, which)
    trainer = build()
    try:
        trainer.load_state_dict(checkpoint.state["trainer"])
    except BaseException:
        trainer.close()
        raise
    return trainer, checkpoint


def read_checkpoint(folder: Path, which: str) -> Checkpoint:
    """Read a checkpoint without its replay data.

    Args:
        folder: a run's `checkpoints/`.
        which: `newest`; `best`, of the best evaluation on the selection seeds; or a name like `step_00010000`.

    Raises:
        CheckpointError: there is no such checkpoint, or it can't be used; or `which` means nothing.
    """
    there = sorted(path.stem for path in folder.glob("*.pt"))
    known = f"{folder} has: {', '.join(there) or 'no checkpoint'}"
    if which == "newest":
        checkpoint = load_newest(folder, with_replay=False)
        if checkpoint is None:
            raise CheckpointError(f"{folder}: no checkpoint was ever finished; train the run first")
        return checkpoint
    if which == "best":
        bests = sorted((name for name in there if name.startswith("best_")), key=lambda name: int(name[5:]))
        if not bests:
            raise CheckpointError(f"no best policy was kept (was the run ever evaluated?); {known}")
        return load_checkpoint(folder / f"{bests[-1]}.pt", with_replay=False)
    match = _NAME.fullmatch(which)
    if match is None or match[1] not in there:
        raise CheckpointError(f"checkpoint {which!r} is neither newest, best nor one of those there; {known}")
    return load_checkpoint(folder / f"{match[1]}.pt", with_replay=False)


def find_halfway(run: Run, floor: float) -> tuple[str, float]:
    """Give the kept checkpoint whose evaluation came nearest to half way from `floor` to the run's best one.

    Gives its name, and how far it is on that way, 0 to 1.

    Raises:
        CheckpointError: no checkpoint was kept of a step that was evaluated, or nothing was above `floor`.
    """
    means = dict(_read_evaluations(run))
    kept = {step: mean for step, mean in means.items() if (run.checkpoints_dir / f"step_{step:08d}.pt").exists()}
    best = max(means.values(), default=floor)
    if not kept or best <= floor:
        raise CheckpointError(f"{run.folder}: no evaluated policy was kept, or none is better than random actions")
    parts = {step: (mean - floor) / (best - floor) for step, mean in kept.items()}
    step = min(parts, key=lambda step: (abs(parts[step] - 0.5), step))
    return f"step_{step:08d}", parts[step]


def _read_evaluations(run: Run) -> Iterator[tuple[int, float]]:
    for line in run.metrics_path.read_text().splitlines():
        row = json.loads(line)
        mean = row.get("eval/mean_reward")
        if isinstance(mean, int | float):
            yield row["step"], float(mean)
