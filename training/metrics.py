"""The curve of a run: `metrics.jsonl` is the truth, TensorBoard a view of it, averages are kept on the device."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from experiment.files import to_json_number
from training.protocol import Episode

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter

EPISODE_WINDOW = 100
"""Episodes that rollout means are taken over, as in stable-baselines3."""

Row = dict[str, float | str]


class MetricsError(ValueError):
    """A `metrics.jsonl` that doesn't fit the checkpoint. The message names the file and what to do."""


class MetricsLog:
    """Rows of `metrics.jsonl`, each one line in one write, and the same numbers for TensorBoard.

    Its state is how much of the file a checkpoint has seen; loading that state cuts the file back to it, so that a
    curve never doubles back.

    Args:
        path: the file; made by the first row.
        tensorboard_dir: a folder for event files; None for no such view.
    """

    TRANSIENT: ClassVar = frozenset({"_path", "_view"})

    def __init__(self, path: Path, tensorboard_dir: Path | None = None) -> None:
        self._path = path
        self._view = None if tensorboard_dir is None else TensorBoardView(tensorboard_dir)
        self._bytes = 0
        self._rows = 0
        self._chain = ""

    def write(self, *, step: int, env_step: int, clock: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Append a row.

        Args:
            step: finished training steps.
            env_step: environment steps taken.
            clock: what TensorBoard has on its x axis.
            wall_time: seconds since training began, evaluations and saves included, summed over attempts.
            values: by name.

        Raises:
            OSError: the disk is full; no half row stays, and without a row there is no point for TensorBoard.
        """
        row: Row = {"step": step, "env_step": env_step, "wall_time": round(wall_time, 3)}
        row |= {name: to_json_number(value) for name, value in values.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._append(line)
        self._bytes, self._rows, self._chain = self._bytes + len(line), self._rows + 1, _link(self._chain, line)
        if self._view is not None:
            self._view.write(clock, values)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(descriptor, self._bytes)
            raise OSError(error.errno, f"{self._path}: a row could not be written ({error.strerror})") from error
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Make the rows so far last through a loss of power; a checkpoint is only written after this."""
        if self._rows:
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._view is not None:
            self._view.close()

    def state_dict(self) -> dict[str, Any]:
        """Give how many bytes and rows there are, and a hash chained over them."""
        return {"bytes": self._bytes, "rows": self._rows, "chain": self._chain}

    def load_state_dict(self, state: Mapping[str, Any], clock: int = 0) -> int:
        """Cut the file back to what a checkpoint has seen, and give how many rows went.

        Args:
            state: what `state_dict` gave.
            clock: where the curve goes on; TensorBoard forgets what it has after it.

        Raises:
            MetricsError: the file is shorter than the checkpoint knows it, or was changed.
        """
        self._bytes, self._rows, self._chain = state["bytes"], state["rows"], state["chain"]
        dropped = self._cut()
        if self._view is not None:
            self._view.forget_after(clock)
        return dropped

    def start_over(self) -> int:
        """Cut the file back to nothing, where no checkpoint has seen any of it, and give how many rows went."""
        return self.load_state_dict({"bytes": 0, "rows": 0, "chain": ""}, clock=-1)

    def _cut(self) -> int:
        _, dropped = divide_rows(self._path, self.state_dict())
        if dropped:
            os.truncate(self._path, self._bytes)
        return len(dropped.splitlines())


def divide_rows(path: Path, state: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Give what a checkpoint has seen of a `metrics.jsonl`, and what came after it.

    Args:
        path: the file; one that isn't there is empty.
        state: what `MetricsLog.state_dict` gave then.

    Raises:
        MetricsError: the file is shorter than the checkpoint knows it, or was changed.
    """
    content = path.read_bytes() if path.exists() else b""
    kept, dropped = content[: state["bytes"]], content[state["bytes"] :]
    chain = ""
    for line in kept.splitlines(keepends=True):
        chain = _link(chain, line)
    if len(kept) < state["bytes"] or chain != state["chain"]:
        raise MetricsError(
            f"{path} isn't what the checkpoint saw ({state['rows']} rows in {state['bytes']:,} bytes): rows are "
            "missing or were changed; put the file back, or train from the start with continue_training: false"
        )
    return kept, dropped


def _link(chain: str, line: bytes) -> str:
    return hashlib.blake2b(chain.encode() + line, digest_size=16).hexdigest()


class TensorBoardView:
    """Scalars for TensorBoard, each point in its file at once.

    TensorBoard's own writer of files has a thread that prints its errors whenever it likes, and torch's takes 1.4 s to
    import; so only the format of records is theirs, imported with the first point.
    """

    TRANSIENT: ClassVar = frozenset({"_folder", "_writer", "_purge_from"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: RecordWriter | None = None
        self._purge_from: int | None = None

    def forget_after(self, clock: int) -> None:
        """Have TensorBoard drop what earlier files say about later than `clock`."""
        self.close()
        self._purge_from = clock + 1

    def write(self, clock: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name.

        Raises:
            OSError: the disk is full.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        try:
            writer = self._writer or self._open()
            _add_event(writer, step=clock, summary=Summary(value=scalars))
            writer.flush()
        except OSError as error:
            message = f"{self._folder}: a point could not be written for TensorBoard ({error.strerror})"
            raise OSError(error.errno, message) from error

    def _open(self) -> RecordWriter:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        path = self._folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = writer = RecordWriter(path.open("xb"))
        _add_event(writer, file_version="brain.Event:2")
        if self._purge_from is not None:
            _add_event(writer, step=self._purge_from, session_log=SessionLog(status=SessionLog.START))
        return writer

    def close(self) -> None:
        """Finish the file; a later `write` begins another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            # What can't be written here is a view; an error from it would hide the one that ended the run.
            with contextlib.suppress(OSError):
                writer.close()


def _add_event(writer: RecordWriter, **content: Any) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    writer.write(Event(wall_time=time.time(), **content).SerializeToString())


class Averages:
    """Means of named numbers since the last row. Tensors are summed where they are; only `take` waits for a device."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._numbers: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, torch.Tensor | float]) -> None:
        """Add the numbers of one step; a name may be missing in some steps. Tensors have one element."""
        for name, value in metrics.items():
            self._counts[name] = self._counts.get(name, 0) + 1
            if isinstance(value, torch.Tensor):
                self._add_tensor(name, value)
            else:
                self._numbers[name] = self._numbers.get(name, 0.0) + value

    def _add_tensor(self, name: str, value: torch.Tensor) -> None:
        total = self._tensors.get(name)
        if total is None:
            self._tensors[name] = value.detach().reshape(()).to(torch.float64, copy=True)
        elif total.device == value.device:
            total.add_(value.detach().reshape(()))
        else:  # after a resume sums are on the CPU
            self._tensors[name] = total.to(value.device).add_(value.detach().reshape(()))

    def take(self) -> dict[str, float]:
        """Give the means and begin anew."""
        sums = dict(self._numbers)
        for device in {total.device for total in self._tensors.values()}:
            here = {name: total for name, total in self._tensors.items() if total.device == device}
            for name, value in zip(here, torch.stack(list(here.values())).tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
        means = {name: sums[name] / count for name, count in self._counts.items()}
        self._tensors, self._numbers, self._counts = {}, {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Give sums and counts."""
        return {"tensors": dict(self._tensors), "numbers": dict(self._numbers), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._tensors, self._numbers = dict(state["tensors"]), dict(state["numbers"])
        self._counts = dict(state["counts"])


class RecentEpisodes:
    """The last `EPISODE_WINDOW` training episodes."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self._returns: deque[float] = deque(maxlen=EPISODE_WINDOW)
        self._lengths: deque[int] = deque(maxlen=EPISODE_WINDOW)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Add finished episodes."""
        for episode in episodes:
            self._returns.append(episode.episode_return)
            self._lengths.append(episode.length)

    def means(self) -> dict[str, float]:
        """Give return, length, and return per step over the recent episodes; nothing before the first one ended."""
        if not self._returns:
            return {}
        total, steps = math.fsum(self._returns), sum(self._lengths)
        return {
            "rollout/ep_rew_mean": total / len(self._returns),
            "rollout/ep_len_mean": steps / len(self._lengths),
            "rollout/return_per_step": total / steps,
        }

    def state_dict(self) -> dict[str, Any]:
        """Give returns and lengths, oldest first."""
        return {"returns": list(self._returns), "lengths": list(self._lengths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._returns = deque(state["returns"], EPISODE_WINDOW)
        self._lengths = deque(state["lengths"], EPISODE_WINDOW)
