"""An experiment's folder as data frames: one row per combination of the plan, one row per line of `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.guard import GuardRecord, read_guards
from analysis.records import FIXED_COLUMNS, METRIC_KEYS, read_config, read_run
from experiment.distributions import Distribution
from experiment.files import read_json
from experiment.identity import CONTINUES
from experiment.loader import load_yaml
from experiment.problems import SpecError, suggest
from experiment.run import Run, State, find_runs
from experiment.sections import Sections, read_sections

_LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader


class ExperimentError(ValueError):
    """A folder that can't be read as an experiment. The message says what to run or repair."""


@dataclass(frozen=True)
class Combination:
    """One line of `plan.jsonl`: what the spec asked for, defaults left out."""

    id: str
    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ExperimentData:
    """Everything that the files of an experiment say.

    Attributes:
        folder: as it was given.
        description: from the spec's `meta_data`, empty where there is none.
        plan: the combinations, in the order of the spec. Several may share an id, and with it a run.
        runs: one row per combination, in the order of `plan`. Columns: those of `analysis.records.FIXED_COLUMNS`,
            `parameters/<component>`, and one per setting of the spec. A setting whose name is already taken by another
            column is under `settings.<key>`. What a run reports at its end is there for DONE runs alone.
        metrics: one row per row of `metrics.jsonl` of each planned run, whatever its state: id, step, env_step,
            wall_time, one column per metric (NaN where the row doesn't have it), and `not_finite`, which names the
            metrics of the row that were written as `nan`, `inf` or `-inf`.
        swept: the keys with more than one value over the plan, in the order of the settings.
        case_keys: the keys that the spec sets in `cases`, swept or not.
        random: the spec's random variables, by key where their values come from.
        guards: by run id, what the training-health guard did.
        include_repaired: True where runs that the guard repaired may enter statistics.
        configs: by run id, settings in `config.yaml` by dotted key, defaults filled in, for runs that have one.
        stale: id, label, state and folder of runs on disk that the plan doesn't name. They enter nothing else.
        command: the last that launched the experiment, ready to paste; empty where `events.jsonl` doesn't say.
        environment: the contents of `env.json`, empty where it isn't there.
        warnings: what was odd about the files, as sentences.
    """

    folder: Path
    description: str
    plan: tuple[Combination, ...]
    runs: pd.DataFrame
    metrics: pd.DataFrame
    swept: list[str]
    case_keys: frozenset[str]
    random: Mapping[str, Distribution]
    guards: Mapping[str, GuardRecord]
    include_repaired: bool
    configs: Mapping[str, Mapping[str, Any]]
    stale: pd.DataFrame
    command: str
    environment: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def unique_runs(self) -> pd.DataFrame:
        """The rows of `runs` without the repetitions of combinations that share a run."""
        return self.runs.drop_duplicates("id")

    def run(self, run_id: str) -> Run:
        """Give the run with an id of the plan, for its paths."""
        row = self.runs.loc[self.runs["id"] == run_id].iloc[0]
        return Run(self.folder / row["folder"], run_id, row["label"])


def load_runs(experiment_dir: Path | str, include_repaired: bool = False) -> ExperimentData:
    """Read an experiment's folder, whatever state its runs are in.

    Args:
        experiment_dir: `logs/<exp_name>`.
        include_repaired: whether runs that the training-health guard repaired may enter statistics.

    Raises:
        ExperimentError: the folder or its plan isn't there, or a line of the plan can't be read.
    """
    folder = Path(experiment_dir)
    plan = read_plan(folder)
    runs, warnings = _find_planned(folder, plan)
    files = {run_id: read_run(run) for run_id, run in runs.items()}
    records = {run_id: record for run_id, (record, _) in files.items()}
    done = {run_id for run_id, record in records.items() if record["state"] == State.DONE}
    guards, homeless = read_guards(folder / "events.jsonl", runs, done)
    configs = {run_id: read_config(run) for run_id, run in runs.items()}
    warnings += [f"run {run_id}: {warning}" for run_id, (_, warning) in configs.items() if warning]
    warnings += [f"run {run_id}: {log.warning}" for run_id, (_, log) in files.items() if log.warning]
    warnings += [f"run {run_id}: {warning}" for run_id, guard in guards.items() for warning in guard.warnings]
    warnings += [homeless] if homeless else []
    sections = _read_sections(folder / "spec.yaml")
    return ExperimentData(
        folder=folder,
        description=_read_description(folder / "spec.yaml"),
        plan=plan,
        runs=_build_runs(plan, {i: _mark(record, guards[i], include_repaired) for i, record in records.items()}),
        metrics=_build_metrics([(run_id, row) for run_id, (_, log) in files.items() for row in log.rows]),
        guards=guards,
        include_repaired=include_repaired,
        swept=find_swept([combination.settings for combination in plan]),
        case_keys=frozenset(key for point in sections.cases or () for key in point.settings),
        random=sections.find_draws(),
        configs={run_id: config for run_id, (config, _) in configs.items() if config},
        stale=_list_stale(folder, {combination.id for combination in plan}),
        command=_read_command(folder / "events.jsonl"),
        environment=read_json(folder / "env.json") or {},
        warnings=tuple(warnings),
    )


