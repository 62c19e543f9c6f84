"""How many directions features use, which of them do nothing, and how fast they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DORMANT = 0.025
"""Size of a feature, over the mean of all, up to which it counts as dormant."""
_ROUNDING = 1e-5
"""A feature that moves by less than this part of its size is constant: float32 has some seven digits."""


@dataclass(frozen=True)
class Shape:
    """What can be said of features without knowing what they are of.

    Attributes:
        dim: how many there are.
        effective_rank: see `find_effective_rank`.
        constant: the part of them that never moves.
        dormant: the part of them that hardly does anything; see `find_dormant`.
        persistence: see `correlate_steps`; None where nothing moves.
    """

    dim: int
    effective_rank: float
    constant: float
    dormant: float
    persistence: float | None


def find_shape(features: Values, episodes: Sequence[slice]) -> Shape:
    """Give the shape of features, (steps, dim), of some episodes' steps."""
    return Shape(
        features.shape[1],
        find_effective_rank(features),
        float(find_constant(features).mean()),
        float(find_dormant(features).mean()),
        correlate_steps(features, episodes),
    )


def find_spectrum(features: Values) -> Values:
    """Give the singular values of features, (steps, dim), about their mean, the largest first."""
    return np.asarray(np.linalg.svd(features - features.mean(0), compute_uv=False))


def find_effective_rank(features: Values) -> float:
    """Give how many directions features, (steps, dim), spread over: exp of the entropy of their singular values.

    With p_i = s_i / sum(s), it is exp(-sum p_i log p_i): k for k directions of equal size, less where some are small.
    Features are taken about their mean, or a constant would count as a direction. 0 where nothing moves.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", equation 3.
    """
    spectrum = find_spectrum(features)
    # What rounding leaves of constant features is no direction.
    spectrum = spectrum[spectrum > _ROUNDING * np.abs(features).max(initial=0.0)]
    if not len(spectrum):
        return 0.0
    parts = spectrum / spectrum.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def find_constant(features: Values) -> NDArray[np.bool_]:
    """Tell which features, (steps, dim), are the same at every step but for rounding, (dim,)."""
    return np.asarray(np.ptp(features, axis=0) <= _ROUNDING * np.abs(features).max(0))


def find_dormant(features: Values) -> NDArray[np.bool_]:
    """Tell which features, (steps, dim), are near 0 at every step compared to the others, (dim,).

    Those with mean |h_i| over the mean of that over all features up to `DORMANT`.

    Source: Sokar et al. 2023, arXiv:2302.12902, definition 3.1, there of units after ReLU.
    """
    sizes = np.abs(features).mean(0)
    return np.asarray(sizes <= DORMANT * sizes.mean())


def correlate_steps(features: Values, episodes: Sequence[slice]) -> float | None:
    """Give how much a step's features are like the step's before, 1 where they stay and 0 where they jump anywhere.

    The correlation of neighbours within episodes, over all features together: the sum of the products of deviations
    from the mean over all steps, over the geometric mean of both sums of squares.
    """
    centred = features - features.mean(0)
    before = np.concatenate([centred[steps][:-1] for steps in episodes])
    after = np.concatenate([centred[steps][1:] for steps in episodes])
    size = np.sqrt((before**2).sum() * (after**2).sum())
    return float((before * after).sum() / size) if size > 0 and not find_constant(features).all() else None


def project_components(features: Values) -> tuple[Values, Values]:
    """Give features, (steps, dim), by their first two principal components, (steps, 2), and the variance in each.

    Signs are such that each component's largest weight is positive. Where there is one component, the second is 0.
    """
    centred = features - features.mean(0)
    _, sizes, rows = np.linalg.svd(centred, full_matrices=False)
    rows = rows[:2] * np.sign(rows[np.arange(len(rows[:2])), np.abs(rows[:2]).argmax(1)])[:, None]
    places, total = np.zeros((len(features), 2)), (sizes**2).sum()
    places[:, : len(rows)] = centred @ rows.T
    parts = np.zeros(2)
    if total > 0:
        parts[: len(rows)] = sizes[:2] ** 2 / total
    return places, parts
