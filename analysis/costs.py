"""The tables of what runs cost: parameters, memory, time, and how often they had to be resumed."""

from __future__ import annotations

import pandas as pd

from analysis.arms import SEED, Arm, Comparison, show_value
from analysis.extremes import MANY_ARMS
from analysis.load import MISSING, ExperimentData, canonical, is_done
from analysis.tables import DASH, Cell, Table, list_runs, show_bytes, show_count, show_number, show_seconds

_PREFIX = "parameters/"
_NAMED_ARMS = 4
_NAMED_RUNS = 20


def tabulate_parameters(data: ExperimentData, comparison: Comparison) -> Table:
    """Give the learnable parameters by component, one row for each distinct set of counts that finished runs report.

    Args:
        data: of the experiment.
        comparison: the first one, which names the arms.
    """
    runs = data.unique_runs[is_done(data.unique_runs)]
    runs = runs[runs["parameters"].notna()]
    columns = [name for name in runs.columns if name.startswith(_PREFIX) and runs[name].notna().any()]
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, found in enumerate(runs[columns].fillna(-1).to_numpy(dtype="int64").tolist()):
        groups.setdefault(tuple(found), []).append(position)
    shapes = [runs.iloc[positions] for positions in groups.values()]
    names = _name_shapes(data, comparison, shapes)
    rows = []
    records = []
    for name, shape in zip(names, shapes, strict=True):
        counts = [shape.iloc[0][column] for column in [*columns, "parameters"]]
        rows.append((Cell(name), *(Cell(show_count(count)) for count in counts), list_runs(shape["id"])))
        records.append([name, *counts, " ".join(shape["id"])])
    components = [column.removeprefix(_PREFIX) for column in columns]
    return Table(
        name="parameters",
        title="Parameters",
        columns=("Settings", *components, "Total", "Runs"),
        rows=tuple(rows),
        frame=pd.DataFrame(records, columns=["settings", *components, "total", "finished_runs"]),
        notes=("Learnable parameters as the runs counted them; target networks are left out.",),
    )


def _name_shapes(data: ExperimentData, comparison: Comparison, shapes: list[pd.DataFrame]) -> list[str]:
    """Name each group by those swept keys that tell it from all the others, or by its arms where none does."""
    settings = {combination.id: combination.settings for combination in data.plan}
    swept = [key for key in data.swept if key != SEED]

    def show_all(shape: pd.DataFrame, key: str) -> dict[str, str]:
        found = (settings[run_id] for run_id in shape["id"])
        return {
            canonical(row[key]) if key in row else MISSING: show_value(row[key]) if key in row else MISSING
            for row in found
        }

    telling = []
    for key in swept:
        sets = [set(show_all(shape, key)) for shape in shapes]
        if sum(len(values) for values in sets) == len(set().union(*sets)) and len(shapes) > 1:
            telling.append(key)
    if not telling:
        return ["all finished runs"] if len(shapes) == 1 else [_name_arms(comparison, shape) for shape in shapes]
    return [", ".join(f"{key}={' or '.join(show_all(shape, key).values())}" for key in telling) for shape in shapes]


def _name_arms(comparison: Comparison, shape: pd.DataFrame) -> str:
    ids = set(shape["id"])
    names = [comparison.describe(result.arm) for result in comparison.results if ids & set(result.arm.runs["id"])]
    more = [f"{len(names) - _NAMED_ARMS} more"] if len(names) > _NAMED_ARMS else []
    return " or ".join([*names[:_NAMED_ARMS], *more])


def tabulate_memory(comparison: Comparison) -> Table:
    """Give the largest memory use among the finished runs of each arm."""
    names = ["peak_rss_bytes", "peak_gpu_bytes", "replay_bytes"]
    rows = []
    records = []
    for arm in _finished_arms(comparison):
        peaks = [arm.counted[name].max() for name in names]
        name = comparison.describe(arm)
        rows.append((Cell(name), *(Cell(show_bytes(peak)) for peak in peaks), list_runs(arm.counted["id"])))
        records.append([name, *peaks, " ".join(arm.counted["id"])])
    return Table(
        name="memory",
        title="Memory",
        columns=("Settings", "Peak RSS, MiB", "Peak GPU, MiB", "Replay data, MiB", "Runs"),
        rows=tuple(rows),
        frame=pd.DataFrame(records, columns=["settings", *names, "finished_runs"]),
        notes=("The largest of the finished runs of each row. A dash: not measured, or no such device.",),
        folded=len(rows) > MANY_ARMS,
    )


def tabulate_time(comparison: Comparison) -> Table:
    """Give the time that the finished runs of each arm took: medians, and attempts in all."""
    names = ["wall_s", "cpu_s", "env_steps_per_s", "updates_per_s"]
    rows = []
    records = []
    for arm in _finished_arms(comparison):
        medians = {name: float(arm.counted[name].median()) for name in names}
        attempts = arm.counted["attempts"].sum(min_count=1)
        name = comparison.describe(arm)
        rows.append(
            (
                Cell(name),
                *(Cell(show_seconds(medians[name])) for name in names[:2]),
                *(Cell(_show_rate(medians[name])) for name in names[2:]),
                Cell(show_count(attempts)),
                list_runs(arm.counted["id"]),
            )
        )
        records.append([name, *medians.values(), attempts, " ".join(arm.counted["id"])])
    return Table(
        name="time",
        title="Time",
        columns=("Settings", "Wall clock", "CPU", "Environment steps/s", "Updates/s", "Attempts", "Runs"),
        rows=tuple(rows),
        frame=pd.DataFrame(records, columns=["settings", *names, "attempts", "finished_runs"]),
        notes=(
            "Medians over the finished runs of each row, and the sum of their attempts. They depend on the machine.",
        ),
        folded=len(rows) > MANY_ARMS,
    )


def _finished_arms(comparison: Comparison) -> list[Arm]:
    return [result.arm for result in comparison.results if result.counted]


def _show_rate(value: float) -> str:
    return DASH if pd.isna(value) else show_number(value, 0 if value >= 100 else 1)


def describe_resumes(data: ExperimentData) -> list[str]:
    """Say how many finished runs were interrupted, and name those whose resume began a new episode."""
    done = data.unique_runs[is_done(data.unique_runs)]
    resumed = done[(done["attempts"] > 1).fillna(False).astype(bool)]
    if done.empty:
        return []
    if resumed.empty:
        return ["No finished run was interrupted."]
    sentences = [f"{len(resumed)} of {len(done)} finished runs took more than one attempt."]
    for mode, meaning in (
        ("exact", "went on from the exact state of their environment"),
        ("episode", "began a new episode at each resume, so they differ from an uninterrupted run"),
    ):
        runs = resumed[resumed["resume"] == mode]
        if not runs.empty:
            names = ", ".join(f"{row.label} ({row.id})" for row in runs.head(_NAMED_RUNS).itertuples())
            more = f" and {len(runs) - _NAMED_RUNS} more, in runs.csv" if len(runs) > _NAMED_RUNS else ""
            sentences.append(f"{len(runs)} of them {meaning}: {names}{more}.")
    return sentences
