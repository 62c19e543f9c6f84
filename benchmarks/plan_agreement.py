"""How far plans in bfloat16 agree with those in float32 about the same futures.

Both begin with the same futures. Later ones are drawn closer and closer together, until those of an action that is
clear differ by less than rounding does, and less than anybody cares; so agreement is told round by round, with what
disagreement costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.tdmpc2 import planner
from rl.tdmpc2.planner import judge


class Agreement(NamedTuple):
    """How far a rounded judgement of some futures agrees with an exact one.

    Attributes:
        overlap: share of the exact elites that are elites of the rounded judgement too.
        correlation: of the ranks of all values.
        spread: deviation of the exact values.
        error: deviation of the differences.
        loss: how much less the rounded elites are worth, exactly and in the mean.
    """

    overlap: float
    correlation: float
    spread: float
    error: float
    loss: float


def compare_rounds(
    act: Callable[[Any], object], rounded: Callable[[Any], object], obs: NDArray[Any], num_elites: int
) -> list[Agreement]:
    """Give how far two plans agree, a number for each round, about the futures that the exact one looks at.

    The rounded one is told the exact values after each round, so that it goes the same way.

    Args:
        act: plans from an observation, exactly.
        rounded: likewise, rounded, and with the same noise.
    """
    judged: list[tuple[Tensor, Tensor]] = []
    agreements: list[Agreement] = []

    def note(model: Any, rows: Any, actions: Tensor, *rest: Any) -> Tensor:
        judged.append((actions, judge(model, rows, actions, *rest)))
        return judged[-1][1]

    def judge_again(model: Any, rows: Any, actions: Tensor, *rest: Any) -> Tensor:
        futures, values = judged[len(agreements)]
        others = judge(model, rows, futures.to(actions.dtype), *rest)
        agreements.append(measure_agreement(values, others, num_elites))
        return values

    for plan, replacement in ((act, note), (rounded, judge_again)):
        with mock.patch.object(planner, "judge", replacement):
            plan(obs)
    assert len(agreements) == len(judged) > 0, f"{len(judged)} rounds, and {len(agreements)} of the other plan"
    return agreements


def measure_agreement(values: Tensor, rounded: Tensor, num_elites: int) -> Agreement:
    """Give how far rounded values, (rows,), agree with the exact ones of the same futures."""
    elites, others = (numbers.topk(num_elites).indices for numbers in (values, rounded))
    ranks = torch.stack([rank(numbers) for numbers in (values, rounded)])
    return Agreement(
        overlap=float(torch.isin(elites, others).double().mean()),
        correlation=float(torch.corrcoef(ranks)[0, 1]),
        spread=float(values.std()),
        error=float((rounded - values).std()),
        loss=float(values[elites].mean() - values[others].mean()),
    )


def average(agreements: Sequence[Agreement]) -> Agreement:
    """Give the mean of each number."""
    return Agreement(*(statistics.mean(numbers) for numbers in zip(*agreements, strict=True)))


def rank(values: Tensor) -> Tensor:
    """Give the places of values, (rows,), from the least on; equal ones share the mean of theirs."""
    _, groups, counts = torch.unique(values, return_inverse=True, return_counts=True)
    places: Tensor = counts.cumsum(0) - (counts - 1) / 2
    return places[groups].double()
