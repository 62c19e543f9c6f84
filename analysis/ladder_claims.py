"""The figures of the batch-size guide that users came with, and what an experiment confirms or refutes of them.

The guide (DDPG on one RTX 4070) gives a table and says why large batches fail. It names no task, no seeds and no
number of updates, and has no returns, so its figures are shown as claimed and never mixed with measured ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analysis.axes import join_words
from analysis.ladder_advice import Advice
from analysis.ladder_rungs import Ladder, Rung, find_span
from analysis.ladder_runs import RunFacts
from analysis.tables import show_seconds

CONFIRMED, IN_PART, REFUTED, OPEN = "confirmed", "confirmed in part", "refuted", "not decided"
FALL_SHARE = 0.5
"""A run fell when it ends below its best evaluation by more than this share of the span of the ladder's returns."""
_NAMED_RUNS = 3


@dataclass(frozen=True)
class Claimed:
    """A row of the guide's table: GPU utilisation in %, training time in minutes, stars for stability, advice."""

    batch: int
    gpu_percent: int
    minutes: int
    stars: int
    advice: str


CLAIMED = (
    Claimed(128, 60, 40, 5, "most stable"),
    Claimed(256, 68, 32, 5, "recommended"),
    Claimed(512, 75, 25, 5, "best balance"),
    Claimed(1024, 82, 20, 4, "current setting"),
    Claimed(2048, 90, 15, 3, "to be watched"),
    Claimed(4096, 95, 12, 1, "shown to be unstable"),
)


@dataclass(frozen=True)
class Judgement:
    """One claim, on one side of the ladder (all of it where that is empty), with what the runs say of it."""

    claim: str
    side: str
    verdict: str
    evidence: str


def judge_claims(ladder: Ladder, advice: Advice) -> list[Judgement]:
    """Judge each claim of the guide by the runs of the experiment, separately for each schedule, rule and environment.

    A rung with unfinished runs decides nothing, except that a number that wasn't finite, and a run that the guard
    stopped, count wherever they were seen.
    """
    judgements = [
        Judgement(claim, ladder.name_side(side), verdict, evidence)
        for side, rungs in ladder.sides.items()
        for claim, (verdict, evidence) in _judge_side(ladder, rungs, advice)
    ]
    return [*judgements, Judgement("GPU utilisation grows from 60 % to 95 %", "", *_judge_utilisation(ladder))]


def _judge_side(ladder: Ladder, rungs: Sequence[Rung], advice: Advice) -> Iterator[tuple[str, tuple[str, str]]]:
    span = find_span(rungs)
    margin = FALL_SHARE * (span[1] - span[0]) if span else 0.0
    yield "Batches of 4096 diverge", _judge_divergence(ladder, rungs, margin)
    yield "The larger the batch from 512 on, the less stable", _judge_stability(ladder, rungs, margin)
    yield "Larger batches train in less time: 40 min at 128, 12 min at 4096", _judge_time(ladder, rungs)
    yield "Below 128 training is slow and unstable", _judge_small(ladder, rungs, margin)
    for batch, place in ((512, "its table"), (1024, "its conclusion")):
        yield f"{batch} is the best balance ({place})", _judge_balance(ladder, rungs, advice, batch)


def _judge_utilisation(ladder: Ladder) -> tuple[str, str]:
    """Give what was measured; it takes the guide's own GPU to judge it."""
    known = [(rung, percent) for rung in ladder.rungs if (percent := rung.median("gpu_utilisation")) is not None]
    shown = ", ".join(f"{percent:.0f} % at {ladder.name(rung)}" for rung, percent in known)
    meaning = "it is the share of time with any kernel running, whatever that does: see samples/s"
    return OPEN, f"{shown or 'no run records it'}; {meaning}"


def find_divergence(run: RunFacts, margin: float) -> str:
    """Say how a run diverged: a number that wasn't finite, or a fall from what it was; empty where it didn't.

    A fall is from its best evaluation to its last, all on the same selection seeds. One that never learnt anything
    has nothing to fall from, however its evaluations scatter. Only a run that counts has an end: that of a repaired
    run isn't what its settings led to.
    """
    if run.not_finite:
        return run.not_finite
    if run.is_counted and len(run.points) > 1:
        best, last = max(point.value for point in run.points), run.points[-1].value
        if last < best - margin:
            return f"evaluations from {best:.4g} to {last:.4g}"
    return ""


def _find_diverged(rungs: Sequence[Rung], margin: float) -> dict[str, str]:
    found = {run: find_divergence(run, margin) for rung in rungs for run in rung.runs}
    return {f"{run.label} ({run.id})": cause for run, cause in found.items() if cause}


def _judge_divergence(ladder: Ladder, rungs: Sequence[Rung], margin: float) -> tuple[str, str]:
    largest = [rung for rung in rungs if rung.batch == 4096]
    if not largest:
        return OPEN, "no rung of 4096"
    others = [rung for rung in rungs if rung.batch is not None and rung.batch < 4096]
    smaller = f"of the smaller batches, {len(_find_diverged(others, margin))} of {_count_runs(others)} runs did"
    if diverged := _find_diverged(largest, margin):
        named = "; ".join(f"{name}: {cause}" for name, cause in list(diverged.items())[:_NAMED_RUNS])
        return CONFIRMED, f"{len(diverged)} of {_count_runs(largest)} runs of 4096 diverged ({named}); {smaller}"
    if missing := _describe_unfinished(ladder, largest):
        return OPEN, missing
    return REFUTED, f"none of {_count_runs(largest)} runs of 4096 became non-finite or fell from what it was; {smaller}"


