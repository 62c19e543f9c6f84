"""How launches are timed, ours and those of others: the sizes of the sweep, its cores, and its truth log.

Every run appends to the log `moment WORD which`: START first of all, STEP after its imports, END when it is done.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

RUNS, SLOTS, WORK_S = 24, 2, 0.2


def keep_to_slots() -> None:
    """Take a core for each slot, so that a run has one thread here on whatever machine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:SLOTS])


def measure_gap(folder: Path, word: str) -> float:
    """Give the median from a run's END to the next run's word in its place, in milliseconds."""
    times: dict[str, list[float]] = {"START": [], "STEP": [], "END": []}
    for line in sorted((folder / "truth.log").read_text().splitlines()):
        moment, written, _ = line.split(maxsplit=2)
        times[written].append(float(moment))
    gaps = [begun - ended for begun, ended in zip(times[word][SLOTS:], times["END"], strict=False)]
    return 1000 * statistics.median(gaps)
