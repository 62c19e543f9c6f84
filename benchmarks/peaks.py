"""Work timed in turn, and what matrix products alone reach on the same thread in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

SIDES = (512, 1024, 2048)
"""Of the square products whose fastest is the peak."""
PEAK_FLOPS = 4e9
"""At least so many operations of such products are timed at once."""

Library = Literal["torch.mm", "oneDNN"]
LIBRARIES: tuple[Library, ...] = ("torch.mm", "oneDNN") if torch._C._has_mkldnn else ("torch.mm",)
PRECISIONS = (torch.float32, torch.bfloat16)


class Work(NamedTuple):
    """Something to be timed.

    Attributes:
        call: does it once.
        flops: floating-point operations of its matrix products.
        dtype: that most of them are in.
    """

    call: Callable[[], object]
    flops: float
    dtype: torch.dtype = torch.float32


def list_products(side: int, library: Library, dtype: torch.dtype) -> Work:
    """Give square products by one library, as many as take a while."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = max(1, round(PEAK_FLOPS / (2 * side**3)))

    def multiply() -> None:
        for _ in range(times):
            if library == "torch.mm":
                torch.mm(left, right, out=out)
            else:
                torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")

    return Work(multiply, 2.0 * side**3 * times, dtype)


def measure(works: Mapping[str, Work], repetitions: int) -> dict[str, list[float]]:
    """Give CPU seconds of each by its name: of one call each in turn, after a round that isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            started = time.process_time()
            work.call()
            if repetition:
                seconds[name].append(time.process_time() - started)
    return seconds


def list_peak_works() -> dict[str, Work]:
    """Give products of each size by each library in each precision, by `name_peak` and the size."""
    return {
        f"{name_peak(library, dtype)}, {side}": list_products(side, library, dtype)
        for library in LIBRARIES
        for dtype in PRECISIONS
        for side in SIDES
    }


def name_peak(library: Library, dtype: torch.dtype) -> str:
    """Give what a peak is called."""
    return f"{library} {str(dtype).removeprefix('torch.')}"


def find_peaks(works: Mapping[str, Work], seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Give operations a second of each library at each precision: those of its fastest size."""
    peaks: dict[str, float] = {}
    for name, work in works.items():
        peak = name.rpartition(", ")[0]
        peaks[peak] = max(peaks.get(peak, 0.0), work.flops / statistics.median(seconds[name]))
    return peaks
