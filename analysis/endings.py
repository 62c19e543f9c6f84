"""The table of runs that are not done: what became of each, its last words, and the command that goes on with it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pandas as pd

from analysis.load import ExperimentData, is_done, show_state
from analysis.tables import DASH, Cell, Table, list_runs
from experiment.run import State

MANY_RUNS = 40
"""A longer table of runs folds away."""
_TAIL_BYTES = 16_384
_LAST_LINES = 3
_MAX_LINE = 240
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def tabulate_endings(data: ExperimentData) -> Table:
    """Give the planned runs that are not DONE, each with state, reason, last lines, log and command."""
    left = data.unique_runs[~is_done(data.unique_runs)]
    launch = data.command or guess_command(data.folder)
    rows = []
    records = []
    for row in left.to_dict("records"):
        log = data.run(row["id"]).console_path(row["attempt"])
        exists = row["attempt"] > 0 and log.exists()
        words = " / ".join(read_last_lines(log, _LAST_LINES if row["state"] == State.FAILED else 1)) if exists else ""
        path = show_path(log) if exists else ""
        command = give_command(State(row["state"]), launch, row["id"])
        rows.append(
            (
                Cell(row["label"]),
                Cell(show_state(row)),
                Cell(words or DASH),
                Cell(path or DASH, code=exists),
                Cell(command or DASH, code=bool(command)),
                list_runs([row["id"]]),
            )
        )
        records.append([row["id"], row["label"], row["state"], row["reason"], row["attempt"], words, path, command])
    columns = ["id", "label", "state", "reason", "attempt", "last_lines", "console", "command"]
    return Table(
        name="unfinished",
        title="Runs that are not done",
        columns=("Run", "State", "Last lines", "Log", "To go on", "Id"),
        rows=tuple(rows),
        frame=pd.DataFrame(records, columns=columns),
        folded=len(rows) > MANY_RUNS,
    )


def guess_command(folder: Path) -> str:
    """Give a command that launches an experiment whose events don't say how it was launched."""
    words = ["python", "run_experiment.py", "-e", show_path(folder / "spec.yaml"), "-g", "0"]
    root = show_path(folder.resolve().parent)
    return shlex.join(words if root == "logs" else [*words, "--log-root", root])


def give_command(state: State, launch: str, run_id: str) -> str:
    """Give the command that goes on with a run, ready to paste; nothing for one that is still running."""
    if state == State.FAILED:
        return f"{launch} --rerun {run_id}"
    return "" if state == State.RUNNING else launch


def show_path(path: Path) -> str:
    """Give a path as one would type it here: relative where it lies under the current folder."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  a link in the path stays as the user knows it
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def read_last_lines(log: Path, count: int) -> list[str]:
    """Give the last lines of a console log that say something, without colours, bars drawn over and control codes."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    cleaned = [_CONTROLS.sub("", _ESCAPES.sub("", line)).strip() for line in lines]
    return [line[:_MAX_LINE] for line in cleaned if line][-count:]


def tabulate_stale(data: ExperimentData) -> Table:
    """Give the runs on disk that the plan doesn't name. They enter no other table."""
    rows = [
        (Cell(row["label"]), Cell(row["state"]), Cell(row["folder"], code=True), list_runs([row["id"]]))
        for row in data.stale.to_dict("records")
    ]
    return Table(
        name="stale",
        title="Runs that the plan does not name",
        columns=("Run", "State", "Folder", "Id"),
        rows=tuple(rows),
        frame=data.stale,
        notes=("Left by an earlier form of the spec. They are kept on disk and enter no number above.",),
        folded=True,
    )
