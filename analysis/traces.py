"""What `play.py trace` keeps of a policy at work: one file of arrays, which opening never runs code from."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from experiment.files import write_atomically

FORMAT = "gridpilot-trace/1"
LEVELS = 255
"""What the largest depth is kept as."""


class TraceError(ValueError):
    """A file that is no trace, or one that can't be analysed so. The message names it and says what to do."""


@dataclass(frozen=True)
class Trace:
    """Episodes of a policy without noise, all their steps one after the other.

    Attributes:
        header: whose they are, as plain JSON: `policy`, `name`, `env_name`, `env_kwargs`, `base_names`, `slides` (every
            window is the one before it, moved by a frame), `episodes` (`seed`, `return`, `length` and measures each).
        attention: (steps, heads, window), the oldest frame first; each head's weights sum to 1.
        visual: (steps, feature_dim), what the newest frame became, in the actor's stream as all of these.
        state: (steps, state_feature_dim), what the newest state became.
        context: (steps, hidden_dim), what the window became.
        values: (steps, critics), of the action; of no critic where they see more than who acts.
        action: (steps, action_dim), in the environment's units.
        reward: (steps,), that followed.
        base: (steps, base_dim), the newest state.
        depth: (steps, height, width), the newest frame; `LEVELS` is the largest depth.
    """

    header: Mapping[str, Any]
    attention: NDArray[np.float32]
    visual: NDArray[np.float32]
    state: NDArray[np.float32]
    context: NDArray[np.float32]
    values: NDArray[np.float32]
    action: NDArray[np.floating]
    reward: NDArray[np.float64]
    base: NDArray[np.float32]
    depth: NDArray[np.uint8]

    RANKS: ClassVar[Mapping[str, int]] = {"attention": 3, "reward": 1, "depth": 3}
    """Numbers of axes, where they aren't 2."""

    @property
    def lengths(self) -> list[int]:
        return [int(episode["length"]) for episode in self.header["episodes"]]

    @property
    def window(self) -> int:
        """Frames that a step looks at."""
        return int(self.attention.shape[2])

    @property
    def name(self) -> str:
        """Whose trace it is, for titles."""
        return f"{self.header['name']}, {self.header['env_name']}"

    def list_episodes(self) -> list[slice]:
        """Give each episode's steps."""
        ends = np.cumsum(self.lengths).tolist()
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]

    def count_steps(self) -> NDArray[np.int64]:
        """Give each step's number in its episode, (steps,), from 0."""
        return np.concatenate([np.arange(length) for length in self.lengths])


def list_arrays() -> list[str]:
    """Give the names of a trace's arrays."""
    return [field.name for field in fields(Trace) if field.name != "header"]


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace; the file gets its name when it is whole."""
    arrays = {name: getattr(trace, name) for name in list_arrays()}
    header = json.dumps({"format": FORMAT, **trace.header}, allow_nan=False)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, header=np.array(header), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [content.getvalue()])


def read_trace(path: Path) -> Trace:
    """Read what `write_trace` wrote, checked.

    Raises:
        TraceError: it is something else, or damaged.
        OSError: it can't be read.
    """
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise TraceError(f"{path}: this is not what `play.py trace` writes ({FORMAT})")
            trace = Trace(header, **{name: file[name] for name in list_arrays()})
    except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: this is not what `play.py trace` writes, or is damaged: {error}") from error
    check_trace(path, trace)
    return trace


def check_trace(path: Path, trace: Trace) -> None:
    """Raise `TraceError` where arrays and header don't go together, or a number isn't finite."""
    steps = sum(trace.lengths)
    for name in list_arrays():
        array, rank = getattr(trace, name), Trace.RANKS.get(name, 2)
        if array.ndim != rank or len(array) != steps or steps == 0:
            raise TraceError(
                f"{path}: {name} has shape {array.shape}, and there are {steps} steps; trace the run again"
            )
        if not np.isfinite(array).all():
            raise TraceError(
                f"{path}: {name} has numbers that aren't finite: the policy is broken, or its observations"
            )
