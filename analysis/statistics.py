"""What runs say together: the interquartile mean, and an interval that resamples them within their strata.

Both follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv:2108.13264), in the conventions of its library rliable, so that numbers compare with the literature. A rate over
episodes has Wilson's interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]
"""Takes values of shape (..., number of values) and gives one number for each row of the last axis."""

RESAMPLES = 10_000
_CHUNK = 4_000_000  # numbers held at a time while resampling: 32 MB


@dataclass(frozen=True)
class Interval:
    """A confidence interval. Both ends are NaN where the data allow none: see `exists`."""

    low: float
    high: float

    @property
    def exists(self) -> bool:
        return not (np.isnan(self.low) or np.isnan(self.high))

    def overlaps(self, other: Interval) -> bool:
        """Tell whether the two have a point in common; False where one of them doesn't exist."""
        return self.low <= other.high and other.low <= self.high


def interquartile_mean(values: ArrayLike) -> Values:
    """Give the mean of the middle half, along the last axis.

    The convention of `scipy.stats.trim_mean(values, 0.25)`, which rliable uses: of n sorted values the lowest and the
    highest `floor(n / 4)` are left out whole, without fractional weights at the edges. So it is the plain mean for
    n < 4, the mean of the middle three for n = 5 and of the middle six for n = 10.

    Args:
        values: shape (..., n), n at least 1. A NaN in a row makes that row's result NaN.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError("an interquartile mean needs at least one value")
    count = array.shape[-1]
    cut = count // 4
    ordered = np.sort(array, axis=-1)  # NaN sorts to the end, where the cut could hide it
    middle: Values = ordered[..., cut : count - cut].mean(axis=-1)
    return np.where(np.isnan(array).any(axis=-1), np.nan, middle)


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> Interval:
    """Give the score interval of a rate that was seen as so many successes among so many independent trials.

    It holds its confidence on average also for few trials and for rates near 0 or 1, and never leaves [0, 1].

    Args:
        successes: from 0 to `count`.
        count: at least 1.
        confidence: in (0, 1).

    Raises:
        ValueError: an argument is outside its range.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; without a correction
    for continuity.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence must be between 0 and 1, got {confidence}")
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"a rate needs at least one trial, and no more successes than trials, got {successes}/{count}")
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, shrink = successes / count, 1 + quantile**2 / count
    centre = (rate + quantile**2 / (2 * count)) / shrink
    half = quantile / shrink * math.sqrt(rate * (1 - rate) / count + quantile**2 / (4 * count**2))
    # At its ends the interval ends exactly; rounding may miss them.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == count else centre + half)


def stratified_bootstrap_interval(
    values_by_stratum: Sequence[ArrayLike],
    statistic: Statistic = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Give the percentile bootstrap interval of a statistic, drawing anew within each stratum.

    Each resample takes from every stratum as many values as it has, with replacement, pools them and applies the
    statistic; the interval goes between the percentiles of the results (linear interpolation). Where that would leave
    out the statistic of the data themselves, it is widened to it. The generator is seeded here and values are sorted
    first: the same numbers in any order give the same interval to the bit.

    With few runs the interval is narrower than its name says; docs/report.md has the measured coverage.

    Args:
        values_by_stratum: one array of finite values for each stratum; none of them empty.
        statistic: vectorised over rows; see `Statistic`.
        confidence: in (0, 1).

    Returns:
        The interval; both ends NaN where no stratum has two values, because single values can't be resampled.

    Raises:
        ValueError: no stratum, an empty one, a value that isn't finite, or a confidence outside (0, 1).
    """
    strata = sorted((np.sort(np.asarray(values, dtype=np.float64)) for values in values_by_stratum), key=tuple)
    _check(strata, confidence)
    if all(len(stratum) == 1 for stratum in strata):
        return Interval(np.nan, np.nan)
    generator = np.random.Generator(np.random.PCG64(seed))
    results = np.concatenate([statistic(rows) for rows in _resample(strata, resamples, generator)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(results, (tail, 1 - tail))
    point = float(statistic(np.concatenate(strata)))
    return Interval(min(float(low), point), max(float(high), point))


def _check(strata: Sequence[Values], confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence must be between 0 and 1, got {confidence}")
    if not strata or any(len(stratum) == 0 for stratum in strata):
        raise ValueError("a bootstrap needs at least one stratum, and at least one value in each")
    if not all(np.isfinite(stratum).all() for stratum in strata):
        raise ValueError("a bootstrap takes finite values only; leave out or report the others first")


def _resample(strata: Sequence[Values], resamples: int, generator: np.random.Generator) -> Iterator[Values]:
    """Give the resamples as chunks of shape (rows, all values), so that many runs don't need much memory."""
    total = sum(len(stratum) for stratum in strata)
    rows_at_a_time = max(1, _CHUNK // total)
    for start in range(0, resamples, rows_at_a_time):
        rows = min(rows_at_a_time, resamples - start)
        drawn = [stratum[generator.integers(len(stratum), size=(rows, len(stratum)))] for stratum in strata]
        yield np.concatenate(drawn, axis=1)
