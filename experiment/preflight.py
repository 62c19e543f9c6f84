"""What only a process with the libraries can say before anything starts: environments that fit, parameters counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiment.problems import Fault

TIMEOUT_S = 600


@dataclass(frozen=True)
class Answer:
    """What was found for one shape: faults between settings and environment, or learnable parameters by component."""

    faults: tuple[Fault, ...]
    parameters: Mapping[str, int] | None


class PreflightError(RuntimeError):
    """The process that was to check the settings failed itself; the message has what it wrote."""


def shape_key(shape: Mapping[str, Any]) -> str:
    """Give a text that is the same for settings of the same shape."""
    return json.dumps(shape, sort_keys=True)


def ask_preflight(script: str, kind: Literal["check", "count"], shapes: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Ask one process about all shapes: `check` looks at environments alone (no torch), `count` also counts.

    Raises:
        PreflightError: the process failed.
    """
    if not shapes:
        return []
    try:
        answer = subprocess.run(
            [sys.executable, script, "--preflight", kind],
            input="".join(json.dumps(shape) + "\n" for shape in shapes),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PreflightError(
            f"checking the settings took over {TIMEOUT_S} s: does making the environment hang?"
        ) from None
    lines = [line for line in answer.stdout.splitlines() if line.startswith('{"faults"')]
    if answer.returncode or len(lines) != len(shapes):
        raise PreflightError(f"checking the settings failed:\n{answer.stderr.strip() or answer.stdout.strip()}")
    rows = [json.loads(line) for line in lines]
    return [Answer(tuple(Fault((key,), text) for key, text in row["faults"]), row.get("parameters")) for row in rows]
