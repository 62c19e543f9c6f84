"""What a search over random variables found: final returns over each variable, and where the best points lie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from analysis.arms import ArmResult, Comparison, show_value
from analysis.extremes import is_measured, sort_by_return
from analysis.figures import Picture, plain_style, to_png
from analysis.returns import show_exactly
from analysis.tables import Cell, Table, show_number
from experiment.distributions import Distribution

FEW_ARMS = 20
"""With fewer, neither a trend nor a correlation says anything."""
_BEST_SHARE = 0.1
_MAX_BINS = 10
_FENCES = 3.0
"""So many interquartile ranges below the lower quartile a return is drawn at the edge: it would squeeze the others."""
_PANEL_INCHES = (3.1, 2.3)
_BLUE, _GREY = "#0072B2", "#4d4d4d"


@dataclass(frozen=True)
class Variable:
    """A random variable: `places` has by the text of each value where it lies on an axis, of a choice its number."""

    key: str
    distribution: Distribution
    places: Mapping[str, float]

    @property
    def is_choice(self) -> bool:
        return self.distribution.name == "choice"

    def show_distribution(self) -> str:
        """Write it as `log_uniform [1e-05, 0.01]`."""
        return f"{self.distribution.name} {show_value(list(self.distribution.arguments))}"


@dataclass(frozen=True)
class Search:
    """The measured arms of one task: best first, those that can't be ranked last. The first `ranked` are ranked."""

    task: tuple[str, ...]
    results: tuple[ArmResult, ...]
    ranked: int

    @property
    def returns(self) -> NDArray[np.float64]:
        return np.array([result.iqm for result in self.results], dtype=np.float64)


def find_variables(comparison: Comparison, random: Mapping[str, Distribution]) -> list[Variable]:
    """Give the random variables among a comparison's keys, but for those whose values a plan has from elsewhere."""
    variables = []
    for number, key in enumerate(comparison.keys):
        if key not in random:
            continue
        texts = {result.arm.values[number] for result in comparison.results}
        try:
            variables.append(Variable(key, random[key], _place(texts, random[key])))
        except ValueError:
            continue
    return variables


def _place(texts: set[str], distribution: Distribution) -> dict[str, float]:
    """Give where values lie on an axis.

    Raises:
        ValueError: one of them can't have been drawn from this distribution.
    """
    if distribution.name != "choice":
        return {text: float(text) for text in texts}
    choices = [show_value(argument) for argument in distribution.arguments]
    return {text: float(choices.index(text)) for text in texts}


def find_searches(comparison: Comparison) -> list[Search]:
    """Give the measured arms of the first comparison by task; nothing for a task without any."""
    searches = []
    for task in dict.fromkeys(result.arm.task for result in comparison.results):
        own = [result for result in comparison.results if result.arm.task == task and is_measured(result)]
        if own:
            searches.append(Search(task, tuple(sort_by_return(own)), sum(not result.problem for result in own)))
    return searches


def tabulate_random(comparison: Comparison, random: Mapping[str, Distribution]) -> Table:
    """Give for each random variable how it was drawn, and how returns go with it.

    Args:
        comparison: the first one, of full combinations.
        random: the spec's random variables.
    """
    rows = []
    records = []
    for search in find_searches(comparison):
        for variable in find_variables(comparison, random):
            texts = _read_texts(comparison, variable, search.results[: search.ranked])
            places = np.array([variable.places[text] for text in texts])
            correlation = None if variable.is_choice else correlate_ranks(places, search.returns[: search.ranked])
            best = _describe_best(variable, texts)
            shown = variable.show_distribution()
            names = (*map(Cell, search.task), Cell(variable.key, code=True), Cell(shown, code=True))
            rows.append((*names, Cell(str(search.ranked)), Cell(show_number(correlation, 2)), Cell(best)))
            record = (*search.task, variable.key, shown, search.ranked, *show_exactly(correlation), best)
            records.append(record)
    heads = ("Variable", "Drawn from", "Ranked arms", "Rank correlation with the return", "In the best tenth")
    columns = ("variable", "distribution", "ranked_arms", "rank_correlation", "best_tenth")
    return Table(
        name="random_variables",
        title="Random variables",
        columns=(*comparison.task_keys, *heads),
        rows=tuple(rows),
        frame=pd.DataFrame(records, columns=[*comparison.task_keys, *columns]),
        notes=(
            "Rank correlation: Spearman's, over the ranked arms; 1 where more is always better, -1 where less is. "
            "Near 0 the best values may still lie in the middle, as the figure shows. "
            f"A dash: a choice, or fewer than {FEW_ARMS} arms.",
        ),
    )


def correlate_ranks(values: NDArray[np.float64], returns: NDArray[np.float64]) -> float | None:
    """Give Spearman's rank correlation, equal values sharing a rank; None of few, or where either never changes."""
    if len(values) < FEW_ARMS:
        return None
    first, second = (pd.Series(numbers).rank().to_numpy(dtype=np.float64) for numbers in (values, returns))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _read_texts(comparison: Comparison, variable: Variable, results: Sequence[ArmResult]) -> list[str]:
    number = comparison.keys.index(variable.key)
    return [result.arm.values[number] for result in results]


