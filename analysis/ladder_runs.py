"""What single runs add to a batch-size ladder: throughput, evaluations over time, health."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures import CURVE
from analysis.guard import Decision
from analysis.ladder_flops import count_update_flops
from analysis.load import ExperimentData
from experiment.run import State

NOISE_SCALE = "train/noise_scale"
GPU_UTILISATION = "time/gpu_utilisation"
HEALTHY = "healthy"
NON_FINITE = "non-finite"
_PREFIX = "parameters/"


@dataclass(frozen=True)
class Point:
    """One evaluation on the selection seeds; `wall_s` counts from the beginning of training."""

    env_step: int
    wall_s: float
    value: float


@dataclass(frozen=True)
class RunFacts:
    """One planned run. Numbers of its ending are None where it isn't DONE or doesn't report them.

    Attributes:
        is_counted: its numbers may enter a statistic; see `analysis.load.is_counted`.
        is_repaired: it finished, but the training-health guard repaired it on the way.
        is_stopped_by_guard: it failed because the training-health guard ended it.
        verdict: of the guard at the run's end, empty before that and where there is none.
        guard_events: from the summary; of a run without one, its different guard lines in `events.jsonl`.
        not_finite: the first thing in the run that wasn't a finite number, in words; empty where there was none.
        points: evaluations with finite returns, in the order of training.
        samples_per_s: transitions that went through updates, per second of the run's whole wall time.
        gflop_per_s: of the matrix products that its updates need, over its whole wall time.
        replay_ratio: transitions that went through updates, per step in the environment.
        noise_scale: median over its metric rows.
        gpu_utilisation: likewise, in percent.
    """

    id: str
    label: str
    is_done: bool
    is_counted: bool
    is_repaired: bool
    is_stopped_by_guard: bool
    verdict: str
    guard_events: int
    not_finite: str
    points: tuple[Point, ...]
    host: str
    device: str
    threads: int | None
    updates: float | None
    wall_s: float | None
    gpu_bytes: float | None
    samples_per_s: float | None
    gflop_per_s: float | None
    replay_ratio: float | None
    noise_scale: float | None
    gpu_utilisation: float | None

    @property
    def is_healthy(self) -> bool:
        return self.verdict == HEALTHY and not self.is_repaired

    def find_crossing(self, threshold: float) -> Point | None:
        """Give the first evaluation at or above a threshold."""
        return next((point for point in self.points if point.value >= threshold), None)


def collect_runs(data: ExperimentData) -> dict[str, RunFacts]:
    """Give the facts of every planned run by its id."""
    metrics = dict(list(data.metrics.groupby("id", sort=False)))
    settings = {combination.id: combination.settings for combination in data.plan}
    facts = {}
    for row in data.unique_runs.to_dict("records"):
        run_id = row["id"]
        rows = metrics.get(run_id, data.metrics.iloc[:0])
        own = {**settings[run_id], **data.configs.get(run_id, {})}
        facts[run_id] = _collect_run(data, row, rows, own)
    return facts


def _collect_run(
    data: ExperimentData,
    row: Mapping[Any, Any],
    metrics: pd.DataFrame,
    settings: Mapping[str, Any],
) -> RunFacts:
    run = data.run(row["id"])
    start = run.read_start(row["attempt"]) if row["attempt"] else {}
    batch, updates, rate = settings.get("batch_size"), _known(row["updates"]), _known(row["updates_per_s"])
    env_steps = _known(row["env_steps"])
    counts = {name.removeprefix(_PREFIX): int(row[name]) for name in row if _counts(row, name)}
    flops = count_update_flops(settings, counts)
    return RunFacts(
        id=row["id"],
        label=row["label"],
        is_done=row["state"] == State.DONE,
        is_counted=bool(row["counted"]),
        is_repaired=bool(row["repaired"]),
        is_stopped_by_guard=row["state"] == State.FAILED and row["reason"] == "health",
        verdict=row["guard"] if isinstance(row["guard"], str) else "",
        guard_events=data.guards[row["id"]].events,
        not_finite=_find_not_finite(row, metrics, data.guards[row["id"]].decisions),
        points=_read_points(metrics),
        host=str(start.get("host", "")),
        device=row["used_device"] if isinstance(row["used_device"], str) else "",
        threads=None if pd.isna(row["used_threads"]) else int(row["used_threads"]),
        updates=updates,
        wall_s=_known(row["wall_s"]),
        gpu_bytes=_known(row["peak_gpu_bytes"]),
        samples_per_s=None if rate is None or not batch else rate * batch,
        gflop_per_s=None if rate is None or flops is None else rate * flops / 1e9,
        replay_ratio=None if updates is None or not batch or not env_steps else batch * updates / env_steps,
        noise_scale=_find_median_of(metrics, NOISE_SCALE),
        gpu_utilisation=_find_median_of(metrics, GPU_UTILISATION),
    )


def _counts(row: Mapping[Any, Any], name: str) -> bool:
    return name.startswith(_PREFIX) and not pd.isna(row[name])


def _known(value: object) -> float | None:
    return None if pd.isna(value) else float(value)  # type: ignore[call-overload,arg-type]


def _read_points(metrics: pd.DataFrame) -> tuple[Point, ...]:
    if CURVE not in metrics:
        return ()
    rows = metrics[np.isfinite(metrics[CURVE])]
    columns = (rows[name].tolist() for name in ("env_step", "wall_time", CURVE))
    return tuple(Point(*values) for values in zip(*columns, strict=True))


def _find_median_of(metrics: pd.DataFrame, name: str) -> float | None:
    if name not in metrics:
        return None
    values = metrics[name]
    return find_median(values[np.isfinite(values)].tolist())


def _find_not_finite(row: Mapping[Any, Any], metrics: pd.DataFrame, decisions: Sequence[Decision]) -> str:
    rows = metrics[metrics["not_finite"] != ""]
    if not rows.empty:
        first = rows.iloc[0]
        return f"{first['not_finite'].split()[0]} was not finite at step {first['step']:,}"
    if not pd.isna(row["final_mean"]) and not math.isfinite(row["final_mean"]):
        return str(row["final_problem"])
    said = [row["guard"], *(decision.verdict for decision in decisions)]
    return f"the guard says {NON_FINITE}" if NON_FINITE in said else ""


def find_median(values: Sequence[float | None]) -> float | None:
    """Give the median of the values that are known, None where none is; infinite values count as such."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
