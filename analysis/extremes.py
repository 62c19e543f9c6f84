"""Which of many arms a figure shows, best first, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.arms import ArmResult

MANY_ARMS = 40
"""So many arms can be looked through in the order of the spec; more are shown best first."""


@dataclass(frozen=True)
class Selection:
    """Arms to be drawn. `sentence` says which they are and is empty where they are all; `best` are before the gap."""

    results: tuple[ArmResult, ...]
    sentence: str = ""
    best: int = 0


def select_extremes(results: Sequence[ArmResult], limit: int, most: int, table: str) -> Selection:
    """Give all arms as they come, or, of more than a limit, some: two thirds of them the best, a third the worst.

    They are given best first. Arms that can't be ranked are left out: with runs missing they may look better than they
    are.

    Args:
        results: of one task.
        limit: so many are given as they come.
        most: so many of more.
        table: the stem of the CSV file that has all of them.
    """
    if len(results) <= limit:
        return Selection(tuple(results))
    ranked = sort_by_return([result for result in results if not result.problem and is_measured(result)])
    unranked = len(results) - len(ranked)
    left_out = f" {unranked} that can't be ranked are left out." if unranked else ""
    where = f" All are in {table}.csv."
    if len(ranked) <= most:
        sentence = f"Of {len(results)} arms, the {len(ranked)} that can be ranked, best first.{left_out}{where}"
        return Selection(tuple(ranked), sentence, len(ranked))
    worst = most // 3
    best = most - worst
    sentence = f"Of {len(results)} arms, the {best} best and the {worst} worst by their final returns, best first."
    return Selection((*ranked[:best], *ranked[-worst:]), f"{sentence}{left_out}{where}", best)


def is_measured(result: ArmResult) -> bool:
    """Tell whether an arm has a finite return."""
    return result.iqm is not None and bool(np.isfinite(result.iqm))


def sort_by_return(results: Sequence[ArmResult]) -> list[ArmResult]:
    """Give arms best first, by the IQM of their final returns; then those that can't be ranked, the unmeasured last.

    Equal ones stay in the order in which they come.
    """

    def place(result: ArmResult) -> tuple[int, float]:
        if result.iqm is None or not np.isfinite(result.iqm):
            return 2, 0.0
        return (1 if result.problem else 0), -result.iqm

    return sorted(results, key=place)
