"""The rungs of a batch-size ladder: runs of one batch size, schedule and learning-rate rule, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from analysis.arms import SEED, Arm, ArmResult, find_task_keys, group_arms, rank_arms, summarise_arm
from analysis.axes import find_axes
from analysis.ladder_runs import Point, RunFacts, collect_runs, find_median
from analysis.load import Combination, ExperimentData, find_swept
from analysis.statistics import Interval, interquartile_mean, stratified_bootstrap_interval

BATCH = "batch_size"
RUNG_KEYS = (BATCH, "schedule", "lr_rule")
FIXED_TIME = "fixed_wall"
"""The schedule under which every run trains for the same time."""
THRESHOLD_SHARE = 0.9
"""How far the default threshold is from the worst first evaluation to the best final IQM."""
_NONE = Interval(math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Rung:
    """Runs of one batch size (and schedule, and learning-rate rule).

    Attributes:
        result: its returns, compared with the other rungs' of the same environment.
        values: what it has of `Ladder.keys`, as shown.
        batch: None where the plan leaves it to a default that no run reports.
        side: what it has of the environment, schedule and rule: rungs that agree in these differ in the batch, and in
            the settings that vary with it.
        runs: all planned runs of it.
        has_fixed_time: its schedule gave each run the same time to train in, so that wall times say nothing of it: they
            differ by the evaluations that came due, of which a faster rung has more.
    """

    result: ArmResult
    values: tuple[str, ...]
    batch: int | None
    side: tuple[str, ...]
    runs: tuple[RunFacts, ...]
    has_fixed_time: bool

    @property
    def counted(self) -> list[RunFacts]:
        """The runs whose numbers may enter a statistic."""
        return [run for run in self.runs if run.is_counted]

    @property
    def is_finished(self) -> bool:
        """True where all planned runs are finished and count, and their returns are finite: only such are ranked."""
        return not self.result.problem

    @property
    def healthy(self) -> int:
        """How many of its planned runs are finished and healthy; a repaired one isn't."""
        return sum(run.is_healthy for run in self.runs)

    @property
    def is_healthy(self) -> bool:
        return self.healthy == len(self.runs)

    @property
    def guard_events(self) -> int:
        return sum(run.guard_events for run in self.runs)

    def median(self, name: str) -> float | None:
        """Give the median of a number of `RunFacts` over the runs that count."""
        return find_median([getattr(run, name) for run in self.counted])

    @cached_property
    def wall(self) -> tuple[float, Interval] | None:
        """IQM of the wall time with its interval, by the rules for returns; None where a run that counts has none."""
        arm = self.result.arm
        times: dict[str, list[float]] = {}
        for run, stratum in zip(self.runs, arm.strata, strict=True):
            if run.is_counted:
                if run.wall_s is None:
                    return None
                times.setdefault(stratum, []).append(run.wall_s)
        if not times:
            return None
        point = float(interquartile_mean(np.concatenate(list(times.values()))))
        return point, stratified_bootstrap_interval(list(times.values()))

    def beats_in_wall_time(self, other: Rung) -> bool:
        """Tell whether it is faster beyond doubt: its interval lies wholly below the other's. No fixed time is."""
        if self.has_fixed_time or other.has_fixed_time:
            return False
        own, others = (rung.wall[1] if rung.wall else _NONE for rung in (self, other))
        return own.high < others.low

    def find_crossings(self, threshold: float | None) -> list[Point | None]:
        """Give for each run that counts the evaluation that reached a threshold, None where none did."""
        return [] if threshold is None else [run.find_crossing(threshold) for run in self.counted]


@dataclass(frozen=True)
class Ladder:
    """All rungs of an experiment, in the order of the plan.

    Attributes:
        task_keys: swept keys that choose the environment.
        keys: what tells rungs apart: the batch size, schedule and rule where settings have them, and keys that vary
            with these.
        varying_with: those last ones.
        pooled: all other swept keys but the seed; each rung averages over them.
        thresholds: by values of the task keys; None where there is no default.
    """

    data: ExperimentData
    task_keys: tuple[str, ...]
    keys: tuple[str, ...]
    varying_with: tuple[str, ...]
    pooled: tuple[str, ...]
    rungs: tuple[Rung, ...]
    thresholds: Mapping[tuple[str, ...], float | None]

    def name(self, rung: Rung) -> str:
        """Name a rung in words, by its batch and what else tells it from others: `batch_size=256, lr_rule=sqrt`."""
        pairs = zip(self.task_keys + self.keys, rung.result.arm.task + rung.values, strict=True)
        return ", ".join(f"{key}={value}" for key, value in pairs if key == BATCH or key in self.data.swept)

    def threshold_of(self, rung: Rung) -> float | None:
        return self.thresholds[rung.result.arm.task]

    @property
    def sides(self) -> dict[tuple[str, ...], list[Rung]]:
        """The rungs by everything but the batch: each is a ladder of its own."""
        found: dict[tuple[str, ...], list[Rung]] = {}
        for rung in self.rungs:
            found.setdefault(rung.side, []).append(rung)
        return found

    def name_side(self, side: tuple[str, ...]) -> str:
        """Name a side in words; empty where there is one only."""
        if len(self.sides) == 1:
            return ""
        keys = (*self.task_keys, *(key for key in RUNG_KEYS[1:] if key in self.keys))
        pairs = zip(keys, side, strict=True)
        return ", ".join(f"{key}={value}" for key, value in pairs if key in self.data.swept)


