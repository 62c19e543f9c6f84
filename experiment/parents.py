"""The run that another one begins from: found by what a setting names it, and held against what it is wanted for.

`init_from` goes on with all of another run's state, `init_weights_from` begins with its networks alone. They are two
keys because they are two experiments: which of them a run is must not depend on what its parent happens to look like.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment.identity import CONTINUES, ID_LENGTH, PARENT_KEYS, TAKES_WEIGHTS, CheckedConfig, name_parent
from experiment.loader import load_yaml
from experiment.problems import SettingsError, SpecError
from experiment.run import Run, State, find_runs
from experiment.runners import read_plans
from experiment.scalars import show_value
from experiment.stored import Stored, find_newest_whole, list_stored

BuildConfig = Callable[[Mapping[str, Any]], CheckedConfig]

FREE = ("max_timesteps", *PARENT_KEYS, "eval_freq", "num_eval", "num_final_eval")
"""Settings that a run may have otherwise than the one whose state it goes on with: none of them moves training."""

_HEX = re.compile(r"[0-9a-f]+")
_SETTLED = re.compile(rf"(.*__)?[0-9a-f]{{{ID_LENGTH}}}")
_MOST_SHOWN = 6


class ParentError(ValueError):
    """A parent that isn't there or can't be begun from. The message names it and says what to do."""


@dataclass(frozen=True)
class Parent:
    """The run that another one begins from.

    Attributes:
        run: its folder may be gone by now.
        key: the setting that named it, which says what is taken: all its state, or its networks alone.
    """

    run: Run
    key: str

    @property
    def continues(self) -> bool:
        """Whether all of its state is gone on with."""
        return self.key == CONTINUES

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings, defaults filled in.

        Raises:
            ParentError: they can't be read.
        """
        settings = read_settings(self.run)
        if settings is None:
            raise ParentError(f"{self.run.config_path} is not there or can't be read; it says what the run was")
        return settings

    @cached_property
    def newest(self) -> Stored:
        """The checkpoint that is begun from.

        Of a run that isn't DONE the newest that is whole, all of it read; of a DONE one just the newest, for then a
        broken one is rare, and whoever begins from it reads it all the same.

        Raises:
            ParentError: there is none, or another process is about to write more.
        """
        run, state = self.run, self.state
        if not run.folder.is_dir():
            raise ParentError(f"there is no run {run.id} in {run.experiment_dir}")
        if state is State.RUNNING:
            raise ParentError(f"run {run.id} ({run.label}) is going on; let it finish, or stop it first")
        if state is State.DONE:
            there = [stored for stored in list_stored(run.checkpoints_dir, "step") if stored.manifest is not None]
            newest = there[0] if there and there[0].path.exists() else None
        else:
            newest = find_newest_whole(run.checkpoints_dir)
        if newest is None:
            raise ParentError(f"run {run.id} ({run.label}) is {state} and has no checkpoint that can be begun from")
        return newest

    @cached_property
    def state(self) -> State:
        """What it is doing."""
        return self.run.status().state

    def has_lost_replay(self) -> bool:
        """Tell whether training had replay data that are gone by now."""
        manifest = self.newest.manifest
        assert manifest is not None
        return manifest["replay_dropped"] and any(log["total"] for log in manifest["replay"].values())

    def explain_lost_replay(self) -> str:
        """Say that it can't be gone on with, and what can be had of it."""
        return (
            f"run {self.run.id} ({self.run.label}) can't be gone on with: its replay data were dropped when it was "
            f"done; keep_replay: true would have kept them; {TAKES_WEIGHTS} begins with its networks alone"
        )


