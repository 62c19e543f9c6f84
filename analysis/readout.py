"""What a linear read-out finds in features: ridge regressions, judged on episodes that they have never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MAX_FOLDS = 5
LEAST_EPISODES = 3
"""So many are needed: one to judge by, one to choose the penalty by, one to learn from."""
PENALTIES: Values = np.logspace(-6, 3, 10)
"""Of a squared weight, beside a mean squared error; features and targets have deviation 1."""


@dataclass(frozen=True)
class _Moments:
    """What a ridge regression needs of the steps that it learns from.

    Attributes:
        centre, scale: of features.
        mean: of targets.
        eigenvalues, vectors: of the features' covariance once scaled.
        shared: (dim, targets), the covariance with targets, by eigenvector.
    """

    centre: Values
    scale: Values
    mean: Values
    eigenvalues: Values
    vectors: Values
    shared: Values

    @classmethod
    def gather(cls, features: Values, targets: Values) -> _Moments:
        centre, scale, mean = features.mean(0), features.std(0), targets.mean(0)
        scale = np.where(scale > 0, scale, 1.0)
        scaled = (features - centre) / scale
        eigenvalues, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        shared = vectors.T @ (scaled.T @ (targets - mean)) / len(scaled)
        return cls(centre, scale, mean, np.maximum(eigenvalues, 0), vectors, shared)

    def predict(self, features: Values, penalties: Values) -> Values:
        """Give predictions, (penalties, steps, targets), with each penalty."""
        turned = ((features - self.centre) / self.scale) @ self.vectors
        weights = self.shared / (self.eigenvalues[:, None] + penalties[:, None, None])
        return turned @ weights + self.mean


def read_out(features: Values, targets: Values, episodes: Sequence[slice]) -> list[float | None]:
    """Give R^2 of the best linear read-out of each target, on episodes that it has not learned from.

    Episodes go in turn into up to `MAX_FOLDS` parts. For each part a ridge regression learns from the others, with the
    penalty, one for each target, that does best when each of those is left out in turn. R^2 is 1 less the squared
    errors over those of the mean of what was learned from, both summed over all parts: 1 is all, 0 nothing, and below
    0 worse than that mean. Steps of one episode are alike, so none is on both sides.

    Args:
        features: (steps, dim).
        targets: (steps, targets).
        episodes: the steps of each; `LEAST_EPISODES` or more.

    Returns:
        A number for each target; None for one that is the same at all steps.

    Source: Hoerl and Kennard 1970, "Ridge regression: biased estimation for nonorthogonal problems"; read-outs of
    networks as in Alain and Bengio 2016, arXiv:1610.01644.
    """
    assert len(episodes) >= LEAST_EPISODES
    moving = np.ptp(targets, axis=0) > 0
    scaled = targets[:, moving] / targets[:, moving].std(0)
    parts = split_episodes(len(features), episodes)
    errors, spread = np.zeros(scaled.shape[1]), np.zeros(scaled.shape[1])
    for number, held_out in enumerate(parts):
        rest = [part for other, part in enumerate(parts) if other != number]
        choices = _choose_penalties(features, scaled, rest)
        learned = np.concatenate(rest)
        moments = _Moments.gather(features[learned], scaled[learned])
        predicted = moments.predict(features[held_out], PENALTIES)[choices, :, np.arange(len(choices))].T
        errors += ((predicted - scaled[held_out]) ** 2).sum(0)
        spread += ((moments.mean - scaled[held_out]) ** 2).sum(0)
    found = iter((1 - errors / spread).tolist())
    return [next(found) if moves else None for moves in moving]


def split_episodes(steps: int, episodes: Sequence[slice]) -> list[NDArray[np.int64]]:
    """Give the steps of each part: whole episodes, dealt out in turn."""
    count, numbers = min(MAX_FOLDS, len(episodes)), np.arange(steps)
    return [np.concatenate([numbers[episode] for episode in episodes[part::count]]) for part in range(count)]


def _choose_penalties(features: Values, targets: Values, parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Give the index of the penalty that does best for each target when each part is left out in turn."""
    errors = np.zeros((len(PENALTIES), targets.shape[1]))
    for number, held_out in enumerate(parts):
        learned = np.concatenate([part for other, part in enumerate(parts) if other != number])
        predicted = _Moments.gather(features[learned], targets[learned]).predict(features[held_out], PENALTIES)
        errors += ((predicted - targets[held_out]) ** 2).sum(1)
    return np.asarray(errors.argmin(0))
