"""Samples of a policy held against the data that it learned from: a table, and a picture. Actions are in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.figures import plain_style, to_png
from analysis.tables import Cell, Table, show_number

Values = NDArray[np.floating]

MAX_MARGINALS = 8
"""Action dimensions that the picture shows; the table has all."""
_DATA, _SAMPLES = "#4d4d4d", "#D55E00"
_DECIMALS = 3
_BINS = 24
_LEAST_SHARE = 0.05
"""Of the variance of mean samples: where less than this part of it is more than chance, no R^2 is given."""


@dataclass(frozen=True)
class ActionFit:
    """One dimension of the actions, in the first step of a chunk: recorded, and drawn for the same histories.

    Attributes:
        distance: Wasserstein-1, between what is drawn for one half of the histories and what is recorded for the other.
        floor: the same between the two halves of what is recorded: what a perfect policy would have.
        correlation: of recorded and drawn actions.
        r2: the part of the recorded actions' variance that the mean of what is drawn explains, its chance part taken
            out; None where that mean doesn't vary with the history. A calibrated policy's `correlation` is the same.
    """

    data_mean: float
    data_sd: float
    sample_mean: float
    sample_sd: float
    distance: float
    floor: float
    correlation: float | None
    r2: float | None


def compare_actions(data: Values, samples: Values) -> list[ActionFit]:
    """Compare the first actions of chunks, dimension by dimension.

    Args:
        data: (windows, horizon, action_dim), windows in random order, two or more.
        samples: (draws, windows, horizon, action_dim), two draws or more.
    """
    return [_compare_one(data[:, 0, number], samples[:, :, 0, number]) for number in range(data.shape[-1])]


def _compare_one(data: Values, samples: Values) -> ActionFit:
    """Compare (windows,) with (draws, windows)."""
    data, samples = data.astype(np.float64), samples.astype(np.float64)
    half = len(data) // 2
    first, second = slice(0, half), slice(half, 2 * half)
    drawn = samples[0]
    distances = measure_distance(drawn[first], data[second]), measure_distance(drawn[second], data[first])
    return ActionFit(
        data_mean=float(data.mean()),
        data_sd=float(data.std()),
        sample_mean=float(samples.mean()),
        sample_sd=float(samples.std()),
        distance=sum(distances) / 2,
        floor=measure_distance(data[first], data[second]),
        correlation=_correlate(np.broadcast_to(data, samples.shape).ravel(), samples.ravel()),
        r2=estimate_r2(data, samples),
    )


def measure_distance(some: Values, others: Values) -> float:
    """Give the Wasserstein-1 distance of equally many values: the mean distance of those of the same rank."""
    assert some.shape == others.shape
    return float(np.abs(np.sort(some) - np.sort(others)).mean())


def _correlate(some: Values, others: Values) -> float | None:
    """Give Pearson's correlation; None where one of the two is constant."""
    if not (some.std() and others.std()):
        return None
    return float(np.corrcoef(some, others)[0, 1])


def estimate_r2(data: Values, samples: Values) -> float | None:
    """Give the squared correlation of data, (windows,), and the mean that samples, (draws, windows), are drawn around.

    The mean of a few draws varies more than what they are drawn around, by a part of the draws' own variance; without
    that part, the number doesn't depend on how many there are.
    """
    means = samples.mean(0)
    correlation = _correlate(data, means)
    if correlation is None:
        return None
    own = means.var() - samples.var(0, ddof=1).mean() / len(samples)
    return float(correlation**2 * means.var() / own) if own > _LEAST_SHARE * means.var() else None


def tabulate_fits(fits: Sequence[ActionFit]) -> Table:
    """Give the comparison as a table, one row for each action dimension."""
    columns = ("Data mean", "Data sd", "Sample mean", "Sample sd", "Distance", "Floor", "Correlation", "R^2")
    rows = tuple(
        (Cell(str(number)), *(Cell(show_number(value, _DECIMALS)) for value in astuple(fit)))
        for number, fit in enumerate(fits)
    )
    frame = pd.DataFrame([(number, *astuple(fit)) for number, fit in enumerate(fits)])
    return Table("samples", "Samples against data", ("Action", *columns), rows, frame)


