"""Which runs of a spec begin from others: what their settings name, and what `meta_data.extend` finds for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment.identity import CONTINUES, PARENT_KEYS, CheckedConfig, hash_identity
from experiment.parents import (
    BuildConfig,
    Parent,
    ParentError,
    check_parent,
    find_parent,
    has_begun,
    read_settings,
    settle_parent,
)
from experiment.problems import Fault, SettingsError
from experiment.run import Run, State

_MOST_NAMED = 3
_CAN_EXTEND = "meta_data.extend: true goes on from them"
_CAN_NOT_EXTEND = (
    "meta_data.extend can't go on from them: their replay data are gone (keep_replay: true keeps such data)"
)


@dataclass(frozen=True)
class _Relative:
    """A run that is there, as seen by one that differs from it in length alone.

    Attributes:
        parent: it is an extension of, as its settings name it; None for a run from scratch.
    """

    run: Run
    length: int
    parent: str | None
    done: bool


class Lineage:
    """Finds and checks the parents of an experiment's runs. What is there is looked at once.

    Args:
        experiment_dir: of the runs that begin from others.
        folders: its runs that are there, by id.
        build_config: checks settings.
        extend: whether a run that is there with fewer `max_timesteps`, and DONE, is gone on from without being named.
    """

    def __init__(
        self, experiment_dir: Path, folders: Mapping[str, Run], build_config: BuildConfig, extend: bool = False
    ) -> None:
        self._experiment_dir = experiment_dir
        self._folders = folders
        self._build_config = build_config
        self._extend = extend
        self._parents: dict[tuple[str, str], Parent] = {}
        self._beginnings: dict[str, tuple[str, str]] = {}
        self._extendable: dict[str, _Relative] = {}

    def settle(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Give what has to be changed about a run's settings: mostly nothing.

        A parent is written in the one way that ids know; with `extend`, one is found.

        Raises:
            SettingsError: a parent is named wrongly; or only runs without replay data could be extended.
        """
        changes: dict[str, Any] = {}
        for key in PARENT_KEYS:
            value = settings.get(key)
            if value is None:
                continue
            if not isinstance(value, str):
                raise SettingsError([Fault((key,), f"{key} must be text, got {value!r}; put a run's id in quotes")])
            try:
                settled = settle_parent(self._experiment_dir, value)
            except ParentError as error:
                raise _refuse(key, error) from None
            if settled != value:
                changes[key] = settled
        if self._extend and settings.get(CONTINUES) is None:
            found = self._find_shorter(self._build_config({**settings, **changes}))
            changes |= {} if found is None else {CONTINUES: found}
        return changes

    def _find_shorter(self, config: CheckedConfig) -> str | None:
        """Give the run that one without a parent goes on from.

        An extension that is there is found again whatever has become of its parent; a run from scratch that is there
        stays one. Otherwise it is the longest of the shorter ones that are done and have what is needed.
        """
        length, relatives = config.resolved()["max_timesteps"], self._relatives.get(_hash_kind(config), [])
        extensions = [relative for relative in relatives if relative.parent and relative.length == length]
        if extensions:
            return min(extensions, key=lambda relative: (not relative.done, relative.run.id)).parent
        if config.run_id() in self._folders:
            return None
        shorter = [relative for relative in relatives if relative.done and relative.length < length]
        usable = [relative for relative in shorter if self._find_refusal(relative) is None]
        if usable:
            return min(usable, key=lambda found: (-found.length, found.parent or "", found.run.id)).run.id
        if shorter:
            raise _refuse(CONTINUES, ParentError(f"extend: {self._find_refusal(shorter[0])}, or take extend out"))
        return None

    def _find_refusal(self, relative: _Relative) -> str | None:
        parent = self._get_parent(CONTINUES, relative.run.id)
        try:
            return parent.explain_lost_replay() if parent.has_lost_replay() else None
        except ParentError as error:
            return str(error)

    def _get_parent(self, key: str, value: str) -> Parent:
        """Give a parent whose files are looked at once, however many runs begin from it."""
        if (key, value) not in self._parents:
            found = find_parent(self._experiment_dir, {key: value}, self._folders)
            assert found is not None
            self._parents[key, value] = found
        return self._parents[key, value]

    def _find(self, settings: Mapping[str, Any]) -> Parent | None:
        """Give the parent of a run whose settings are settled, None where it begins as new."""
        return next((self._get_parent(key, settings[key]) for key in PARENT_KEYS if settings.get(key)), None)

    def check(self, settings: Mapping[str, Any], config: CheckedConfig, *, anew: bool = False) -> None:
        """Refuse a run whose parent it can't begin from; one that has begun needs it no more.

        Args:
            settings: settled.
            config: built of them.
            anew: whether what it has is to be put away, so that it begins once more.

        Raises:
            SettingsError: and why.
        """
        parent = self._find(settings)
        if parent is None:
            return
        own = self._folders.get(config.run_id())
        if own is not None and has_begun(own) and not anew:
            return
        try:
            check_parent(config, parent, self._build_config)
        except ParentError as error:
            again = "" if own is None else f"; without {own.folder} it could begin otherwise"
            again = f"; what is in {own.folder} stays as it is" if own is not None and anew else again
            raise _refuse(parent.key, ParentError(f"{error}{again}")) from None

    def note(self, run_id: str, settings: Mapping[str, Any], config: CheckedConfig) -> None:
        """Keep what has to be said of a checked run."""
        parent, own = self._find(settings), self._folders.get(run_id)
        if own is not None and own.is_done():
            return
        if parent is not None:
            self._beginnings[run_id] = _describe(parent, own is not None and has_begun(own))
        elif own is None and not self._extend and self._done:
            length = config.resolved()["max_timesteps"]
            shorter = [found for found in self._relatives.get(_hash_kind(config), []) if found.length < length]
            if shorter:
                self._extendable[run_id] = max(shorter, key=lambda found: (found.length, found.run.id))

    def notes(self) -> tuple[str, ...]:
        """Give one sentence for each way in which runs begin from others, or could."""
        groups: dict[str, list[str]] = {}
        for sentence, parent in self._beginnings.values():
            groups.setdefault(sentence, []).append(parent)
        notes = [f"{_count(len(names))} {sentence}: {_list_names(names)}" for sentence, names in groups.items()]
        lengths = Counter(
            (relative.length, self._find_refusal(relative) is None) for relative in self._extendable.values()
        )
        for (length, usable), count in lengths.items():
            there = f"{count} of these runs {'is' if count == 1 else 'are'} there with max_timesteps {length}"
            notes.append(f"{there}; {_CAN_EXTEND if usable else _CAN_NOT_EXTEND}")
        return tuple(notes)

    @cached_property
    def _done(self) -> list[Run]:
        return [run for run in self._folders.values() if run.is_done()]

    @cached_property
    def _relatives(self) -> dict[str, list[_Relative]]:
        """The runs that are there by what they have in common but for their length; without `extend`, DONE ones."""
        relatives: dict[str, list[_Relative]] = {}
        done = {run.id for run in self._done}
        for run in self._folders.values() if self._extend else self._done:
            settings = read_settings(run)
            if settings is None:
                continue
            try:
                config = self._build_config(settings)
                kind = _hash_kind(self._build_config({**settings, CONTINUES: None}))
            except SettingsError:
                continue  # It is of other code, and nothing can go on from it here.
            if config.run_id() == run.id:
                length, parent = config.resolved()["max_timesteps"], settings.get(CONTINUES)
                relatives.setdefault(kind, []).append(_Relative(run, length, parent, run.id in done))
        return relatives


