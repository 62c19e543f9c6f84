"""The axes of a grid as they varied: swept keys, those that go together taken as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.load import MISSING, ExperimentData, canonical


def find_axes(data: ExperimentData) -> list[tuple[str, ...]]:
    """Give each swept key on one axis, in the order of `data.swept`.

    Keys of `cases` are one axis, whatever their values, and so are random variables; so are keys that never vary but
    together, as under `exclude`.
    """
    cases = tuple(key for key in data.swept if key in data.case_keys)
    drawn = tuple(key for key in data.swept if key in data.random)
    groups = [*([cases] if cases else []), *([drawn] if drawn else [])]
    groups += [(key,) for key in data.swept if key not in cases + drawn]
    axes: dict[tuple[int, ...], list[str]] = {}
    for group in groups:
        axes.setdefault(_partition(data, group), []).extend(group)
    ordered = [tuple(sorted(keys, key=data.swept.index)) for keys in axes.values()]
    return sorted(ordered, key=lambda keys: data.swept.index(keys[0]))


def _partition(data: ExperimentData, keys: Sequence[str]) -> tuple[int, ...]:
    """Give for each combination the number of its point on an axis; two axes that agree in this vary together."""
    numbers: dict[tuple[str, ...], int] = {}
    points = (locate(combination.settings, keys) for combination in data.plan)
    return tuple(numbers.setdefault(point, len(numbers)) for point in points)


def locate(settings: Mapping[str, Any], keys: Iterable[str]) -> tuple[str, ...]:
    """Give what settings have of some keys, in a form that is equal for values that mean the same."""
    return tuple(canonical(settings[key]) if key in settings else MISSING for key in keys)


def join_words(words: Sequence[str]) -> str:
    """Write a list as in a sentence: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
