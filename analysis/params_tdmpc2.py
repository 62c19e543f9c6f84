"""TD-MPC2's parameters, memory and work, claimed and counted; `analysis.params` prints them.

All that is counted is arithmetic of `rl.tdmpc2.sizes`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.claims_tdmpc2 import CLAIMED, show_claim, tabulate_claims, tabulate_shares
from analysis.dims_tdmpc2 import DOCUMENT, LARGEST_DIM, SUITE, WALKER, Dims, count_parts, find_small_suite
from analysis.sizing import read_size
from analysis.tables import DASH, Cell, Table, show_bytes, show_count, show_number
from rl.tdmpc2.sizes import (
    MODEL_SIZES,
    NUM_MEMBERS,
    ModelSizes,
    count_components,
    count_plan_flops,
    count_update_flops,
)

BATCH, HORIZON = 256, 3
SAMPLES, ITERATIONS, PROPOSALS = 512, 6, 24
"""What updates and plans are counted for."""
NUMBER_BYTES = 4


def list_tables(options: Mapping[str, Any]) -> list[Table]:
    """Give all tables.

    Args:
        options: `obs_dim`, `action_dim`, `task_dim` and `tasks`, None where each table has its own.
    """
    several = DOCUMENT.change(options)
    single = WALKER.change(options).leave_tasks_out()
    return [
        tabulate_components(several),
        tabulate_claims(),
        tabulate_shares(),
        tabulate_sizes(single, SUITE.change(options)),
        tabulate_work(several, single),
        tabulate_memory(several, single),
    ]


def tabulate_components(dims: Dims) -> Table:
    """Give the table of the parts, for several tasks and for one."""
    sizes, alone = dims.plan(), dims.leave_tasks_out().plan()
    several, single = count_parts(sizes), count_parts(alone)
    is_documents = replace(dims, tasks=DOCUMENT.tasks) == DOCUMENT
    names = {
        "encoder": "encoder",
        "dynamics": "dynamics",
        "reward": "reward",
        "policy": "policy",
        "one_q": "one Q head",
        "q": f"{sizes.num_q} Q heads",
        "target_q": "target Q heads, which don't learn",
        "q_and_targets": "Q heads and targets",
        "termination": "termination, only where episodic",
        "task_embedding": f"task embedding, {dims.tasks} tasks",
        "learnable": "learnable",
        "with_targets": "learnable and targets",
        "episodic_learnable": "learnable, episodic",
        "episodic_with_targets": "learnable and targets, episodic",
    }
    rows, records = [], []
    for part, name in names.items():
        claim = CLAIMED.get(part) if is_documents else None
        counts = (several[part], single[part] or None)
        shown = DASH if claim is None else show_claim(*claim)
        rows.append((Cell(name), Cell(shown), *(Cell(show_count(count)) for count in counts)))
        records.append(
            {"component": part, "claimed": claim and claim[0], "several_tasks": counts[0], "single_task": counts[1]}
        )
    notes = [
        f"Of model_size 5: observations of {dims.obs_dim:,} numbers, actions of {dims.action_dim:,}, latent states of "
        f"{sizes.latent_dim}. Several tasks have embeddings of {dims.task_dim:,} numbers, which dynamics, reward and Q "
        f"heads take too: {sizes.joint_dim:,} in all. A single task has none: {alone.joint_dim:,}.",
        f"Sums leave the task embedding out: {dims.task_dim:,} for each task come to them.",
        "The document names no observation: 151 are those of TwoHandReach-v0, which has its 61 actions."
        if is_documents
        else "The document's claims are of other sizes than these, so none stands beside.",
    ]
    columns = ("Component", "Claimed", "Several tasks", "Single task")
    frame = pd.DataFrame(records).astype({"claimed": "Int64", "single_task": "Int64"})
    return Table("components", "Components, claimed and counted", columns, tuple(rows), frame, tuple(notes))


def tabulate_sizes(single: Dims, several: Dims) -> Table:
    """Give the table of the five sizes, for one task and for several, with what they are named after."""
    rows, records = [], []
    for size, widths in MODEL_SIZES.items():
        parts = count_parts(single.plan(size))
        counts = {
            "learnable": parts["learnable"],
            "with_targets": parts["with_targets"],
            "several_tasks_learnable": _count_learnable(several, size),
            "named_after_learnable": _count_learnable(find_small_suite(size), size),
        }
        cells = (Cell(show_count(number)) for number in (*widths.values(), *counts.values()))
        rows.append((Cell(str(size), code=True), Cell(f"{size}M"), *cells))
        records.append({"model_size": size, "claimed": size * 10**6, **widths, **counts})
    notes = (
        f"A single task with observations of {single.obs_dim:,} numbers and actions of {single.action_dim:,}. "
        f"{several.tasks} tasks are padded to {several.obs_dim:,} and {several.action_dim:,}, with embeddings of "
        f"{several.task_dim:,} numbers, which are counted too.",
        "The names are the millions that learn, rounded, with the authors' 30 tasks: padded to 24 and 6, embeddings of "
        "64 numbers, of 96 in the first and the last size.",
    )
    keys = next(iter(MODEL_SIZES.values()))
    columns = ("model_size", "Named after", *keys, "Learnable", "With targets")
    columns += (f"Learnable, {several.tasks} tasks", "Learnable, the authors' 30 tasks")
    return Table("sizes", "The five sizes", columns, tuple(rows), pd.DataFrame(records), notes)


def _count_learnable(dims: Dims, model_size: int) -> int:
    return sum(count_components(dims.plan(model_size)).values())


def _list_models(several: Dims, single: Dims) -> list[tuple[str, ModelSizes]]:
    name = "the document's" if several == DOCUMENT else "5, several tasks"
    return [(name, several.plan()), *((str(size), single.plan(size)) for size in MODEL_SIZES)]


def tabulate_work(several: Dims, single: Dims) -> Table:
    """Give the table of the operations of an update and of a plan."""
    rows, records = [], []
    for name, sizes in _list_models(several, single):
        update = count_update_flops(sizes, BATCH, HORIZON)
        plan = count_plan_flops(sizes, HORIZON, SAMPLES, ITERATIONS, PROPOSALS)
        texts = (name, show_number(update / 1e9, 1), show_number(plan / 1e9, 1))
        rows.append(tuple(Cell(text) for text in texts))
        records.append({"model": name, "update_flops": update, "plan_flops": plan})
    notes = (
        _describe(several, single),
        f"Of the matrix products alone, a product and a sum being two. An update is of {BATCH} windows of {HORIZON} "
        f"steps; a plan looks {HORIZON} steps ahead with {SAMPLES} samples, {PROPOSALS} of them the policy's, in "
        f"{ITERATIONS} iterations. Actions of 20 numbers or more get 8 iterations by default, which is a third more.",
        "The document's 5 x (669x512 + 512x512 + 512x101) has every Q head judge; targets, the policy's loss and plans "
        f"take {NUM_MEMBERS} of them, which are drawn first here, so that the others do no work there.",
    )
    columns = ("Model", "Update, GFLOP", "Plan, GFLOP")
    return Table("work", "Work of an update and of a plan", columns, tuple(rows), pd.DataFrame(records), notes)


def tabulate_memory(several: Dims, single: Dims) -> Table:
    """Give the table of the memory that training's lasting numbers take, each kind apart."""
    heads = count_parts(several.plan())["q"]
    content = [("Q heads alone, several tasks", heads, heads)]
    for name, sizes in _list_models(several, single):
        counts = count_components(sizes)
        content.append((name, sum(counts.values()), counts["q"]))
    rows, records = [], []
    for name, learnable, targets in content:
        numbers = {"weights": learnable, "targets": targets, "gradients": learnable, "moments": 2 * learnable}
        sizes_of = {f"{kind}_bytes": NUMBER_BYTES * number for kind, number in numbers.items()}
        sizes_of["together_bytes"] = sum(sizes_of.values())
        rows.append((Cell(name), *(Cell(show_bytes(size)) for size in sizes_of.values())))
        records.append({"model": name} | sizes_of)
    notes = (
        f"{_describe(several, single)} The task embedding is included where there are several tasks.",
        "Numbers of 32 bits, without the replay buffer and what an update keeps for its gradients. Targets have "
        "neither gradients nor moments. Acting takes weights alone.",
    )
    columns = ("Model", "Weights, MiB", "Targets, MiB", "Gradients, MiB", "Adam's moments, MiB", "Together, MiB")
    return Table("memory", "Memory that lasts", columns, tuple(rows), pd.DataFrame(records), notes)


def _describe(several: Dims, single: Dims) -> str:
    return (
        f"First {several.tasks} tasks with observations of {several.obs_dim:,} numbers, actions of "
        f"{several.action_dim:,} and embeddings of {several.task_dim:,}, then a single task with {single.obs_dim:,} "
        f"and {single.action_dim:,}, by model_size."
    )


def read_dim(text: str) -> int:
    """Give a whole number from 1 to a million, for a command line."""
    number = read_size(text)
    if number > LARGEST_DIM:
        raise argparse.ArgumentTypeError(f"{number:,} is more than {LARGEST_DIM:,}")
    return number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of these tables."""
    group = parser.add_argument_group("tdmpc2", "sizes other than the tables' own; its claims stay the document's")
    for name, meaning in (
        ("--obs-dim", "numbers of an observation"),
        ("--action-dim", "numbers of an action"),
        ("--task-dim", "numbers of a task's embedding, where there are several tasks; a single one stands beside"),
        ("--tasks", "how many tasks, where there are several"),
    ):
        group.add_argument(name, type=read_dim, metavar="NUMBER", help=meaning)
