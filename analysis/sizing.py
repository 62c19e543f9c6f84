"""What the reports of an agent's parameters and memory share: whose there are, measurements, writing."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis.ladder_peak import ONE_THREAD
from analysis.markdown import escape, render_table
from analysis.tables import Table
from experiment.files import write_atomically
from experiment.problems import suggest

MEASURED = {"vmamba_td3": "rl.vmamba_td3.measure"}
"""Agents whose updates can be measured, each with the program that does it."""
STATE_DIM, ACTION_DIM = 10, 3
"""Numbers of a state and of an action that sizes are for: those of the documents' drone."""
PATIENCE_S = 1_800


@dataclass(frozen=True)
class Measurement:
    """What a process measured, both None where it couldn't; then `reason` says why."""

    ms_per_update: float | None = None
    peak_bytes: int | None = None
    reason: str = ""


def measure(algorithm: str, settings: Mapping[str, Any], frame: tuple[int, int], device: str = "cpu") -> Measurement:
    """Have a process of its own do a few updates on one thread."""
    request = {
        "settings": dict(settings),
        "frame_shape": [1, *frame],
        "state_dim": STATE_DIM,
        "action_dim": ACTION_DIM,
        "privileged_dim": 0,
        "device": device,
    }
    command = [sys.executable, "-m", MEASURED[algorithm]]
    try:
        answer = subprocess.run(
            command,
            input=json.dumps(request),
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Measurement(reason=f"not done after {PATIENCE_S} s")
    if answer.returncode:
        last = (answer.stderr.strip() or "nothing was said").splitlines()[-1]
        return Measurement(reason=f"exit code {answer.returncode}: {last}")
    found = json.loads(answer.stdout.splitlines()[-1])
    return Measurement(found["ms_per_update"], found["peak_bytes"])


def read_algorithm(text: str, known: Collection[str]) -> str:
    """Give the name of an agent whose sizes are known, for a command line."""
    if text not in known:
        names = ", ".join(known)
        raise argparse.ArgumentTypeError(f"no sizes are known of {text!r}{suggest(text, known)}; known: {names}")
    return text


def make_parser(program: str, description: str, known: Collection[str] = tuple(MEASURED)) -> argparse.ArgumentParser:
    """Give a parser with what both commands take.

    Args:
        program: the module that is run.
        description: what it does.
        known: agents that it knows.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description, allow_abbrev=False)
    read = partial(read_algorithm, known=known)
    parser.add_argument("--algorithm", type=read, required=True, help=", ".join(known))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file too")
    parser.add_argument(
        "--frame",
        type=read_size,
        nargs=2,
        default=(64, 64),
        metavar=("HEIGHT", "WIDTH"),
        help="pixels (default: 64 64)",
    )
    return parser


def read_size(text: str) -> int:
    """Give a whole number from 1 on, for a command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def write_tables(tables: Sequence[Table], algorithm: str, file: Path | None) -> int:
    """Print tables as Markdown, and write their numbers as JSON where that is wanted. Gives the exit code."""
    sys.stdout.write("\n".join(_render(table) for table in tables))
    if file is None:
        return 0
    content = {"algorithm": algorithm} | {
        table.name: json.loads(table.frame.to_json(orient="records")) for table in tables
    }
    try:
        write_atomically(file, [(json.dumps(content, indent=1) + "\n").encode()])
    except OSError as error:
        sys.stderr.write(f"{file} was not written: {error.strerror}\n")
        return 1
    return 0


def _render(table: Table) -> str:
    lines = [f"## {escape(table.title)}", "", render_table(table), ""]
    lines += [line for note in table.notes for line in (escape(note), "")]
    return "\n".join(lines)
