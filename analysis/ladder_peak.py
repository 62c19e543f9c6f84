"""The GEMM peak of one thread of this machine: what the matrix products of an update could reach at best.

As a program it measures and prints the peak; it is started in a process of its own because BLAS libraries read their
number of threads when they are loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiment.provenance import describe_machine

SIZE = 1024
SECONDS = 0.5
_PATIENCE_S = 120
ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Variables with which libraries take one thread."""


@dataclass(frozen=True)
class GemmPeak:
    """The best rate that a float32 GEMM reached on one thread, None where there is none to compare with; and a note."""

    gflop_per_s: float | None
    note: str


def find_peak(environment: Mapping[str, Any], is_wanted: bool = True) -> GemmPeak:
    """Measure the peak of the machine that this runs on, if the runs were made on it.

    Args:
        environment: the experiment's `env.json`.
        is_wanted: False leaves the measurement out.
    """
    if not is_wanted:
        return GemmPeak(None, "GEMM peak: not measured, as asked for (--no-peak).")
    here = describe_machine(())
    for name in ("host", "cpu"):
        if environment.get(name) != here[name]:
            there = environment.get(name) or "unknown"
            return GemmPeak(
                None,
                f"GEMM peak: left out, because the runs' {name} is {there} (env.json) and this one's {here[name]}.",
            )
    command = [sys.executable, "-m", "analysis.ladder_peak"]
    try:
        answer = subprocess.run(
            command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return GemmPeak(None, f"GEMM peak: could not be measured: {error}")
    rate = float(answer.stdout)
    return GemmPeak(
        rate,
        f"GEMM peak: {rate:.1f} GFLOP/s, measured now on this machine ({here['host']}, {here['cpu']}) with NumPy: "
        f"float32, {SIZE} x {SIZE} x {SIZE}, one thread, best of {SECONDS} s.",
    )


def measure_gemm(size: int = SIZE, seconds: float = SECONDS) -> float:
    """Give the rate of the fastest product of two float32 matrices in GFLOP/s, on as many threads as BLAS takes."""
    generator = np.random.default_rng(0)
    left, right = generator.random((2, size, size), dtype=np.float32)
    out = np.empty((size, size), dtype=np.float32)
    np.matmul(left, right, out=out)  # pages are touched and BLAS is warm from here on
    best = float("inf")
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        np.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    sys.stdout.write(f"{measure_gemm()}\n")
