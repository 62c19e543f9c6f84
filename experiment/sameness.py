"""Whether two trainings of the same settings came to the same, to the last digit, and what first did not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.files import read_json
from experiment.metadata import OUR_TRAINER
from experiment.run import Run
from experiment.views import ViewError

SUMMARY_KEYS = ("steps", "env_steps", "updates", "parameters", "final_eval", "best_eval", "state_hash", "guard")
COMPARED = f"every metric row but for wall_time and time/*, and of the summary {', '.join(SUMMARY_KEYS)}"
DEPTH = 2
"""Of the keys that lead to a part of a state, so many name the component that it belongs to."""


@dataclass(frozen=True)
class Comparison:
    """What two trainings have in common.

    Attributes:
        rows: how many metric rows are the same, from the first on.
        step: of the first row that isn't; None where all are.
        differences: a sentence for each thing that differs; none where all is the same.
    """

    rows: int
    step: int | None
    differences: tuple[str, ...]


def compare_runs(first: Run, second: Run, names: tuple[str, str]) -> Comparison:
    """Compare what two finished runs have written.

    Args:
        first: the one to go by.
        second: the one to be judged.
        names: what to call them, as in "the straight run".

    Raises:
        ViewError: a metric row of one of them can't be read.
    """
    pair = read_rows(first), read_rows(second)
    rows, step, text = _compare_rows(*pair, names)
    differences = [text] if text else []
    summaries = [read_json(run.summary_path) or {} for run in (first, second)]
    for key in SUMMARY_KEYS:
        found = find_difference(summaries[0].get(key), summaries[1].get(key), key)
        if found is not None:
            differences.append(f"summary.json: {_say(found, names)}")
    return Comparison(rows, step, tuple(differences))


def read_rows(run: Run) -> list[dict[str, Any]]:
    """Give a run's metric rows without what the clock on the wall decides; none where nothing was logged.

    Raises:
        ViewError: one of them isn't a row.
    """
    if not run.metrics_path.exists():
        return []
    rows = []
    for number, line in enumerate(run.metrics_path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({name: value for name, value in row.items() if not is_clock(name)})
        except (ValueError, AttributeError):
            raise ViewError(f"{run.metrics_path}:{number}: this is no metric row; there is nothing to go by") from None
    return rows


def is_clock(name: str) -> bool:
    """Tell whether a number of a metric row depends on the speed of the machine."""
    return name == "wall_time" or name.startswith("time/")


def _compare_rows(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], names: tuple[str, str]
) -> tuple[int, int | None, str | None]:
    """Give how many rows are alike from the first on, the step of the next one, and what is different about it."""
    for number, (row, other) in enumerate(zip(first, second, strict=False)):
        found = find_difference(row, other)
        if found is not None:
            place = f"metrics.jsonl: row {number + 1}, step {row.get('step')}"
            return number, row.get("step"), f"{place}: {_say(found, names)}"
    alike = min(len(first), len(second))
    if len(first) == len(second):
        return alike, None, None
    longer = first if len(first) > len(second) else second
    counts = f"{len(first):,} rows of the {names[0]} run and {len(second):,} of the {names[1]} one"
    return (
        alike,
        longer[alike].get("step"),
        f"metrics.jsonl: {counts}, the shorter one being the beginning of the longer",
    )


Found = tuple[str, object, object]


def find_difference(first: object, second: object, path: str = "") -> Found | None:
    """Give the first place, and the two values there, at which two JSON values differ; None where they don't."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first | second:
            inner = f"{path}.{key}" if path else str(key)
            found = find_difference(first.get(key), second.get(key), inner)
            if found is not None:
                return found
        return None
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return next((found for i, (a, b) in pairs if (found := find_difference(a, b, f"{path}[{i}]"))), None)
    return None if first == second else (path, first, second)


def _say(found: Found, names: tuple[str, str]) -> str:
    path, first, second = found
    return f"{path} is {_show(first)} in the {names[0]} run and {_show(second)} in the {names[1]} one"


def _show(value: object) -> str:
    return "missing" if value is None else json.dumps(value)


def describe_state_differences(first: Run, second: Run) -> list[str]:
    """Give lines that say where the last checkpoints of two runs differ, by components and their keys.

    They are read by a process of its own, since that needs torch.
    """
    paths = [str(OUR_TRAINER.parent), os.environ.get("PYTHONPATH", "")]
    command = [
        sys.executable,
        "-P",
        "-m",
        "training.differences",
        str(first.checkpoints_dir),
        str(second.checkpoints_dir),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        return [f"where their states differ can't be told: {reason}"]
    about, *leaves = [json.loads(line) for line in answer.stdout.splitlines()]
    steps = about["steps"]
    if steps[0] != steps[1]:
        return [f"their last checkpoints are of different steps: {steps[0]:,} and {steps[1]:,}"]
    replay = "" if about["with_replay"] else ", replay data left out since one of the two has dropped them"
    if not leaves:
        return [f"their last checkpoints (step {steps[0]:,}) have the same state{replay}"]
    heading = f"{len(leaves):,} of {about['leaves']:,} parts of the state at step {steps[0]:,} differ{replay}:"
    return [heading, *_group_leaves(leaves)]


def _group_leaves(leaves: Sequence[Mapping[str, str]]) -> list[str]:
    """Give a line for each component of a state, with the first of its leaves."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for leaf in leaves:
        groups.setdefault("/".join(leaf["path"].split("/")[:DEPTH]), []).append(leaf)
    lines = []
    for name, group in groups.items():
        first = f"{group[0]['path']}: {group[0]['text']}"
        lines.append(f"  {first}" if len(group) == 1 else f"  {name}: {len(group):,} parts, the first {first}")
    return lines
