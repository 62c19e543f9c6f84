"""From a spec to its runs: every combination checked, identified, and given its folder, before anything starts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment.assignments import parse_assignments
from experiment.faults import FaultList
from experiment.files import write_atomically
from experiment.grid import Combination, combine, expand_grid, make_label
from experiment.identity import CheckedConfig, hash_identity
from experiment.lineage import Lineage
from experiment.problems import Problem, SettingsError, SpecError, suggest
from experiment.run import Run, find_runs
from experiment.selection import Choice, Selection
from experiment.spec import ExperimentSpec, explain_missing_value

BuildConfig = Callable[[Mapping[str, Any]], CheckedConfig]
"""Checks one combination's flat settings. Raises SettingsError with every fault."""

_LINES_A_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Planned:
    """A combination that was checked; `config` is None for a script whose settings nobody here knows.

    `parent` is what finding the run that it begins from has changed about its settings.
    """

    id: str
    label: str
    combination: Combination
    config: CheckedConfig | None
    parent: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Flat, as the spec gives them."""
        return self.combination.settings

    def resolved(self) -> dict[str, Any]:
        """Give every setting with its value, nested, ready for `config.yaml`."""
        return nest_settings(self.settings) if self.config is None else self.config.resolved()


@dataclass(frozen=True)
class Plan:
    """The runs of a spec.

    Attributes:
        runs: one for each distinct id, in the order of the grid; those that `only` asked for.
        combinations: their number in the whole grid, whatever was asked for.
        notes: sentences for the user: what is overridden, switched off, shared or unchecked.
        ids: of every combination of the grid, in its order.
        choices: where in the grid each run was met first, by id.
        parents: what finding the runs that others begin from has changed about settings, by the place in the grid;
            most combinations begin as new and aren't among them.
    """

    runs: list[Run]
    combinations: int
    notes: tuple[str, ...]
    ids: list[str] = field(repr=False)
    choices: dict[str, Choice] = field(repr=False)
    parents: dict[Choice, dict[str, Any]] = field(repr=False)
    _spec: ExperimentSpec = field(repr=False)
    _build_config: BuildConfig = field(repr=False)

    def check_again(self, run_id: str) -> Planned:
        """Give a run's settings and config, built once more so that a large plan needn't hold them all."""
        combination = combine(self._spec, choice := self.choices[run_id])
        # As they were found then: meanwhile another run may be done.
        combination.settings.update(self.parents.get(choice, {}))
        return _check_combination(self._spec, self._build_config, combination)


def plan_runs(spec: ExperimentSpec, log_root: Path, build_config: BuildConfig, only: Sequence[str] = ()) -> Plan:
    """Check the whole grid and give its runs. Reads the experiment's folder and writes nothing.

    A run whose id has a folder already is in that folder, whatever its label was then.

    Args:
        spec: from `load_spec`.
        log_root: the folder of the experiments.
        build_config: checks one combination.
        only: `key=value` texts; runs have to match all. The others are checked all the same.

    Raises:
        SpecError: with every problem of all combinations.
        OSError: the experiment's folder can't be read.
    """
    experiment_dir = log_root / spec.meta.exp_name
    folders = find_folders(experiment_dir)
    lineage = Lineage(experiment_dir, folders, build_config, spec.meta.extend)
    tally = GridNotes(spec)
    runs: dict[str, Run] = {}
    choices: dict[str, Choice] = {}
    parents: dict[Choice, dict[str, Any]] = {}
    asked = _read_only(spec, only)
    for planned in _check_all(spec, build_config, lineage):
        tally.add(planned)
        if planned.parent:
            parents[planned.combination.choice] = dict(planned.parent)
        if planned.id in runs or not asked.covers(planned.combination.choice):
            continue
        there = folders.get(planned.id)
        run = Run.create_path(experiment_dir, planned.label, planned.id)
        runs[planned.id] = run if there is None else replace(there, label=planned.label)
        choices[planned.id] = planned.combination.choice
        if planned.config is not None:
            lineage.note(planned.id, planned.settings, planned.config)
    _refuse_nothing(only, len(runs))
    notes = (*tally.notes(), *lineage.notes())
    return Plan(list(runs.values()), len(tally.ids), notes, tally.ids, choices, parents, spec, build_config)


def check_combinations(
    spec: ExperimentSpec, build_config: BuildConfig, only: Sequence[str] = (), lineage: Lineage | None = None
) -> Iterator[Planned]:
    """Give each combination with its id and config, one at a time, in the order of the grid.

    Args:
        spec: from `load_spec`.
        build_config: checks one combination.
        only: as for `plan_runs`.
        lineage: finds the runs that others begin from; without it the names of parents are taken as they are.

    Raises:
        SpecError: with every problem of all combinations. It comes at the end, after all good ones were given: act on
            nothing before.
    """
    asked = _read_only(spec, only)
    given = 0
    for planned in _check_all(spec, build_config, lineage):
        if asked.covers(planned.combination.choice):
            given += 1
            yield planned
    _refuse_nothing(only, given)


def write_plan(path: Path, spec: ExperimentSpec, plan: Plan) -> None:
    """Write `plan.jsonl`, a line for each combination of the whole grid, atomically and as a stream.

    Raises:
        OSError: it can't be written; an older plan is as it was.
    """
    write_atomically(path, _encode_lines(spec, plan))


def nest_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested mappings: `{"a.b": 1}` becomes `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        here = nested
        for parent in parents:
            here = here.setdefault(parent, {})
        here[leaf] = value
    return nested


def _check_all(spec: ExperimentSpec, build_config: BuildConfig, lineage: Lineage | None) -> Iterator[Planned]:
    """Give the combinations that are right; raise what is wrong with the others at the end."""
    faults = FaultList(spec)
    total = 0
    for combination in expand_grid(spec):
        total += 1
        try:
            planned = _check_combination(spec, build_config, combination, lineage)
        except SettingsError as error:
            for fault in error.faults:
                faults.add(combination, fault)
        else:
            yield planned
    faults.raise_any(total)


def _check_combination(
    spec: ExperimentSpec, build_config: BuildConfig, combination: Combination, lineage: Lineage | None = None
) -> Planned:
    label = make_label(spec, combination)
    if spec.meta.runs_trainer:
        parent = {} if lineage is None else lineage.settle(combination.settings)
        combination.settings.update(parent)
        config = build_config(combination.settings)
        if lineage is not None:
            lineage.check(combination.settings, config)
        return Planned(config.run_id(), label, combination, config, parent)
    # All settings of a script that isn't ours count; dots and nesting have to give the same id here too.
    run_id = hash_identity(f"script:{spec.meta.script_path}", 1, nest_settings(combination.settings))
    return Planned(run_id, label, combination, None)


class GridNotes:
    """What has to be said about a grid as a whole."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.ids: list[str] = []
        self._spec = spec
        self._inactive: Counter[tuple[str, str]] = Counter()
        self._firsts: dict[str, str] = {}
        self._twins: tuple[str, str] | None = None

    def add(self, planned: Planned) -> None:
        self.ids.append(planned.id)
        if planned.id not in self._firsts:
            self._firsts[planned.id] = planned.label
        elif self._twins is None:
            self._twins = (self._firsts[planned.id], planned.label)
        for key, reason in planned.config.inactive_keys().items() if planned.config else ():
            self._inactive[key, reason] += 1

    def notes(self) -> tuple[str, ...]:
        """Give one sentence for each thing that the user should know."""
        meta, total = self._spec.meta, len(self.ids)
        notes = list(self._spec.notes)
        if not meta.runs_trainer:
            notes.append(f"{meta.script_path} is not ours: its settings are passed on unchecked")
        for (key, reason), count in self._inactive.items():
            part = f"all {total} runs" if count == total else f"{count} of {total} runs"
            notes.append(f"{key} is switched off in {part} ({reason}), and left out of their ids")
        if self._twins is not None:
            first, other = self._twins
            example = f"{other!r} means the same as {first!r}" if first != other else f"as {first!r} does twice"
            notes.append(f"{total} combinations make {len(self._firsts)} runs, for some mean the same: {example}")
        return tuple(notes)


