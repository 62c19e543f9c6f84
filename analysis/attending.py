"""How a policy's attention spreads over the frames of its windows: by age, by head, along an episode.

Ages count back from the newest frame, which has age 0. Numbers are first averaged over the steps of each episode, then
over episodes: steps of one episode are alike, so the intervals resample episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import Interval, stratified_bootstrap_interval
from analysis.traces import Trace, TraceError

Values = NDArray[np.float64]

PARTS = 10
"""Equal parts of an episode in which it is followed."""
RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes, with its 95 % interval; NaN ends where a single episode allows none."""

    mean: float
    interval: Interval


def average_episodes(values: ArrayLike) -> Estimate:
    """Give the mean of one number per episode, and its percentile bootstrap interval over episodes."""
    array = np.asarray(values, dtype=np.float64)
    interval = stratified_bootstrap_interval([array], statistic=lambda rows: rows.mean(-1), resamples=RESAMPLES)
    return Estimate(float(array.mean()), interval)


@dataclass(frozen=True)
class Attended:
    """One episode's attention, in the steps whose windows have no frame twice.

    Attributes:
        weights: (steps, heads, window), the newest frame first.
    """

    weights: Values

    @property
    def ages(self) -> Values:
        """Mean age of what each head takes, (steps, heads)."""
        return np.asarray(self.weights @ np.arange(self.weights.shape[-1], dtype=np.float64))

    @property
    def frames(self) -> Values:
        """How many frames each head takes, (steps, heads); see `count_frames`."""
        return count_frames(self.weights)


def list_attended(trace: Trace) -> list[Attended]:
    """Give the episodes that last as long as a window.

    The first window - 1 steps of each are left out: their windows begin with copies of the first frame, among which
    a weight could go to any.

    Raises:
        TraceError: there is none.
    """
    newest_first = trace.attention[..., ::-1].astype(np.float64)
    first = trace.window - 1
    whole = [newest_first[steps][first:] for steps in trace.list_episodes()]
    kept = [Attended(weights) for weights in whole if len(weights)]
    if not kept:
        longest = max(trace.lengths)
        raise TraceError(f"no episode fills a window of {trace.window} frames: the longest has {longest} steps")
    return kept


def measure_entropy(weights: Values) -> Values:
    """Give Shannon's entropy of weights that sum to 1 along the last axis, in nats; 0 log 0 is 0.

    Source: Shannon 1948, "A Mathematical Theory of Communication", section 6.
    """
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return np.asarray(-(weights * logs).sum(-1))


def count_frames(weights: Values) -> Values:
    """Give the effective number of frames that weights are spread over, exp(entropy): 1 for one, n for n alike.

    Source: Jost 2006, "Entropy and diversity", Oikos 113, equation 1 at order 1.
    """
    return np.asarray(np.exp(measure_entropy(weights)))


def average_by_age(episodes: Sequence[Attended]) -> list[list[Estimate]]:
    """Give each head's mean weight of each age, the newest frame first."""
    means = np.stack([episode.weights.mean(0) for episode in episodes])
    return [[average_episodes(column) for column in head.T] for head in means.swapaxes(0, 1)]


def measure_change(episodes: Sequence[Attended]) -> list[float]:
    """Give for each head how far its weights move from their mean over all steps, on average over ages and steps.

    Half the sum over ages of the absolute differences: the part of the attention that moves, 0 where it is the same at
    every step, whatever is seen (the total variation distance).
    """
    weights = np.concatenate([episode.weights for episode in episodes])
    moved = 0.5 * np.abs(weights - weights.mean(0)).sum(-1)
    return [float(value) for value in moved.mean(0)]


def follow_episodes(values: Sequence[Values]) -> list[Estimate] | None:
    """Give the mean in each of `PARTS` equal parts of an episode, over the episodes that are long enough.

    Args:
        values: (steps, ...) for each episode; numbers of one step are averaged.

    Returns:
        None where no episode has as many steps.
    """
    long = [episode.reshape(len(episode), -1).mean(1) for episode in values if len(episode) >= PARTS]
    if not long:
        return None
    rows = [[part.mean() for part in np.array_split(episode, PARTS)] for episode in long]
    return [average_episodes(column) for column in np.array(rows).T]
