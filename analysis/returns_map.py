"""Returns of a grid of two settings as a map: a cell is an arm. It shows what a list of a hundred arms can't."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.arms import FIRST, NOT_COMPARABLE, ArmResult, Comparison
from analysis.extremes import is_measured
from analysis.figures import MAX_ARMS, Picture, plain_style, to_png
from analysis.tables import choose_decimals, show_number

MAX_SIDE = 40
_MAX_NUMBERS = 16
"""Cells of a map with more of them along a side are too small for numbers."""
_FENCES = 3.0
_CELL_INCHES = 0.46


def draw_maps(comparison: Comparison) -> list[Picture]:
    """Give a map for each task where the first comparison has two keys and more arms than curves can show."""
    if comparison.name != FIRST or len(comparison.keys) != 2 or comparison.case_keys:
        return []
    tasks = dict.fromkeys(result.arm.task for result in comparison.results)
    pictures = []
    for task in tasks:
        results = [result for result in comparison.results if result.arm.task == task]
        rows, columns = (list(dict.fromkeys(result.arm.values[number] for result in results)) for number in (0, 1))
        is_grid = (
            1 < len(rows) <= MAX_SIDE and 1 < len(columns) <= MAX_SIDE and 2 * len(results) > len(rows) * len(columns)
        )
        if is_grid and len(results) > MAX_ARMS and any(map(is_measured, results)):
            pictures.append(_draw_map(comparison, results, rows, columns, len(tasks) > 1))
    return pictures


def _draw_map(
    comparison: Comparison, results: list[ArmResult], rows: list[str], columns: list[str], is_one_of_several: bool
) -> Picture:
    found = {result.arm.values: result for result in results}
    returns = np.full((len(rows), len(columns)), np.nan)
    for (row, column), result in found.items():
        if is_measured(result):
            returns[rows.index(row), columns.index(column)] = result.iqm
    with plain_style():
        cell = _CELL_INCHES if max(returns.shape) <= _MAX_NUMBERS else _CELL_INCHES / 2.4
        figure = Figure(figsize=(1.9 + cell * len(columns), 1.2 + cell * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        low, high = find_range(returns)
        image = axes.imshow(returns, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 4 else 0)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0, labelsize=8)
        axes.grid(visible=False)
        axes.set_ylabel(comparison.keys[0])
        axes.set_xlabel(comparison.keys[1])
        extend = "min" if np.nanmin(returns) < low else "neither"
        figure.colorbar(image, label="IQM of the final returns", extend=extend, pad=0.02)
        if max(returns.shape) <= _MAX_NUMBERS:
            decimals = choose_decimals(returns[np.isfinite(returns)].tolist())
            for (row, column), result in found.items():
                if not is_measured(result):
                    continue
                place = (columns.index(column), rows.index(row))
                shade = (returns[place[1], place[0]] - low) / (high - low) if high > low else 0.0
                text = show_number(result.iqm, decimals)
                text = f"({text})" if result.problem else text
                weight = "bold" if result.is_best else "normal"
                axes.text(*place, text, ha="center", va="center", fontsize=6.5, weight=weight, color=_choose_ink(shade))
        png = to_png(figure)
    task = results[0].arm.task
    return Picture(
        "returns_map" + ("_" + "_".join(task) if is_one_of_several else ""),
        f"Map of {comparison.title[0].lower()}{comparison.title[1:]}" + (f" on {', '.join(task)}" if task else ""),
        png,
        tuple(run_id for result in results for run_id in result.arm.counted["id"]),
        tuple(_explain(results, returns, low)),
    )


def find_range(returns: NDArray[np.float64]) -> tuple[float, float]:
    """Give the returns between which colours go: the lowest is left out where it would make all others look alike."""
    known = returns[np.isfinite(returns)]
    lower, upper = np.quantile(known, (0.25, 0.75))
    fence = float(lower - _FENCES * (upper - lower))
    return (fence if known.min() < fence < lower else float(known.min())), float(known.max())


def _explain(results: list[ArmResult], returns: NDArray[np.float64], low: float) -> list[str]:
    sentences = [
        "A cell is the interquartile mean over an arm's finished runs; bold: the best; blank: nothing measured."
    ]
    if any(result.problem for result in results):
        sentences.append("In brackets: an arm that is not ranked.")
    if below := int((returns < low).sum()):
        sentences.append(f"Lower than the colours go: {below}.")
    if any(result.verdict == NOT_COMPARABLE for result in results):
        sentences.append("Not a comparison: arms average over different other settings.")
    return sentences


def _choose_ink(shade: float) -> str:
    return "black" if np.isfinite(shade) and shade > 0.55 else "white" if np.isfinite(shade) else "#4d4d4d"