def build_ladder(experiment: ExperimentData, threshold: float | None = None) -> Ladder:
    """Give the rungs of an experiment with their numbers.

    Args:
        experiment: whatever state its runs are in.
        threshold: return whose first reaching is timed; the default is `find_threshold`, for each environment its own.
    """
    data = fill_defaults(experiment)
    facts = collect_runs(data)
    task_keys = find_task_keys(data.swept)
    given = {key for combination in data.plan for key in combination.settings}
    varying_with = _find_varying_with(data, task_keys)
    keys = (BATCH, *(key for key in RUNG_KEYS[1:] if key in given), *varying_with)
    arms = group_arms(data, task_keys, keys)
    rungs = []
    for result in rank_arms([summarise_arm(arm) for arm in arms]):
        runs = tuple(facts[run_id] for run_id in result.arm.runs["id"])
        side = result.arm.task + tuple(
            value for key, value in zip(keys, result.arm.values, strict=True) if key in RUNG_KEYS[1:]
        )
        timed = dict(zip(keys, result.arm.values, strict=True)).get("schedule") == FIXED_TIME
        rungs.append(Rung(result, result.arm.values, _read_batch(data, result.arm), side, runs, timed))
    tasks = dict.fromkeys(rung.result.arm.task for rung in rungs)
    groups = {task: [rung for rung in rungs if rung.result.arm.task == task] for task in tasks}
    thresholds = {task: find_threshold(group) if threshold is None else threshold for task, group in groups.items()}
    pooled = tuple(key for key in data.swept if key not in {SEED, *task_keys, *keys})
    return Ladder(data, task_keys, keys, varying_with, pooled, tuple(rungs), thresholds)


def fill_defaults(data: ExperimentData) -> ExperimentData:
    """Give the same experiment with the keys of a rung written into its plan where the spec leaves them to defaults."""
    known: dict[tuple[str, str], Any] = {}
    for combination in data.plan:
        config = data.configs.get(combination.id, {})
        for key in RUNG_KEYS:
            if key in config and key not in combination.settings:
                known.setdefault((_name_trainer(combination), key), config[key])
    plan = []
    for combination in data.plan:
        trainer = _name_trainer(combination)
        defaults = {key: known[trainer, key] for key in RUNG_KEYS if (trainer, key) in known}
        plan.append(replace(combination, settings=defaults | dict(combination.settings)))
    return replace(data, plan=tuple(plan), swept=find_swept([combination.settings for combination in plan]))


def _name_trainer(combination: Combination) -> str:
    return str(combination.settings.get("algorithm_name", ""))


def _find_varying_with(data: ExperimentData, task_keys: Sequence[str]) -> tuple[str, ...]:
    """Give the keys that are on one axis with a key of the rungs, as those of `cases` are."""
    axes = [axis for axis in find_axes(data) if set(axis) & set(RUNG_KEYS)]
    return tuple(key for axis in axes for key in axis if key not in {SEED, *RUNG_KEYS, *task_keys})


def _read_batch(data: ExperimentData, arm: Arm) -> int | None:
    settings = next(row.settings for row in data.plan if row.id == arm.runs.iloc[0]["id"])
    batch = settings.get(BATCH)
    return int(batch) if isinstance(batch, int | float) and not isinstance(batch, bool) else None


def find_threshold(rungs: Sequence[Rung]) -> float | None:
    """Give the return that is 90 % of the way from the worst first evaluation to the best final IQM.

    Returns:
        None where no rung is finished, nothing was evaluated, or no rung ended above the worst first evaluation.
    """
    span = find_span(rungs)
    return None if span is None else span[0] + THRESHOLD_SHARE * (span[1] - span[0])


def find_span(rungs: Sequence[Rung]) -> tuple[float, float] | None:
    """Give the worst first evaluation of runs that count and the best final IQM of finished rungs, if higher."""
    finals = [rung.result.iqm for rung in rungs if rung.is_finished and rung.result.iqm is not None]
    firsts = [run.points[0].value for rung in rungs for run in rung.counted if run.points]
    return (min(firsts), max(finals)) if finals and firsts and max(finals) > min(firsts) else None
