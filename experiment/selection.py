"""Which combinations of a grid have certain values, found on its axes without going through the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.scalars import as_key

Choice = tuple[int, ...]
"""A combination as an index on each axis: the variables in the order of the spec, then the cases if there are any."""


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
) -> Selection:
    """Find the combinations that have all the wanted values, by value: 1 is 1.0 and is not true."""
    points: list[tuple[int, frozenset[int]]] = []
    misfits: list[str] = []
    varied = {key for case in cases for key in case}
    fitting_cases = frozenset(range(len(cases)))
    axes = {key: axis for axis, key in enumerate(variables)}
    for key, value in wanted.items():
        same = as_key(value)
        if key in axes:
            fitting = frozenset(index for index, item in enumerate(variables[key]) if as_key(item) == same)
            points.append((axes[key], fitting))
        elif key in varied:
            fitting = frozenset(index for index, case in enumerate(cases) if _has(case, constants, key, value))
            fitting_cases &= fitting
        else:
            fitting = frozenset([0] if key in constants and as_key(constants[key]) == same else [])
        if not fitting:
            misfits.append(key)
    if cases and len(fitting_cases) < len(cases):
        points.append((len(variables), fitting_cases))
        if not fitting_cases and not misfits:
            misfits = [key for key in wanted if key in varied]
    return Selection(tuple(points), tuple(misfits))


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
