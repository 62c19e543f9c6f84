"""Learning curves and final returns as PNG, drawn without any global state, the same bytes for the same runs."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from analysis.arms import FIRST, NOT_COMPARABLE, Arm, ArmResult, Comparison, show_left_out
from analysis.extremes import Selection, is_measured, select_extremes
from analysis.load import ExperimentData, is_counted
from analysis.statistics import interquartile_mean, stratified_bootstrap_interval

CURVE = "eval/mean_reward"
MAX_ARMS = 12
MAX_DOTS = 40
CUT_DOTS = 24
"""Where more arms than `MAX_DOTS` would have to be drawn, so many are."""
MAX_LINES = 20
"""The single runs of an arm with more of them would hide its curve and those of others."""
MAX_NAMED = 6
DPI = 160
BAND_RESAMPLES = 2_000
_COLUMN_INCHES = 4.5
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart; the yellow is left out, it is too light for lines."""
_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (5, 2)))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
}
_MAX_NAME = 44
_TITLE_LETTERS = 70


@dataclass(frozen=True)
class Picture:
    """A figure as it is written: the stem of its file, what it shows, the PNG, and the runs in it."""

    name: str
    title: str
    png: bytes
    runs: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Evaluation returns of an arm's finished runs at the steps that all of them have.

    Shapes: steps (number of steps,), returns (number of runs, number of steps).
    """

    steps: NDArray[np.int64]
    returns: NDArray[np.float64]
    strata: tuple[str, ...]


def draw_figures(data: ExperimentData, comparisons: Sequence[Comparison]) -> tuple[list[Picture], list[str]]:
    """Give learning curves and final returns for each comparison, and say which were left out and why.

    Of more arms than a figure can show, it has the best and the worst.
    """
    pictures: list[Picture] = []
    left_out = describe_gaps(data)
    points, acting = collect_points(data), find_acting(data)
    for comparison in comparisons:
        for task in dict.fromkeys(result.arm.task for result in comparison.results):
            results = [result for result in comparison.results if result.arm.task == task]
            suffix = "_" + "_".join(task) if len({r.arm.task for r in comparison.results}) > 1 else ""
            where = " on " + ", ".join(task) if task else ""
            name, title = comparison.name.removeprefix(FIRST), comparison.title.removeprefix("Returns")
            shown = select_extremes(results, MAX_ARMS, MAX_ARMS, comparison.name)
            if not shown.results:
                left_out.append(f"Learning curves{title}{where}: none of {len(results)} arms can be ranked.")
            elif picture := _draw_curves(comparison, shown, points, acting, f"learning_curves{name}{suffix}"):
                pictures.append(picture)
            else:
                left_out.append(f"Learning curves{title}{where}: no finished run has rows of {CURVE}.")
            shown = select_extremes(results, MAX_DOTS, CUT_DOTS, comparison.name)
            if any(is_measured(result) for result in shown.results):
                pictures.append(_draw_final(comparison, shown, f"final_returns{name}{suffix}"))
    return pictures, left_out


def collect_points(data: ExperimentData) -> dict[str, dict[int, float]]:
    """Give the finite evaluation returns of each run that counts by environment step; the last one of a step counts.

    Runs that learn from a data set take no step in an environment: theirs are by training step.
    """
    points: dict[str, dict[int, float]] = {}
    if CURVE not in data.metrics:
        return points
    counted = set(data.unique_runs.loc[is_counted(data.unique_runs), "id"])
    rows = data.metrics[np.isfinite(data.metrics[CURVE]) & data.metrics["id"].isin(counted)]
    acts = rows["id"].isin(find_acting(data))
    steps = rows["env_step"].where(acts, rows["step"])
    for run_id, step, value in zip(rows["id"], steps.tolist(), rows[CURVE].tolist(), strict=True):
        points.setdefault(run_id, {})[step] = value
    return points


def find_acting(data: ExperimentData) -> set[str]:
    """Give the ids of the runs that took steps in an environment while they trained."""
    return set(data.metrics.loc[data.metrics["env_step"] > 0, "id"])


def name_steps(acting: set[str], run_ids: set[str]) -> str:
    """Say what the steps of some runs' curves are."""
    if run_ids <= acting:
        return "Environment steps"
    return "Environment steps, or training steps where none were taken" if run_ids & acting else "Training steps"


