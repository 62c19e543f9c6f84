"""Which combinations of a grid have certain values, found on its axes without going through the grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.scalars import as_key

Choice = tuple[int, ...]
"""A combination as an index on each axis: the variables in the order of the spec, those that are drawn on one axis
together, at the place of the first; then the cases if there are any."""


@dataclass(frozen=True)
class Selection:
    """Combinations by what they need on some of the axes.

    Attributes:
        points: axis and the indices on it that fit.
        misfits: the keys, of those asked for, whose values no combination has.
    """

    points: tuple[tuple[int, frozenset[int]], ...]
    misfits: tuple[str, ...] = ()

    def covers(self, choice: Choice) -> bool:
        """Say whether a combination is one of these."""
        return not self.misfits and all(choice[axis] in fitting for axis, fitting in self.points)


def select(
    wanted: Mapping[str, Any],
    constants: Mapping[str, Any],
    variables: Mapping[str, Sequence[Any]],
    cases: Sequence[Mapping[str, Any]],
    axes: Mapping[str, int],
) -> Selection:
    """Find the combinations that have all the wanted values, by value: 1 is 1.0 and is not true.

    Args:
        wanted: dotted key -> value.
        constants: of the spec, as are `variables` and `cases`.
        variables: as said; of drawn ones the values that were drawn.
        cases: as said.
        axes: the axis of each variable.
    """
    points: dict[int, frozenset[int]] = {}
    asked: defaultdict[int, list[str]] = defaultdict(list)
    misfits: list[str] = []
    varied = {key for case in cases for key in case}
    case_axis = max(axes.values(), default=-1) + 1
    for key, value in wanted.items():
        same = as_key(value)
        if key in axes:
            fitting = frozenset(index for index, item in enumerate(variables[key]) if as_key(item) == same)
        elif key in varied:
            fitting = frozenset(index for index, case in enumerate(cases) if _has(case, constants, key, value))
        else:
            fitting = frozenset([0] if key in constants and as_key(constants[key]) == same else [])
        if key in axes or key in varied:
            axis = axes.get(key, case_axis)
            points[axis] = points.get(axis, fitting) & fitting
            asked[axis].append(key)
        if not fitting:
            misfits.append(key)
    if not misfits:
        misfits = [key for axis, fitting in points.items() if not fitting for key in asked[axis]]
    return Selection(tuple(points.items()), tuple(misfits))


def _has(case: Mapping[str, Any], constants: Mapping[str, Any], key: str, value: Any) -> bool:
    missing = object()
    given = case.get(key, constants.get(key, missing))
    return given is not missing and as_key(given) == as_key(value)


def find_values(
    key: str,
    constants: Mapping[str, Any],
    variables: Mapping[str, Sequence[Any]],
    cases: Sequence[Mapping[str, Any]],
) -> list[Any]:
    """Give the values that a key takes in a grid."""
    if key in variables:
        return list(variables[key])
    values = [case[key] for case in cases if key in case]
    if key in constants and len(values) < len(cases or [{}]):
        values.append(constants[key])
    return values
