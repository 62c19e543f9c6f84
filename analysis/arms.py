"""The arms of an experiment: runs that differ in the seed alone (or in what a table averages over), ranked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.axes import find_axes, join_words, locate
from analysis.load import MISSING, ExperimentData, is_counted, is_done, show_state
from analysis.records import NOT_THERE
from analysis.statistics import Interval, interquartile_mean, stratified_bootstrap_interval

SEED = "seed"
FEW_SEEDS = 5
FIRST = "returns"
"""Name of the comparison of all swept settings together; the others are called `returns_by_<key>`."""
NOT_COMPARABLE = "not comparable: other settings differ"
"""Verdict of an arm among arms whose runs are spread otherwise over the settings that a table averages over."""
CASE = "Case"
"""Head of the column that names points of `cases`, where these set several keys."""
BASE = "(base)"
"""Names the case that nothing sets apart."""
_NAMED_RUNS = 3
_NO_INTERVAL = Interval(np.nan, np.nan)


@dataclass(frozen=True)
class Arm:
    """Planned runs that have the same values of a comparison's keys.

    Attributes:
        task: values of the keys that choose the environment, as shown. Returns are never pooled or ranked across tasks.
        values: values of the compared keys, as shown.
        runs: rows of `ExperimentData.runs`, each run once.
        strata: for each row, what it has of all other swept keys but the seed.
        shares: how the arm's combinations are spread over the strata. Arms that differ in this can't be ranked against
            each other: the better one may owe it to better other settings (Simpson's paradox).
    """

    task: tuple[str, ...]
    values: tuple[str, ...]
    runs: pd.DataFrame
    strata: tuple[str, ...]
    shares: Mapping[str, Fraction]

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The rows whose numbers may enter a statistic."""
        return self.runs[is_counted(self.runs)]


@dataclass(frozen=True)
class ArmResult:
    """What the runs of an arm say that count: the finished ones, but for `left_out`, which the guard repaired.

    `score` is the IQM of normalised scores, there only where all of these runs have one.
    Numbers are None where nothing was measured and NaN or infinite where a finished run's were. `problem` says why the
    arm can't be ranked and is empty where it can; `verdict` compares it with the best arm of its task.
    """

    arm: Arm
    planned: int
    finished: int
    left_out: int = 0
    iqm: float | None = None
    interval: Interval = _NO_INTERVAL
    mean: float | None = None
    sd: float | None = None
    score: float | None = None
    score_interval: Interval = _NO_INTERVAL
    train_mean: float | None = None
    train_sd: float | None = None
    problem: str = ""
    verdict: str = ""
    is_best: bool = False

    @property
    def counted(self) -> int:
        return self.finished - self.left_out


@dataclass(frozen=True)
class Comparison:
    """Arms set side by side: by one key, or by all of them together.

    `case_keys` are those of `keys` that the spec's cases set, where there are several: a case is named by what sets it
    apart. `usual` has by key the value that goes without saying: that of more than half of the arms, else the default.
    """

    name: str
    title: str
    task_keys: tuple[str, ...]
    keys: tuple[str, ...]
    results: tuple[ArmResult, ...]
    case_keys: tuple[str, ...] = ()
    usual: Mapping[str, str] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        """The keys that tell arms apart, those of cases as one, at the end."""
        plain = tuple(key for key in self.task_keys + self.keys if key not in self.case_keys)
        return (*plain, CASE) if self.case_keys else plain

    def show(self, arm: Arm) -> tuple[str, ...]:
        """Give what an arm has of `heads`."""
        values = dict(zip(self.task_keys + self.keys, arm.task + arm.values, strict=True))
        named = [f"{key}={values[key]}" for key in self.case_keys if values[key] != self.usual.get(key)]
        plain = tuple(value for key, value in values.items() if key not in self.case_keys)
        return (*plain, ", ".join(named) or BASE) if self.case_keys else plain

    def describe(self, arm: Arm) -> str:
        """Name an arm in words: `learning_rate=0.001`; `all runs` where nothing is swept but the seed."""
        pairs = zip(self.heads, self.show(arm), strict=True)
        return ", ".join(value if key == CASE else f"{key}={value}" for key, value in pairs) or "all runs"


def show_left_out(result: ArmResult) -> str:
    """Write how many finished runs an arm's numbers leave out, to follow a count of finished ones; empty for none."""
    return f", {result.left_out} left out" if result.left_out else ""


def show_value(value: object) -> str:
    """Write a setting as a spec would: `true`, `null`, `0.0001`, plain text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def find_task_keys(swept: Sequence[str]) -> tuple[str, ...]:
    """Give the swept keys that choose the environment, whose returns are not on one scale."""
    return tuple(key for key in swept if key.split(".")[0] in ("env_name", "env_kwargs", "eval_env_kwargs"))


def compare_arms(data: ExperimentData) -> list[Comparison]:
    """Give the comparison of all swept settings together, then one for each axis where there are several."""
    task_keys = find_task_keys(data.swept)
    keys = tuple(key for key in data.swept if key != SEED and key not in task_keys)
    comparisons = [_compare(data, FIRST, task_keys, keys)]
    axes = [tuple(key for key in axis if key in keys) for axis in find_axes(data)]
    axes = [axis for axis in axes if axis]
    if len(axes) > 1:
        comparisons += [_compare(data, f"{FIRST}_by_{'_and_'.join(axis)}", task_keys, axis) for axis in axes]
    return comparisons


def _compare(data: ExperimentData, name: str, task_keys: tuple[str, ...], keys: tuple[str, ...]) -> Comparison:
    title = f"Returns by {join_words(keys)}" if keys else "Returns"
    results = [summarise_arm(arm) for arm in group_arms(data, task_keys, keys)]
    set_in_cases = tuple(key for key in keys if key in data.case_keys)
    case_keys = set_in_cases if len(set_in_cases) > 1 else ()
    columns = {key: [result.arm.values[keys.index(key)] for result in results] for key in case_keys}
    found = {key: _find_usual(values) for key, values in columns.items()}
    usual = {key: value for key, value in found.items() if value is not None}
    return Comparison(name, title, task_keys, keys, tuple(rank_arms(results)), case_keys, usual)


def _find_usual(values: Sequence[str]) -> str | None:
    """Give the value that more than half have, else the default where some leave it to that, else None."""
    value, count = Counter(values).most_common(1)[0]
    if 2 * count > len(values):
        return value
    return MISSING if MISSING in values else None


def group_arms(data: ExperimentData, task_keys: tuple[str, ...], keys: tuple[str, ...]) -> list[Arm]:
    """Give the arms in the order in which the plan first names them."""
    others = [key for key in data.swept if key != SEED and key not in task_keys + keys]
    members: dict[tuple[str, ...], dict[str, tuple[int, str]]] = {}
    spread: dict[tuple[str, ...], Counter[str]] = {}
    shown: dict[tuple[str, ...], tuple[str, ...]] = {}
    for position, combination in enumerate(data.plan):
        settings = combination.settings
        point = locate(settings, task_keys + keys)
        stratum = " ".join(locate(settings, others))
        spread.setdefault(point, Counter())[stratum] += 1
        members.setdefault(point, {}).setdefault(combination.id, (position, stratum))
        shown.setdefault(
            point, tuple(show_value(settings[key]) if key in settings else MISSING for key in task_keys + keys)
        )
    cut = len(task_keys)
    return [
        Arm(
            shown[point][:cut],
            shown[point][cut:],
            data.runs.iloc[[position for position, _ in runs.values()]],
            tuple(stratum for _, stratum in runs.values()),
            {stratum: Fraction(count, spread[point].total()) for stratum, count in spread[point].items()},
        )
        for point, runs in members.items()
    ]


def summarise_arm(arm: Arm) -> ArmResult:
    """Give the numbers of an arm, from the runs that count alone, before it is compared."""
    counted = arm.counted
    finished = int(is_done(arm.runs).sum())
    result = ArmResult(arm, planned=len(arm.runs), finished=finished, left_out=finished - len(counted))
    if result.counted < result.planned:
        result = replace(result, problem=describe_missing(arm))
    if counted.empty:
        return result
    train_mean, train_sd = _mean_and_sd(counted["train_return"], counted["train_problem"])
    result = replace(result, train_mean=train_mean, train_sd=train_sd)
    mean, sd = _mean_and_sd(counted["final_mean"], counted["final_problem"])
    scored = bool(counted["reference_random"].notna().all())
    faulty = counted[counted["final_problem"].notna()]
    if not faulty.empty:
        causes = "; ".join(
            f"{problem} in {_name_runs(runs['id'].tolist())}"
            for problem, runs in faulty.groupby("final_problem", sort=False)
        )
        # Not finite, or None: as a score it is the same.
        score = mean if scored else None
        problem = "; ".join(filter(None, (result.problem, causes)))
        return replace(result, iqm=mean, mean=mean, score=score, problem=problem)
    iqm, interval = _find_middle(arm, "final_mean")
    result = replace(result, iqm=iqm, interval=interval, mean=mean, sd=sd)
    if not scored:
        return result
    score, interval = _find_middle(arm, "final_score")
    return replace(result, score=score, score_interval=interval)


def _find_middle(arm: Arm, column: str) -> tuple[float, Interval]:
    """Give the interquartile mean of a column over the runs that count, and its interval."""
    values = arm.counted[column].to_numpy()
    strata: dict[str, list[float]] = {}
    for value, stratum in zip(values, np.array(arm.strata)[is_counted(arm.runs)], strict=True):
        strata.setdefault(stratum, []).append(value)
    return float(interquartile_mean(values)), stratified_bootstrap_interval(list(strata.values()))


def _name_runs(ids: Sequence[str]) -> str:
    if len(ids) > _NAMED_RUNS:
        return f"{len(ids)} runs"
    return f"run {ids[0]}" if len(ids) == 1 else f"runs {join_words(ids)}"


def _mean_and_sd(values: pd.Series[float], problems: pd.Series[str]) -> tuple[float | None, float | None]:
    """Give mean and sample standard deviation; None where a value is missing, no deviation where one isn't finite."""
    if problems.isin(NOT_THERE).any():
        return None, None
    numbers = values.to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        infinite = numbers[np.isinf(numbers)]
        same_sign = len(set(infinite)) == 1 and not np.isnan(numbers).any()
        return (float(infinite[0]) if same_sign else np.nan), None
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None


def describe_missing(arm: Arm) -> str:
    """Say how many runs of an arm finished, what the others are, and how many are left out though they did.

    `2 of 3 finished, 1 FAILED (oom)`, `3 of 3 finished, 1 repaired and left out`.
    """
    done = is_done(arm.runs)
    counts = Counter(show_state(row) for row in arm.runs[~done].to_dict("records"))
    parts = [f"{count} {state}" for state, count in counts.items()]
    left_out = int((done & ~is_counted(arm.runs)).sum())
    parts += [f"{left_out} repaired and left out"] if left_out else []
    return f"{int(done.sum())} of {len(arm.runs)} finished, {', '.join(parts)}"


def rank_arms(results: Sequence[ArmResult]) -> list[ArmResult]:
    """Compare each arm with the best of its task. Only arms whose planned runs all count take part.

    No arm of a task is the best where its arms average over different other settings.
    """
    rivals: dict[tuple[str, ...], list[ArmResult]] = {}
    for result in results:
        rivals.setdefault(result.arm.task, []).append(result)
    best = {task: _find_best(group) for task, group in rivals.items()}
    return [_judge(result, best[result.arm.task], rivals[result.arm.task]) for result in results]


def _find_best(rivals: Sequence[ArmResult]) -> ArmResult | None:
    ranked = [result for result in rivals if not result.problem]
    alike = all(result.arm.shares == rivals[0].arm.shares for result in rivals)
    return max(ranked, key=_iqm) if ranked and alike else None


def _iqm(result: ArmResult) -> float:
    assert result.iqm is not None
    return result.iqm


def _judge(result: ArmResult, best: ArmResult | None, rivals: Sequence[ArmResult]) -> ArmResult:
    if result.problem:
        return replace(result, verdict=f"not ranked: {result.problem}")
    if len(rivals) == 1:
        return result
    if best is None:
        return replace(result, verdict=NOT_COMPARABLE)
    if result is best:
        ranked = sum(not rival.problem for rival in rivals)
        verdict = "best" if ranked == len(rivals) else f"best of the {ranked} ranked"
        return replace(result, verdict=verdict, is_best=True)
    if not (result.interval.exists and best.interval.exists):
        return replace(result, verdict="can't be told from the best: a single run has no interval")
    if result.interval.overlaps(best.interval):
        return replace(result, verdict="not distinguishable from the best")
    return replace(result, verdict="below the best")