def read_plan(folder: Path) -> tuple[Combination, ...]:
    """Give the combinations of `plan.jsonl`.

    Raises:
        ExperimentError: see `load_runs`.
    """
    path = folder / "plan.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise ExperimentError(_explain_missing(folder)) from None
    plan = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            plan.append(Combination(str(row["id"]), str(row["label"]), dict(row["settings"])))
        except (ValueError, KeyError, TypeError):
            raise ExperimentError(
                f'{path}:{number}: not a line of a plan, which is {{"id", "label", "settings"}}; '
                "launch the spec again with run_experiment.py to write the plan anew"
            ) from None
    if not plan:
        raise ExperimentError(f"{path} has no combinations; launch the spec again with run_experiment.py")
    return tuple(plan)


def _explain_missing(folder: Path) -> str:
    what = "has no plan.jsonl, so it is not the folder of an experiment" if folder.is_dir() else "is not there"
    nested = sorted(plan.parent.name for plan in folder.glob("*/plan.jsonl"))
    siblings = sorted(plan.parent.name for plan in folder.parent.glob("*/plan.jsonl"))
    if nested:
        hint = "; did you mean " + " or ".join(str(folder / name) for name in nested[:3]) + "?"
    else:
        hint = suggest(folder.name, siblings)
    return f"{folder} {what}{hint or '; `python run_experiment.py -e exp_specs/<spec>.yaml -g 0` makes one'}"


def _find_planned(folder: Path, plan: Sequence[Combination]) -> tuple[dict[str, Run], list[str]]:
    """Give each planned run once, in the folder that has its id, whatever label it was made under."""
    on_disk: dict[str, list[Run]] = {}
    for run in find_runs(folder):
        on_disk.setdefault(run.id, []).append(run)
    runs: dict[str, Run] = {}
    warnings = []
    for combination in plan:
        if combination.id in runs:
            continue
        folders = on_disk.get(combination.id, [])
        if len(folders) > 1:
            folders.sort(key=lambda run: (run.exit_path.exists(), run.last_attempt()), reverse=True)
            names = ", ".join(run.folder.name for run in folders)
            warnings.append(f"run {combination.id} has {len(folders)} folders ({names}); the first was read")
        fresh = Run.create_path(folder, combination.label, combination.id)
        runs[combination.id] = Run(folders[0].folder, combination.id, combination.label) if folders else fresh
    return runs, warnings


def _list_stale(folder: Path, planned: set[str]) -> pd.DataFrame:
    rows = [
        (run.id, run.label, str(run.status().state), run.folder.name)
        for run in find_runs(folder)
        if run.id not in planned
    ]
    return pd.DataFrame(rows, columns=["id", "label", "state", "folder"])


def _read_description(spec: Path) -> str:
    """Give `meta_data.description` of a spec; every scalar is read as text, so nothing is ever built from it."""
    try:
        data = yaml.load(spec.read_bytes(), Loader=_LOADER)  # noqa: S506  builds lists, dicts and texts only
    except (FileNotFoundError, yaml.YAMLError):
        return ""
    meta_data = data.get("meta_data") if isinstance(data, dict) else None
    description = meta_data.get("description") if isinstance(meta_data, dict) else None
    return description if isinstance(description, str) else ""


def _read_sections(spec: Path) -> Sections:
    """Give what a spec says; empty where it can't be read, as the plan alone says what was run."""
    try:
        return read_sections(load_yaml(spec), [])
    except SpecError:
        return Sections()


def _read_command(events: Path) -> str:
    """Give the `command` of the last event `launched`."""
    try:
        lines = events.read_bytes().splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed([line for line in lines if b'"launched"' in line]):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "launched" and isinstance(event.get("command"), str):
            return str(event["command"])
    return ""