def _describe_best(variable: Variable, texts: Sequence[str]) -> str:
    """Say which values the best tenth of the ranked arms have, which come first."""
    best = texts[: math.ceil(_BEST_SHARE * len(texts))]
    if not best:
        return ""
    if variable.is_choice:
        return ", ".join(f"{text}: {count} of {len(best)}" for text, count in Counter(best).most_common())
    low, high = min(best, key=variable.places.__getitem__), max(best, key=variable.places.__getitem__)
    return low if low == high else f"{low} to {high}"


def draw_random(comparison: Comparison, random: Mapping[str, Distribution]) -> list[Picture]:
    """Give a figure for each task: final returns over each random variable.

    Args:
        comparison: the first one, of full combinations.
        random: the spec's random variables.
    """
    variables = find_variables(comparison, random)
    searches = find_searches(comparison)
    return [_draw_search(comparison, variables, search, len(searches) > 1) for search in searches] if variables else []


def _draw_search(
    comparison: Comparison, variables: Sequence[Variable], search: Search, is_one_of_several: bool
) -> Picture:
    floor = _find_floor(search.returns)
    columns = min(2, len(variables))
    width, height = _PANEL_INCHES
    with plain_style():
        size = (max(4.5, columns * width), height * math.ceil(len(variables) / columns))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(math.ceil(len(variables) / columns), columns, sharey=True, squeeze=False).flatten()
        for axes in panels[len(variables) :]:
            axes.set_axis_off()
        for axes, variable in zip(panels, variables, strict=False):
            _draw_panel(axes, variable, _read_texts(comparison, variable, search.results), search, floor)
        figure.supylabel("Return per episode on the report seeds", fontsize=9)
        png = to_png(figure)
    below = int((search.returns < floor).sum())
    edge = f" {below} arms are below the figure: triangles at its edge." if below > 1 else ""
    edge = " 1 arm is below the figure: a triangle at its edge." if below == 1 else edge
    suffix = "_" + "_".join(search.task) if is_one_of_several else ""
    return Picture(
        f"random_variables{suffix}",
        "Final returns over each random variable" + (f" on {', '.join(search.task)}" if search.task else ""),
        png,
        tuple(run_id for result in search.results for run_id in result.arm.counted["id"]),
        (
            "A dot is an arm: the interquartile mean over its seeds. Hollow: one that is not ranked. Blue: the best. "
            f"Line: median of the ranked arms in parts of equal count, drawn from {FEW_ARMS} arms on.{edge}",
        ),
    )


def _find_floor(returns: NDArray[np.float64]) -> float:
    """Give the lowest return that is drawn in its place: one that fell far below would squeeze all others together."""
    low, high = np.quantile(returns, (0.25, 0.75))
    fence = float(low - _FENCES * (high - low))
    return fence if returns.min() < fence < low else float(returns.min())


def _draw_panel(axes: Axes, variable: Variable, texts: Sequence[str], search: Search, floor: float) -> None:
    places = np.array([variable.places[text] for text in texts])
    if variable.is_choice:
        choices = [show_value(argument) for argument in variable.distribution.arguments]
        axes.set_xticks(range(len(choices)), choices)
        axes.set_xlim(-0.5, len(choices) - 0.5)
        # Beside each other in the order of the arms, so that dots of one choice don't hide each other.
        places = places + 0.5 * (np.arange(len(places)) * 0.618034 % 1 - 0.5)
    elif variable.distribution.name == "log_uniform":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    returns = search.returns
    ranked = np.arange(len(returns)) < search.ranked
    inside = returns >= floor
    filled, hollow = ranked & inside, ~ranked & inside
    axes.plot(places[filled], returns[filled], "o", color=_GREY, alpha=0.45, markersize=3.2, markeredgewidth=0)
    axes.plot(places[hollow], returns[hollow], "o", color=_GREY, alpha=0.6, markersize=3.2, markerfacecolor="none")
    axes.plot(places[~inside], np.full((~inside).sum(), floor), "v", color=_GREY, alpha=0.6, markersize=4)
    if not variable.is_choice:
        axes.plot(*find_trend(places[ranked], returns[ranked]), color="#D55E00", linewidth=1.4)
    if search.ranked:
        axes.plot(places[:1], returns[:1], "o", color=_BLUE, markersize=6)
    axes.set_xlabel(variable.key)


def find_trend(
    values: NDArray[np.float64], returns: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the medians of values and of returns in parts of equal count along the values; nothing of few arms."""
    if len(values) < FEW_ARMS:
        return np.empty(0), np.empty(0)
    parts = np.array_split(np.argsort(values, kind="stable"), min(_MAX_BINS, len(values) // 10))
    medians = [[np.median(numbers[part]) for part in parts] for numbers in (values, returns)]
    return np.array(medians[0]), np.array(medians[1])
