"""The tables of a batch-size ladder: returns and health, cost, the guide's table as claimed, claims and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.arms import show_left_out
from analysis.ladder_advice import Advice, show_interval
from analysis.ladder_claims import CLAIMED, Judgement
from analysis.ladder_peak import GemmPeak
from analysis.ladder_rungs import BATCH, Ladder, Rung
from analysis.ladder_runs import GPU_UTILISATION, NOISE_SCALE, find_median
from analysis.returns import add_left_out
from analysis.tables import (
    DASH,
    Cell,
    Table,
    choose_decimals,
    list_runs,
    show_bytes,
    show_count,
    show_number,
    show_seconds,
)

NAME = "batch_size"
"""Stem of the files of the ladder's report."""
RUNS = "Runs"


def tabulate_returns(ladder: Ladder, advice: Advice) -> Table:
    """Give what each rung reached, how fast, and how well its runs were. Bold is the recommended rung."""
    decimals = choose_decimals(rung.result.iqm for rung in ladder.rungs)
    rows = []
    for rung in ladder.rungs:
        strong, result = rung is advice.rung, rung.result
        iqm = f"{show_number(result.iqm, decimals)} {show_interval(result.interval, decimals)}".rstrip()
        steps, seconds, reached = _show_crossings(ladder, rung)
        cells = [Cell(iqm, strong), Cell(steps), Cell(seconds), Cell(reached), Cell(f"{rung.guard_events}")]
        cells += [Cell(f"{rung.healthy} of {len(rung.runs)}"), Cell(result.verdict or DASH)]
        finished = Cell(f"{result.finished} of {result.planned}{show_left_out(result)}")
        rows.append((*_name(rung, strong), finished, *cells, list_runs(run.id for run in rung.counted)))
    return Table(
        name=NAME,
        title="Returns and health by rung",
        columns=(
            *ladder.task_keys,
            *ladder.keys,
            "Finished",
            "IQM [95 % interval]",
            "Steps to threshold",
            "Time to threshold",
            "Not reached",
            "Guard events",
            "Healthy",
            "Compared",
            RUNS,
        ),
        rows=tuple(rows),
        frame=_build_frame(ladder, advice, GemmPeak(None, "")),
        notes=tuple(_explain_returns(ladder, decimals)),
    )


def _name(rung: Rung, strong: bool) -> list[Cell]:
    return [Cell(value, strong) for value in rung.result.arm.task + rung.values]


def find_times(ladder: Ladder, rung: Rung) -> tuple[float | None, float | None, int, int]:
    """Give median steps and seconds to the threshold over finished runs, and how many reached it and how many not.

    A run that never reached it counts as infinitely long, so that a rung doesn't look fast by the few that did.
    """
    crossings = rung.find_crossings(ladder.threshold_of(rung))
    if not crossings:
        return None, None, 0, 0
    steps = float(np.median([point.env_step if point else math.inf for point in crossings]))
    seconds = float(np.median([point.wall_s if point else math.inf for point in crossings]))
    reached = sum(point is not None for point in crossings)
    return steps, seconds, reached, len(crossings) - reached


def _show_crossings(ladder: Ladder, rung: Rung) -> tuple[str, str, str]:
    steps, seconds, reached, missed = find_times(ladder, rung)
    if steps is None or seconds is None:
        return DASH, DASH, DASH
    missing = f"{missed} of {reached + missed}"
    if math.isinf(steps):
        return "not reached", "not reached", missing
    return show_count(steps), show_seconds(seconds), missing