def _read_only(spec: ExperimentSpec, only: Sequence[str]) -> Selection:
    """Give the combinations that `--only` asks for."""
    problems: list[Problem] = []
    settings = parse_assignments("--only", only, problems)
    known = spec.sections.known_keys()
    for key, setting in settings.items():
        if key not in known:
            hint = suggest(key, known) or f"; its keys are {', '.join(known)}"
            problems.append(setting.at.problem(f"the spec doesn't set {key!r}{hint}"))
        elif spec.select({key: setting.value}).misfits:
            problems.append(setting.at.problem(explain_missing_value(spec, key, setting.value)))
    if problems:
        raise SpecError(problems)
    return spec.select({key: setting.value for key, setting in settings.items()})


def _refuse_nothing(only: Sequence[str], given: int) -> None:
    if only and not given:
        asked = " and ".join(f"--only {text}" for text in only)
        raise SpecError([Problem(f"{asked}: no combination has all of these")])


def find_folders(experiment_dir: Path) -> dict[str, Run]:
    """Give the run folders that are there, by id; of two with one id the finished one."""
    folders: dict[str, Run] = {}
    for run in find_runs(experiment_dir):
        if run.id not in folders or (run.is_done() and not folders[run.id].is_done()):
            folders[run.id] = run
    return folders


def _encode_lines(spec: ExperimentSpec, plan: Plan) -> Iterator[bytes]:
    lines: list[str] = []
    for run_id, combination in zip(plan.ids, expand_grid(spec), strict=True):
        settings = combination.settings | plan.parents.get(combination.choice, {})
        row = {"id": run_id, "label": make_label(spec, combination), "settings": settings}
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        if len(lines) == _LINES_A_CHUNK:
            yield "".join(lines).encode()
            lines = []
    yield "".join(lines).encode()