def _hash_kind(config: CheckedConfig) -> str:
    """Give a text that is the same for runs without a parent that differ in nothing but their length."""
    settings = {key: value for key, value in config.identity_settings().items() if key != "max_timesteps"}
    return hash_identity(config.resolved()["algorithm_name"], 1, settings)


def _describe(parent: Parent, has_own: bool) -> tuple[str, str]:
    """Say how a run begins, in words that runs which begin alike share; and from whom."""
    name = f"{parent.run.id}" if parent.run.folder.is_dir() else f"{parent.run.id}, which is gone"
    if has_own:
        return "began from another and goes on from its own checkpoints", name
    what = "goes on with all the state of another" if parent.continues else "begins with the networks of another, alone"
    state = "" if parent.state is State.DONE else f" that is {parent.state}"
    return f"{what}{state}, from step {parent.newest.step:,}", name


def _count(runs: int) -> str:
    return f"{runs} run{'s' * (runs != 1)}, each of which" if runs != 1 else "1 run"


def _list_names(names: list[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - _MOST_NAMED} more" if len(shown) > _MOST_NAMED else ""
    return ", ".join(shown[:_MOST_NAMED]) + more


def _refuse(key: str, error: ParentError) -> SettingsError:
    return SettingsError([Fault((key, "max_timesteps"), f"{key}: {error}")])
