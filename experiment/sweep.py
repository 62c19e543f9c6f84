"""A launch of a spec from end to end: plan, check, write down, run, sum up, report."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from experiment.arguments import AUTO
from experiment.chaos import Chaos
from experiment.checks import check_environments, check_reruns, choose_reruns
from experiment.detach import LOG_NAME, Background
from experiment.devices import Device, Gpu, count_cores
from experiment.engines.environment import make_base_environment
from experiment.engines.local import Limits, LocalEngine, Work, build_command
from experiment.engines.warm import Needs, WarmLauncher
from experiment.files import CONFIG_HEADING, append_event, dump_settings, write_atomically
from experiment.finishing import describe_result, note_missing, run_on_finish, write_report
from experiment.launch import launch_runs
from experiment.lineage import Lineage
from experiment.lock_check import check_locks
from experiment.measure import find_shape, predict_peak, recall_shapes
from experiment.messages import announce, describe_command, rerun_command, runner_command, sum_up
from experiment.outcomes import Request, SweepResult, read_stop_request
from experiment.packed import Packing, make_instruments
from experiment.parents import Parent, find_parent, open_parent
from experiment.plan import BuildConfig, Plan, Planned, find_folders, plan_runs, write_plan
from experiment.preflight import Footprint, PreflightError
from experiment.progress import open_view
from experiment.provenance import CodeHasher, record_provenance
from experiment.run import Run
from experiment.runners import Runner, describe_others, enter, refuse_unseen
from experiment.schedule import count_threads
from experiment.sections import SAMPLE_KEYS
from experiment.spec import ExperimentSpec
from experiment.views import STOP_NAME, ViewError

BAD_SPEC = 2
MAX_PAIRS = 4
"""Of processes that wait for the next runs: enough for as many ends at the same moment."""
LOOKED_AT = 64
"""Runs whose trainer and environment are imported beforehand."""


@dataclass(frozen=True)
class Asked:
    """What a launch is asked to do: a spec, by a command line, on devices among all GPUs. `remark` is about those."""

    spec: ExperimentSpec
    args: Namespace
    gpus: Sequence[Gpu]
    devices: Sequence[Device]
    remark: str | None

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return Path(self.args.log_root / self.spec.meta.exp_name)


@dataclass(frozen=True)
class Checked:
    """What was found out before anything was written.

    Attributes:
        plan: of the whole grid.
        runs: those that are asked for.
        rerun: ids of those to run again.
        totals: `max_timesteps` by id.
        code: gives its version.
        warm: forks runs; None for a process for each.
        packing: decides how many fit; None for a fixed number.
        stop_seen: what was in the file by which runners are asked to stop.
    """

    plan: Plan
    runs: Sequence[Run]
    rerun: Collection[str]
    totals: dict[str, int]
    code: CodeHasher
    warm: WarmLauncher | None
    packing: Packing | None
    stop_seen: bytes | None


def run_sweep(
    spec: ExperimentSpec,
    args: Namespace,
    build_config: BuildConfig,
    gpus: Sequence[Gpu],
    devices: Sequence[Device],
    remark: str | None,
    background: Background | None = None,
) -> int:
    """Run a spec and give the exit code.

    Args:
        spec: what to run.
        args: the command line.
        build_config: checks one combination.
        gpus: all that there are.
        devices: those to use.
        remark: a line to say about them.
        background: with `--detach`, by which the terminal is left once nothing can be wrong any more.

    Raises:
        SpecError: with every problem of all combinations; nothing was started or written.
        OSError: the experiment's folder can't be written, or can't lock files; nothing was started.
    """
    asked = Asked(spec, args, gpus, devices, remark)
    with contextlib.ExitStack() as cleanup:
        try:
            # Imports begin while settings are checked: there is a second core for it. Not with the terminal as their
            # stderr, though, where that is about to be left.
            checked = check_sweep(asked, build_config, cleanup, begin_warm=background is None)
        except (PreflightError, ViewError) as error:
            print(error, file=sys.stderr)
            return BAD_SPEC
        request = write_down(asked, checked)
        log = asked.folder / LOG_NAME if background else None
        presence = enter(asked.folder, describe_command(args), request.code_version, asked.folder / "plan.jsonl", log)
        cleanup.callback(presence.leave)
        notes = [*describe_others(asked.folder, presence, checked.plan.ids), *note_missing(spec.meta.on_finish)]
        if background:
            leave_terminal(background, presence.runner, notes, asked.folder)
            if checked.warm is not None:
                begin_imports(asked, checked.warm, checked.runs)
        result = carry_out(asked, checked, replace(request, beat=presence.beat), presence.runner, notes)
        finish(spec, args, result, len(checked.runs))
    return result.exit_code


def check_sweep(asked: Asked, build_config: BuildConfig, cleanup: contextlib.ExitStack, *, begin_warm: bool) -> Checked:
    """Find out whether all that is asked for can be done. Writes nothing.

    Raises:
        SpecError: with every problem of all combinations, or of runs that could not begin once more.
        PreflightError: the check itself failed.
        ViewError: no run is what `--rerun` names.
    """
    spec, args = asked.spec, asked.args
    # Read before anything that takes time: whoever asks from here on means this launch too.
    stop_seen = read_stop_request(asked.folder / STOP_NAME)
    plan = plan_runs(spec, args.log_root, build_config, args.only)
    code = CodeHasher(find_code_roots(spec))
    rerun = choose_reruns(args.rerun, plan)
    check_reruns(spec, plan, rerun, Lineage(asked.folder, find_folders(asked.folder), build_config))
    # `--rerun ID` means that one alone.
    runs = plan.runs if args.rerun in (None, "failed", "all") else [run for run in plan.runs if run.id in rerun]
    to_run = [run for run in runs if is_to_run(run, rerun)]
    warm = None if args.no_warm else warm_up(asked, plan, to_run, code)
    if warm is not None:
        cleanup.callback(warm.close)
        if begin_warm:
            begin_imports(asked, warm, runs)
    settled = {run.id for run in plan.runs} - {run.id for run in to_run}
    found = check_environments(spec, plan, asked.devices, predict=args.jobs == AUTO, settled=settled)
    packing = make_packing(asked, plan, found.footprints) if args.jobs == AUTO else None
    return Checked(plan, runs, rerun, found.totals, code, warm, packing, stop_seen)


def write_down(asked: Asked, checked: Checked) -> Request:
    """Make the experiment's folder, write what is to be run, and give what is asked for, ready to be launched.

    Raises:
        OSError: the folder can't be written, or can't lock files.
    """
    spec, args, folder, plan = asked.spec, asked.args, asked.folder, checked.plan
    folder.mkdir(parents=True, exist_ok=True)
    check_locks(folder)
    refuse_unseen(folder)
    version = record_provenance(folder, checked.code, asked.gpus)
    write_atomically(folder / "spec.yaml", [describe_spec(spec, args).encode()])
    write_plan(folder / "plan.jsonl", spec, plan)
    return Request(
        work=lambda run, device: make_work(plan.check_again(run.id), run, device, spec),
        jobs=min(choose_jobs(spec, args, asked.devices), len(checked.runs)),
        retries=args.retry,
        rerun=checked.rerun,
        code_version=version,
        stop_path=folder / STOP_NAME,
        stop_seen=checked.stop_seen,
        rerun_command=lambda run: rerun_command(args, run),
        packing=checked.packing,
        chaos=Chaos(args.chaos, Random()) if args.chaos else None,  # noqa: S311  nobody has to be surprised by it
    )


def carry_out(asked: Asked, checked: Checked, request: Request, runner: Runner, notes: Sequence[str]) -> SweepResult:
    """Run what is asked for, and say and write down what happens."""
    args, packing, events = asked.args, checked.packing, asked.folder / "events.jsonl"
    threads = count_threads(count_cores(), request.jobs) if packing is None else packing.threads
    limits = Limits(threads=threads, timeout_s=args.timeout)
    who: dict[str, Any] = {"pid": runner.pid, "host": runner.host}
    what: dict[str, Any] = {"runs": len(checked.runs), "jobs": request.jobs if packing is None else AUTO}
    append_event(events, "launched", code_version=request.code_version, command=runner.command, **what, **who)
    engine = LocalEngine(limits, lambda: record_provenance(asked.folder, checked.code, asked.gpus), checked.warm)
    view = open_view(args.plain, checked.totals)
    with contextlib.closing(view):
        for note in notes:
            view.say(f"note: {note}")
        announce(view, checked.plan, checked.runs, asked.devices, limits, request, asked.remark)
        result = launch_runs(checked.runs, engine, asked.devices, request, view)
    if request.chaos is not None:
        view.say(str(request.chaos))
    sum_up(view, result, checked.runs, args)
    append_event(events, "left", exit_code=result.exit_code, **who)
    return result


def finish(spec: ExperimentSpec, args: Namespace, result: SweepResult, runs: int) -> None:
    """Write the report of a launch that has ended, and run the spec's `on_finish`."""
    experiment_dir = args.log_root / spec.meta.exp_name
    if not args.no_report and spec.meta.runs_trainer:
        write_report(experiment_dir)
    if spec.meta.on_finish:
        run_on_finish(spec.meta.on_finish, describe_result(experiment_dir, result, runs), experiment_dir)


