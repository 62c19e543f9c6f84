"""Flights as pictures: maps with paths over obstacles, and strips of what the camera saw."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Rectangle
from numpy.typing import NDArray

from analysis.figures import plain_style, to_png
from analysis.outlines import displace, find_heights, outline_obstacle

GOAL, COLLISION, ASTRAY, TIME = "goal", "collision", "left the altitudes", "time is up"
OUTCOMES = {GOAL: "#0072B2", COLLISION: "#D55E00", ASTRAY: "#CC79A7", TIME: "#000000"}
"""How a flight may end, each with its colour; colour-blind readers can tell them apart."""
STRIP_FRAMES = 8
_COLUMNS = 3
_TALL, _LOW, _EDGE = "#8c8c8c", "#d9d9d9", "#5a5a5a"


@dataclass(frozen=True)
class Flight:
    """One episode of a navigation task.

    Attributes:
        name: for people: what the episode began with.
        world: as a world file has it.
        goal_radius: how near to the goal the drone must come, in metres.
        period: seconds between two points of the path.
        path: (n, 3), where the drone was, in metres, its start first.
        depths: (n, height, width), what its camera saw there, over its largest depth.
        outcome: a key of `OUTCOMES`.
        episode_return: the sum of rewards.
    """

    name: str
    world: Mapping[str, Any]
    goal_radius: float
    period: float
    path: NDArray[np.float64]
    depths: NDArray[np.float32]
    outcome: str
    episode_return: float

    @property
    def duration(self) -> float:
        """Seconds in the air."""
        return (len(self.path) - 1) * self.period

    def describe(self) -> str:
        """Say what it was and how it ended."""
        return f"{self.name}: {self.outcome} after {self.duration:.1f} s, return {self.episode_return:.1f}"


def group_flights(flights: Sequence[Flight]) -> list[list[Flight]]:
    """Give the flights of each world together, in the order in which the worlds first come."""
    groups: dict[str, list[Flight]] = {}
    for flight in flights:
        groups.setdefault(json.dumps(flight.world, sort_keys=True), []).append(flight)
    return list(groups.values())


def draw_flights(flights: Sequence[Flight], title: str) -> bytes:
    """Give maps as PNG, one for each world, with the paths of all flights in it coloured by how they ended.

    Args:
        flights: one or more.
        title: says who flew.
    """
    groups = group_flights(flights)
    columns = min(_COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    shape = max(float(group[0].world["width"]) / float(group[0].world["length"]) for group in groups)
    width = 7.0 if columns == 1 else 3.6
    with plain_style():
        figure = Figure(figsize=(width * columns, (width * shape + 0.35) * rows + 0.7), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in panels[len(groups) :]:
            axes.set_axis_off()
        for axes, group in zip(panels, groups, strict=False):
            draw_map(axes, group[0])
            for flight in group:
                draw_path(axes, flight)
            axes.set_title(_caption(group), fontsize=7)
        figure.suptitle(title, fontsize=9)
        figure.legend(handles=_list_handles(flights), loc="outside lower center", ncols=len(OUTCOMES), fontsize=7)
        return to_png(figure)


def _caption(group: Sequence[Flight]) -> str:
    if len(group) == 1:
        return group[0].describe()
    counts = Counter(flight.outcome for flight in group)
    return ", ".join(f"{counts[outcome]} x {outcome}" for outcome in OUTCOMES if counts[outcome])


def _list_handles(flights: Sequence[Flight]) -> list[Line2D]:
    there = {flight.outcome for flight in flights}
    return [Line2D([], [], color=OUTCOMES[outcome], label=outcome) for outcome in OUTCOMES if outcome in there]


def draw_map(axes: Axes, flight: Flight) -> list[Polygon]:
    """Draw the world of a flight from above, and give the polygons of its obstacles, in their order.

    Obstacles that close all altitudes are dark; others can be flown over or under. Where one swings, the ends of its
    swing are outlined.
    """
    world = flight.world
    length, width = float(world["length"]), float(world["width"])
    axes.set_aspect("equal")
    axes.set_xlim(-0.02 * length, 1.02 * length)
    axes.set_ylim(-0.52 * width, 0.52 * width)
    axes.grid(visible=False)
    axes.tick_params(labelsize=6)
    axes.add_patch(Rectangle((0, -width / 2), length, width, fill=False, edgecolor=_EDGE, linewidth=1.0))
    polygons = []
    for obstacle in world["obstacles"]:
        outline, (low, high) = outline_obstacle(obstacle), find_heights(obstacle)
        closed = low <= world["altitude"][0] and high >= world["altitude"][1]
        if obstacle.get("motion") is not None:
            reach = np.array(obstacle["motion"]["reach"][:2])
            for sign in (-1, 1):
                axes.add_patch(Polygon(outline + sign * reach, fill=False, edgecolor=_EDGE, linewidth=0.3))
        # Where it was when the flight began.
        polygon = Polygon(outline + displace(obstacle, 0.0), facecolor=_TALL if closed else _LOW, edgecolor=_EDGE)
        polygon.set_linewidth(0.4)
        axes.add_patch(polygon)
        polygons.append(polygon)
    _draw_ends(axes, world, flight.goal_radius)
    return polygons


def _draw_ends(axes: Axes, world: Mapping[str, Any], goal_radius: float) -> None:
    """Mark the start, with where the drone looks, and the goal."""
    (x, y, _), yaw = world["start"], float(world["start_yaw"])
    axes.plot([x, x + 1.5 * math.cos(yaw)], [y, y + 1.5 * math.sin(yaw)], color="#009E73", linewidth=1.2)
    axes.plot([x], [y], marker="o", markersize=3, color="#009E73")
    goal = (world["goal"][0], world["goal"][1])
    axes.add_patch(Circle(goal, goal_radius, fill=False, edgecolor="#009E73", linewidth=1.2))


def draw_path(axes: Axes, flight: Flight) -> None:
    """Draw where a flight went, with a cross where it ended other than at the goal."""
    colour = OUTCOMES[flight.outcome]
    axes.plot(flight.path[:, 0], flight.path[:, 1], color=colour, linewidth=1.0)
    if flight.outcome != GOAL:
        axes.plot(*flight.path[-1, :2], marker="x", markersize=5, color=colour)


def draw_strips(flights: Sequence[Flight], title: str) -> bytes:
    """Give strips of depth as PNG: a row for each flight, frames at equal times from its first to its last.

    Args:
        flights: one or more.
        title: says who flew.
    """
    with plain_style():
        figure = Figure(figsize=(1.15 * STRIP_FRAMES, 1.45 * len(flights) + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=9)
        rows = figure.subfigures(len(flights), 1, squeeze=False)[:, 0]
        for row, flight in zip(rows, flights, strict=True):
            _draw_strip(row, flight)
        return to_png(figure)


def _draw_strip(row: SubFigure, flight: Flight) -> None:
    row.suptitle(flight.describe(), fontsize=7, x=0.01, ha="left", color=OUTCOMES[flight.outcome])
    panels = list(row.subplots(1, STRIP_FRAMES, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    chosen = np.unique(np.linspace(0, len(flight.depths) - 1, STRIP_FRAMES).round().astype(int))
    for axes, number in zip(panels, chosen.tolist(), strict=False):
        show_depth(axes, flight.depths[number])
        axes.set_title(f"{number * flight.period:.1f} s", fontsize=6)


def show_depth(axes: Axes, depth: NDArray[np.float32]) -> AxesImage:
    """Show depth over its largest, near things dark."""
    axes.set_axis_off()
    return axes.imshow(depth, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
