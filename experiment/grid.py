"""The grid of a spec: one flat dict of settings for each combination. Pure and lazy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Literal

from experiment.loader import Mark
from experiment.metadata import fill_template
from experiment.scalars import as_key, show_value
from experiment.sections import Setting
from experiment.selection import Choice
from experiment.spec import ExperimentSpec


@dataclass(frozen=True, slots=True)
class Combination:
    """One cell of the grid.

    Attributes:
        settings: dotted key -> value. Values may be shared with other combinations; copy before changing one.
        choice: where it is in the grid, as an index on each axis.
    """

    settings: dict[str, Any]
    choice: Choice


def expand_grid(spec: ExperimentSpec) -> Iterator[Combination]:
    """Give the combinations of the variables and cases, without the excluded ones; the last axis varies fastest."""
    exclusions = spec.exclusions
    for choice in product(*(range(length) for length in spec.axis_lengths())):
        if not any(excluded.covers(choice) for excluded in exclusions):
            yield combine(spec, choice)


def combine(spec: ExperimentSpec, choice: Choice) -> Combination:
    """Give the combination at one place of the grid: constants, over them the variables, over them the case."""
    settings = spec.constants.copy()
    if spec.meta.imports:
        settings["imports"] = list(spec.meta.imports)
    for key, axis in spec.axes.items():
        settings[key] = spec.variables[key][choice[axis]]
    if spec.cases:
        settings.update(spec.cases[choice[-1]])
    return Combination(settings, choice)


def count_combinations(spec: ExperimentSpec) -> int:
    """Give the number of combinations that `expand_grid` gives."""
    if not spec.exclusions:
        return prod(spec.axis_lengths())
    return sum(1 for _ in expand_grid(spec))


def make_label(spec: ExperimentSpec, combination: Combination) -> str:
    """Give what people call a run: its swept settings, `seed=100,learning_rate=0.0001`, or what `job_name` makes.

    Keys with one value are in it as well, so that a second value doesn't rename the runs that are there. Without any,
    the label is the algorithm's name, or `run`.
    """
    if spec.meta.job_name is not None:
        return fill_template(spec.meta.job_name, {key: _write(value) for key, value in combination.settings.items()})
    keys = list(spec.variables)
    if spec.cases:
        point = spec.cases[combination.choice[-1]]
        keys += [key for key in spec.swept_keys if key in point]
    if not keys:
        return str(combination.settings.get("algorithm_name", "run"))
    return ",".join(f"{key}={_write(combination.settings[key])}" for key in keys)


def _write(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "-".join(_write(item) for item in value)
    if isinstance(value, Mapping):
        return "-".join(f"{key}-{_write(item)}" for key, item in value.items())
    return show_value(value)


def locate(
    spec: ExperimentSpec, combination: Combination, key: str, part: Literal["key", "value"] = "value"
) -> Mark | None:
    """Give the place of what this combination takes for a key: an item of a variable, a case's value, a constant.

    A key that only holds others (`optimizer` where `optimizer.lr` is set) has its own place; a key inside a value
    (`optimizer.lr` where `optimizer` is given as a whole) has that of the value. A drawn number has the place of its
    bounds. None where the spec doesn't have it.
    """
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if found := _find_setting(spec, combination, name):
            setting, index = found
            if part == "key":
                return setting.key
            return setting.at if index is None else setting.items[index]
        if name in spec.sections.groups:
            return spec.sections.groups[name]
    return spec.sections.meta["imports"].at if key == "imports" and spec.meta.imports else None


def _find_item(spec: ExperimentSpec, combination: Combination, key: str) -> int | None:
    """Give the index of the value of a variable in what the spec lists; None for numbers between bounds."""
    if key not in spec.draws:
        return combination.choice[spec.axes[key]]
    if not spec.sections.variables[key].items:
        return None
    listed = [as_key(value) for value in spec.draws[key].arguments]
    return listed.index(as_key(combination.settings[key]))


def _find_setting(spec: ExperimentSpec, combination: Combination, key: str) -> tuple[Setting, int | None] | None:
    """Give the setting in the spec and, for a variable, the index of the value that is taken."""
    sections = spec.sections
    if key in sections.variables:
        return sections.variables[key], _find_item(spec, combination, key)
    if sections.cases:
        point = sections.cases[combination.choice[-1]]
        if key in point.settings:
            return point.settings[key], None
    return (sections.constants[key], None) if key in sections.constants else None