def _explain_returns(ladder: Ladder, decimals: int) -> list[str]:
    known = {task: value for task, value in ladder.thresholds.items() if value is not None}
    shown = ", ".join(
        show_number(value, decimals) + (f" on {', '.join(task)}" if task else "") for task, value in known.items()
    )
    notes = [
        f"Threshold: {shown or 'none'}. It is reached at the first evaluation on the selection seeds at or above it; "
        "steps and time are medians over finished runs, one that never reached it counting as infinitely long.",
        "Healthy: finished, with the training-health guard's verdict healthy, of all planned runs. "
        "Rungs with an unfinished run are not ranked.",
    ]
    if any(rung.result.left_out for rung in ladder.rungs):
        notes.append(
            "Left out: runs that the guard repaired. They aren't healthy, and a rung that has one is not ranked."
        )
    if ladder.varying_with:
        notes.append(f"Rungs differ in more than the batch: {', '.join(ladder.varying_with)} varies with it.")
    if ladder.pooled:
        notes.append(f"Pooled within each rung: {', '.join(ladder.pooled)}.")
    return notes


def tabulate_costs(ladder: Ladder, advice: Advice, peak: GemmPeak) -> Table:
    """Give what each rung did and what that took: medians over its finished runs, the IQM of the wall time."""
    rows = []
    for rung in ladder.rungs:
        strong = rung is advice.rung
        share = find_peak_share(rung, peak)
        texts = (
            show_count(_or_nan(rung.median("updates"))),
            _show_digits(rung.median("replay_ratio")),
            show_count(_or_nan(rung.median("samples_per_s"))),
            _show_digits(rung.median("gflop_per_s")),
            DASH if share is None else f"{100 * share:.0f} %",
            show_bytes(_or_nan(rung.median("gpu_bytes"))),
            show_percent(rung.median("gpu_utilisation")),
            show_wall(rung),
            _show_digits(rung.median("noise_scale")),
        )
        rows.append((*_name(rung, strong), *map(Cell, texts), list_runs(run.id for run in rung.counted)))
    return Table(
        name=NAME,
        title="Cost by rung",
        columns=(
            *ladder.task_keys,
            *ladder.keys,
            "Updates",
            "Samples per step",
            "Samples/s",
            "GFLOP/s",
            "Of GEMM peak",
            "GPU, MiB",
            "GPU use",
            "Wall time",
            "Noise scale",
            RUNS,
        ),
        rows=tuple(rows),
        frame=_build_frame(ladder, advice, peak),
        notes=(
            "Medians over finished runs; wall time: IQM with its 95 % interval. Rates are over the whole wall time, "
            "environment and evaluations included; GFLOP/s counts the matrix products that updates need, its share of "
            "the peak is of one thread's peak times the threads of the run.",
            peak.note,
            f"Noise scale, GPU use: medians of {NOISE_SCALE} and {GPU_UTILISATION}, a dash where runs didn't log them.",
        ),
    )


def find_peak_share(rung: Rung, peak: GemmPeak) -> float | None:
    """Give what part of the GEMM peak of their threads the runs of a rung reached: the median.

    Returns:
        None without a peak, or where a run was on a GPU or doesn't say its threads.
    """
    if peak.gflop_per_s is None or any(run.device != "cpu" or not run.threads for run in rung.counted):
        return None
    rates = [run.gflop_per_s / run.threads for run in rung.counted if run.gflop_per_s is not None and run.threads]
    rate = find_median(rates)
    return None if rate is None else rate / peak.gflop_per_s


def show_wall(rung: Rung) -> str:
    """Write a rung's wall time with its interval, in the unit that fits."""
    if rung.wall is None:
        return DASH
    point, interval = rung.wall
    if not interval.exists:
        return show_seconds(point)
    return f"{show_seconds(point)} [{show_seconds(interval.low)}, {show_seconds(interval.high)}]"


def show_percent(percent: float | None) -> str:
    """Write a number of percent, a dash where there is none."""
    return DASH if percent is None else f"{percent:.0f} %"