def leave_terminal(background: Background, runner: Runner, notes: Sequence[str], experiment_dir: Path) -> None:
    """Say who goes on where, and how to look at it; from here on lines go to its log.

    Raises:
        OSError: the log can't be written.
    """
    log = experiment_dir / LOG_NAME
    folder = ["-e", str(experiment_dir)]
    lines = [
        *(f"note: {note}" for note in notes),
        f"the runner goes on in the background: {runner}",
        f"its lines: {log}",
        f"how far it is: {runner_command('status', *folder)}   to stop it: {runner_command('stop', *folder)}",
    ]
    heading = f"=== {runner.started} {runner}: {runner.command}"
    background.confirm("".join(line + "\n" for line in lines), log, heading)


def is_to_run(run: Run, rerun: Collection[str]) -> bool:
    """Tell whether a run may have to be started."""
    return run.id in rerun or not run.is_done()


def warm_up(asked: Asked, plan: Plan, runs: Sequence[Run], code: CodeHasher) -> WarmLauncher | None:
    """Give what imports what runs need, for them to be forked; None for scripts of others, and for a run alone."""
    spec = asked.spec
    if not spec.meta.runs_trainer or len(runs) < 2:
        return None
    # Of many runs some, evenly over the grid: what they don't name is imported by those that need it.
    some = runs[:: max(1, len(runs) // LOOKED_AT)]
    settings = [plan.check_again(run.id).resolved() for run in some]
    trainers = sorted({str(values["algorithm_name"]) for values in settings})
    environments = sorted({str(values["env_name"]) for values in settings})
    pairs = min(count_cores(), len(runs), MAX_PAIRS)
    return WarmLauncher(Needs(spec.meta.script_file, tuple(trainers), tuple(environments), pairs), code.hash())


def begin_imports(asked: Asked, warm: WarmLauncher, runs: Sequence[Run]) -> None:
    """Import what runs need from now on, unless it can be told by now that they won't be forked."""
    jobs = min(choose_jobs(asked.spec, asked.args, asked.devices), len(runs))
    threads = 1 if asked.args.jobs == AUTO else count_threads(count_cores(), jobs)
    if warm.explain_refusal(make_base_environment(threads) | asked.devices[0].environment()) is None:
        warm.begin()


def find_code_roots(spec: ExperimentSpec) -> list[Path]:
    """Give the folders whose code a run may use: the current one, and the script's where that is another."""
    here, script = Path.cwd(), Path(spec.meta.script_file).resolve()
    return [here] if script.is_relative_to(here.resolve()) else [here, script.parent]


def choose_jobs(spec: ExperimentSpec, args: Namespace, devices: Sequence[Device]) -> int:
    """Give how many runs go at a time at most: as asked for, `num_workers`, one per GPU, or one per core on a CPU."""
    if args.jobs == AUTO:
        return count_cores()
    if args.jobs_per_gpu:
        return len(devices) * int(args.jobs_per_gpu)
    wanted: int | None = args.jobs or spec.meta.num_workers
    if wanted is not None:
        return wanted
    return len(devices) if devices[0].gpu is not None else count_cores()


def make_packing(asked: Asked, plan: Plan, footprints: Mapping[str, Footprint]) -> Packing:
    """Give what `-j auto` goes by: all runs' shapes, what finished ones have taken, predictions, a thread for each.

    Raises:
        DeviceError: the memory of a GPU can't be read.
    """
    instruments = make_instruments()
    for device in asked.devices:
        if device.gpu is not None:
            instruments.gpu(device.gpu.uuid)
    shapes = {run.id: find_shape(plan.check_again(run.id)) for run in plan.runs}
    on_gpu = asked.devices[0].gpu is not None
    known, durations = recall_shapes(plan.runs, shapes, asked.folder / "events.jsonl", on_gpu=on_gpu)
    predicted = {run_id: predict_peak(footprint) for run_id, footprint in footprints.items()}
    return Packing(shapes, known, durations, predicted, find_parents(asked.folder, plan), 1, instruments)


def find_parents(experiment_dir: Path, plan: Plan) -> dict[str, Parent]:
    """Give the runs that runs of a plan begin from, by the ids of those."""
    folders = find_folders(experiment_dir)
    configs = {run.id: plan.check_again(run.id).config for run in plan.runs}
    found = {
        run_id: find_parent(experiment_dir, config.resolved(), folders)
        for run_id, config in configs.items()
        if config is not None
    }
    return {run_id: parent for run_id, parent in found.items() if parent is not None}


def make_work(planned: Planned, run: Run, device: Device, spec: ExperimentSpec) -> Work:
    """Give what to start for a run."""
    is_foreign = not spec.meta.runs_trainer
    command = build_command(spec.meta.script_file, run.config_path, device, is_foreign)
    heading = f"The settings of this run, as {spec.meta.script_path} was given them." if is_foreign else CONFIG_HEADING
    parent = None if is_foreign else open_parent(run, planned.resolved())
    return Work(dump_settings(planned.resolved(), heading), command, is_foreign, parent)


def describe_spec(spec: ExperimentSpec, args: Namespace) -> str:
    """Give the text of `spec.yaml`: the file itself, or, with `-o` or `extends`, what they make of it."""
    if not args.overrides and len(spec.files) == 1:
        return spec.path.read_text(encoding="utf-8")
    empty: tuple[object, ...] = (None, "", ())
    derived: tuple[str, ...] = ("runs_trainer", "script_file")
    derived += () if spec.draws else SAMPLE_KEYS
    derived += () if spec.meta.extend else ("extend",)
    meta = {key: value for key, value in asdict(spec.meta).items() if value not in empty and key not in derived}
    # An entry that an override has left without any combination would be refused when this is read again.
    exclude = [entry for entry in spec.exclude if not spec.select(entry).misfits]
    # Distributions rather than drawn values: these would be read again as axes of their own.
    variables = {key: spec.draws[key].describe() if key in spec.draws else v for key, v in spec.variables.items()}
    sections: dict[str, Any] = {"meta_data": meta, "constants": spec.constants, "variables": variables}
    sections |= {"cases": spec.cases} if spec.cases else {}
    sections |= {"exclude": exclude} if exclude else {}
    made_of = " ".join([str(spec.path), *(f"-o {override}" for override in args.overrides)])
    lines = [f"# Made of {made_of}"]
    for section, content in sections.items():
        if isinstance(content, dict):
            lines += [f"{section}:"] if content else []
            lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
        else:
            lines += [f"{section}:", *(f"  - {json.dumps(entry, ensure_ascii=False)}" for entry in content)]
    return "\n".join(lines) + "\n"