def settle_parent(experiment_dir: Path, value: str) -> str:
    """Give the one way to write a parent: the id of a run of the same experiment, the folder of any other run.

    Args:
        experiment_dir: where the run will be that begins from it.
        value: an id, the beginning of one, or a run's folder, seen from the current folder. A whole id is taken as it
            is, whether or not there is such a run.

    Raises:
        ParentError: it is none of these, or begins no run's id or several.
    """
    if os.sep in value or "__" in value:
        return _settle_folder(experiment_dir, Path(value))
    if not _HEX.fullmatch(value) or len(value) > ID_LENGTH:
        raise ParentError(f"{value!r} is no run's id, no beginning of one, and no run's folder; `status` lists the ids")
    if len(value) == ID_LENGTH:
        return value
    found = sorted({run.id for run in find_runs(experiment_dir) if run.id.startswith(value)})
    if len(found) == 1:
        return found[0]
    if found:
        raise ParentError(f"{value!r} begins {len(found)} ids: {', '.join(found[:5])}; give more of it")
    others = sorted(experiment_dir.parent.glob(f"*/*__{value}*"))
    hint = f"; another experiment's run is named by its folder: {others[0]}" if others else "; `status` lists them"
    raise ParentError(f"no run in {experiment_dir} has an id that begins with {value!r}{hint}")


def _settle_folder(experiment_dir: Path, folder: Path) -> str:
    try:
        run = Run.open(folder)
    except ValueError as error:
        raise ParentError(str(error)) from None
    if run.experiment_dir.resolve() == experiment_dir.resolve():
        return run.id
    return str(folder)


def find_parent(experiment_dir: Path, settings: Mapping[str, Any], folders: Mapping[str, Run]) -> Parent | None:
    """Give the parent that settled settings name, None where they name none.

    Args:
        experiment_dir: where the run is that begins from it.
        settings: with names as `settle_parent` gives them; others, which a script that isn't ours may have under these
            keys, name nothing.
        folders: the runs of the same experiment, by id.
    """
    for key in PARENT_KEYS:
        value = settings.get(key)
        if not isinstance(value, str) or not _SETTLED.fullmatch(value):
            continue
        if "__" in value:
            return Parent(Run.open(Path(value)), key)
        return Parent(folders.get(value) or Run.create_path(experiment_dir, "gone", value), key)
    return None


def open_parent(run: Run, settings: Mapping[str, Any]) -> Parent | None:
    """Give the parent of one run; see `find_parent`."""
    if all(settings.get(key) is None for key in PARENT_KEYS):
        return None
    return find_parent(run.experiment_dir, settings, {found.id: found for found in find_runs(run.experiment_dir)})


def name_by_folder(run: Run, settings: Mapping[str, Any]) -> dict[str, str]:
    """Give what to change about a run's settings for them to name its parent from anywhere; nothing without one.

    The run's id stays what it is.
    """
    parent = open_parent(run, settings)
    return {} if parent is None else {parent.key: str(parent.run.folder.absolute())}


def read_settings(run: Run) -> dict[str, Any] | None:
    """Give the settings that a run was last started with; None where its `config.yaml` can't be read."""
    try:
        data = load_yaml(run.config_path).data
    except SpecError:
        return None
    return data if isinstance(data, dict) else None


def has_begun(run: Run) -> bool:
    """Tell whether a run needs its parent no more: it is done, or has a checkpoint of its own."""
    return run.is_done() or any(not stored.is_unfinished() for stored in list_stored(run.checkpoints_dir, "step"))


def check_parent(config: CheckedConfig, parent: Parent, build_config: BuildConfig) -> None:
    """Refuse a parent that a run with this config can't begin from.

    Raises:
        ParentError: and why.
    """
    _ = parent.newest
    ours, theirs = config.resolved()["algorithm_name"], parent.settings.get("algorithm_name")
    if ours != theirs:
        raise ParentError(
            f"run {parent.run.id} ({parent.run.label}) was trained by {theirs}, and this one is by {ours}"
        )
    if not parent.continues:
        return
    try:
        before = build_config(parent.settings)
    except SettingsError as error:
        raise ParentError(f"the settings of run {parent.run.id} mean nothing any more: {error}") from None
    if before.run_id() != parent.run.id:
        raise ParentError(
            f"{parent.run.config_path} has other settings than the run with this id, or they meant something else then"
        )
    if differing := find_differences(config, before):
        raise ParentError(
            f"run {parent.run.id} ({parent.run.label}) can't be gone on with under other settings: "
            f"{_list_differing(config, before, differing)}; {TAKES_WEIGHTS} begins with its networks alone"
        )
    _check_length(config, before, parent)
    if parent.has_lost_replay():
        raise ParentError(parent.explain_lost_replay())


