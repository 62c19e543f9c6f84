"""The picture of a batch-size ladder: return against wall time, and batch against throughput, IQM and health."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, NullLocator, PercentFormatter

from analysis.figures import MAX_ARMS, Picture, align_curve, collect_points, compute_band, plain_style, to_png
from analysis.ladder_rungs import RUNG_KEYS, Ladder, Rung
from analysis.ladder_runs import find_median
from analysis.ladder_tables import NAME
from analysis.statistics import interquartile_mean

MAX_SIDES = 8
_WIDTH = 7.6
_HEIGHT = 4.2
_LIGHTEST = 0.86
"""Of the colour map; lighter lines are hard to see on white."""
_GREY = "#4d4d4d"


def draw_ladder(ladder: Ladder) -> Picture | None:
    """Give the picture, a row for each schedule, rule and environment; None where no run counts."""
    sides = list(ladder.sides.items())[:MAX_SIDES]
    runs = tuple(run.id for _, rungs in sides for rung in rungs for run in rung.counted)
    if not runs:
        return None
    points = collect_points(ladder.data)
    with plain_style():
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(sides)), layout="constrained")
        rows = figure.subfigures(len(sides), 1, squeeze=False)[:, 0]
        for row, (side, rungs) in zip(rows, sides, strict=True):
            _draw_side(row, ladder, ladder.name_side(side), rungs, points)
        png = to_png(figure)
    notes = [
        "Left: evaluations on the selection seeds, IQM over finished runs against their median wall time, with its "
        "95 % interval. Right: medians, IQM of the final evaluation with its interval (hollow: not ranked), and the "
        "share of planned runs that finished healthy."
    ]
    if len(ladder.sides) > MAX_SIDES:
        notes.append(f"The first {MAX_SIDES} of {len(ladder.sides)} ladders are drawn.")
    return Picture(NAME, "Return against wall time, and what the batch size changes", png, runs, tuple(notes))


def _draw_side(
    row: SubFigure,
    ladder: Ladder,
    title: str,
    rungs: Sequence[Rung],
    points: Mapping[str, Mapping[int, float]],
) -> None:
    if title:
        row.suptitle(title, x=0.01, ha="left", fontsize=9)
    left, right = row.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))[0]
    curves = left.add_subplot()
    shown = [place for place, key in enumerate(ladder.keys) if key not in RUNG_KEYS[1:]]
    _draw_curves(curves, rungs, [", ".join(rung.values[place] for place in shown) for rung in rungs], points)
    threshold = ladder.threshold_of(rungs[0])
    if threshold is not None:
        curves.axhline(threshold, color=_GREY, linewidth=0.8, linestyle=(0, (2, 2)), label="threshold")
    if curves.get_legend_handles_labels()[1]:
        left.legend(
            loc="outside lower center",
            ncols=3,
            title=", ".join(ladder.keys[place] for place in shown),
            labelspacing=0.3,
        )
    panels = right.subplots(3, 1, sharex=True)
    _draw_panels(panels, [rung for rung in rungs if rung.batch is not None])


def _draw_curves(
    axes: Axes, rungs: Sequence[Rung], names: Sequence[str], points: Mapping[str, Mapping[int, float]]
) -> None:
    axes.set_xlabel("Wall time, s")
    axes.set_ylabel("Return per evaluation episode")
    if len(rungs) > MAX_ARMS:
        axes.annotate(f"{len(rungs)} rungs are too many", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    for rung, name, colour in zip(rungs, names, _choose_colours(len(rungs)), strict=True):
        label = name + ("" if rung.is_finished else " (not ranked)")
        curve = align_curve(rung.result.arm, points)
        if curve is None:
            axes.plot([], [], color=colour, label=f"{label}: no curve")
            continue
        times = [{point.env_step: point.wall_s for point in run.points} for run in rung.counted]
        wall = [find_median([own[step] for own in times]) for step in curve.steps.tolist()]
        if len(curve.returns) > 1:
            low, high = compute_band(curve)
            axes.fill_between(wall, low, high, color=colour, alpha=0.16, linewidth=0)  # type: ignore[arg-type]
        style = "-" if rung.is_finished else ":"
        middle = interquartile_mean(curve.returns.T)
        axes.plot(wall, middle, style, color=colour, linewidth=1.6, marker="o", markersize=2.4, label=label)  # type: ignore[arg-type]


def _choose_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Give colours from dark to light in the order of the rungs; the map is readable without colour vision."""
    return [mpl.colormaps["viridis"](_LIGHTEST * place) for place in np.linspace(0, 1, max(count, 2))[:count]]


def _draw_panels(panels: Sequence[Axes], rungs: Sequence[Rung]) -> None:
    throughput, returns, health = panels
    _draw_dots(throughput, rungs, lambda rung: rung.median("samples_per_s"))
    throughput.set_ylabel("Samples/s")
    throughput.yaxis.set_major_formatter(EngFormatter(sep=""))
    throughput.set_ylim(bottom=0)
    _draw_dots(returns, rungs, lambda rung: rung.result.iqm)
    for rung in rungs:
        if rung.result.interval.exists:
            ends = [rung.result.interval.low, rung.result.interval.high]
            returns.plot([rung.batch or 0] * 2, ends, color=_GREY, linewidth=1.6)
    returns.set_ylabel("IQM return")
    _draw_dots(health, rungs, lambda rung: rung.healthy / len(rung.runs))
    health.set_ylabel("Healthy")
    health.set_ylim(-0.08, 1.08)
    health.yaxis.set_major_formatter(PercentFormatter(1.0))
    health.set_xlabel("Batch size")
    batches = sorted({rung.batch or 0 for rung in rungs})
    if batches and batches[0] > 0:
        health.set_xscale("log", base=2)
        health.set_xticks(batches, [str(batch) for batch in batches], fontsize=8)
        health.xaxis.set_minor_locator(NullLocator())
    if len(panels) > 1:
        panels[0].get_figure().align_ylabels(panels)  # type: ignore[union-attr]


def _draw_dots(axes: Axes, rungs: Sequence[Rung], get: Callable[[Rung], float | None]) -> None:
    for rung in rungs:
        value = get(rung)
        if value is not None and np.isfinite(value):
            face = _GREY if rung.is_finished else "white"
            axes.plot([rung.batch or 0], [value], "o", color=_GREY, markerfacecolor=face, markersize=5)