def _show_digits(value: float | None) -> str:
    return DASH if value is None else show_number(value, choose_decimals([value]))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _build_frame(ladder: Ladder, advice: Advice, peak: GemmPeak) -> pd.DataFrame:
    """Give every number of every rung, at full precision: `batch_size.csv`."""
    records = []
    for rung in ladder.rungs:
        result, wall = rung.result, rung.wall
        steps, seconds, reached, missed = find_times(ladder, rung)
        names = ladder.task_keys + ladder.keys
        record: dict[str, object] = dict(zip(names, result.arm.task + rung.values, strict=True))
        record |= {"planned": result.planned, "finished": result.finished, "iqm": result.iqm}
        record |= {"iqm_low_95": result.interval.low, "iqm_high_95": result.interval.high}
        record |= {"threshold": ladder.threshold_of(rung), "steps_to_threshold": steps, "s_to_threshold": seconds}
        record |= {"reached": reached, "not_reached": missed, "guard_events": rung.guard_events}
        record |= {"healthy_share": rung.healthy / len(rung.runs)}
        record |= {name: rung.median(name) for name in ("updates", "replay_ratio", "samples_per_s", "gflop_per_s")}
        record |= {"gemm_peak_gflop_per_s": peak.gflop_per_s, "gemm_peak_share": find_peak_share(rung, peak)}
        record |= {name: rung.median(name) for name in ("gpu_bytes", "gpu_utilisation")}
        record |= {"wall_s": wall[0] if wall else None}
        record |= {"wall_low_95": wall[1].low if wall else None, "wall_high_95": wall[1].high if wall else None}
        record |= {"noise_scale": rung.median("noise_scale"), "compared": result.verdict}
        record |= {"recommended": rung is advice.rung, "finished_runs": " ".join(run.id for run in rung.counted)}
        records.append(record | {"planned_runs": " ".join(run.id for run in rung.runs)})
    return add_left_out(pd.DataFrame(records), [rung.result for rung in ladder.rungs])


def tabulate_claimed(ladder: Ladder) -> Table:
    """Give the guide's own table, marked as claimed, beside what was measured at the same batch sizes."""
    decimals = choose_decimals(rung.result.iqm for rung in ladder.rungs)
    rows = []
    for claimed in CLAIMED:
        said = (f"{claimed.gpu_percent} %", f"{claimed.minutes} min", f"{claimed.stars} of 5", claimed.advice)
        found = [rung for rung in ladder.rungs if rung.batch == claimed.batch]
        healthy = sum(rung.healthy for rung in found)
        measured = (
            _join([show_wall(rung) for rung in found]),
            f"{healthy} of {sum(len(rung.runs) for rung in found)}" if found else DASH,
            _join([show_number(rung.result.iqm, decimals) for rung in found]),
        )
        rows.append((str(claimed.batch), *said, *measured))
    columns = (
        BATCH,
        "Claimed: GPU utilisation",
        "Claimed: training time",
        "Claimed: stability",
        "Claimed: advice",
        "Measured here: wall time",
        "Measured here: healthy",
        "Measured here: IQM",
    )
    return Table(
        name="claimed",
        title="As claimed by the guide, and as measured here",
        columns=columns,
        rows=tuple(tuple(map(Cell, row)) for row in rows),
        frame=pd.DataFrame(rows, columns=list(columns)),
        notes=(
            "Claimed for DDPG on an RTX 4070, without task, seeds, number of updates or returns: "
            "the two halves are not of the same work, so a claimed time is not to be set against a measured one.",
        ),
    )


def _join(texts: Sequence[str]) -> str:
    return "; ".join(texts) or DASH


def tabulate_judgements(judgements: Sequence[Judgement]) -> Table:
    """Give the guide's claims with what this experiment says of each."""
    with_side = any(judgement.side for judgement in judgements)
    columns = ("Claim", *(("Rungs",) if with_side else ()), "These runs", "Because")
    rows = [(row.claim, *((row.side,) if with_side else ()), row.verdict, row.evidence) for row in judgements]
    return Table(
        name="claims",
        title="What these runs confirm and refute",
        columns=columns,
        rows=tuple(tuple(map(Cell, row)) for row in rows),
        frame=pd.DataFrame(rows, columns=list(columns)),
        notes=("On this task, with these settings and seeds; a claim about another task is not decided by it.",),
    )