def canonical(value: object) -> str:
    """Give a text that is the same for values that a spec means alike: `1` and `1.0`, mappings in any order."""
    return json.dumps(_fold_whole_floats(value), sort_keys=True, default=str)


def _fold_whole_floats(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_fold_whole_floats(item) for item in value]
    if isinstance(value, dict):
        return {key: _fold_whole_floats(item) for key, item in value.items()}
    return value


MISSING = "(default)"
"""Stands for a key that a combination leaves to its default."""


def find_swept(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give the keys that don't have the same value in all settings; a key that is missing in some has two values.

    The run that another one goes on from is no axis, where each has its own: it is their past, and says nothing that
    the other settings don't.
    """
    keys = dict.fromkeys(key for row in settings for key in row)
    swept = [key for key in keys if len({canonical(row[key]) if key in row else MISSING for row in settings}) > 1]
    if CONTINUES in swept and _count_different(settings) == _count_different(settings, without=CONTINUES):
        swept.remove(CONTINUES)
    return swept


def _count_different(settings: Sequence[Mapping[str, Any]], without: str = "") -> int:
    return len({canonical({key: value for key, value in row.items() if key != without}) for row in settings})


def _mark(record: Mapping[str, Any], guard: GuardRecord, include_repaired: bool) -> dict[str, Any]:
    """Give a run's record with the one decision of whether its numbers count, which all statistics follow."""
    counted = record["state"] == State.DONE and (include_repaired or not guard.repaired)
    return dict(record) | {"repaired": guard.repaired, "counted": counted}


def _build_runs(plan: Sequence[Combination], records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = [{"id": row.id, "label": row.label} | dict(records[row.id]) for row in plan]
    columns = {name: build_column([row.get(name) for row in rows], kind) for name, kind in FIXED_COLUMNS.items()}
    components = dict.fromkeys(name for row in rows for name in row if name.startswith("parameters/"))
    columns |= {name: build_column([row.get(name) for row in rows], "Int64") for name in components}
    for key in dict.fromkeys(key for combination in plan for key in combination.settings):
        name = f"settings.{key}" if key in columns else key
        columns[name] = build_column([combination.settings.get(key) for combination in plan])
    return pd.DataFrame(columns)


def build_column(values: Sequence[Any], kind: str | None = None) -> pd.Series[Any]:
    """Give a column with the plainest type that holds the values: whole numbers stay whole where some are missing."""
    if kind is not None:
        return pd.Series(list(values), dtype=kind)
    known = [value for value in values if value is not None]
    missing = len(known) < len(values)
    if missing and known and all(isinstance(value, bool) for value in known):
        return pd.Series(list(values), dtype="boolean")
    if missing and known and all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return pd.Series(list(values), dtype="Int64")
    return pd.Series(list(values), dtype=None if known else object)


def _build_metrics(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    names = dict.fromkeys(name for _, row in rows for name in row if name not in METRIC_KEYS)
    columns: dict[str, pd.Series[Any]] = {
        "id": pd.Series([run_id for run_id, _ in rows], dtype="str"),
        "step": pd.Series([row["step"] for _, row in rows], dtype="int64"),
        "env_step": pd.Series([row["env_step"] for _, row in rows], dtype="int64"),
        "wall_time": pd.Series([row["wall_time"] for _, row in rows], dtype="float64"),
    }
    columns |= {name: pd.Series([row.get(name, math.nan) for _, row in rows], dtype="float64") for name in names}
    columns["not_finite"] = pd.Series([row["not_finite"] for _, row in rows], dtype="str")
    return pd.DataFrame(columns)


def is_done(runs: pd.DataFrame) -> pd.Series[bool]:
    """Tell for each row whether its run has finished, for tables that list runs; statistics ask `is_counted`."""
    return runs["state"] == str(State.DONE)


def is_counted(runs: pd.DataFrame) -> pd.Series[bool]:
    """Tell for each row whether its numbers may enter a statistic.

    Those of unfinished runs never may, and those of runs that the guard repaired only where that was asked for.
    """
    return runs["counted"]


def show_state(row: Mapping[Any, Any]) -> str:
    """Write the state of a row of `ExperimentData.runs`: `DONE`, `FAILED (oom)`, `DONE (repaired)`."""
    why = "repaired" if row["repaired"] else row["reason"]
    return f"{row['state']} ({why})" if isinstance(why, str) else str(row["state"])
