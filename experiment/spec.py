"""A spec: the YAML of an experiment, checked, with the place of everything in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from experiment.assignments import parse_assignments
from experiment.distributions import Distribution
from experiment.layers import lay_over, override
from experiment.loader import Mark, load_yaml
from experiment.metadata import MAX_COMBINATIONS, MetaData, find_template_problems, is_file, read_meta_data
from experiment.problems import Problem, SpecError, suggest
from experiment.scalars import as_key, show_value
from experiment.sections import META_KEYS, SAMPLE_KEYS, Point, Sections, Setting, read_sections
from experiment.selection import Selection, find_values, select


@dataclass(frozen=True)
class ExperimentSpec:
    """One experiment, after its base specs and `-o` are taken in.

    Attributes:
        path: the file; `files` are all that were read, this one first.
        overrides: the texts of `-o`.
        meta: the section `meta_data`.
        constants: dotted key -> value, for every run; variables and cases go over it.
        variables: dotted key -> the values to sweep, in the order of the spec; of a random variable those drawn.
        draws: the random variables, dotted key -> where its values come from. All of them are one axis.
        cases: points of one more axis, each dotted key -> value; empty without that axis.
        exclude: combinations to leave out, each dotted key -> value.
        notes: sentences for the user about what is accepted and may surprise.
        sections: the same with the place of every key and value.
    """

    path: Path
    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    meta: MetaData
    constants: dict[str, Any]
    variables: dict[str, list[Any]]
    draws: dict[str, Distribution]
    cases: list[dict[str, Any]]
    exclude: list[dict[str, Any]]
    notes: tuple[str, ...]
    sections: Sections = field(repr=False)

    @property
    def sources(self) -> list[str]:
        """What places are in: the files, then the overrides."""
        return _name_sources(self.files, self.overrides)

    @cached_property
    def swept_keys(self) -> tuple[str, ...]:
        """Keys of variables and cases, in the order of the spec."""
        return tuple(dict.fromkeys([*self.variables, *(key for case in self.cases for key in case)]))

    @cached_property
    def exclusions(self) -> tuple[Selection, ...]:
        """What `exclude` leaves out, by the axes of the grid."""
        return tuple(self.select(entry) for entry in self.exclude)

    def select(self, wanted: dict[str, Any]) -> Selection:
        """Find the combinations that have all of some values."""
        return select(wanted, self.constants, self.variables, self.cases, self.axes)

    def values_of(self, key: str) -> list[Any]:
        """Give the values that a key takes over the grid."""
        return find_values(key, self.constants, self.variables, self.cases)

    @cached_property
    def axes(self) -> dict[str, int]:
        """Variable -> the number of its axis; random ones share one, at the place of the first of them."""
        first = next(iter(self.draws), "")
        leaders = [first if key in self.draws else key for key in self.variables]
        numbers = {leader: number for number, leader in enumerate(dict.fromkeys(leaders))}
        return {key: numbers[leader] for key, leader in zip(self.variables, leaders, strict=True)}

    def axis_lengths(self) -> list[int]:
        """Give the number of points on each axis: the variables, then the cases if there are any."""
        lengths = {axis: len(self.variables[key]) for key, axis in self.axes.items()}
        return [*lengths.values(), *([len(self.cases)] if self.cases else [])]


def load_spec(path: Path, overrides: Sequence[str] = ()) -> ExperimentSpec:
    """Read and check a spec, and the specs that it extends. Settings are left to `build_config`.

    Args:
        path: the YAML file. A `script_path` in it starts from the current folder.
        overrides: `key=value` texts, over constants, variables and cases.

    Raises:
        SpecError: with every problem, in the order of the file.
    """
    problems: list[Problem] = []
    files: list[Path] = []
    sections = _read_chain(path, files, problems)
    sections = override(sections, parse_assignments("-o", overrides, problems), problems)
    top = sections.places.get("meta_data", Mark(str(path), 1, 1))
    meta = read_meta_data(sections.meta, path, top, problems)
    if sections.known_keys():
        problems += _find_key_problems(sections, meta)
    elif not problems:
        message = "nothing to run: there are no constants and no variables; give at least algorithm_name and env_name"
        problems.append(Mark(str(path), 1, 1).problem(message))
    problems += _find_sampling_problems(sections, path, changed=bool(overrides))
    if problems:
        raise SpecError(sort_problems(problems, _name_sources(files, overrides)))
    spec = _build_spec(files, overrides, meta, sections)
    if problems := _find_grid_problems(spec, changed=bool(overrides)):
        raise SpecError(sort_problems(problems, spec.sources))
    return spec


def _name_sources(files: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    return [*(str(file) for file in files), *(f"-o {text}" for text in overrides)]


def sort_problems(problems: Sequence[Problem], sources: Sequence[str]) -> list[Problem]:
    """Give the problems in the order of the files and then of the command line, each once."""
    ranks = {source: rank for rank, source in enumerate(sources)}
    unique = dict.fromkeys(problems)
    return sorted(
        unique, key=lambda fault: (ranks.get(fault.file or "", len(ranks)), fault.line or 0, fault.column or 0)
    )


def _read_chain(path: Path, files: list[Path], problems: list[Problem]) -> Sections:
    """Read a spec over the specs that it extends; `files` gets their paths."""
    files.append(path)
    try:
        document = load_yaml(path)
    except SpecError as error:
        if len(files) == 1:
            raise
        problems += error.problems
        return Sections()
    sections = read_sections(document, problems)
    extends = sections.meta.get("extends")
    if extends is None:
        return sections
    base = _find_base(path, extends, files, problems)
    return sections if base is None else lay_over(_read_chain(base, files, problems), sections)


def _find_base(path: Path, extends: Setting, files: Sequence[Path], problems: list[Problem]) -> Path | None:
    if not isinstance(extends.value, str) or not extends.value:
        hint = "; extend goes on from shorter runs" if isinstance(extends.value, bool) else ""
        problems.append(
            extends.at.problem(f"extends must be the path of a spec, got {show_value(extends.value)}{hint}")
        )
        return None
    base = path.parent / extends.value
    if not is_file(base):
        near = [entry.name for entry in path.parent.glob("*.y*ml")]
        problems.append(extends.at.problem(f"the base spec {str(base)!r} is not there{suggest(extends.value, near)}"))
        return None
    if base.resolve() in [file.resolve() for file in files]:
        circle = " -> ".join(str(file) for file in [*files, base])
        problems.append(extends.at.problem(f"extends goes in a circle: {circle}"))
        return None
    return base


def _build_spec(files: Sequence[Path], overrides: Sequence[str], meta: MetaData, sections: Sections) -> ExperimentSpec:
    draws = sections.find_draws()
    drawn = {key: draw.draw(key, meta.samples or 0, meta.samples_seed) for key, draw in draws.items()}
    return ExperimentSpec(
        path=files[0],
        files=tuple(files),
        overrides=tuple(overrides),
        meta=meta,
        constants={key: setting.value for key, setting in sections.constants.items()},
        variables={key: drawn.get(key, setting.value) for key, setting in sections.variables.items()},
        draws=draws,
        cases=[point.values() for point in sections.cases or ()],
        exclude=[point.values() for point in sections.exclude or ()],
        notes=(*_note_overridden(sections), *_note_sampling(sections, meta)),
        sections=sections,
    )


def _note_overridden(sections: Sections) -> list[str]:
    notes = []
    for key, constant in sections.constants.items():
        value = f"{key}: the constant {show_value(constant.value)} ({constant.at})"
        setting = [point.settings[key] for point in sections.cases or () if key in point.settings]
        if key in sections.variables:
            notes.append(f"{value} gives way to the variable ({sections.variables[key].key})")
        elif setting and sections.cases is not None:
            notes.append(f"{value} gives way to {len(setting)} of the {len(sections.cases)} cases ({setting[0].at})")
    return notes


def _note_sampling(sections: Sections, meta: MetaData) -> list[str]:
    """Say what is drawn, or that nothing is although `samples` is there."""
    if draws := sections.find_draws():
        points = f"{meta.samples} point{'s' * (meta.samples != 1)}"
        return [f"{points} drawn of {', '.join(draws)} (samples_seed {meta.samples_seed})"]
    unused = [f"{key} ({sections.meta[key].at})" for key in SAMPLE_KEYS if key in sections.meta]
    return [f"{' and '.join(unused)} not used: no variable is random any more"] if unused else []


def _find_sampling_problems(sections: Sections, path: Path, *, changed: bool) -> list[Problem]:
    """Name random variables without a number of points, and the reverse."""
    draws = sections.find_draws()
    if draws and "samples" not in sections.meta:
        key = next(iter(draws))
        message = f"{key} is random; say in meta_data how many points to draw, for example samples: 20"
        return [sections.variables[key].key.problem(message)]
    if draws:
        return []
    problems = []
    for key, setting in sections.meta.items():
        # Those of a base, or of a file whose random variables -o has fixed, may well be without use this time.
        here = setting.at.line == 0 or (not changed and setting.at.file == str(path))
        if key in SAMPLE_KEYS and here:
            repair = "write one under variables, such as learning_rate: {log_uniform: [1e-5, 1e-2]}"
            problems.append(setting.key.problem(f"{key} is given and no variable is random; {repair}"))
    return problems


def _find_key_problems(sections: Sections, meta: MetaData) -> list[Problem]:
    """Name what is wrong with the keys alone: in two sections, in the wrong one, unknown to the rest of the spec."""
    known = sections.known_keys()
    problems = []
    for point in sections.cases or ():
        for key in point.settings.keys() & sections.variables.keys():
            other = sections.variables[key].key
            message = f"{key} is in variables too ({other}); a key has one axis, take it out of one of the two"
            problems.append(point.settings[key].key.problem(message))
    problems += _find_shared_prefixes(known) + _find_infinite(sections)
    if meta.runs_trainer:
        problems += [
            setting.key.problem(f"{key} belongs in meta_data") for key, setting in known.items() if key in META_KEYS
        ]
    for point in sections.exclude or ():
        for key, setting in point.settings.items():
            if key not in known:
                hint = suggest(key, known)
                problems.append(setting.key.problem(f"exclude asks for {key!r}, which no combination sets{hint}"))
    if meta.job_name is not None:
        problems += find_template_problems(sections.meta["job_name"], known)
    return problems


def _find_shared_prefixes(known: dict[str, Setting]) -> list[Problem]:
    """Name keys given both as a whole (`env_kwargs: ...`) and by parts (`env_kwargs.g: ...`)."""
    problems = []
    for key, part in known.items():
        names = key.split(".")
        for end in range(1, len(names)):
            whole = ".".join(names[:end])
            if whole in known:
                message = f"{key!r} is a part of {whole!r}, which is given as a whole ({known[whole].key}); use one way"
                problems.append(part.key.problem(message))
    return problems


def _find_infinite(sections: Sections) -> list[Problem]:
    """Name numbers that no run can have, and no JSON file can hold."""
    points = [setting for point in sections.cases or () for setting in point.settings.values()]
    problems = []
    for setting in [*sections.constants.values(), *sections.variables.values(), *points]:
        listed = setting.value.arguments if isinstance(setting.value, Distribution) else setting.value
        for value, mark in zip(listed, setting.items, strict=True) if setting.items else [(listed, setting.at)]:
            if not _is_finite(value):
                problems.append(mark.problem(f"every number must be finite, got {show_value(value)}"))
    return problems


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(_is_finite(item) for item in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _find_grid_problems(spec: ExperimentSpec, *, changed: bool) -> list[Problem]:
    """Name what is wrong with the grid as a whole: too large, an exclude that matches nothing or everything."""
    sections = spec.sections
    size = math.prod(spec.axis_lengths())
    if size > MAX_COMBINATIONS:
        shape = " x ".join(str(length) for length in spec.axis_lengths())
        mark = sections.places.get("variables", Mark(str(spec.path), 1, 1))
        return [
            mark.problem(f"the grid has {size:,} combinations ({shape}); more than {MAX_COMBINATIONS:,} are refused")
        ]
    problems = []
    for point, selection in zip(sections.exclude or (), spec.exclusions, strict=True):
        # A base's exclude, or one under -o, may well be about values that are not swept this time.
        misfits = selection.misfits
        if misfits and not changed and point.at.file == str(spec.path) and not _may_be_drawn(spec, point, misfits):
            problems.append(_explain_misfit(spec, point, misfits))
    if not problems and spec.exclude and not any(_remaining(spec)):
        mark = sections.places["exclude"]
        problems.append(mark.problem(f"exclude leaves none of the {size} combinations"))
    return problems


def _remaining(spec: ExperimentSpec) -> Iterator[bool]:
    choices = product(*(range(length) for length in spec.axis_lengths()))
    return (True for choice in choices if not any(selection.covers(choice) for selection in spec.exclusions))


def _may_be_drawn(spec: ExperimentSpec, point: Point, misfits: Sequence[str]) -> bool:
    """Say whether it is by chance alone that no combination has some values: a rule for points that weren't drawn."""
    return all(key in spec.draws and spec.draws[key].can_repeat(point.settings[key].value) for key in misfits)


def _explain_misfit(spec: ExperimentSpec, point: Point, misfits: Sequence[str]) -> Problem:
    settings = [point.settings[key] for key in misfits]
    if len(misfits) > 1:
        return settings[0].at.problem(f"no combination has these values of {' and '.join(misfits)}; remove the entry")
    key, value = misfits[0], settings[0].value
    return settings[0].at.problem(explain_missing_value(spec, key, value))


def explain_missing_value(spec: ExperimentSpec, key: str, value: Any) -> str:
    """Say that no combination has this value of a key, and which values there are."""
    values = list({as_key(item): item for item in spec.values_of(key)}.values())
    if isinstance(value, list) and not any(isinstance(item, list) for item in values):
        return f"{key} is never the list {show_value(value)}; write one entry for each value"
    shown = [show_value(item) for item in values[:8]] + ["..."] * (len(values) > 8)
    hint = suggest(value, [item for item in values if isinstance(item, str)]) if isinstance(value, str) else ""
    return f"{key} is never {show_value(value)}; its values are {', '.join(shown)}{hint}"