def align_curve(arm: Arm, points: Mapping[str, Mapping[int, float]]) -> Curve | None:
    """Give an arm's curve at the steps that all of its runs that count have; None where there are none."""
    counted = is_counted(arm.runs)
    own = [points.get(run_id, {}) for run_id in arm.runs.loc[counted, "id"]]
    steps = sorted(set.intersection(*(set(values) for values in own))) if own else []
    if not steps:
        return None
    returns = np.array([[values[step] for step in steps] for values in own], dtype=np.float64)
    return Curve(np.array(steps, dtype=np.int64), returns, tuple(np.array(arm.strata)[counted]))


def describe_gaps(data: ExperimentData) -> list[str]:
    """Name the runs that count and have evaluations which aren't finite, and so have gaps in their curves."""
    rows = zip(data.metrics["id"], data.metrics["not_finite"], strict=True)
    counts = Counter(run_id for run_id, names in rows if CURVE in names.split())
    runs = data.unique_runs[is_counted(data.unique_runs) & data.unique_runs["id"].isin(list(counts))]
    sentences = [
        f"{row.label} ({row.id}): {counts[str(row.id)]} evaluations are not finite and are left out of the curves."
        for row in runs.itertuples()
    ]
    if len(sentences) <= MAX_NAMED:
        return sentences
    return [*sentences[:MAX_NAMED], f"{len(sentences) - MAX_NAMED} more runs have evaluations that are not finite."]