def _check_length(config: CheckedConfig, before: CheckedConfig, parent: Parent) -> None:
    ours, theirs = config.resolved()["max_timesteps"], before.resolved()["max_timesteps"]
    if ours <= theirs:
        raise ParentError(
            f"run {parent.run.id} ({parent.run.label}) has max_timesteps {theirs:,}, and this one {ours:,}: "
            "raise it above, or there is nothing to go on with"
        )
    if "wall_budget_s" in config.identity_settings():
        raise ParentError("wall_budget_s ends this run by time, and then a larger max_timesteps doesn't make it longer")


def find_differences(config: CheckedConfig, before: CheckedConfig) -> list[str]:
    """Give the keys by which two configs are of runs that train differently, however long they are."""
    ours, theirs = config.identity_settings(), before.identity_settings()
    keys = dict.fromkeys([*ours, *theirs])
    return [
        key for key in keys if key not in FREE and (key not in ours or key not in theirs or ours[key] != theirs[key])
    ]


def _list_differing(config: CheckedConfig, before: CheckedConfig, keys: list[str]) -> str:
    ours, theirs = config.resolved(), before.resolved()
    shown = [f"{key} is {show_value(ours[key])} here and {show_value(theirs[key])} there" for key in keys[:_MOST_SHOWN]]
    more = f", and {len(keys) - _MOST_SHOWN} more" if len(keys) > _MOST_SHOWN else ""
    return ", ".join(shown) + more


def find_parent_id(settings: Mapping[str, Any]) -> str | None:
    """Give the id of the parent that settings name, None where they name none."""
    named = (settings.get(key) for key in PARENT_KEYS)
    return next((name_parent(value) for value in named if isinstance(value, str) and _SETTLED.fullmatch(value)), None)


def find_needed(experiment_dir: Path) -> dict[str, list[str]]:
    """Give the runs of an experiment that others will begin from, each with the ids of those.

    Such a one, planned or started in this experiment or in another beside it, isn't done and has no checkpoint yet.
    """
    needed: dict[str, list[str]] = {}
    for other in sorted({path.parent for path in experiment_dir.parent.glob("*/plan.jsonl")} | {experiment_dir}):
        folders = {run.id: run for run in find_runs(other)}
        for run_id, settings in _list_heirs(other, folders):
            for key in PARENT_KEYS:
                value = settings.get(key)
                if not isinstance(value, str) or not _SETTLED.fullmatch(value):
                    continue
                if run_id in folders and has_begun(folders[run_id]):
                    continue
                # Where it is named by its folder it is of another experiment, else of its own.
                home = Path(value).parent if "__" in value else other
                if home.resolve() == experiment_dir.resolve():
                    needed.setdefault(name_parent(value), []).append(run_id)
    return {parent: sorted(set(children)) for parent, children in needed.items()}


def _list_heirs(experiment_dir: Path, folders: Mapping[str, Run]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the runs of an experiment whose settings name a parent, by its plans and by what was started."""
    plan = experiment_dir / "plan.jsonl"
    rows = plan.read_text(encoding="utf-8").splitlines() if plan.exists() else []
    # What a runner at work was launched with is planned too, whatever was launched after it.
    rows += read_plans(experiment_dir)
    # Before they are parsed: there may be a hundred thousand.
    for row in rows:
        if any(f'"{key}"' in row for key in PARENT_KEYS):
            with contextlib.suppress(ValueError):
                planned = json.loads(row)
                yield planned["id"], planned["settings"]
    for run in folders.values():
        if not run.is_done() and (settings := read_settings(run)) is not None:
            yield run.id, settings
