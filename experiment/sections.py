"""The sections of one spec file, as flat settings that know where they stand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiment.distributions import DISTRIBUTIONS, Distribution, explain_misspelt, read_distribution
from experiment.loader import DataPath, Document, Mark
from experiment.problems import Problem, suggest
from experiment.scalars import as_key, show_value

SECTIONS = ("meta_data", "constants", "variables", "cases", "exclude")
SAMPLE_KEYS = ("samples", "samples_seed")
"""The keys of meta_data that say how random variables are drawn; `-o` takes them as well, for they make the grid."""
META_KEYS = (
    "exp_name",
    "script_path",
    "description",
    "num_workers",
    "extends",
    "imports",
    "job_name",
    "on_finish",
    "extend",
    *SAMPLE_KEYS,
    "using_gpus",
)

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

    The value of a variable is a list, or a `Distribution` where it is random.
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

    def find_draws(self) -> dict[str, Distribution]:
        """Give the random variables, each with where its values come from."""
        values = {key: setting.value for key, setting in self.variables.items()}
        return {key: value for key, value in values.items() if isinstance(value, Distribution)}

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
    problems += _find_twins(key, setting)
    return setting


def read_random_axis(key: str, name: str, setting: Setting, problems: list[Problem]) -> Setting:
    """Give a random variable's setting with its distribution as the value, and note what is wrong with that.

    Args:
        key: of the variable.
        name: of the distribution.
        setting: what stands after that name.
        problems: gets what is wrong.
    """
    distribution = read_distribution(key, name, setting.value, setting.at, setting.items, problems)
    if name == "choice" and isinstance(setting.value, list):
        problems += _find_twins(key, setting)
    return Setting(distribution, setting.key, setting.at, setting.items if name == "choice" else ())


def split_random_key(key: str) -> tuple[str, str] | None:
    """Give the variable and the distribution of a key such as `learning_rate.uniform`; None for any other key."""
    parent, _, name = key.rpartition(".")
    return (parent, name) if parent and name in DISTRIBUTIONS else None


def _find_twins(key: str, setting: Setting) -> list[Problem]:
    """Name the values of a list that are there before."""
    firsts: dict[Hashable, Mark] = {}
    problems = []
    for value, mark in zip(setting.value, setting.items, strict=True):
        first = firsts.get(as_key(value))
        if first is None:
            firsts[as_key(value)] = mark
        else:
            place = f" (first at {first.line}:{first.column})" if first.line else ""
            problems.append(mark.problem(f"{key} has the value {show_value(value)} twice{place}"))
    return problems


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
        sections.variables = {
            key: setting if isinstance(setting.value, Distribution) else check_axis(key, setting, self._problems)
            for key, setting in axes.items()
        }
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
            elif path[0] == "variables" and self._takes_distribution(key, mapping, place, settings):
                continue
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

    def _takes_distribution(self, key: str, mapping: dict[str, Any], place: DataPath, settings: Settings) -> bool:
        """Say whether a key under `variables` ends in a distribution, misspelt or not; if so its variable is added."""
        name = str(place[-1])
        # Only where it is nested, alone and a leaf: a setting of some such name can still be written with a dot.
        is_alone = len(mapping) == 1 and key != name and "." not in name and not isinstance(mapping[name], dict)
        variable = key[: -len(name) - 1]
        fault = explain_misspelt(variable, name) if is_alone else None
        split = (variable, name) if fault else split_random_key(key)
        if split is None:
            return False
        variable, distribution = split
        mark = self._marks.keys[place if "." in name else place[:-1]]
        if variable in settings:
            first = settings[variable].key.line
            message = f"{variable} is given twice (first on line {first}); it has one list, or one distribution"
            self._problems.append(mark.problem(message))
        self._note_groups(variable, mark)
        if fault:
            self._problems.append(self._marks.keys[place].problem(fault))
            settings[variable] = Setting(Distribution(name, ()), mark, mark)
            return True
        given = self._setting(mapping[name], place)
        setting = Setting(given.value, mark, given.at, given.items)
        settings[variable] = read_random_axis(variable, distribution, setting, self._problems)
        return True

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
