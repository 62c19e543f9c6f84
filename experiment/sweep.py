"""A launch of a spec from end to end: plan, check, write down, run, sum up, report."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiment.devices import Device, Gpu, count_cores
from experiment.engines.local import Limits, LocalEngine, Work, build_command
from experiment.faults import FaultList
from experiment.files import append_event, dump_settings, write_atomically
from experiment.launch import Request, RunOutcome, SweepResult, launch_runs
from experiment.plan import BuildConfig, Plan, Planned, plan_runs, write_plan
from experiment.preflight import PreflightError, ask_preflight, shape_key
from experiment.progress import open_view
from experiment.provenance import record_provenance
from experiment.run import Run, State
from experiment.schedule import count_threads
from experiment.spec import ExperimentSpec
from experiment.views import STOP_NAME, ViewError, find_run

BAD_SPEC, FAILED = 2, 1


def run_sweep(
    spec: ExperimentSpec,
    args: Namespace,
    build_config: BuildConfig,
    gpus: Sequence[Gpu],
    devices: Sequence[Device],
    remark: str | None,
) -> int:
    """Run a spec and give the exit code.

    Raises:
        SpecError: with every problem of all combinations; nothing was started or written.
        OSError: the experiment's folder can't be written; nothing was started.
    """
    plan = plan_runs(spec, args.log_root, build_config, args.only)
    try:
        totals = check_environments(spec, plan)
        rerun = choose_reruns(args.rerun, plan)
    except (PreflightError, ViewError) as error:
        print(error, file=sys.stderr)
        return BAD_SPEC
    experiment_dir = args.log_root / spec.meta.exp_name
    experiment_dir.mkdir(parents=True, exist_ok=True)
    version = record_provenance(experiment_dir, Path.cwd(), gpus)
    write_atomically(experiment_dir / "spec.yaml", [describe_spec(spec, args).encode()])
    write_plan(experiment_dir / "plan.jsonl", spec, plan)
    jobs = min(choose_jobs(spec, args, devices), len(plan.runs))
    limits = Limits(threads=count_threads(count_cores(), jobs), timeout_s=args.timeout)
    announce(plan, devices, jobs, limits, remark)
    request = Request(
        work=lambda run, device: make_work(plan.check_again(run.id), run, device, spec),
        jobs=jobs,
        retries=args.retry,
        rerun=rerun,
        code_version=version,
        stop_path=experiment_dir / STOP_NAME,
        rerun_command=lambda run: f"{repeat_command(args)} --rerun {run.id}",
    )
    view = open_view(args.plain, totals)
    events = experiment_dir / "events.jsonl"
    append_event(events, "launched", runs=len(plan.runs), jobs=jobs, code_version=version, command=repeat_command(args))
    try:
        result = launch_runs(plan.runs, LocalEngine(limits, version), devices, request, view)
    finally:
        view.close()
    append_event(events, "left", exit_code=result.exit_code)
    sum_up(result, plan, args)
    if not args.no_report and spec.meta.runs_trainer:
        write_report(experiment_dir)
    return result.exit_code


def check_environments(spec: ExperimentSpec, plan: Plan) -> dict[str, int]:
    """Check each distinct environment in one process, before anything starts. Gives `max_timesteps` by run id.

    Raises:
        SpecError: an environment isn't there, or a trainer can't act in it.
        PreflightError: the check itself failed.
    """
    firsts: dict[str, Planned] = {}
    totals: dict[str, int] = {}
    for run in plan.runs:
        planned = plan.check_again(run.id)
        if planned.config is not None:
            firsts.setdefault(shape_key(planned.config.shape_settings()), planned)
            totals[run.id] = planned.config.resolved()["max_timesteps"]
    shapes = [planned.config.shape_settings() for planned in firsts.values() if planned.config]
    faults = FaultList(spec)
    for planned, answer in zip(firsts.values(), ask_preflight(spec.meta.script_path, "check", shapes), strict=True):
        for fault in answer.faults:
            faults.add(planned.combination, fault)
    faults.raise_any(len(firsts))
    return totals


def choose_reruns(wanted: str | None, plan: Plan) -> set[str]:
    """Give the ids of the runs that `--rerun` means: `failed`, `all`, or one id or the beginning of one.

    Raises:
        ViewError: the plan has no such run.
    """
    if wanted is None:
        return set()
    states = {run.id: run.status().state for run in plan.runs}
    if wanted == "failed":
        return {run_id for run_id, state in states.items() if state is State.FAILED}
    if wanted == "all":
        return {run_id for run_id, state in states.items() if state in (State.FAILED, State.DONE)}
    matches = [run_id for run_id in states if run_id.startswith(wanted)]
    if len(matches) == 1:
        return set(matches)
    folders = sorted({run.experiment_dir for run in plan.runs})
    raise ViewError(f"--rerun {wanted}: the spec has no such run (it has {find_run(wanted, folders).label!r} on disk)")


def choose_jobs(spec: ExperimentSpec, args: Namespace, devices: Sequence[Device]) -> int:
    """Give how many runs go at a time: `-j`, `num_workers`, one per GPU, or one per core on a CPU."""
    wanted: int | None = args.jobs or spec.meta.num_workers
    if wanted is not None:
        return wanted
    return len(devices) if devices[0].gpu is not None else count_cores()


def make_work(planned: Planned, run: Run, device: Device, spec: ExperimentSpec) -> Work:
    """Give what to start for a run."""
    command, sets_own_device = build_command(spec.meta.script_path, run.config_path, device)
    return Work(dump_settings(planned.resolved()), command, sets_own_device)


def announce(plan: Plan, devices: Sequence[Device], jobs: int, limits: Limits, remark: str | None) -> None:
    """Say what is about to happen."""
    for note in (*plan.notes, remark):
        if note:
            print(f"note: {note}")
    states = [run.status().state for run in plan.runs]
    done = states.count(State.DONE)
    places = ", ".join(device.name for device in devices)
    threads = f"{limits.threads} thread{'s' * (limits.threads > 1)} each"
    print(f"{len(states)} runs: {done} done, {len(states) - done} to run; {jobs} at a time on {places}, {threads}")


def sum_up(result: SweepResult, plan: Plan, args: Namespace) -> None:
    """Say what became of the runs, each failure once more with the command that runs just that one again."""
    by_state: dict[State, list[RunOutcome]] = {}
    for outcome in result.outcomes:
        by_state.setdefault(outcome.state, []).append(outcome)
    failed = by_state.get(State.FAILED, [])
    for outcome in failed:
        reason = outcome.ending.reason if outcome.ending else "?"
        message = outcome.ending.message if outcome.ending else ""
        before = "" if outcome.fresh else " before, left as it is"
        print(f"failed{before}: {outcome.run.label} ({reason}): {message}")
        print(f"        log: {outcome.run.console_path(outcome.run.last_attempt())}")
        print(f"        again: {repeat_command(args)} --rerun {outcome.run.id}")
    if any(not outcome.fresh for outcome in failed):
        count = sum(not outcome.fresh for outcome in failed)
        print(f"{count} failed before with these settings and this code; --rerun failed runs them again")
    stopped = len(by_state.get(State.STOPPED, []))
    left = len(plan.runs) - len(result.outcomes)
    parts = [f"{len(by_state.get(State.DONE, []))} done"]
    parts += [f"{len(failed)} failed"] if failed else []
    parts += [f"{stopped} stopped"] if stopped else []
    parts += [f"{left} not started"] if left else []
    again = f"; the same command goes on: {repeat_command(args)}" if stopped or left else ""
    print(", ".join(parts) + again)


def repeat_command(args: Namespace) -> str:
    """Give the command that launches this spec in the same way, ready to paste."""
    words = ["python", "run_experiment.py", "-e", str(args.spec), "-g", args.gpus]
    words += ["-j", str(args.jobs)] if args.jobs else []
    words += ["--log-root", str(args.log_root)] if args.log_root != Path("logs") else []
    for override in args.overrides:
        words += ["-o", override]
    return shlex.join(words)


def describe_spec(spec: ExperimentSpec, args: Namespace) -> str:
    """Give the text of `spec.yaml`: the file itself, or, with `-o` or `extends`, what they make of it."""
    if not args.overrides and len(spec.files) == 1:
        return spec.path.read_text(encoding="utf-8")
    meta = {
        key: value for key, value in asdict(spec.meta).items() if value not in (None, "", ()) and key != "runs_trainer"
    }
    sections: dict[str, Any] = {"meta_data": meta, "constants": spec.constants, "variables": spec.variables}
    sections |= {"cases": spec.cases} if spec.cases else {}
    sections |= {"exclude": spec.exclude} if spec.exclude else {}
    made_of = " ".join([str(spec.path), *(f"-o {override}" for override in args.overrides)])
    lines = [f"# Made of {made_of}"]
    for section, content in sections.items():
        if isinstance(content, dict):
            lines += [f"{section}:"] if content else []
            lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
        else:
            lines += [f"{section}:", *(f"  - {json.dumps(entry, ensure_ascii=False)}" for entry in content)]
    return "\n".join(lines) + "\n"


def write_report(experiment_dir: Path) -> None:
    """Let `analysis` write the report, in a process of its own since it needs pandas."""
    # matplotlib keeps a list of fonts; without this it would write it into the home folder.
    environment = {"MPLCONFIGDIR": str(Path(".cache/matplotlib").absolute())} | os.environ
    command = [sys.executable, "-m", "analysis.report", str(experiment_dir)]
    answer = subprocess.run(command, env=environment, check=False)
    if answer.returncode:
        print(f"the report failed; once more: python -m analysis.report {experiment_dir}", file=sys.stderr)
