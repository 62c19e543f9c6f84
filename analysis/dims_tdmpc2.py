"""What TD-MPC2's sizes are counted for: the document's dimensions and the authors', and what they count to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rl.tdmpc2.sizes import MODEL_SIZES, ModelSizes, count_components, sum_with_targets

OPTIONS = ("obs_dim", "action_dim", "task_dim", "tasks")
LARGEST_DIM = 1_000_000
"""Larger ones are taken for slips of the hand."""


@dataclass(frozen=True)
class Dims:
    """What networks are sized for: numbers of an observation and an action, of a task's embedding, and tasks."""

    obs_dim: int
    action_dim: int
    task_dim: int
    tasks: int

    def change(self, options: Mapping[str, Any]) -> Dims:
        """Give these with those of the command line in their place, where there are any."""
        return replace(self, **{name: options[name] for name in OPTIONS if options[name] is not None})

    def leave_tasks_out(self) -> Dims:
        """Give the same for a single task, which needs no embedding."""
        return replace(self, task_dim=0, tasks=0)

    def plan(self, model_size: int = 5) -> ModelSizes:
        """Give the sizes of a world model."""
        sizes = ModelSizes((self.obs_dim,), self.action_dim, num_tasks=self.tasks, task_dim=self.task_dim)
        widths: dict[str, Any] = {**MODEL_SIZES[model_size]}
        return replace(sizes, **widths)


DOCUMENT = Dims(151, 61, 96, 80)
"""The document's, with the observations of `TwoHandReach-v0`, as it names none, and as many tasks as the suite's."""
WALKER = Dims(24, 6, 0, 0)
SUITE = Dims(39, 6, 96, 80)
"""The authors' 80 tasks, padded to the largest observation and action."""
SMALL_SUITE = Dims(24, 6, 64, 30)
"""Their 30 tasks, padded to the largest, which are a walker's."""
SMALL_SUITE_TASK_DIMS = {1: 96, 317: 96}
"""Embeddings there of the sizes that have others than 64 numbers, by the authors' code (`common/parser.py`)."""


def count_parts(sizes: ModelSizes) -> dict[str, int]:
    """Count each part and the sums of them, without the embedding of tasks, whose number the document doesn't say."""
    counts = count_components(replace(sizes, episodic=True))
    termination, embedding = counts.pop("termination"), counts.pop("task_embedding", 0)
    learnable, whole = sum(counts.values()), sum_with_targets(counts)
    heads = counts["q"]
    return counts | {
        "one_q": heads // sizes.num_q,
        "target_q": heads,
        "q_and_targets": whole - learnable + heads,
        "termination": termination,
        "task_embedding": embedding,
        "learnable": learnable,
        "with_targets": whole,
        "episodic_learnable": learnable + termination,
        "episodic_with_targets": whole + termination,
    }


def find_small_suite(model_size: int) -> Dims:
    """Give what a model of the authors' 30 tasks is sized for."""
    return replace(SMALL_SUITE, task_dim=SMALL_SUITE_TASK_DIMS.get(model_size, SMALL_SUITE.task_dim))
