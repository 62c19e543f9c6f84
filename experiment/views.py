"""Looking at an experiment from another terminal: `status`, `logs`, `stop`. All of it is read from files and locks."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.engines.local import last_line
from experiment.files import append_event, now_text, read_events, write_json
from experiment.locks import is_locked
from experiment.parents import find_parent_id
from experiment.progress import describe, read_progress
from experiment.run import Run, RunStatus, State, find_runs
from experiment.runners import list_runners, read_plans, say_runners

LOG_LINES = 200
STOP_NAME = "stop.json"
_ID = re.compile(r'\{"id": "([0-9a-f]+)"')


class ViewError(ValueError):
    """There is nothing to look at where the user pointed; the message says what to do."""


@dataclass(frozen=True)
class Line:
    """One row of `status`."""

    run: Run
    status: RunStatus
    planned: bool
    total: int | None
    parent: str | None = None
    """The id of the run that it begins from."""


def read_plan(experiment_dir: Path, wanted: str = "") -> Iterator[dict[str, Any]]:
    """Give the rows of an experiment's plan whose ids begin so: one a combination, then what else runners at work have.

    Raises:
        ViewError: nothing was ever launched there, or a row is cut short.
    """
    seen: set[str] = set()
    for row in _read_last_plan(experiment_dir, wanted):
        seen.add(row["id"])
        yield row
    # What a runner at work was launched with is planned too, whatever was launched after it.
    for text in read_plans(experiment_dir):
        run_id = _ID.match(text)
        if run_id is None or run_id[1] in seen or not run_id[1].startswith(wanted):
            continue
        seen.add(run_id[1])
        yield json.loads(text)


def _read_last_plan(experiment_dir: Path, wanted: str) -> Iterator[dict[str, Any]]:
    plan = experiment_dir / "plan.jsonl"
    if not plan.exists():
        raise ViewError(
            f"{experiment_dir} holds no experiment: it has no plan.jsonl; run_experiment.py -e SPEC makes one"
        )
    with plan.open(encoding="utf-8") as rows:
        for number, text in enumerate(rows, 1):
            # Before it is parsed: a plan may have a hundred thousand rows, and one of them is looked for.
            if f'"id": "{wanted}' not in text and text.startswith('{"id": "'):
                continue
            try:
                row: dict[str, Any] = json.loads(text)
            except ValueError:
                raise ViewError(
                    f"{plan}:{number}: this line is cut short; launching the spec again rewrites it"
                ) from None
            if row["id"].startswith(wanted):
                yield row


def list_lines(experiment_dir: Path) -> Iterator[Line]:
    """Give each planned run with its status now, then the runs that the plan has left behind.

    Raises:
        ViewError: nothing was ever launched there.
    """
    folders = {run.id: run for run in find_runs(experiment_dir)}
    seen: set[str] = set()
    for row in read_plan(experiment_dir):
        if row["id"] in seen:
            continue
        seen.add(row["id"])
        run = folders.get(row["id"]) or Run.create_path(experiment_dir, row["label"], row["id"])
        yield Line(run, run.status(), True, row["settings"].get("max_timesteps"), find_parent_id(row["settings"]))
    for run_id, run in folders.items():
        if run_id not in seen:
            yield Line(run, run.status(), False, None)


def print_status(experiment_dir: Path, as_json: bool) -> None:
    """Print a line a run (or a JSON object a line), and for people how many are in which state."""
    counts: Counter[str] = Counter()
    for line in list_lines(experiment_dir):
        counts[line.status.state] += line.planned
        if as_json:
            print(json.dumps(_as_object(line)))
            continue
        step, speed, episode_return, left = describe(read_progress(line.run), line.total)
        state = str(line.status) if line.planned else f"{line.status}, not in the plan"
        parent = "" if line.parent is None else f"  (from {line.parent})"
        running = f"  {speed} steps/s, {left} left" if line.status.state is State.RUNNING else ""
        print(f"{line.run.id}  {state:<16}  step {step}, return {episode_return}{running}  {line.run.label}{parent}")
        if line.status.state is State.FAILED:
            print(f"{'':18}{last_line(line.run.console_path(line.status.attempt))}")
    if not as_json:
        print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
        for text in say_runners(list_runners(experiment_dir)) or [_say_nobody(experiment_dir)]:
            print(text)


def _say_nobody(experiment_dir: Path) -> str:
    """Say that no runner is at work, and how the last one that lived to say so has left."""
    events = read_events(experiment_dir / "events.jsonl")
    left = next((event for event in reversed(events) if event["event"] == "left"), None)
    if left is None:
        return "no runner is at work"
    return f"no runner is at work; one left at {left['time']} with exit code {left.get('exit_code')}"


def _as_object(line: Line) -> dict[str, object]:
    progress = read_progress(line.run)
    return {
        "id": line.run.id,
        "label": line.run.label,
        "status": line.status.state,
        "reason": line.status.reason,
        "attempt": line.status.attempt,
        "planned": line.planned,
        "step": progress.step,
        "steps_per_s": progress.speed,
        "return": progress.episode_return,
        "from": line.parent,
    }


def find_run(run_id: str, folders: list[Path]) -> Run:
    """Give the run whose id begins so, started or only planned.

    Raises:
        ViewError: none does, or several do.
    """
    found = [run for folder in folders for run in _find_beginning(run_id, folder)]
    if len(found) == 1 and run_id:
        return found[0]
    if len({run.id for run in found}) == 1:
        there = ", ".join(str(run.experiment_dir) for run in found)
        raise ViewError(f"{run_id!r} is in several experiments; choose one by -e: {there}")
    places = ", ".join(str(folder) for folder in folders) or "no experiment at all"
    if not found or not run_id:
        raise ViewError(f"no run has the id {run_id!r} in {places}; `status` lists them")
    raise ViewError(f"{run_id!r} begins {len(found)} ids: {', '.join(run.id for run in found[:5])}; give more of it")


def _find_beginning(run_id: str, experiment_dir: Path) -> list[Run]:
    started = [run for run in find_runs(experiment_dir) if run.id.startswith(run_id)]
    planned = {row["id"]: row["label"] for row in read_plan(experiment_dir, run_id)}
    labels = {own_id: label for own_id, label in planned.items() if own_id not in {run.id for run in started}}
    return started + [Run.create_path(experiment_dir, label, own_id) for own_id, label in labels.items()]


def print_logs(run: Run) -> None:
    """Print where a run's last log is, and the end of it.

    Raises:
        ViewError: the run was never started.
    """
    attempt = run.last_attempt()
    if attempt == 0:
        raise ViewError(f"{run.label} ({run.id}) was never started")
    path = run.console_path(attempt)
    print(f"{run.label}: {run.status()}, attempt {attempt}: {path}")
    if not path.exists():
        print("(it wrote to the terminal it was started from)")
        return
    lines = path.read_text(errors="replace").splitlines()
    if len(lines) > LOG_LINES:
        print(f"... {len(lines) - LOG_LINES} lines before these")
    print("\n".join(lines[-LOG_LINES:]))


def request_stop(experiment_dir: Path, patience_s: float = 90.0) -> int:
    """Ask every runner of an experiment to stop, wait until its runs have checkpointed, and give how many still run.

    Raises:
        ViewError: nothing was ever launched there.
    """
    running = [line.run for line in list_lines(experiment_dir) if line.status.state is State.RUNNING]
    write_json(experiment_dir / STOP_NAME, {"asked": now_text(), "request": secrets.token_hex(8)})
    append_event(experiment_dir / "events.jsonl", "stop requested")
    print(f"asked to stop; {len(running)} running")
    deadline = time.monotonic() + patience_s
    while running and time.monotonic() < deadline:
        time.sleep(0.1)
        for run in [run for run in running if not is_locked(run.lock_path)]:
            running.remove(run)
            print(f"{run.status()}  {run.label}")
    return len(running)
