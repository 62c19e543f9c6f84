"""Flights as films: the map with the path so far, and beside it what the camera sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figures import plain_style
from analysis.flights import OUTCOMES, Flight, draw_map, show_depth
from analysis.outlines import displace, outline_obstacle

SIZE = (960, 480)
"""Pixels of a frame, across and down: multiples of 16, as codecs want them."""
_DPI = 120
_PATH = "#4d4d4d"


def draw_film(flight: Flight, title: str) -> Iterator[NDArray[np.uint8]]:
    """Give the frames of one flight, each (height, width, 3), one for each point of its path.

    The last one has the path in the colour of how the flight ended, and says it.
    """
    with plain_style():
        figure = Figure(figsize=(SIZE[0] / _DPI, SIZE[1] / _DPI), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        polygons = draw_map(left, flight)
        (line,) = left.plot([], [], color=_PATH, linewidth=1.2)
        (drone,) = left.plot([], [], marker="o", markersize=4, color=_PATH)
        image = show_depth(right, flight.depths[0])
        figure.suptitle(title, fontsize=8)
        caption = left.set_title("", fontsize=7)
        outlines = [outline_obstacle(obstacle) for obstacle in flight.world["obstacles"]]
        for number in range(len(flight.path)):
            time, last = number * flight.period, number == len(flight.path) - 1
            for polygon, outline, obstacle in zip(polygons, outlines, flight.world["obstacles"], strict=True):
                if obstacle.get("motion") is not None:
                    polygon.set_xy(outline + displace(obstacle, time))
            line.set_data(flight.path[: number + 1, 0], flight.path[: number + 1, 1])
            drone.set_data(flight.path[number : number + 1, 0], flight.path[number : number + 1, 1])
            image.set_data(flight.depths[number])
            if last:
                line.set_color(OUTCOMES[flight.outcome])
            caption.set_text(flight.describe() if last else f"{flight.name}: {time:.1f} s")
            canvas.draw()  # type: ignore[no-untyped-call]
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
