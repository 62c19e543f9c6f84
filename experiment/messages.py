"""What a launch says before and after: what is to run, what became of it, and which command does it again."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from experiment.devices import Device
from experiment.engines.local import Limits
from experiment.outcomes import Request, RunOutcome, SweepResult, is_settled
from experiment.plan import Plan
from experiment.progress import View
from experiment.run import Run, State

RUNNER = "run_experiment.py"
SHOWN_FAILURES = 20
HOPELESS = 4


def announce(
    view: View,
    plan: Plan,
    runs: Sequence[Run],
    devices: Sequence[Device],
    limits: Limits,
    request: Request,
    remark: str | None,
) -> None:
    """Say what is about to happen."""
    for note in (*plan.notes, remark):
        if note:
            view.say(f"note: {note}")
    done = failed = 0
    for run in runs:
        status = run.status()
        left = run.id not in request.rerun and is_settled(run, status, request)
        done += left and status.state is State.DONE
        failed += left and status.state is State.FAILED
    places = ", ".join(device.name for device in devices)
    threads = f"{limits.threads} thread{'s' * (limits.threads > 1)} each"
    before = f", {failed} failed before" if failed else ""
    to_run = len(runs) - done - failed
    jobs = request.jobs if request.packing is None else "as many as fit"
    view.say(f"{len(runs)} runs: {done} done{before}, {to_run} to run; {jobs} at a time on {places}, {threads}")


def sum_up(view: View, result: SweepResult, runs: Sequence[Run], args: Namespace) -> None:
    """Say what became of the runs, each failure once more with the command that runs just that one again."""
    by_state: dict[State, list[RunOutcome]] = {}
    for outcome in result.outcomes:
        by_state.setdefault(outcome.state, []).append(outcome)
    failed = by_state.get(State.FAILED, [])
    for outcome in failed[:SHOWN_FAILURES]:
        reason = outcome.ending.reason if outcome.ending else "?"
        message = outcome.ending.message if outcome.ending else ""
        before = "" if outcome.fresh else " before, left as it is"
        view.say(f"failed{before}: {outcome.run.label} ({reason}): {message}")
        view.say(f"        log: {outcome.run.console_path(outcome.run.last_attempt())}")
        view.say(f"        again: {rerun_command(args, outcome.run)}")
    if len(failed) > SHOWN_FAILURES:
        view.say(f"and {len(failed) - SHOWN_FAILURES} more that failed; `status` lists them all")
    if old := sum(not outcome.fresh for outcome in failed):
        view.say(f"{old} failed before with these settings and this code; --rerun failed runs them again")
    stopped = len(by_state.get(State.STOPPED, []))
    states = [run.status().state for run in runs if run.id not in {outcome.run.id for outcome in result.outcomes}]
    elsewhere = states.count(State.RUNNING)
    begun = sum(state not in (State.RUNNING, State.PENDING) for state in states)
    counts = {
        "done": len(by_state.get(State.DONE, [])),
        "failed": len(failed),
        "stopped": stopped,
        "run by another runner": elsewhere,
        "to go on with": begun,
        "not started": states.count(State.PENDING),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count] or ["0 done"]
    again = f"; the same command goes on: {repeat_command(args)}" if stopped or states else ""
    if result.exit_code == HOPELESS:
        # The same command leaves what failed with this code.
        again = f"; once that is repaired, this goes on with all of them: {repeat_command(args)} --rerun failed"
    view.say(", ".join(parts) + again)


def rerun_command(args: Namespace, run: Run) -> str:
    """Give a command, ready to paste, that runs just one run of this spec again."""
    return f"{describe_command(args)} --rerun {run.id}"


def repeat_command(args: Namespace) -> str:
    """Give the command of this launch, ready to paste."""
    words = [word for value in args.only for word in ("--only", value)]
    words += ["--retry", str(args.retry)] if args.retry else []
    words += ["--timeout", f"{args.timeout:.15g}s"] if args.timeout else []
    return shlex.join([*shlex.split(describe_command(args)), *words])


def describe_command(args: Namespace) -> str:
    """Give the command that launches this spec on these devices, without what concerns one launch alone."""
    words = ["-e", str(args.spec), "-g", args.gpus]
    words += ["-j", str(args.jobs)] if args.jobs else []
    words += ["--no-warm"] if args.no_warm else []
    words += ["--jobs-per-gpu", str(args.jobs_per_gpu)] if args.jobs_per_gpu else []
    words += ["--log-root", str(args.log_root)] if args.log_root != Path("logs") else []
    for override in args.overrides:
        words += ["-o", override]
    return runner_command(*words)


def runner_command(*words: str) -> str:
    """Give a command of the runner, ready to paste."""
    script = sys.argv[0] if Path(sys.argv[0]).name == RUNNER else RUNNER
    return shlex.join([_name_python(), script, *words])


def _name_python() -> str:
    """Give the Python that runs this, as seen from here: another one may lack the packages."""
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith("..") else near
