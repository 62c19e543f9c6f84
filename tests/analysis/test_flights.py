"""Flights as pictures and films: what is where on the map, which colour it has, and how many frames there are."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.film import SIZE, draw_film
from analysis.flights import (
    ASTRAY,
    COLLISION,
    GOAL,
    OUTCOMES,
    STRIP_FRAMES,
    TIME,
    Flight,
    draw_flights,
    draw_map,
    draw_path,
    draw_strips,
    group_flights,
)
from analysis.outlines import displace, find_heights, find_hull, outline_obstacle

UPRIGHT = [1.0, 0.0, 0.0, 0.0]
LEVEL = [math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0]  # z along x
PILLAR = {"shape": "cylinder", "size": [0.5, 3.0], "position": [8.0, 1.0, 3.0], "quaternion": UPRIGHT}
BALL = {
    "shape": "sphere",
    "size": [0.6],
    "position": [12.0, -2.0, 2.0],
    "quaternion": UPRIGHT,
    "motion": {"reach": [0.0, 1.0, 0.0], "period": 4.0, "phase": 0.25},
}
WORLD = {
    "format": 1,
    "length": 20.0,
    "width": 10.0,
    "altitude": [0.5, 4.0],
    "start": [1.0, 0.0, 1.5],
    "start_yaw": 0.0,
    "goal": [18.0, 0.0, 1.5],
    "obstacles": [PILLAR, BALL],
}


def make_flight(name: str = "seed 1", outcome: str = GOAL, steps: int = 12, **world: Any) -> Flight:
    path = np.linspace([1.0, 0.0, 1.5], [17.5, 0.5, 1.5], steps + 1)
    depths = np.linspace(0, 1, (steps + 1) * 8 * 8).reshape(-1, 8, 8).astype(np.float32)
    return Flight(name, WORLD | world, 1.0, 0.1, path, depths, outcome, 12.34)


@pytest.mark.parametrize(
    ("obstacle", "low", "high", "heights"),
    [
        (PILLAR, (7.5, 0.5), (8.5, 1.5), (0.0, 6.0)),
        (BALL, (11.4, -2.6), (12.6, -1.4), (1.4, 2.6)),
        (PILLAR | {"quaternion": LEVEL}, (5.0, 0.5), (11.0, 1.5), (2.5, 3.5)),
        (PILLAR | {"shape": "capsule"}, (7.5, 0.5), (8.5, 1.5), (-0.5, 6.5)),
        (PILLAR | {"shape": "capsule", "quaternion": LEVEL}, (4.5, 0.5), (11.5, 1.5), (2.5, 3.5)),
        (PILLAR | {"shape": "box", "size": [1.0, 2.0, 3.0]}, (7.0, -1.0), (9.0, 3.0), (0.0, 6.0)),
        (PILLAR | {"shape": "box", "size": [1.0, 2.0, 3.0], "quaternion": LEVEL}, (5, -1), (11, 3), (2.0, 4.0)),
    ],
)
def test_an_obstacle_covers_what_its_shape_size_and_rotation_say(
    obstacle: dict[str, Any], low: tuple[float, float], high: tuple[float, float], heights: tuple[float, float]
) -> None:
    outline = outline_obstacle(obstacle)
    np.testing.assert_allclose(outline.min(0), low, atol=0.005)
    np.testing.assert_allclose(outline.max(0), high, atol=0.005)
    assert find_heights(obstacle) == pytest.approx(heights)


def test_a_shape_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="no obstacle is called 'cone'; there are: sphere, capsule, cylinder, box"):
        outline_obstacle(PILLAR | {"shape": "cone"})


def test_a_hull_leaves_out_what_is_inside_and_goes_round_to_the_left() -> None:
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    hull = find_hull(np.concatenate([square[::-1], [[0.5, 0.5], [0.5, 0.0], [1.0, 1.0]]]))
    assert hull.tolist() == square.tolist()


def test_what_swings_is_where_its_motion_says() -> None:
    assert displace(BALL, 0.0).tolist() == pytest.approx([0.0, 1.0])
    assert displace(BALL, 1.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert displace(BALL, 2.0).tolist() == pytest.approx([0.0, -1.0])
    assert displace(PILLAR, 1.0).tolist() == [0.0, 0.0]


def test_the_map_has_obstacles_where_they_are_dark_where_they_close_all_altitudes() -> None:
    axes = Figure().subplots()
    pillar, ball = draw_map(axes, make_flight())
    assert pillar.get_xy().mean(0) == pytest.approx([8.0, 1.0], abs=0.05)
    assert ball.get_xy().mean(0) == pytest.approx([12.0, -1.0], abs=0.05)  # a quarter of its swing at the beginning
    assert sum(pillar.get_facecolor()[:3]) < sum(ball.get_facecolor()[:3])
    low_ceiling = draw_map(Figure().subplots(), make_flight(altitude=[1.5, 2.5]))
    assert low_ceiling[1].get_facecolor() == pillar.get_facecolor()
    assert sum(patch.get_fill() is False for patch in axes.patches) == 4  # the walls, two ends of a swing, the goal


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_path_has_the_colour_of_its_ending_and_a_cross_unless_that_is_the_goal(outcome: str) -> None:
    axes = Figure().subplots()
    flight = make_flight(outcome=outcome)
    draw_path(axes, flight)
    assert {line.get_color() for line in axes.lines} == {OUTCOMES[outcome]}
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), flight.path[:, :2])
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == (outcome != GOAL)
    for cross in crosses:
        np.testing.assert_array_equal(cross.get_xydata()[0], flight.path[-1, :2])


def test_a_flight_says_how_it_ended() -> None:
    assert make_flight(outcome=COLLISION).describe() == "seed 1: collision after 1.2 s, return 12.3"


def test_flights_in_one_world_share_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    flights = [make_flight("a"), make_flight("b", length=30.0), make_flight("c", outcome=COLLISION), make_flight("d")]
    assert [[flight.name for flight in group] for group in group_flights(flights)] == [["a", "c", "d"], ["b"]]
    drawn = catch_figures(monkeypatch)
    draw_flights(flights, "who flew")
    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["2 x goal, 1 x collision", "b: goal after 1.2 s, return 12.3"]
    assert figure.get_suptitle() == "who flew"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [GOAL, COLLISION]


def catch_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Give a list that pictures' figures will be put into."""
    figures: list[Figure] = []

    def catch(figure: Figure) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr("analysis.flights.to_png", catch)
    return figures


