"""Laying one set of settings over another: a spec over its base, `-o key=value` over a spec."""

from __future__ import annotations

from collections.abc import Hashable, Set
from dataclasses import replace

from experiment.distributions import Distribution, explain_misspelt
from experiment.problems import Problem
from experiment.scalars import as_key, show_value
from experiment.sections import (
    META_KEYS,
    SAMPLE_KEYS,
    Point,
    Sections,
    Setting,
    Settings,
    check_axis,
    read_random_axis,
    split_random_key,
)


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

    A list over a variable replaces its values, a distribution makes a key a random variable, anything else over a
    variable fixes it; a key of `cases` is fixed and taken out of them; any other key becomes a constant. `samples` and
    `samples_seed` go over those of `meta_data`.
    """
    constants, variables, cases = dict(sections.constants), dict(sections.variables), sections.cases
    meta, groups = dict(sections.meta), dict(sections.groups)
    known = sections.known_keys()
    settings = _separate_distributions(sections, settings, problems)
    for key, setting in settings.items():
        if key not in known and key.removeprefix("meta_data.") in SAMPLE_KEYS:
            meta[key.removeprefix("meta_data.")] = setting
            continue
        if (key in META_KEYS and key not in SAMPLE_KEYS) or key.startswith("meta_data."):
            name = key.removeprefix("meta_data.")
            problems.append(setting.at.problem(f"{name} belongs in meta_data; -o sets constants and variables"))
            continue
        parts = key.split(".")
        groups |= {".".join(parts[:end]): setting.key for end in range(1, len(parts))}
        if isinstance(setting.value, Distribution):
            constants.pop(key, None)
            variables[key] = setting
            cases = cases and _drop_keys(cases, {key})
            continue
        if key in variables and isinstance(setting.value, list):
            if _is_list_axis(key, variables[key], setting, problems):
                variables[key] = check_axis(key, setting, problems)
            continue
        variables.pop(key, None)
        constants[key] = setting
        cases = cases and _drop_keys(cases, {key})
    return replace(sections, meta=meta, constants=constants, variables=variables, cases=cases, groups=groups)


def _separate_distributions(sections: Sections, settings: Settings, problems: list[Problem]) -> Settings:
    """Give the settings with `learning_rate.uniform` as a distribution of `learning_rate`.

    A key of the spec that only ends like a distribution stays what it is.
    """
    known = sections.known_keys()
    separated: Settings = {}
    for key, setting in settings.items():
        variable, _, name = key.rpartition(".")
        if key in known or not variable:
            separated[key] = setting
        elif variable in known and (fault := explain_misspelt(variable, name)):
            problems.append(setting.at.problem(fault))
        elif split_random_key(key) is None:
            separated[key] = setting
        else:
            if other := settings.get(variable) or separated.get(variable):
                problems.append(setting.at.problem(f"{variable} is given twice (also as {other.key})"))
            separated[variable] = read_random_axis(variable, name, setting, problems)
    return separated


def _is_list_axis(key: str, axis: Setting, setting: Setting, problems: list[Problem]) -> bool:
    """Say whether a list can be a variable's values; noted where it is one value of a variable of lists."""
    values = axis.value.arguments if isinstance(axis.value, Distribution) else axis.value
    swept = values and all(isinstance(value, list) for value in values)
    if not swept or all(isinstance(value, list) for value in setting.value):
        return True
    shown = show_value(setting.value)
    problems.append(setting.at.problem(f"{key} is swept over lists; write {key}=[{shown}] to fix it to {shown}"))
    return False


def _drop_keys(points: list[Point], keys: Set[str]) -> list[Point] | None:
    """Give the cases without some keys, each that is left once; None where nothing is left to vary."""
    left: dict[Hashable, Point] = {}
    for point in points:
        shorter = Point({key: value for key, value in point.settings.items() if key not in keys}, point.at)
        left.setdefault(as_key(shorter.values()), shorter)
    cases = list(left.values())
    return cases if any(point.settings for point in cases) else None
