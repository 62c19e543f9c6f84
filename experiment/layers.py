"""Laying one set of settings over another: a spec over its base, `-o key=value` over a spec."""

from __future__ import annotations

from collections.abc import Hashable, Set
from dataclasses import replace

from experiment.problems import Problem
from experiment.scalars import as_key, show_value
from experiment.sections import META_KEYS, Point, Sections, Setting, Settings, check_axis


def lay_over(base: Sections, top: Sections) -> Sections:
    """Give a base spec with another over it, key by key; `cases` and `exclude` are taken whole.

    A key keeps the place in the order of the grid that it has in the base.
    """
    cases = top.cases
    if cases is None and base.cases is not None:
        cases = _drop_keys(base.cases, top.constants.keys() | top.variables.keys())
    varied = {key for point in top.cases or () for key in point.settings}
    axes = {key: axis for key, axis in base.variables.items() if key not in top.constants and key not in varied}
    return Sections(
        meta={key: setting for key, setting in (base.meta | top.meta).items() if key != "extends"},
        constants={key: setting for key, setting in base.constants.items() if key not in top.variables} | top.constants,
        variables=axes | top.variables,
        cases=cases,
        exclude=base.exclude if top.exclude is None else top.exclude,
        places=base.places | top.places,
        groups=base.groups | top.groups,
    )


def override(sections: Sections, settings: Settings, problems: list[Problem]) -> Sections:
    """Give the sections with the settings of `-o` over them.

    A list over a variable replaces its values, anything else over a variable fixes it; a key of `cases` is fixed and
    taken out of them; any other key becomes a constant.
    """
    constants, variables, cases = dict(sections.constants), dict(sections.variables), sections.cases
    groups = dict(sections.groups)
    for key, setting in settings.items():
        if key in META_KEYS or key.startswith("meta_data."):
            name = key.removeprefix("meta_data.")
            problems.append(setting.at.problem(f"{name} belongs in meta_data; -o sets constants and variables"))
            continue
        parts = key.split(".")
        groups |= {".".join(parts[:end]): setting.key for end in range(1, len(parts))}
        if key in variables and isinstance(setting.value, list):
            variables[key] = check_axis(key, _check_list_axis(key, variables[key], setting, problems), problems)
            continue
        variables.pop(key, None)
        constants[key] = setting
        cases = cases and _drop_keys(cases, {key})
    return replace(sections, constants=constants, variables=variables, cases=cases, groups=groups)


def _check_list_axis(key: str, axis: Setting, setting: Setting, problems: list[Problem]) -> Setting:
    """Note where one list was given for a variable whose values are lists."""
    swept = axis.value and all(isinstance(value, list) for value in axis.value)
    if not swept or all(isinstance(value, list) for value in setting.value):
        return setting
    shown = show_value(setting.value)
    problems.append(setting.at.problem(f"{key} is swept over lists; write {key}=[{shown}] to fix it to {shown}"))
    return axis


def _drop_keys(points: list[Point], keys: Set[str]) -> list[Point] | None:
    """Give the cases without some keys, each that is left once; None where nothing is left to vary."""
    left: dict[Hashable, Point] = {}
    for point in points:
        shorter = Point({key: value for key, value in point.settings.items() if key not in keys}, point.at)
        left.setdefault(as_key(shorter.values()), shorter)
    cases = list(left.values())
    return cases if any(point.settings for point in cases) else None