def project_chunks(data: Values, samples: Values) -> tuple[Values, Values]:
    """Give chunks by the first two principal components of the data's, (windows, 2) each; by one where there is one.

    Args:
        data: (windows, horizon, action_dim).
        samples: likewise.
    """
    flat = data.reshape(len(data), -1).astype(np.float64)
    middle = flat.mean(0)
    components = np.linalg.svd(flat - middle, full_matrices=False)[2][:2]
    largest = np.abs(components).argmax(1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    return (flat - middle) @ components.T, (samples.reshape(len(samples), -1) - middle) @ components.T


def draw_comparison(data: Values, samples: Values, learnt_std: Values, sampled_std: Values, title: str) -> bytes:
    """Give the picture as PNG: marginals of the first actions, densities of whole chunks, deviations of latents.

    Args:
        data: (windows, horizon, action_dim).
        samples: likewise, one draw for each window.
        learnt_std: (vae_latent_dim,), of the latents that the policy learned.
        sampled_std: likewise, of those that it draws.
        title: names the run.
    """
    shown = min(data.shape[-1], MAX_MARGINALS)
    chunks = project_chunks(data, samples)
    columns = 2 if shown == 1 else 4
    rows = -(-(shown + 1) // columns)
    with plain_style():
        figure = Figure(figsize=(2.6 * columns, 2.1 * (rows + 1) + 0.3), layout="constrained")
        panels = figure.subplots(rows + 1, columns, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        above = list(panels[:rows].flat)
        for number in range(shown):
            _draw_marginal(above[number], number, data[:, 0, number], samples[:, 0, number])
        _draw_latents(above[shown], learnt_std, sampled_std)
        if chunks[0].shape[1] == 2:
            _draw_densities(panels[rows, 0], panels[rows, 1], *chunks)
        left_out = data.shape[-1] - shown
        more = f"; {left_out} more action dimensions are in the table" if left_out else ""
        figure.suptitle(title + more, fontsize=8)
        return to_png(figure)


def _draw_marginal(axes: Axes, number: int, data: Values, samples: Values) -> None:
    axes.set_axis_on()
    for values, colour, label in ((data, _DATA, "data"), (samples, _SAMPLES, "samples")):
        axes.hist(
            values, bins=40, range=(-1, 1), density=True, histtype="step", color=colour, linewidth=1.3, label=label
        )
    axes.set_title(f"action {number}, first step", fontsize=8)
    axes.set_yticks([])
    axes.legend(fontsize=7)


def _draw_densities(left: Axes, right: Axes, data: Values, samples: Values) -> None:
    """Draw both densities over the range of the data, on one scale."""
    low, high = data.min(0), data.max(0)
    edges = [np.linspace(low[axis], high[axis] + 1e-6, _BINS + 1) for axis in (0, 1)]
    counts = [np.histogram2d(points[:, 0], points[:, 1], bins=edges)[0] for points in (data, samples)]
    greatest = max(count.max() for count in counts)
    for axes, count, name in zip((left, right), counts, ("data", "samples"), strict=True):
        axes.set_axis_on()
        axes.pcolormesh(edges[0], edges[1], np.sqrt(count.T), vmin=0, vmax=np.sqrt(greatest), cmap="magma_r")
        axes.set_title(f"chunks, {name}", fontsize=8)
        axes.set_xlabel("component 1", fontsize=8)
        axes.set_ylabel("component 2", fontsize=8)
        axes.grid(visible=False)


def _draw_latents(axes: Axes, learnt_std: Values, sampled_std: Values) -> None:
    axes.set_axis_on()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for values, colour, marker, label in ((learnt_std, _DATA, "o", "learnt"), (sampled_std, _SAMPLES, "x", "sampled")):
        axes.plot(values, marker, color=colour, markersize=3, linewidth=0, label=label)
    axes.axhline(1, color="#a0a0a0", linewidth=0.8)
    axes.set_ylim(0, 1.1 * float(max(1, learnt_std.max(), sampled_std.max())))
    axes.set_title("deviation of latents", fontsize=8)
    axes.set_xlabel("latent dimension", fontsize=8)
    axes.legend(fontsize=7)
