"""What comes when a launch has ended: the report, and `on_finish`, a command of the user's."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiment.files import append_event
from experiment.metadata import OUR_TRAINER
from experiment.outcomes import SweepResult
from experiment.run import State
from experiment.streams import warn

TIME_LIMIT_S = 600.0


def describe_result(experiment_dir: Path, result: SweepResult, runs: int) -> dict[str, str]:
    """Give the variables by which the command learns what became of a launch of so many runs."""
    states = [outcome.state for outcome in result.outcomes]
    done, failed = states.count(State.DONE), states.count(State.FAILED)
    return {
        "GRIDPILOT_EXIT_CODE": str(result.exit_code),
        "GRIDPILOT_EXP_DIR": str(experiment_dir.absolute()),
        "GRIDPILOT_EXP_NAME": experiment_dir.name,
        "GRIDPILOT_DONE": str(done),
        "GRIDPILOT_FAILED": str(failed),
        "GRIDPILOT_LEFT": str(runs - done - failed),
    }


def note_missing(command: Sequence[str]) -> list[str]:
    """Give a sentence where the command's program is not there, so that it is known before the runs have taken days."""
    if not command or shutil.which(command[0]):
        return []
    return [f"on_finish: there is no program {command[0]!r} here now; it is looked for again at the end"]


def run_on_finish(
    command: Sequence[str],
    variables: dict[str, str],
    experiment_dir: Path,
    limit_s: float = TIME_LIMIT_S,
) -> None:
    """Run the command to its end, or kill it with all that it started when its time is up; nothing it does is an error.

    Args:
        command: program and arguments; no shell reads them.
        variables: beside those of this process.
        experiment_dir: whose `events.jsonl` gets the command's exit code.
        limit_s: the longest that it may take, in seconds.
    """
    shown = shlex.join(command)
    returncode, fault = _run(command, os.environ | variables, limit_s)
    if fault:
        warn(f"on_finish: {shown} {fault}")
    events = experiment_dir / "events.jsonl"
    try:
        append_event(events, "on_finish", command=shown, returncode=returncode, fault=fault)
    except OSError as error:
        warn(f"{events} can't be written ({error.strerror})")


def _run(command: Sequence[str], environment: dict[str, str], limit_s: float) -> tuple[int | None, str | None]:
    """Give the exit code, None where there is none, and what went wrong, None for nothing."""
    try:
        # A session of its own, so that all that it starts can be ended with it.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
    except (OSError, ValueError) as error:
        return None, f"can't be started: {error}"
    try:
        returncode = process.wait(limit_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        why = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else f"its time, {limit_s:g} s, was up"
        return None, f"was killed: {why}"
    return returncode, f"ended with {returncode}" if returncode else None


def write_report(experiment_dir: Path) -> None:
    """Let `analysis` write the report, in a process of its own since it needs pandas."""
    # matplotlib keeps a list of fonts; without this it would write it into the home folder.
    environment = {"MPLCONFIGDIR": str(Path(".cache/matplotlib").absolute())} | os.environ
    # The report of this code, not of what is installed or of an `analysis` that happens to be where this was typed.
    paths = [str(OUR_TRAINER.parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-P", "-m", "analysis.report", str(experiment_dir)]
    again = f"once more: python -m analysis.report {experiment_dir}"
    try:
        answer = subprocess.run(command, env=environment, check=False)
    except KeyboardInterrupt:
        warn(f"the report was interrupted; {again}")
        return
    if answer.returncode:
        warn(f"the report failed; {again}")
