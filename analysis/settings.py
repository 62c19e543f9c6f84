"""The tables of what was asked for and what ran: constants, swept values, code versions, the machine."""

from __future__ import annotations

import pandas as pd

from analysis.arms import show_value
from analysis.load import MISSING, ExperimentData, canonical
from analysis.records import flatten_settings
from analysis.tables import Cell, Table, list_runs
from experiment.distributions import Distribution

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "pandas", "diffusers", "stable-baselines3")
"""What the page shows of the packages; the CSV file has all of them."""


def tabulate_settings(data: ExperimentData) -> Table:
    """Give every setting of the spec: swept ones with all their values in order, then the constants."""
    keys = dict.fromkeys(key for combination in data.plan for key in combination.settings)
    rows = []
    for key in [*data.swept, *(key for key in keys if key not in data.swept)]:
        values: dict[str, str] = {}
        for combination in data.plan:
            settings = combination.settings
            if key in settings:
                values.setdefault(canonical(settings[key]), show_value(settings[key]))
            else:
                values.setdefault(MISSING, MISSING)
        fixed = "constant" if len(values) == 1 else "of each run its own"
        role = "random" if key in data.random else "swept" if key in data.swept else fixed
        rows.append((key, role, ", ".join(values.values()), len(values)))
    return Table(
        name="settings",
        title="Settings",
        columns=("Key", "Role", "Value"),
        rows=tuple(
            (Cell(key, code=True), Cell(role), Cell(_show_values(value, count, data.random.get(key)), code=True))
            for key, role, value, count in rows
        ),
        frame=pd.DataFrame([row[:3] for row in rows], columns=["key", "role", "value"]),
        notes=("As the spec gives them, without what it leaves to defaults.",),
    )


def _show_values(listed: str, count: int, distribution: Distribution | None) -> str:
    """Write the values of a setting, of a random variable how many were drawn from what: the CSV file lists them."""
    if distribution is None:
        return listed
    return f"{distribution.name} {show_value(list(distribution.arguments))}, {count} different values drawn"


def tabulate_defaults(data: ExperimentData) -> Table:
    """Give every setting that the spec leaves out, with the value that runs had, from their `config.yaml`.

    A setting has several rows where its value differs between runs, as between two algorithms.
    """
    given: dict[str, set[str]] = {}
    for combination in data.plan:
        given.setdefault(combination.id, set()).update(key for key, _ in flatten_settings(combination.settings))
    found: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for run_id, config in data.configs.items():
        for key, value in config.items():
            if key not in given[run_id]:
                found.setdefault(key, {}).setdefault(canonical(value), (show_value(value), []))[1].append(run_id)
    rows = [(key, shown, len(ids)) for key, values in found.items() for shown, ids in values.values()]
    total = len(data.configs)
    return Table(
        name="defaults",
        title="Settings left to their defaults",
        columns=("Key", "Value", "Runs"),
        rows=tuple(
            (Cell(key, code=True), Cell(shown, code=True), Cell("all" if count == total else f"{count} of {total}"))
            for key, shown, count in rows
        ),
        frame=pd.DataFrame([(*row, total) for row in rows], columns=["key", "value", "runs", "of"]),
        notes=(
            "From each run's config.yaml. Null: unset, and other settings decide; see training/config.py and docs/.",
        ),
        folded=True,
    )


def tabulate_versions(data: ExperimentData) -> Table:
    """Give the code versions and devices that runs report, each with its runs."""
    runs = data.unique_runs[data.unique_runs["code_version"].notna()]
    rows = []
    records = []
    for (version, device), group in runs.groupby(["code_version", "used_device"], sort=False, dropna=False):
        where = device if isinstance(device, str) else "unknown"
        rows.append((Cell(str(version), code=True), Cell(where), list_runs(group["id"])))
        records.append([version, where, " ".join(group["id"])])
    return Table(
        name="versions",
        title="Code and devices",
        columns=("Code version", "Device", "Runs"),
        rows=tuple(rows),
        frame=pd.DataFrame(records, columns=["code_version", "device", "runs"]),
        notes=("The version that finished a run, or that started its last attempt.",),
    )


def tabulate_environment(data: ExperimentData) -> Table:
    """Give what `env.json` says about the machine and the packages."""
    rows = [(name, show_value(value)) for name, value in flatten_settings(data.environment)]
    shown = [(name, value) for name, value in rows if not name.startswith("packages.") or name[9:] in PACKAGES]
    return Table(
        name="environment",
        title="Machine and packages",
        columns=("What", "Value"),
        rows=tuple((Cell(name), Cell(value)) for name, value in shown),
        frame=pd.DataFrame(rows, columns=["what", "value"]),
        notes=("As recorded when the experiment was first launched; environment.csv has every package.",),
        folded=True,
    )
