"""Which batch size to take, and why; or why that can't be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.arms import NOT_COMPARABLE
from analysis.axes import join_words
from analysis.ladder_rungs import BATCH, Ladder, Rung
from analysis.statistics import Interval
from analysis.tables import choose_decimals, show_number, show_seconds


@dataclass(frozen=True)
class Advice:
    """The recommended rung, None where there is none, with the reason as sentences."""

    rung: Rung | None
    text: str


def recommend(ladder: Ladder) -> Advice:
    """Give the smallest batch that is as good as the best one and that no other such rung beats in wall time.

    As good is a rung whose interval overlaps the best one's; faster, one whose interval of the wall time lies wholly
    below. Only rungs whose planned runs are all finished, measured and healthy take part.
    """
    if obstacle := _find_obstacle(ladder):
        return Advice(None, f"No recommendation: {obstacle}")
    healthy = [rung for rung in ladder.rungs if rung.is_finished and rung.is_healthy]
    best = max(healthy, key=_get_iqm)
    if not best.result.interval.exists:
        return Advice(
            None,
            f"No recommendation: {ladder.name(best)} has the highest return, but single runs have no interval; "
            "run every rung with several seeds.",
        )
    equals = [rung for rung in healthy if rung.result.interval.overlaps(best.result.interval)]
    unbeaten = [rung for rung in equals if rung.wall and not any(other.beats_in_wall_time(rung) for other in equals)]
    if not unbeaten:
        return Advice(None, "No recommendation: the rungs with the best returns don't say how long they took.")
    chosen = min(unbeaten, key=lambda rung: (rung.batch or 0, _get_wall(rung)))
    return Advice(chosen, " ".join(_explain(ladder, chosen, best, equals)))


def _find_obstacle(ladder: Ladder) -> str:
    """Say why nothing can be recommended, whatever the returns are; empty where something can."""
    finished = [rung for rung in ladder.rungs if rung.is_finished]
    if len({rung.result.arm.task for rung in ladder.rungs}) > 1:
        return (
            f"the rungs differ in {join_words(ladder.task_keys)}, and returns of different environments don't compare."
        )
    if len(ladder.rungs) < 2:
        return f"there is one rung only. Sweep {BATCH} to compare several."
    if len(finished) < 2:
        left = "; ".join(f"{ladder.name(rung)}: {rung.result.problem}" for rung in ladder.rungs if not rung.is_finished)
        return f"{len(finished)} of {len(ladder.rungs)} rungs finished, and it takes two. {left}."
    if any(rung.result.verdict == NOT_COMPARABLE for rung in finished):
        return f"the rungs average over different values of {join_words(ladder.pooled)}."
    if unknown := [rung for rung in finished if rung.batch is None]:
        return f"no run says what its {BATCH} was: {', '.join(map(ladder.name, unknown))}."
    if not any(rung.is_healthy for rung in finished):
        return "in every finished rung the training-health guard marked a run."
    return ""


def _explain(ladder: Ladder, chosen: Rung, best: Rung, equals: Sequence[Rung]) -> list[str]:
    decimals = choose_decimals([rung.result.iqm for rung in equals])
    own = f"IQM {_show_return(chosen, decimals)}"
    if chosen is best:
        reason = f"{own} is the best"
    else:
        reason = f"{own} is not told apart from the best, {_show_return(best, decimals)} of {ladder.name(best)}"
    time = f"no rung as good takes reliably less than its {_show_wall(chosen)}"
    if chosen.has_fixed_time:
        time = "its schedule gave every batch the same time"
    sentences = [f"Recommended: {ladder.name(chosen)}. Its {reason}, and {time}."]
    smaller = [rung for rung in ladder.rungs if rung.is_finished and (rung.batch or 0) < (chosen.batch or 0)]
    slower = [f"{ladder.name(rung)} ({_show_wall(rung)})" for rung in smaller if rung in equals]
    worse = [ladder.name(rung) for rung in smaller if rung.is_healthy and rung not in equals]
    parts = [f"{join_words(slower)} {_be(slower)} as good but slower"] if slower else []
    parts += [f"{join_words(worse)} {_be(worse)} below the best"] if worse else []
    if parts:
        sentences.append(f"Of the smaller ones {', '.join(parts)}.")
    left_out = [reason for rung in ladder.rungs if (reason := _explain_leaving_out(ladder, rung))]
    return [*sentences, f"Left out: {'; '.join(left_out)}."] if left_out else sentences


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _explain_leaving_out(ladder: Ladder, rung: Rung) -> str:
    if not rung.is_finished:
        return f"{ladder.name(rung)} ({rung.result.problem})"
    if not rung.is_healthy:
        return f"{ladder.name(rung)} ({rung.healthy} of {len(rung.runs)} runs healthy)"
    return ""


def _show_return(rung: Rung, decimals: int) -> str:
    return f"{show_number(_get_iqm(rung), decimals)} {show_interval(rung.result.interval, decimals)}".rstrip()


def show_interval(interval: Interval, decimals: int) -> str:
    """Write an interval as `[low, high]`; empty where there is none."""
    if not interval.exists:
        return ""
    return f"[{show_number(interval.low, decimals)}, {show_number(interval.high, decimals)}]"


def _show_wall(rung: Rung) -> str:
    return show_seconds(_get_wall(rung))


def _get_iqm(rung: Rung) -> float:
    assert rung.result.iqm is not None
    return rung.result.iqm


def _get_wall(rung: Rung) -> float:
    assert rung.wall is not None
    return rung.wall[0]
