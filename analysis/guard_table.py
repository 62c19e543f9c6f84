"""The table of what the training-health guard decided: one row for each kind of decision of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.guard import Decision
from analysis.load import ExperimentData
from analysis.returns import show_exactly
from analysis.tables import DASH, Cell, Table, list_runs, show_count

MAX_ROWS = 50
_COLUMNS = (
    "id",
    "label",
    "mode",
    "verdict",
    "metric",
    "value",
    "limit",
    "first_step",
    "first_updates",
    "count",
    "action",
)


@dataclass(frozen=True)
class Kind:
    """The decisions of one run that are alike in verdict, metric and action: the first of them, and how many."""

    first: Decision
    count: int


def tabulate_guard(data: ExperimentData) -> Table:
    """Give what the guard saw and did in each run, as shown at most `MAX_ROWS` rows; the CSV file has all."""
    rows = []
    records = []
    for run in data.unique_runs.to_dict("records"):
        guard = data.guards[run["id"]]
        for kind in group_decisions(guard.decisions):
            first = kind.first
            rows.append(_to_cells(run["id"], run["label"], kind))
            numbers = (*show_exactly(first.value, first.limit), first.step, first.updates, kind.count)
            records.append([run["id"], run["label"], guard.mode, first.verdict, first.metric, *numbers, first.action])
    frame = pd.DataFrame(records, columns=list(_COLUMNS)).astype({"first_updates": "Int64"})
    notes = ["Value and limit are those of the first of its kind."]
    if data.runs["repaired"].any() and not data.include_repaired:
        notes.append("Runs that the guard repaired are left out of every statistic.")
    if len(rows) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(rows)} rows are shown.")
    return Table(
        name="guard",
        title="What the training-health guard decided",
        columns=("Run", "Verdict", "Metric", "Value", "Limit", "First step", "Times", "Action", "Id"),
        rows=tuple(rows[:MAX_ROWS]),
        frame=frame,
        notes=tuple(notes),
    )


def group_decisions(decisions: Sequence[Decision]) -> list[Kind]:
    """Give the kinds of decisions of one run in the order of their first steps."""
    groups: dict[tuple[str, str, str], list[Decision]] = {}
    for decision in sorted(decisions, key=lambda decision: decision.step):
        groups.setdefault((decision.verdict, decision.metric, decision.action), []).append(decision)
    return [Kind(group[0], len(group)) for group in groups.values()]


def _to_cells(run_id: str, label: str, kind: Kind) -> tuple[Cell, ...]:
    first = kind.first
    limit = DASH if first.limit is None else f"{first.limit:.4g}"
    texts = (label, first.verdict, first.metric, f"{first.value:.4g}", limit, show_count(first.step), f"{kind.count:,}")
    return (*map(Cell, texts), Cell(first.action), list_runs([run_id]))
