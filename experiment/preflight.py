"""What only a process with the libraries can say before anything starts: environments that fit, parameters, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiment.devices import Device
from experiment.memory import show_bytes
from experiment.problems import Fault

TIMEOUT_S = 600


@dataclass(frozen=True)
class Footprint:
    """What a run takes at its peak, in bytes: of the computer's memory, and of a GPU's, None for one on the CPU."""

    host_bytes: int
    gpu_bytes: int | None

    def __str__(self) -> str:
        host = show_bytes(self.host_bytes)
        return host if self.gpu_bytes is None else f"{host} + {show_bytes(self.gpu_bytes)} GPU"


@dataclass(frozen=True)
class Answer:
    """What was found for one lot of settings.

    Attributes:
        faults: between settings and environment, or settings and memory.
        parameters: that learn, by component; None where they were not asked for.
        memory: that a run is predicted to take; None where it was not asked for.
    """

    faults: tuple[Fault, ...]
    parameters: Mapping[str, int] | None
    memory: Footprint | None


class PreflightError(RuntimeError):
    """The process that was to check the settings failed itself; the message has what it wrote."""


def shape_key(shape: Mapping[str, Any]) -> str:
    """Give a text that is the same for the same settings."""
    return json.dumps(shape, sort_keys=True)


def ask_preflight(
    script: str,
    kind: Literal["check", "count"],
    lots: Sequence[Mapping[str, Any]],
    devices: Sequence[Device] | None = None,
    held_bytes: int = 0,
) -> list[Answer]:
    """Ask one process about lots of settings: `check` looks at environments alone (no torch), `count` also counts.

    Args:
        script: our trainer's.
        kind: what is asked.
        lots: settings, each a valid config of its own.
        devices: that runs may be placed on; whether they fit there is asked too. None leaves that open.
        held_bytes: of the computer's memory that runs have which will have ended: it counts as free.

    Raises:
        PreflightError: the process failed.
    """
    if not lots:
        return []
    command = [sys.executable, script, "--preflight", kind]
    if devices is not None:
        # A run may be placed on any of them: what fits on none is refused.
        memory = max((device.gpu.memory_bytes for device in devices if device.gpu is not None), default=None)
        command += ["--placed-on", "cpu" if memory is None else str(memory), "--held", str(held_bytes)]
    try:
        answer = subprocess.run(
            command,
            input="".join(json.dumps(lot) + "\n" for lot in lots),
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
    if answer.returncode or len(lines) != len(lots):
        raise PreflightError(f"checking the settings failed:\n{answer.stderr.strip() or answer.stdout.strip()}")
    return [_read_answer(json.loads(line)) for line in lines]


def _read_answer(row: Mapping[str, Any]) -> Answer:
    faults = tuple(Fault(tuple(keys), text) for keys, text in row["faults"])
    memory = None if row.get("memory") is None else Footprint(**row["memory"])
    return Answer(faults, row.get("parameters"), memory)
