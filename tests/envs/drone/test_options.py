"""Arguments of the navigation task: all that is wrong is named, with its value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from envs.drone.options import NavigationOptions, read_options
from envs.make import make_env
from tests.envs.drone.test_world import describe_world


@pytest.mark.parametrize("key", ["seq_len", "height", "width"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "4", 5_000])
def test_frames_of_no_size_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{key}: .* is not a whole number from 1 to"):
        read_options({key: value})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"density": "esay"}, "density: 'esay' is none of easy, medium, hard; did you mean 'easy'?"),
        ({"layouts": "test"}, "layouts: 'test' is none of train, held_out"),
        ({"backend": "airsim"}, "backend: 'airsim' isn't there; there is: embedded"),
        ({"widht": 64}, "widht: there is no such argument; did you mean 'width'?"),
        ({"wind": math.nan}, "wind: nan is not a number from 0 to 15"),
        ({"moving": 2}, "moving: 2 is not a number from 0 to 1"),
        ({"depth_noise": "much"}, "depth_noise: 'much' is not a number from 0 to 5"),
        ({"max_depth": math.inf}, "max_depth: inf is not a number from 0.1 to 1000"),
        ({"horizontal_fov": 180}, "horizontal_fov: 180 is not a number from 1 to 170"),
        ({"field": [5, 5]}, "field: [5, 5] is not a length from 15 to 200 m and a width from 10 to 200 m"),
        ({"field": "large"}, "field: 'large' is not"),
        ({"num_obstacles": -1}, "num_obstacles: -1 is not a whole number from 0 to 500"),
        ({"blind": "yes"}, "blind: 'yes' is neither true nor false"),
        ({"world": 3}, "world: world: 3 is not a mapping"),
        ({"world": "nowhere.json"}, "world: nowhere.json: No such file"),
        ({"world": describe_world(), "density": "hard"}, "density: means nothing in a fixed `world`; leave it out"),
    ],
)
def test_what_is_wrong_is_said_with_its_value(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_options(arguments)
    assert wanted in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        read_options({"density": "x", "wind": -1, "height": 0})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["density", "height", "wind"]


def test_nothing_said_gives_the_defaults() -> None:
    assert read_options({}) == NavigationOptions()
    assert read_options({"num_obstacles": None, "world": None}) == NavigationOptions()


@pytest.mark.parametrize("key", ["seq_len", "height", "width"])
def test_a_flat_observation_refuses_what_only_pictures_have(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: means nothing in a flat observation; leave it out"):
        make_env("DepthNavState-v0", {key: 4})
