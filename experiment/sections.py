"""The sections of one spec file, as flat settings that know where they stand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiment.loader import DataPath, Document, Mark
from experiment.problems import Problem, suggest
from experiment.scalars import as_key, show_value

SECTIONS = ("meta_data", "constants", "variables", "cases", "exclude")
META_KEYS = ("exp_name", "script_path", "description", "num_workers", "extends", "imports", "job_name", "using_gpus")

_OTHER_SECTIONS = {
    "meta": "meta_data",
    "metadata": "meta_data",
    "fixed": "constants",
    "params": "constants",
    "parameters": "constants",
    "settings": "constants",
    "grid": "variables",
    "sweep": "variables",
    "zip": "cases",
}
"""What other tools call our sections."""


@dataclass(frozen=True)
class Setting:
    """A value with its places: of its key, of itself, and of its items where it is a list."""

    value: Any
    key: Mark
    at: Mark
    items: tuple[Mark, ...] = ()


Settings = dict[str, Setting]
"""Settings by dotted key, in the order of the file."""


@dataclass(frozen=True)
class Point:
    """One entry of `cases` or of `exclude`: settings that go together."""

    settings: Settings
    at: Mark

    def values(self) -> dict[str, Any]:
        """Give the values alone."""
        return {key: setting.value for key, setting in self.settings.items()}


@dataclass
class Sections:
    """What the sections of a file say; None for a `cases` or `exclude` that isn't there.

    `places` has the place of each section's name, `groups` of each key that holds other keys (`optimizer` in
    `optimizer.lr`).
    """

    meta: Settings = field(default_factory=dict)
    constants: Settings = field(default_factory=dict)
    variables: Settings = field(default_factory=dict)
    cases: list[Point] | None = None
    exclude: list[Point] | None = None
    places: dict[str, Mark] = field(default_factory=dict)
    groups: dict[str, Mark] = field(default_factory=dict)

    def known_keys(self) -> dict[str, Setting]:
        """Give every key that a combination can have, with its first place."""
        known = self.constants | self.variables
        for point in self.cases or ():
            known = point.settings | known
        return known


def read_sections(document: Document, problems: list[Problem]) -> Sections:
    """Give the sections of a document; what is wrong is added to the problems and left out, or read as it was meant."""
    return _SectionReader(document, problems).read()


def check_axis(key: str, setting: Setting, problems: list[Problem]) -> Setting:
    """Give a variable's setting with a list as its value, and note where it wasn't a list of different values."""
    values = setting.value
    if not isinstance(values, list):
        shown = show_value(values)
        repair = f"write {key}: [{shown}], or move it to constants"
        problems.append(setting.at.problem(f"{key} must be a list of the values to sweep, got {shown}; {repair}"))
        return Setting([values], setting.key, setting.at, (setting.at,))
    if not values:
        problems.append(
            setting.at.problem(f"{key} is an empty list, so there would be no run; give at least one value")
        )
        return setting
    firsts: dict[Hashable, Mark] = {}
    for value, mark in zip(values, setting.items, strict=True):
        first = firsts.get(as_key(value))
        if first is None:
            firsts[as_key(value)] = mark
        else:
            place = f" (first at {first.line}:{first.column})" if first.line else ""
            problems.append(mark.problem(f"{key} has the value {show_value(value)} twice{place}"))
    return setting


class _SectionReader:
    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self._data = document.data
        self._marks = document.marks
        self._problems = problems
        self._sections = Sections()

    def read(self) -> Sections:
        if not isinstance(self._data, dict):
            shown = "nothing" if self._data is None else show_value(self._data)
            self._note((), f"a spec is a mapping of the sections {', '.join(SECTIONS)}; got {shown}")
            return self._sections
        for name in self._data:
            if name not in SECTIONS:
                self._problems.append(self._marks.keys[name,].problem(_explain_unknown_section(name)))
        sections = self._sections
        sections.places = {name: self._marks.keys[name,] for name in SECTIONS if name in self._data}
        sections.meta = self._read_meta()
        sections.constants = self._read_mapping("constants")
        axes = self._read_mapping("variables")
        sections.variables = {key: check_axis(key, setting, self._problems) for key, setting in axes.items()}
        sections.cases = self._read_points("cases")
        sections.exclude = self._read_points("exclude")
        self._check_cases()
        return sections

    def _note(self, path: DataPath, message: str) -> None:
        self._problems.append(self._marks.values[path].problem(message))

    def _take_mapping(self, name: str) -> dict[str, Any]:
        value = self._data.get(name)
        if value is None or isinstance(value, dict):
            return value or {}
        self._note((name,), f"{name} must be a mapping, 'key: value' on each line, got {show_value(value)}")
        return {}

    def _read_meta(self) -> Settings:
        return {key: self._setting(value, ("meta_data", key)) for key, value in self._take_mapping("meta_data").items()}

    def _read_mapping(self, name: str) -> Settings:
        settings: Settings = {}
        self._flatten(self._take_mapping(name), (name,), "", settings)
        return settings

    def _read_points(self, name: str) -> list[Point] | None:
        values = self._data.get(name)
        if values is None:
            return None
        if not isinstance(values, list):
            self._note(
                (name,), f"{name} must be a list of mappings, '- {{key: value}}' on each line, got {show_value(values)}"
            )
            return None
        if not values and name == "cases":
            self._note(
                (name,), "cases is an empty list, so there would be no run; give at least one case, or remove it"
            )
        points = []
        for index, value in enumerate(values):
            path = (name, index)
            if isinstance(value, dict) and value:
                settings: Settings = {}
                self._flatten(value, path, "", settings)
                points.append(Point(settings, self._marks.values[path]))
            else:
                self._note(path, f"each entry of {name} is a mapping with at least one key, got {show_value(value)}")
        return points

    def _check_cases(self) -> None:
        firsts: dict[Hashable, Mark] = {}
        for point in self._sections.cases or ():
            first = firsts.setdefault(as_key(point.values()), point.at)
            if first is not point.at:
                self._problems.append(point.at.problem(f"this case is the same as the one on line {first.line}"))

    def _flatten(self, mapping: dict[str, Any], path: DataPath, prefix: str, settings: Settings) -> None:
        """Add a mapping's settings by dotted key; nesting and dots are the same thing."""
        for name, value in mapping.items():
            place: DataPath = (*path, name)
            mark = self._marks.keys[place]
            key = f"{prefix}{name}"
            if not all(key.split(".")):
                self._problems.append(mark.problem(f"the key {key!r} has an empty part; dots stand between names"))
            elif not prefix and name in SECTIONS and isinstance(value, dict | list):
                self._problems.append(mark.problem(f"{name} is a section of its own; write it at the left margin"))
            elif isinstance(value, dict) and value:
                self._note_groups(f"{key}.", mark)
                self._flatten(value, place, f"{key}.", settings)
            elif key in settings:
                first = settings[key].key.line
                self._problems.append(
                    mark.problem(f"duplicate key {key!r} (first on line {first}): nesting and dots are the same thing")
                )
            else:
                self._note_groups(key, mark)
                settings[key] = self._setting(value, place)

    def _note_groups(self, key: str, mark: Mark) -> None:
        for end, letter in enumerate(key):
            if letter == ".":
                self._sections.groups.setdefault(key[:end], mark)

    def _setting(self, value: Any, path: DataPath) -> Setting:
        items: Sequence[Mark] = ()
        if isinstance(value, list):
            items = [self._marks.values[*path, index] for index in range(len(value))]
        return Setting(value, self._marks.keys[path], self._marks.values[path], tuple(items))


def _explain_unknown_section(name: str) -> str:
    if name in META_KEYS:
        return f"{name} belongs in meta_data, not at the top"
    if name in _OTHER_SECTIONS:
        return f"unknown section {name!r}; did you mean {_OTHER_SECTIONS[name]!r}?"
    hint = suggest(name, SECTIONS)
    return (
        f"unknown section {name!r}{hint or '; a setting of the runs belongs in constants, or as a list in variables'}"
    )
