"""Features as a picture: by two components, their spectra, and what can be read out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from analysis.attention_figure import COLOURS
from analysis.figures import plain_style, to_pdf, to_png
from analysis.spectra import find_spectrum, project_components

Values = NDArray[np.float64]

MAX_POINTS = 4_000
"""Steps that are drawn, evenly chosen."""
_DRAWN = ("visual", "context")


def draw_features(
    inputs: Mapping[str, Values],
    found: Mapping[str, Sequence[float | None]],
    quantities: Sequence[str],
    colour: tuple[str, Values],
    title: str,
) -> tuple[bytes, bytes]:
    """Give visual features and contexts by their first components, spectra and read-outs, as PNG and PDF.

    Args:
        inputs: features by name, (steps, dim) each, `visual` and `context` among them.
        found: R^2 of each quantity by the name of the features; empty where nothing was read out.
        quantities: their names.
        colour: name and values, (steps,), of what colours the points.
        title: says whose they are.
    """
    with plain_style():
        figure = Figure(figsize=(9.4, 7.6), layout="constrained")
        figure.suptitle(title, fontsize=9)
        panels = figure.subplots(2, 2)
        for axes, name in zip(panels[0], _DRAWN, strict=True):
            _draw_components(figure, axes, name, inputs[name], colour)
        _draw_spectra(panels[1, 0], inputs)
        _draw_readouts(panels[1, 1], found, quantities)
        return to_png(figure), to_pdf(figure)


def _draw_components(figure: Figure, axes: Axes, name: str, features: Values, colour: tuple[str, Values]) -> None:
    places, parts = project_components(features)
    chosen = np.unique(np.linspace(0, len(places) - 1, min(MAX_POINTS, len(places))).round().astype(int))
    across, up = places[chosen].T
    points = axes.scatter(across, up, c=colour[1][chosen], s=4, cmap="viridis", linewidths=0, rasterized=True)
    figure.colorbar(points, ax=axes, label=colour[0])
    axes.set_title(f"{name} features", fontsize=9)
    axes.set_xlabel(f"component 1 ({100 * parts[0]:.0f} % of the variance)", fontsize=8)
    axes.set_ylabel(f"component 2 ({100 * parts[1]:.0f} %)", fontsize=8)


def _draw_spectra(axes: Axes, inputs: Mapping[str, Values]) -> None:
    for number, (name, features) in enumerate(inputs.items()):
        spectrum = find_spectrum(features)
        if spectrum[0] > 0:
            axes.plot(1 + np.arange(len(spectrum)), spectrum / spectrum[0], color=COLOURS[number], label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the log scale's own are formulas
    axes.set_ylim(1e-5, 2)
    axes.set_xlabel("Direction")
    axes.set_ylabel("Singular value over the largest")
    if axes.lines:
        axes.legend(fontsize=7)


def _draw_readouts(axes: Axes, found: Mapping[str, Sequence[float | None]], quantities: Sequence[str]) -> None:
    axes.set_xlabel("R^2 on episodes not learned from (0 where below)")
    if not found:
        axes.annotate("too few episodes", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=8)
        return
    height = 0.8 / len(found)
    for number, (name, values) in enumerate(found.items()):
        places = np.arange(len(quantities)) + (number - (len(found) - 1) / 2) * height
        drawn = [0.0 if value is None else max(0.0, value) for value in values]
        axes.barh(places, drawn, height, color=COLOURS[number], label=name)
    axes.set_yticks(range(len(quantities)), quantities, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
