"""`-n`: what a spec would run and cost, as a table or JSON lines, streamed so that a huge grid needs no more memory."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiment.devices import Device
from experiment.faults import FaultList
from experiment.history import Estimate, History, find_makespan, show_duration
from experiment.identity import CONTINUES, name_parent
from experiment.lineage import Lineage
from experiment.measure import measure_held
from experiment.parents import find_parent_id
from experiment.plan import BuildConfig, GridNotes, Planned, check_combinations, find_folders
from experiment.preflight import Answer, Footprint, ask_preflight, shape_key
from experiment.run import Run, RunStatus, State
from experiment.spec import ExperimentSpec
from experiment.sweep import choose_jobs

UNFINISHED = (State.PENDING, State.RUNNING, State.STOPPED, State.LOST)


@dataclass(frozen=True)
class Survey:
    """What has to be known of the whole grid before its first line can be shown."""

    width: int
    notes: tuple[str, ...]
    answers: Mapping[str, Answer]
    history: History


@dataclass(frozen=True)
class Row:
    """What one combination is and would cost; None for what isn't known."""

    planned: Planned
    status: RunStatus
    parameters: int | None
    memory: Footprint | None
    is_measured: bool
    estimate: Estimate | None
    spent_s: float

    @property
    def parent(self) -> str | None:
        """The id of the run that this one begins from."""
        return None if self.planned.config is None else find_parent_id(self.planned.settings)

    @property
    def left_s(self) -> float | None:
        """The seconds of training that are left; none of a run that is over."""
        if self.status.state not in UNFINISHED:
            return 0.0
        return None if self.estimate is None else max(0.0, self.estimate.seconds - self.spent_s)

    def as_object(self) -> dict[str, object]:
        """Give the row as `--json` has it."""
        memory = None
        if self.memory is not None:
            sizes = {"host_bytes": self.memory.host_bytes, "gpu_bytes": self.memory.gpu_bytes}
            memory = {**sizes, "measured": self.is_measured}
        return {
            "id": self.planned.id,
            "label": self.planned.label,
            "settings": self.planned.settings,
            "status": self.status.state,
            "parameters": self.parameters,
            "memory": memory,
            "hours": None if self.estimate is None else round(self.estimate.seconds / 3600, 6),
            "hours_by_nearest": self.estimate is not None and self.estimate.is_near,
            **({} if self.parent is None else {"from": self.parent}),
        }

    def as_line(self, width: int) -> str:
        """Give the row for people; `~` stands before what was not measured of runs like this one."""
        count = "-" if self.parameters is None else f"{self.parameters:,}"
        memory = "-" if self.memory is None else f"{'' if self.is_measured else '~'}{self.memory}"
        time = "-"
        if self.estimate is not None:
            time = f"{'~' if self.estimate.is_near else ''}{show_duration(self.estimate.seconds)}"
        label, run_id = self.planned.label, self.planned.id
        origin = "" if self.parent is None else f", from {self.parent}"
        return f"{label:<{width}}  {run_id}  {count:>10}  {memory:>10}  {time:>8}  {self.status}{origin}"


@dataclass
class Totals:
    """Sums over the distinct runs of a grid."""

    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    left: list[float] = field(default_factory=list)
    near: int = 0
    unknown: int = 0

    def add(self, row: Row) -> None:
        self.counts[row.status.state] += 1
        if row.status.state not in UNFINISHED:
            return
        left = row.left_s
        if left is None:
            self.unknown += 1
            return
        self.left.append(left)
        self.near += row.estimate is not None and row.estimate.is_near

    def describe_time(self, jobs: int, places: str) -> str | None:
        """Say how much training is left and when it would be over; None where nothing is known of it."""
        if not self.left:
            return None
        remarks = [f"{self.near} by the nearest run"] if self.near else []
        remarks += [f"{self.unknown} more not known"] if self.unknown else []
        of_it = f" in {len(self.left)} runs ({', '.join(remarks)})" if remarks else ""
        over = show_duration(find_makespan(self.left, jobs))
        return f"{show_duration(sum(self.left))} of training left{of_it}; over in {over}, {jobs} at a time on {places}"