def test_strips_go_from_the_first_frame_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = catch_figures(monkeypatch)
    draw_strips([make_flight(steps=70), make_flight("short", TIME, steps=2)], "who flew")
    (figure,) = drawn
    long, short = figure.subfigs
    assert [axes.get_title() for axes in long.axes] == [f"{number:.1f} s" for number in range(STRIP_FRAMES)]
    assert [axes.get_title() for axes in short.axes] == ["0.0 s", "0.1 s", "0.2 s"] + [""] * (STRIP_FRAMES - 3)
    shown = [axes.images[0].get_array() for axes in long.axes]
    np.testing.assert_array_equal(shown[-1], make_flight(steps=70).depths[-1])
    assert short.get_suptitle() == "short: time is up after 0.2 s, return 12.3"


@pytest.mark.parametrize("draw", [draw_flights, draw_strips])
def test_pictures_are_the_same_bytes_each_time(draw: Any) -> None:
    flights = [make_flight(str(number), outcome, length=20.0 + number) for number, outcome in enumerate(OUTCOMES)]
    first = draw(flights, "who flew")
    assert draw(flights, "who flew") == first
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_a_film_has_a_frame_for_each_point_and_ends_in_the_colour_of_its_ending() -> None:
    flight = make_flight(outcome=ASTRAY, steps=4)
    frames = list(draw_film(flight, "who flew"))
    assert len(frames) == 5
    assert {(frame.shape, frame.dtype) for frame in frames} == {((SIZE[1], SIZE[0], 3), np.dtype(np.uint8))}
    colour = np.round(255 * np.array(matplotlib.colors.to_rgb(OUTCOMES[ASTRAY])))
    coloured = [int((np.abs(frame - colour).max(-1) < 8).sum()) for frame in frames]
    assert coloured[:-1] == [0] * 4
    assert coloured[-1] > 100
    # Depth, on the right, grows with time.
    depth = [frame[150:330, 700:900].mean() for frame in frames]
    assert depth == sorted(depth)
    assert depth[-1] > depth[0] + 100


def test_what_swings_moves_in_a_film_and_the_rest_stays() -> None:
    still = replace(
        make_flight(steps=11), path=np.tile([1.0, 0.0, 1.5], (12, 1)), depths=np.ones((12, 8, 8), np.float32)
    )
    frames = [frame.astype(int) for frame in draw_film(still, "who flew")]
    changed = np.argwhere(np.abs(frames[10] - frames[0]).max(-1) > 60)
    below = changed[changed[:, 0] > 130]  # of the caption, which says the time
    assert len(below) > 20
    assert np.ptp(below[:, 1]) < 60, "only the ball's column changes"