def _count_runs(rungs: Sequence[Rung]) -> int:
    return sum(len(rung.runs) for rung in rungs)


def _describe_unfinished(ladder: Ladder, rungs: Sequence[Rung]) -> str:
    return "; ".join(f"{ladder.name(rung)}: {rung.result.problem}" for rung in rungs if not rung.is_finished)


def _is_settled(rung: Rung) -> bool:
    """Tell whether each planned run has either finished or shown that it is sick."""
    return all(run.is_done or run.not_finite or run.is_stopped_by_guard for run in rung.runs)


def _find_sound_share(rung: Rung, margin: float) -> float:
    """Give the share of planned runs that are finished, healthy and didn't diverge."""
    return sum(run.is_healthy and not find_divergence(run, margin) for run in rung.runs) / len(rung.runs)


def _judge_stability(ladder: Ladder, rungs: Sequence[Rung], margin: float) -> tuple[str, str]:
    known = _order(rung for rung in rungs if rung.batch is not None and rung.batch >= 512 and _is_settled(rung))
    if len({rung.batch for rung in known}) < 2:
        return OPEN, "it takes two finished rungs from 512 on"
    shares = [_find_sound_share(rung, margin) for rung in known]
    shown = ", ".join(f"{ladder.name(rung)}: {share:.0%}" for rung, share in zip(known, shares, strict=True))
    falls = shares == sorted(shares, reverse=True) and shares[-1] < shares[0]
    return CONFIRMED if falls else REFUTED, f"runs that stayed healthy and did not diverge: {shown}"


def _order(rungs: Iterator[Rung]) -> list[Rung]:
    return sorted(rungs, key=lambda rung: rung.batch or 0)


def _judge_time(ladder: Ladder, rungs: Sequence[Rung]) -> tuple[str, str]:
    listed = {row.batch: row for row in CLAIMED}
    if any(rung.has_fixed_time for rung in rungs):
        return OPEN, "the schedule gave every batch the same time"
    known = _order(rung for rung in rungs if rung.is_finished and rung.wall and rung.batch in listed)
    if len({rung.batch for rung in known}) < 2:
        return OPEN, "it takes two finished rungs of the guide's batches"
    first, last = known[0], known[-1]
    assert first.wall
    assert last.wall
    shown = ", ".join(f"{show_seconds(rung.wall[0])} at {rung.batch}" for rung in known if rung.wall)
    claimed = listed[last.batch or 0].minutes / listed[first.batch or 0].minutes
    measured = last.wall[0] / first.wall[0]
    evidence = f"{shown}: {last.batch} took {measured:.2f} of the time of {first.batch}, claimed {claimed:.2f}"
    if last.beats_in_wall_time(first):
        return CONFIRMED if 1 - measured >= (1 - claimed) / 2 else IN_PART, evidence
    return REFUTED if measured >= 1 else OPEN, evidence


def _judge_small(ladder: Ladder, rungs: Sequence[Rung], margin: float) -> tuple[str, str]:
    known = [rung for rung in rungs if rung.is_finished and rung.wall and rung.batch is not None]
    small = [rung for rung in known if (rung.batch or 0) < 128]
    large = [rung for rung in known if (rung.batch or 0) >= 128]
    if not small or not large:
        return OPEN, "it takes a finished rung below 128 and one from 128 on"
    timed = any(rung.has_fixed_time for rung in rungs)
    slow = None if timed else _tell_slower(small, large)
    best = max(_find_sound_share(rung, margin) for rung in large)
    unstable = all(_find_sound_share(rung, margin) < best for rung in small)
    names = join_words([ladder.name(rung) for rung in small])
    pace = {True: "slower than every larger one", False: "not slower than every larger one", None: "perhaps slower"}
    pace[None] = "given the same time" if timed else pace[None]
    evidence = f"{names}: {pace[slow]}, {'less stable' if unstable else 'as stable'}"
    if slow and unstable:
        return CONFIRMED, evidence
    if slow or unstable:
        return IN_PART, evidence
    return OPEN if slow is None else REFUTED, evidence


def _tell_slower(small: Sequence[Rung], large: Sequence[Rung]) -> bool | None:
    """Tell whether some rungs are all slower than all others; None where their intervals don't tell."""
    pairs = [(rung, other) for rung in small for other in large]
    if all(other.beats_in_wall_time(rung) for rung, other in pairs):
        return True
    return None if all(rung.wall and other.wall and rung.wall[0] > other.wall[0] for rung, other in pairs) else False


def _judge_balance(ladder: Ladder, rungs: Sequence[Rung], advice: Advice, batch: int) -> tuple[str, str]:
    found = [rung for rung in rungs if rung.batch == batch and rung.is_finished]
    if not found:
        return OPEN, f"no finished rung of {batch}"
    if advice.rung is None:
        return OPEN, "these runs allow no recommendation"
    name = ladder.name(advice.rung)
    if advice.rung in found:
        return CONFIRMED, f"these runs recommend {name}"
    if any(_is_like(rung, advice.rung) for rung in found):
        return OPEN, f"not told apart, in return and wall time, from the smaller {name}, which these runs recommend"
    return REFUTED, f"these runs recommend {name}"


def _is_like(rung: Rung, chosen: Rung) -> bool:
    alike = rung.is_healthy and rung.result.interval.overlaps(chosen.result.interval)
    return alike and not chosen.beats_in_wall_time(rung)
