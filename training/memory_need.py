"""How much memory a run takes at its peak, by arithmetic, and what to lower where it doesn't fit. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from experiment.memory import MemoryRoom, show_bytes
from experiment.problems import Fault

FLOAT = 4
PROGRAM = 40 * 2**20
"""What a process takes beside its libraries and its tensors: TensorBoard, environments, pools of threads, a heap."""
COPIES = 5
"""Numbers that are kept for each one that learns: itself, its gradient, two moments of Adam, and a slow copy."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a run takes at its peak beside what loading its libraries took, in bytes.

    Attributes:
        on_gpu: whether networks, updates and what is laid beside them are in a GPU's memory.
        networks: all that is kept for each number that learns.
        checkpoint: what writing one takes, of the computer's memory.
        update: a batch, and what comes and goes while it is learned from.
        recorded: a data set that lies where the networks are.
        replay: what is remembered, when full; in the computer's memory wherever the networks are.
        mapped: of a file that is read as it is used. It counts in what a process has, but the kernel drops such pages
            when memory is short, so that it stands in no run's way.
        program: of the computer's memory, wherever the networks are.
    """

    on_gpu: bool
    networks: int = 0
    checkpoint: int = 0
    update: int = 0
    recorded: int = 0
    replay: int = 0
    mapped: int = 0
    program: int = PROGRAM

    @property
    def device_bytes(self) -> int:
        """What lies where the networks are, without the program."""
        return self.networks + self.update + self.recorded

    @property
    def host_bytes(self) -> int:
        """What is taken of the computer's memory."""
        return self.held_bytes + self.mapped

    @property
    def held_bytes(self) -> int:
        """What there has to be of the computer's memory."""
        return self.program + self.replay + self.checkpoint + (0 if self.on_gpu else self.device_bytes)

    @property
    def gpu_bytes(self) -> int | None:
        """What is taken of a GPU's memory; None for a run that trains on the CPU."""
        return self.device_bytes if self.on_gpu else None


def need_networks(parameters: Mapping[str, int], *, on_gpu: bool, copies: int = COPIES) -> MemoryNeed:
    """Give what numbers that learn take.

    Args:
        parameters: their numbers by component.
        on_gpu: whether they are in a GPU's memory; a checkpoint takes them to the computer's first.
        copies: of each.
    """
    weights = FLOAT * sum(parameters.values())
    return MemoryNeed(on_gpu, networks=copies * weights, checkpoint=(copies - 1) * weights * (2 if on_gpu else 1))


def find_shortage(need: MemoryNeed, room: MemoryRoom, keys: Mapping[str, tuple[str, ...]]) -> list[Fault]:
    """Name what doesn't fit, at the key that decides most of it.

    Args:
        need: of the run.
        room: where it is placed.
        keys: the settings that decide a part of the need, by the part's name; a part without any can't be lowered.
    """
    if need.gpu_bytes is not None and room.gpu_bytes is not None and need.gpu_bytes > room.gpu_bytes:
        parts: tuple[str, ...] = ("networks", "update", "recorded")
        return [_refuse(need, parts, need.gpu_bytes, f"the GPU has {show_bytes(room.gpu_bytes)}", keys)]
    if need.held_bytes > room.host_bytes:
        parts = ("checkpoint", "replay")
        parts += () if need.on_gpu else ("networks", "update", "recorded")
        there = f"{show_bytes(room.host_bytes)} of memory are free"
        return [_refuse(need, parts, need.held_bytes, there, keys)]
    return []


def _refuse(
    need: MemoryNeed, parts: tuple[str, ...], needed: int, there: str, keys: Mapping[str, tuple[str, ...]]
) -> Fault:
    sizes = {field.name: getattr(need, field.name) for field in fields(need) if field.name in parts}
    largest = max((part for part in sizes if part in keys), key=lambda part: sizes[part], default=None)
    listed = ", ".join(f"{part} {show_bytes(size)}" for part, size in sizes.items() if size)
    message = f"training is estimated to take {show_bytes(needed)} ({listed}), and {there}"
    if largest is None:
        return Fault(("env_name",), f"env_name: {message}")
    return Fault(keys[largest], f"{keys[largest][0]}: {message}; choose a smaller {' or '.join(keys[largest])}")
