"""Append-only files for `RowLog`s: each save writes the rows that are new, each load puts the ring together again.

A segment is the raw bytes of consecutive rows, named for its first row and its content, so that two lives of a run
(one that went on, one resumed from an older checkpoint) never write different data under one name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from experiment.files import write_atomically
from training.rowlog import RowLog
from training.state import check_dtype

MAX_SEGMENTS = 64
"""Files that a ring may be spread over; with thousands to name, each save would be slower than the one before."""

_CHUNK_BYTES = 1 << 23


class SegmentError(ValueError):
    """A segment that is missing, cut short or changed. The message names it."""


@dataclass(frozen=True)
class Segment:
    """One file of consecutive rows; `first` counts from the first row ever added."""

    file: str
    first: int
    rows: int
    sha256: str

    @property
    def end(self) -> int:
        """The number of the row after the last one."""
        return self.first + self.rows


@dataclass(frozen=True)
class StoredLog:
    """Where the rows of one `RowLog` are on disk, as a manifest tells it."""

    dtype: str
    shape: tuple[int, ...]
    total: int
    segments: tuple[Segment, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Take what a manifest holds.

        Raises:
            ValueError: a segment isn't in the folder for segments.
        """
        segments = tuple(Segment(**segment) for segment in value["segments"])
        if any(Path(segment.file).name != segment.file for segment in segments):
            raise ValueError("a segment's name leads out of its folder")
        return cls(value["dtype"], tuple(value["shape"]), value["total"], segments)


def write_segments(folder: Path, log: RowLog, before: StoredLog | None, place: str) -> StoredLog:
    """Write the rows added since `before` and give what to store.

    Only files in `before` that still have rows of the ring are named again. A ring of another size, or one that counts
    fewer rows than `before`, is written whole; so is one that would be in more than `MAX_SEGMENTS` files.

    Raises:
        TypeError: the rows aren't plain numbers; `place` names them.
        OSError: the disk is full; nothing of the new segment is left.
    """
    check_dtype(log.rows.dtype, place)
    dtype, shape = log.rows.dtype.str, log.rows.shape
    goes_on = before is not None and (before.dtype, before.shape) == (dtype, shape) and before.total <= log.total
    old = before.segments if before is not None and goes_on else ()
    kept = tuple(segment for segment in old if segment.end > log.first)
    start = kept[-1].end if kept else log.first
    if start < log.total and len(kept) >= MAX_SEGMENTS:
        kept, start = (), log.first
    new = (_write_segment(folder, log, start),) if start < log.total else ()
    return StoredLog(dtype, shape, log.total, kept + new)


def _write_segment(folder: Path, log: RowLog, first: int) -> Segment:
    digest = hashlib.sha256()
    for piece in _row_pieces(log, first):
        digest.update(piece)
    sha256 = digest.hexdigest()
    file = f"{first:012d}_{sha256[:32]}.rows"
    write_atomically(folder / file, _row_pieces(log, first))
    return Segment(file, first, log.total - first, sha256)


def _row_pieces(log: RowLog, first: int) -> Iterator[bytes]:
    """Give the bytes of the rows from `first` to the newest, in pieces of a few megabytes, oldest first."""
    row_bytes = max(1, log.rows.nbytes // max(1, log.capacity))
    step = max(1, _CHUNK_BYTES // row_bytes)
    while first < log.total:
        slot = first % log.capacity
        count = min(step, log.total - first, log.capacity - slot)
        yield log.rows[slot : slot + count].tobytes()
        first += count


def read_row_log(folder: Path, stored: StoredLog) -> RowLog:
    """Put the ring together from its segments: each row at its place, zeros where none was ever added.

    Raises:
        SegmentError: a segment is missing or isn't what was written.
    """
    log = empty_row_log(stored, stored.total)
    expected = log.first
    for segment in stored.segments:
        if segment.first > expected or segment.end > stored.total:
            raise SegmentError(f"{folder.name}/{segment.file} leaves a gap before row {segment.first}")
        _place_rows(log, _read_segment(folder, segment, stored), segment.first)
        expected = max(expected, segment.end)
    if expected != stored.total:
        raise SegmentError(f"the rows from {expected} to {stored.total} are in no segment of {folder.name}/")
    return log


def empty_row_log(stored: StoredLog, total: int = 0) -> RowLog:
    """Give a ring of the stored size with zeros in it."""
    return RowLog(np.zeros(stored.shape, dtype=np.dtype(stored.dtype)), total)


def _read_segment(folder: Path, segment: Segment, stored: StoredLog) -> NDArray[Any]:
    try:
        data = (folder / segment.file).read_bytes()
    except FileNotFoundError:
        raise SegmentError(f"{folder.name}/{segment.file} is missing") from None
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise SegmentError(f"{folder.name}/{segment.file} isn't what was written (its SHA-256 differs)")
    return np.frombuffer(data, dtype=np.dtype(stored.dtype)).reshape((segment.rows, *stored.shape[1:]))


def _place_rows(log: RowLog, rows: NDArray[Any], first: int) -> None:
    """Copy rows into the ring, those before its window left out."""
    skipped = max(0, log.first - first)
    rows, first = rows[skipped:], first + skipped
    slot = first % log.capacity
    until_end = min(len(rows), log.capacity - slot)
    log.rows[slot : slot + until_end] = rows[:until_end]
    log.rows[: len(rows) - until_end] = rows[until_end:]


def delete_other_segments(folder: Path, needed: Sequence[StoredLog]) -> None:
    """Delete every segment that none of these logs needs."""
    names = {segment.file for log in needed for segment in log.segments}
    for file in folder.glob("*.rows"):
        if file.name not in names:
            file.unlink(missing_ok=True)
