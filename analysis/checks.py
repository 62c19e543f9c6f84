"""What a reader has to be warned of: axes without effect, several code versions, unhealthy or missing runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.arms import SEED, Comparison
from analysis.axes import find_axes, join_words, locate
from analysis.extremes import MANY_ARMS
from analysis.load import ExperimentData, is_counted, is_done, show_state
from analysis.returns import warn_of_few_seeds

INCLUDE_REPAIRED = "--include-repaired"
"""The flag with which repaired runs enter statistics."""
_NAMED_ARMS = 6


def find_warnings(data: ExperimentData, comparison: Comparison) -> list[str]:
    """Give every warning that belongs at the top of the report, the gravest first."""
    return [
        *warn_of_repaired(data, comparison),
        *_warn_of_problems(comparison),
        *find_axes_without_effect(data),
        *_warn_of_versions(data),
        *_warn_of_guard(data),
        *warn_of_few_seeds(comparison),
        *warn_of_choice(comparison),
        *_warn_of_stale(data),
        *data.warnings,
    ]


def warn_of_repaired(data: ExperimentData, comparison: Comparison) -> list[str]:
    """Say how many runs the guard repaired, of which arms, and whether their numbers are in the statistics."""
    runs = data.unique_runs
    count = int(runs["repaired"].sum())
    if not count:
        return []
    repaired = [(result, int(result.arm.runs["repaired"].sum())) for result in comparison.results]
    arms = [f"{comparison.describe(result.arm)} ({own} of {result.planned})" for result, own in repaired if own]
    more = f"; {len(arms) - _NAMED_ARMS} more" if len(arms) > _NAMED_ARMS else ""
    lead = f"{count} of {len(runs)} runs {'was' if count == 1 else 'were'} repaired by the training-health guard"
    where = f"{'; '.join(arms[:_NAMED_ARMS])}{more}"
    if data.include_repaired:
        return [f"{lead} and {_be(count)} in every statistic, as asked for ({INCLUDE_REPAIRED}): {where}."]
    them = "it" if count == 1 else "them"
    return [f"{lead} and {_be(count)} left out of every statistic: {where}. {INCLUDE_REPAIRED} brings {them} in."]


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _warn_of_problems(comparison: Comparison) -> list[str]:
    """Say what keeps arms from being ranked; of many such arms as one sentence, since the table has each."""
    arms = [f"{comparison.describe(result.arm)}: {result.problem}" for result in comparison.results if result.problem]
    if len(arms) <= _NAMED_ARMS:
        return [f"{arm}." for arm in arms]
    runs = [result.arm.runs for result in comparison.results if result.problem]
    states = Counter(show_state(row) for frame in runs for row in frame[~is_done(frame)].to_dict("records"))
    unfinished = f" Not finished: {', '.join(f'{count} {state}' for state, count in states.items())}." if states else ""
    more = f"; {len(arms) - _NAMED_ARMS} more, in {comparison.name}.csv under compared"
    lead = f"{len(arms)} of {len(comparison.results)} arms can't be ranked."
    return [f"{lead}{unfinished} {'; '.join(arms[:_NAMED_ARMS])}{more}."]


def _shorten(sentences: Sequence[str], column: str) -> list[str]:
    """Give sentences about single runs, of many the first ones and where the others are."""
    if len(sentences) <= _NAMED_ARMS:
        return list(sentences)
    more = f"{len(sentences) - _NAMED_ARMS} more runs like these: see {column} in runs.csv."
    return [*sentences[:_NAMED_ARMS], more]


def find_axes_without_effect(data: ExperimentData) -> list[str]:
    """Name each axis that changed nothing: finished runs that differ in it alone are alike, all pairs of them.

    Keys that vary together are one axis; one of them is judged by itself only where all of them together had an effect,
    and by those pairs that differ in it alone. Alike are two runs that end with the same hash of the trainer's state.
    Where a trainer gives no hash, the metric rows decide, without wall_time and time/*.
    """
    sentences = []
    for axis in find_axes(data):
        name = axis[0] if len(axis) == 1 else f"{join_words(axis)}, which vary together,"
        found = [_judge_effect(data, axis, name)]
        if len(axis) > 1 and not found[0]:
            found = [_judge_effect(data, (key,), f"{key}, where it alone differs,") for key in axis]
        sentences += [sentence for sentence in found if sentence]
    return sentences


def _judge_effect(data: ExperimentData, keys: Sequence[str], name: str) -> str:
    """Say that some keys changed nothing; empty where they did, or where no two runs differ in them alone."""
    pairs = [(group[0], other) for group in _group_by_others(data, keys) for other in group[1:]]
    if not pairs or not all(_trained_alike(first, other) for first, other in pairs):
        return ""
    whose = "its" if len(keys) == 1 else "their"
    among = "runs that differ in nothing else" if tuple(keys) == (SEED,) else f"{whose} runs"
    condition = "" if SEED in keys else " for the same seed"
    if all(first["id"] == other["id"] for first, other in pairs):
        return f"{name} had no effect: {whose} values mean the same and share their runs."
    if all(_same(first, other, "metrics_hash") for first, other in pairs):
        return f"{name} had no effect: {among} are identical{condition}."
    return f"{name} had no effect on training: {among} end in the same state{condition}."


def _trained_alike(first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if isinstance(first["state_hash"], str) and isinstance(other["state_hash"], str):
        return _same(first, other, "state_hash")
    return _same(first, other, "metrics_hash") or first["id"] == other["id"]


def _same(first: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    return isinstance(first[name], str) and first[name] == other[name]


def _group_by_others(data: ExperimentData, keys: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """Give the combinations that count and differ in some keys alone, one of each point."""
    others = [name for name in data.swept if name not in keys]
    names = ["id", "state_hash", "metrics_hash"]
    rows: list[Mapping[str, Any]] = [dict(zip(names, row, strict=True)) for row in data.runs[names].to_numpy()]
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Mapping[str, Any]]] = {}
    for combination, row, counted in zip(data.plan, rows, is_counted(data.runs), strict=True):
        if counted:
            place = locate(combination.settings, others)
            groups.setdefault(place, {}).setdefault(locate(combination.settings, keys), row)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def warn_of_choice(comparison: Comparison) -> list[str]:
    """Say that the best of many arms owes some of its return to luck: the runs that it is judged by chose it."""
    ranked = sum(not result.problem for result in comparison.results)
    if ranked <= MANY_ARMS:
        return []
    return [
        f"The best of {ranked} arms was chosen by the very runs that give its return, so that return is too high: "
        "the more arms, the luckier the best. Run the best few again with other seeds before you report one."
    ]


def _warn_of_versions(data: ExperimentData) -> list[str]:
    runs = data.unique_runs
    versions = list(dict.fromkeys(runs["code_version"].dropna()))
    sentences = []
    if len(versions) > 1:
        sentences.append(f"The runs are of {len(versions)} code versions: {', '.join(versions)}.")
    mixed = runs[runs["code_versions"].str.contains(" ", regex=False, na=False)]
    under_several = [
        f"{row.label} ({row.id}) was started under several code versions: {row.code_versions}."
        for row in mixed.itertuples()
    ]
    return [*sentences, *_shorten(under_several, "code_versions")]


def _warn_of_guard(data: ExperimentData) -> list[str]:
    done = data.unique_runs[is_done(data.unique_runs)]
    unwell = done[done["guard"].notna() & (done["guard"] != "healthy")]
    rows = ((row, " and repaired it" if row.repaired else "") for row in unwell.itertuples())
    return _shorten(
        [f"{row.label} ({row.id}): the training-health guard says {row.guard}{also}." for row, also in rows], "guard"
    )


def _warn_of_stale(data: ExperimentData) -> list[str]:
    count = len(data.stale)
    return [f"{count} run(s) on disk are not in the plan and enter no number."] if count else []