def compute_band(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the ends of the 95 % interval at each step of a curve; NaN where a single run allows none."""
    groups = [np.flatnonzero(np.array(curve.strata) == stratum) for stratum in dict.fromkeys(curve.strata)]
    intervals = [
        stratified_bootstrap_interval([column[group] for group in groups], resamples=BAND_RESAMPLES)
        for column in curve.returns.T
    ]
    return np.array([i.low for i in intervals]), np.array([i.high for i in intervals])


def _draw_curves(
    comparison: Comparison,
    selection: Selection,
    points: Mapping[str, Mapping[int, float]],
    acting: set[str],
    name: str,
) -> Picture | None:
    results = selection.results
    curves = [align_curve(result.arm, points) for result in results]
    if not any(curves):
        return None
    shown = [result.arm for result, curve in zip(results, curves, strict=True) if curve is not None]
    run_ids = tuple(run_id for arm in shown for run_id in arm.counted["id"])
    with plain_style():
        figure = Figure(figsize=(_COLUMN_INCHES, 2.9 + 0.19 * len(results)), layout="constrained")
        axes = figure.add_subplot()
        for number, (result, curve) in enumerate(zip(results, curves, strict=True)):
            _draw_curve(axes, number, f"{_name(comparison, result.arm)} ({_count(result)})", curve)
        axes.set_xlabel(name_steps(acting, set(run_ids)))
        axes.set_ylabel("Return per evaluation episode")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        title = _name_keys(comparison) or None
        figure.legend(loc="outside lower center", title=title, handlelength=2.2, labelspacing=0.3)
        png = to_png(figure)
    where = f" on {', '.join(shown[0].task)}" if shown[0].task else ""
    return Picture(
        name,
        f"Learning curves{comparison.title.removeprefix('Returns')}{where}",
        png,
        run_ids,
        (
            "Thick: interquartile mean over finished runs, with its 95 % interval. "
            f"Thin: single runs, of arms with up to {MAX_LINES}. "
            "Drawn at the steps that all runs of an arm have, on the selection seeds.",
            *filter(None, [selection.sentence]),
            *_warn_of_other_settings(results),
        ),
    )


def _draw_curve(axes: Axes, number: int, label: str, curve: Curve | None) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    dashes = _DASHES[number // len(_COLOURS)]
    if curve is None:
        axes.plot([], [], color=colour, linestyle=dashes, linewidth=1.8, label=f"{label}: no curve")
        return
    if len(curve.returns) > 1:
        for returns in curve.returns if len(curve.returns) <= MAX_LINES else ():
            axes.plot(curve.steps, returns, color=colour, linewidth=0.5, alpha=0.35)
        low, high = compute_band(curve)
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.16, linewidth=0)
    middle = interquartile_mean(curve.returns.T)
    marker = "o" if len(curve.steps) == 1 else None
    axes.plot(
        curve.steps, middle, color=colour, linestyle=dashes, linewidth=1.8, marker=marker, markersize=4, label=label
    )


def _draw_final(comparison: Comparison, selection: Selection, name: str) -> Picture:
    results = selection.results
    with plain_style():
        figure = Figure(figsize=(_COLUMN_INCHES, 0.9 + 0.36 * len(results)), layout="constrained")
        axes = figure.add_subplot()
        for row, result in enumerate(results):
            _draw_arm(axes, row, result)
        names = [f"{_name(comparison, result.arm)}\n{_count(result)}" for result in results]
        axes.set_yticks(range(len(results)), names)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.set_ylim(len(results) - 0.5, -0.5)
        if 0 < selection.best < len(results):
            axes.axhline(selection.best - 0.5, color="#4d4d4d", linewidth=0.8, linestyle=(0, (5, 3)))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Return per episode on the report seeds")
        if comparison.keys:
            title = textwrap.fill(_name_keys(comparison), _TITLE_LETTERS)
            figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=9)
        png = to_png(figure)
    where = f" on {', '.join(results[0].arm.task)}" if results[0].arm.task else ""
    return Picture(
        name,
        f"Final returns{comparison.title.removeprefix('Returns')}{where}",
        png,
        tuple(run_id for result in results for run_id in result.arm.counted["id"]),
        (
            "Dot and line: interquartile mean and its 95 % interval; hollow: an arm that is not ranked. "
            "Small dots: single finished runs.",
            *filter(None, [selection.sentence]),
            *_warn_of_other_settings(results),
        ),
    )


def _warn_of_other_settings(results: Sequence[ArmResult]) -> list[str]:
    if all(result.verdict != NOT_COMPARABLE for result in results):
        return []
    return ["Not a comparison: what is shown here averages over different other settings."]


def _draw_arm(axes: Axes, row: int, result: ArmResult) -> None:
    colour = _COLOURS[0] if result.is_best else "#4d4d4d"
    values = result.arm.counted["final_mean"].to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    axes.plot(values, np.full(len(values), row + 0.22), "o", color=colour, alpha=0.45, markersize=2.6, linewidth=0)
    if result.iqm is None or not np.isfinite(result.iqm):
        reason = "not finite, or not measured" if result.counted else "no finished run"
        reason = "repaired runs are left out" if result.finished and not result.counted else reason
        axes.annotate(reason, (0.5, row), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8)
        return
    if result.interval.exists:
        axes.plot([result.interval.low, result.interval.high], [row, row], color=colour, linewidth=1.8)
    face = "white" if result.problem else colour
    axes.plot([result.iqm], [row], "o", color=colour, markerfacecolor=face, markersize=6)


def _name_keys(comparison: Comparison) -> str:
    return ", ".join(comparison.heads[len(comparison.task_keys) :])


def _name(comparison: Comparison, arm: Arm) -> str:
    name = ", ".join(comparison.show(arm)[len(comparison.task_keys) :]) or "all runs"
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _count(result: ArmResult) -> str:
    return f"{result.finished} of {result.planned} finished" + show_left_out(result)


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw in our style whatever a user's own matplotlibrc says, and leave theirs as it was."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def to_pdf(figure: Figure) -> bytes:
    """Give a figure as PDF, for papers, the same bytes each time."""
    buffer = io.BytesIO()
    with mpl.rc_context({"pdf.fonttype": 42}):  # letters that stay letters, which journals ask for
        FigureCanvasPdf(figure)
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """Give a figure as PNG, the same bytes each time."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A label in a script that the font lacks shows as boxes here; the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