def show_plan(spec: ExperimentSpec, args: Namespace, build_config: BuildConfig, devices: Sequence[Device]) -> int:
    """Print what would be run and give the exit code.

    Args:
        spec: to show.
        args: the command line.
        build_config: checks one combination.
        devices: that runs would be placed on; none where those that were asked for aren't here.

    Raises:
        SpecError: with every problem of all combinations, those that don't fit into memory among them.
    """
    experiment_dir = args.log_root / spec.meta.exp_name
    folders = find_folders(experiment_dir)
    lineage = Lineage(experiment_dir, folders, build_config, spec.meta.extend)
    survey = survey_grid(spec, args, build_config, folders, lineage, devices)
    totals = Totals()
    seen: set[str] = set()
    if not args.json:
        for note in survey.notes:
            print(f"note: {note}")
        print(f"{'run':<{survey.width}}  {'id':<16}  {'parameters':>10}  {'memory':>10}  {'time':>8}  status")
    for planned in check_combinations(spec, build_config, args.only, lineage):
        row = make_row(planned, folders.get(planned.id), survey)
        if planned.id not in seen:
            totals.add(row)
            seen.add(planned.id)
        print(json.dumps(row.as_object(), ensure_ascii=False) if args.json else row.as_line(survey.width))
    if not args.json:
        states = ", ".join(f"{count} {state}" for state, count in totals.counts.items() if count)
        print(f"{len(seen)} runs: {states}; in {experiment_dir}")
        jobs = choose_jobs(spec, args, devices) if devices else 1
        places = ", ".join(device.name for device in devices) if devices else f"-g {args.gpus}"
        if sentence := totals.describe_time(max(1, min(jobs, len(totals.left))), places):
            print(sentence)
    return 0


def make_row(planned: Planned, run: Run | None, survey: Survey) -> Row:
    """Give what is known of one combination."""
    status = run.status() if run is not None else RunStatus(State.PENDING)
    if planned.config is None:
        return Row(planned, status, None, None, False, None, 0.0)
    footprint = shape_key(planned.config.footprint_settings())
    answer = survey.answers.get(footprint)
    measured = survey.history.find_memory(footprint)
    cost = survey.history.find_cost(planned.id)
    return Row(
        planned,
        status,
        None if answer is None or answer.parameters is None else sum(answer.parameters.values()),
        measured or (None if answer is None else answer.memory),
        measured is not None,
        survey.history.estimate(planned.config) if cost is None else Estimate(cost.whole_s, is_near=False),
        _find_spent(planned, survey.history) if cost is None else cost.spent_s,
    )


def _find_spent(planned: Planned, history: History) -> float:
    """Give what of a run that has not come far enough to tell was spent before it: by the one that it goes on from."""
    parent = None if planned.config is None else planned.config.resolved()[CONTINUES]
    cost = None if parent is None else history.find_cost(name_parent(parent))
    return 0.0 if cost is None else cost.spent_s


def survey_grid(
    spec: ExperimentSpec,
    args: Namespace,
    build_config: BuildConfig,
    folders: Mapping[str, Run],
    lineage: Lineage,
    devices: Sequence[Device],
) -> Survey:
    """Go through the grid once: check it, ask about each distinct footprint, hear its runs, find what is to be said."""
    notes = GridNotes(spec)
    width = 3
    firsts: dict[str, Planned] = {}
    on_gpu = bool(devices) and devices[0].gpu is not None
    history = History("cuda" if on_gpu else "cpu")
    heard: set[str] = set()
    for planned in check_combinations(spec, build_config, args.only, lineage):
        notes.add(planned)
        width = max(width, len(planned.label))
        if planned.config is None:
            continue
        lineage.note(planned.id, planned.settings, planned.config)
        if not args.no_count:
            firsts.setdefault(shape_key(planned.config.footprint_settings()), planned)
        if planned.id in folders and planned.id not in heard:
            heard.add(planned.id)
            history.add(folders[planned.id], planned.config)
    if spec.meta.runs_trainer:
        history.add_folder((run for run in folders.values() if run.id not in heard), build_config)
    return Survey(
        width, (*notes.notes(), *lineage.notes()), _ask(spec, firsts, devices, measure_held(folders.values())), history
    )


def _ask(
    spec: ExperimentSpec, firsts: Mapping[str, Planned], devices: Sequence[Device], held_bytes: int
) -> dict[str, Answer]:
    lots = [planned.config.footprint_settings() for planned in firsts.values() if planned.config]
    faults = FaultList(spec)
    given = ask_preflight(spec.meta.script_file, "count", lots, devices or None, held_bytes)
    answers = dict(zip(firsts, given, strict=True))
    for key, planned in firsts.items():
        for fault in answers[key].faults:
            faults.add(planned.combination, fault)
    faults.raise_any(len(firsts))
    return answers
