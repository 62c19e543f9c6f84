"""Attention as pictures: by head and age, along an episode, and over the frames of some windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.attending import PARTS, Estimate
from analysis.figures import plain_style, to_pdf, to_png
from analysis.flights import show_depth
from analysis.traces import LEVELS, Trace

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MOMENTS = 4
"""Windows that are drawn of an episode."""
MAX_FRAMES = 12
"""Frames of a window that are drawn, the newest ones."""
_MAX_NUMBERS = 96
"""Cells of a heat map up to which each shows its number."""


def draw_attention(
    by_age: Sequence[Sequence[Estimate]],
    ages: Sequence[Estimate] | None,
    frames: Sequence[Estimate] | None,
    title: str,
) -> tuple[bytes, bytes]:
    """Give mean weights by head and age, and what happens along an episode, as PNG and PDF.

    Args:
        by_age: of `average_by_age`.
        ages: of `follow_episodes`; None where episodes are too short.
        frames: likewise.
        title: says whose they are.
    """
    with plain_style():
        figure = Figure(figsize=(8.6, 5.4), layout="constrained")
        figure.suptitle(title, fontsize=9)
        panels = figure.subplots(2, 2)
        _draw_heat(panels[0, 0], by_age)
        _draw_by_age(panels[0, 1], by_age)
        _draw_course(panels[1, 0], frames, "Frames taken")
        _draw_course(panels[1, 1], ages, "Mean age of what is taken")
        return to_png(figure), to_pdf(figure)


def _draw_heat(axes: Axes, by_age: Sequence[Sequence[Estimate]]) -> None:
    means = np.array([[estimate.mean for estimate in head] for head in by_age])
    axes.imshow(means, cmap="Blues", vmin=0, vmax=max(means.max(), 2 / means.shape[1]), aspect="auto")
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(means)))
    axes.set_ylabel("Head")
    axes.set_xlabel("Age of the frame, in steps")
    axes.set_title("Mean weight", fontsize=9)
    if means.size <= _MAX_NUMBERS:
        for (row, column), value in np.ndenumerate(means):
            dark = value > 0.6 * means.max()
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color="w" if dark else "k")


def _draw_by_age(axes: Axes, by_age: Sequence[Sequence[Estimate]]) -> None:
    for number, head in enumerate(by_age):
        colour, ages = COLOURS[number % len(COLOURS)], np.arange(len(head), dtype=np.float64)
        dashes = "-" if number < len(COLOURS) else "--"
        _draw_line(axes, ages, head, colour, dashes, f"head {number}")
    axes.axhline(1 / len(by_age[0]), color="#a0a0a0", linewidth=0.8)
    greatest = max(estimate.mean for head in by_age for estimate in head)
    axes.set_ylim(0, 1.25 * max(greatest, 1 / len(by_age[0])))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Age of the frame, in steps")
    axes.set_ylabel("Mean weight")
    axes.legend(fontsize=7, ncols=2)


def _draw_course(axes: Axes, course: Sequence[Estimate] | None, label: str) -> None:
    axes.set_ylabel(f"{label}, mean of heads", fontsize=8)
    axes.set_xlabel("Part of the episode")
    if course is None:
        words = f"no episode has {PARTS} steps"
        axes.annotate(words, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=8)
        return
    middles = (np.arange(PARTS) + 0.5) / PARTS
    _draw_line(axes, middles, course, COLOURS[0], "-", label)
    axes.set_xlim(0, 1)


def _draw_line(
    axes: Axes, places: NDArray[np.floating], estimates: Sequence[Estimate], colour: str, dashes: str, label: str
) -> None:
    means = [estimate.mean for estimate in estimates]
    axes.plot(places, means, color=colour, linestyle=dashes, linewidth=1.4, marker="o", markersize=3, label=label)
    if all(estimate.interval.exists for estimate in estimates):
        low, high = ([getattr(estimate.interval, end) for estimate in estimates] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)


def draw_windows(trace: Trace, title: str) -> bytes:
    """Give windows of the longest episode as PNG, at equal times: its frames, and under each the heads' weights.

    Args:
        trace: whose windows move by a frame each step, so that older frames are newest ones of before.
        title: says whose they are.
    """
    steps = max(trace.list_episodes(), key=lambda episode: episode.stop - episode.start)
    depth, attention = trace.depth[steps], trace.attention[steps]
    moments = choose_moments(len(depth), trace.window)
    shown = min(trace.window, MAX_FRAMES)
    seed = trace.header["episodes"][trace.list_episodes().index(steps)]["seed"]
    with plain_style():
        figure = Figure(figsize=(max(4.5, 1.05 * shown), 1.9 * len(moments) + 0.4), layout="constrained")
        note = f", the newest {shown} of {trace.window} frames" if shown < trace.window else ""
        figure.suptitle(f"{title}\nseed {seed}{note}", fontsize=7)
        panels = figure.subplots(2 * len(moments), shown, squeeze=False, height_ratios=[2, 1] * len(moments))
        for row, moment in enumerate(moments):
            greatest = float(attention[moment].max())
            for column, age in enumerate(reversed(range(shown))):
                picture, bars = panels[2 * row, column], panels[2 * row + 1, column]
                show_depth(picture, depth[find_frame(moment, age)].astype(np.float32) / LEVELS)
                height, width = depth.shape[1:]
                frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="#a0a0a0", linewidth=0.5)
                picture.add_patch(frame)
                picture.set_title(f"step {moment}" if age == 0 else f"-{age}", fontsize=6)
                _draw_bars(bars, attention[moment, :, -1 - age], greatest, first=column == 0)
        return to_png(figure)


def choose_moments(length: int, window: int) -> list[int]:
    """Give the steps whose windows are drawn, from the first full one, or the first, to the last."""
    first = window - 1 if window <= length else 0
    return [int(step) for step in np.unique(np.linspace(first, length - 1, MOMENTS).round())]


def find_frame(step: int, age: int) -> int:
    """Give the step in which a frame of an age was the newest; before the first, the first is repeated."""
    return max(step - age, 0)


def _draw_bars(axes: Axes, weights: NDArray[np.float32], greatest: float, *, first: bool) -> None:
    axes.bar(range(len(weights)), weights, color=[COLOURS[number % len(COLOURS)] for number in range(len(weights))])
    axes.set_ylim(0, greatest)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(labelsize=5, labelleft=first)
    axes.set_xlabel(f"{weights.mean():.2f}", fontsize=6)
