"""`-n`: what a spec would run, as a table or as JSON lines, streamed so that a huge grid needs no more memory."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiment.faults import FaultList
from experiment.lineage import Lineage
from experiment.parents import find_parent_id
from experiment.plan import BuildConfig, GridNotes, Planned, check_combinations, find_folders
from experiment.preflight import ask_preflight, shape_key
from experiment.run import State
from experiment.spec import ExperimentSpec


@dataclass(frozen=True)
class Survey:
    """What has to be known of the whole grid before its first line can be shown."""

    width: int
    notes: tuple[str, ...]
    parameters: Mapping[str, int]


def show_plan(spec: ExperimentSpec, args: Namespace, build_config: BuildConfig) -> int:
    """Print what would be run and give the exit code.

    Raises:
        SpecError: with every problem of all combinations.
    """
    experiment_dir = args.log_root / spec.meta.exp_name
    folders = find_folders(experiment_dir)
    lineage = Lineage(experiment_dir, folders, build_config, spec.meta.extend)
    survey = survey_grid(spec, args, build_config, lineage)
    counts = dict.fromkeys(State, 0)
    seen: set[str] = set()
    if not args.json:
        for note in survey.notes:
            print(f"note: {note}")
        print(f"{'run':<{survey.width}}  {'id':<16}  {'parameters':>10}  status")
    for planned in check_combinations(spec, build_config, args.only, lineage):
        status = folders[planned.id].status() if planned.id in folders else None
        state = status.state if status else State.PENDING
        if planned.id not in seen:
            counts[state] += 1
            seen.add(planned.id)
        parent = find_parent_id(planned.settings) if planned.config is not None else None
        if args.json:
            row = {"id": planned.id, "label": planned.label, "settings": planned.settings, "status": state}
            row |= {} if parent is None else {"from": parent}
            print(json.dumps(row, ensure_ascii=False))
            continue
        count = survey.parameters.get(_shape_of(planned))
        shown = "-" if count is None else f"{count:,}"
        origin = "" if parent is None else f", from {parent}"
        print(f"{planned.label:<{survey.width}}  {planned.id}  {shown:>10}  {status or state}{origin}")
    if not args.json:
        states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        print(f"{len(seen)} runs: {states}; in {args.log_root / spec.meta.exp_name}")
    return 0


def survey_grid(spec: ExperimentSpec, args: Namespace, build_config: BuildConfig, lineage: Lineage) -> Survey:
    """Go through the grid once: check it, count the parameters of each distinct shape, find what is to be said."""
    notes = GridNotes(spec)
    width = 3
    firsts: dict[str, Planned] = {}
    for planned in check_combinations(spec, build_config, args.only, lineage):
        notes.add(planned)
        if planned.config is not None:
            lineage.note(planned.id, planned.settings, planned.config)
        width = max(width, len(planned.label))
        if planned.config is not None and not args.no_count and not args.json:
            firsts.setdefault(_shape_of(planned), planned)
    parameters = _count_parameters(spec, firsts)
    return Survey(width, (*notes.notes(), *lineage.notes()), parameters)


def _shape_of(planned: Planned) -> str:
    return "" if planned.config is None else shape_key(planned.config.shape_settings())


def _count_parameters(spec: ExperimentSpec, firsts: Mapping[str, Planned]) -> dict[str, int]:
    shapes: list[dict[str, Any]] = [planned.config.shape_settings() for planned in firsts.values() if planned.config]
    faults = FaultList(spec)
    counts: dict[str, int] = {}
    for (key, planned), answer in zip(
        firsts.items(), ask_preflight(spec.meta.script_file, "count", shapes), strict=True
    ):
        for fault in answer.faults:
            faults.add(planned.combination, fault)
        if answer.parameters is not None:
            counts[key] = sum(answer.parameters.values())
    faults.raise_any(len(firsts))
    return counts
