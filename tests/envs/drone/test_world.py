"""Worlds: what they are made of, what is refused, and that they survive as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.drone.depth_nav import DepthNavEnv
from envs.drone.layouts import draw_world
from envs.drone.mjcf import write_obstacle
from envs.drone.options import NavigationOptions
from envs.drone.world import Motion, Obstacle, World, gather_primitives
from envs.drone.world_file import WorldError, load_world, read_world

SWINGING = Motion((0.5, 0.0, 0.0), period=4.0, phase=0.25)


def describe_world(**changes: Any) -> dict[str, Any]:
    """Give a small valid world as data, with changes."""
    return {
        "format": 1,
        "length": 20,
        "width": 10,
        "altitude": [0.5, 4],
        "start": [1, 0, 1.5],
        "goal": [18, 0, 1.5],
        "obstacles": [
            {"shape": "cylinder", "size": [0.5, 3], "position": [8, 0, 3]},
            {"shape": "sphere", "size": [0.6], "position": [12, 2, 2], "motion": {"reach": [0, 1, 0], "period": 5}},
        ],
    } | changes


def read_problems(**changes: Any) -> str:
    with pytest.raises(WorldError) as caught:
        read_world(describe_world(**changes))
    return str(caught.value)


@pytest.mark.parametrize("moving", [0.0, 0.7])
def test_a_drawn_world_is_the_same_after_json(moving: float) -> None:
    world = draw_world(NavigationOptions(moving=moving), 12)
    assert read_world(json.loads(json.dumps(world.to_json()))) == world


def test_a_world_is_read_from_a_file_and_its_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    path.write_text(json.dumps(describe_world()))
    assert load_world(path).goal == (18.0, 0.0, 1.5)
    path.write_text(json.dumps(describe_world(length=-1)))
    with pytest.raises(WorldError, match=r"world\.json: length: -1 is not a finite number above 0"):
        load_world(path)
    path.write_text("{")
    with pytest.raises(WorldError, match=r"world\.json: this is not JSON"):
        load_world(path)
    with pytest.raises(WorldError, match=r"other\.json: No such file"):
        load_world(tmp_path / "other.json")


def test_overlapping_primitives_are_refused_by_name() -> None:
    obstacles = [
        {"shape": "box", "size": [1, 1, 1], "position": [8, 0, 1]},
        {"shape": "sphere", "size": [0.5], "position": [9.3, 0, 1]},
        {"shape": "sphere", "size": [0.5], "position": [12, 0, 1]},
    ]
    problems = read_problems(obstacles=obstacles)
    assert problems.splitlines() == [
        "obstacles[0], a box at [8.0, 0.0, 1.0], and obstacles[1], a sphere at [9.3, 0.0, 1.0], overlap by 0.200 m"
    ]


def test_primitives_that_only_come_close_are_taken() -> None:
    """Their bounding spheres overlap, they don't."""
    plates = [
        {"shape": "box", "size": [0.1, 2, 1], "position": [8, 0, 1]},
        {"shape": "box", "size": [0.1, 2, 1], "position": [8.25, 0, 1]},
    ]
    assert len(read_world(describe_world(obstacles=plates)).obstacles) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True, None])
@pytest.mark.parametrize("key", ["size", "position"])
def test_numbers_that_are_none_are_refused(key: str, value: Any) -> None:
    obstacle = {"shape": "capsule", "size": [0.5, 1.0], "position": [8, 0, 2]}
    obstacle[key] = [value, *obstacle[key][1:]]  # type: ignore[index]
    assert f"obstacles[0].{key}" in read_problems(obstacles=[obstacle])


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"goal": [8, 0, 1.5]}, "goal: [8.0, 0.0, 1.5] is inside obstacles[0], a cylinder"),
        ({"goal": [8.6, 0, 1.5]}, "goal: [8.6, 0.0, 1.5] is 0.10 m from obstacles[0], a cylinder"),
        ({"start": [8, 0.4, 1.5]}, "start: [8.0, 0.4, 1.5] is inside obstacles[0]"),
        ({"goal": [30, 0, 1.5]}, "goal: [30.0, 0.0, 1.5] is outside the field of 20.0 x 10.0 m"),
        ({"goal": [18, 0, 9]}, "goal: [18.0, 0.0, 9.0] is outside the altitudes 0.5 to 4.0 m"),
        ({"altitude": [4, 0.5]}, "altitude: [4.0, 0.5] must rise"),
        ({"altitude": [0.1, 4]}, "begin above the drone's radius of 0.25 m"),
        ({"colour": 1}, "colour: unknown key"),
        ({"format": 2}, "format: 2 is not known"),
        ({"obstacles": {}}, "obstacles: give a list"),
        ({"obstacles": [3]}, "obstacles[0]: 3 is not a mapping"),
        (
            {"obstacles": [{"shape": "cone", "size": [1], "position": [8, 0, 2]}]},
            "obstacles[0].shape: 'cone' is unknown",
        ),
        ({"obstacles": [{"shape": "sphere", "size": [-1], "position": [8, 0, 2]}]}, "obstacles[0].size (radius)"),
        (
            {"obstacles": [{"shape": "sphere", "size": [1], "position": [8, 0, 2], "quaternion": [1, 1, 0, 0]}]},
            "obstacles[0].quaternion: [1.0, 1.0, 0.0, 0.0] is 1.41421 long",
        ),
    ],
)
def test_what_is_wrong_with_a_world_is_said(changes: dict[str, Any], wanted: str) -> None:
    assert wanted in read_problems(**changes)


def test_all_that_is_wrong_is_said_at_once() -> None:
    data = describe_world(width="wide", obstacles=[{"shape": "sphere", "size": [0]}])
    del data["goal"]
    with pytest.raises(WorldError) as caught:
        read_world(data)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "goal",
        "width",
        "obstacles[0].position",
        "obstacles[0].size (radius)",
    ]


def draw_obstacle(shape: str, numbers: list[float]) -> Obstacle:
    axis = np.array(numbers[3:7]) + np.array([1e-3, 0, 0, 0])
    w, x, y, z = (axis / np.linalg.norm(axis)).tolist()
    size = tuple(0.1 + abs(number) for number in numbers[: {"sphere": 1, "box": 3}.get(shape, 2)])
    return Obstacle(shape, size, (0.3, -0.2, 1.0), (w, x, y, z))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["sphere", "capsule", "cylinder", "box"]),
    st.lists(st.floats(-1, 1).map(lambda number: round(number, 9)), min_size=7, max_size=7),
    st.lists(st.floats(-3, 3).map(lambda number: round(number, 9)), min_size=3, max_size=3),
)
def test_distances_to_primitives_are_those_of_mujoco(shape: str, numbers: list[float], place: list[float]) -> None:
    obstacle, probe = draw_obstacle(shape, numbers), 0.05
    point = np.array(place) + np.array(obstacle.position)
    distance = float(obstacle.find_distances(point))
    x, y, z = point.tolist()
    ball = f'<body mocap="true" pos="{x!r} {y!r} {z!r}"><geom type="sphere" size="{probe}"/></body>'
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody>{write_obstacle(obstacle, 'it')}{ball}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    found = mujoco.mj_geomDistance(model, data, 0, 1, 100.0, np.zeros(6))
    if found > 1e-3:  # outside both give the same; inside, MuJoCo's is that of the way out for the whole ball
        assert distance - probe == pytest.approx(found, abs=1e-4)
    elif found < -3 * probe:
        assert distance < 0


def test_many_points_have_the_distances_that_each_has() -> None:
    world = draw_world(NavigationOptions(moving=0.5), 3)
    points = np.random.default_rng(0).uniform(-1, 5, (7, 4, 3))
    for obstacle in world.obstacles[:6]:
        many = obstacle.find_distances(points, 1.5)
        assert many.shape == (7, 4)
        each = [[float(obstacle.find_distances(point, 1.5)) for point in row] for row in points]
        np.testing.assert_allclose(many, each, atol=1e-12)


def test_clearance_is_the_least_distance_to_anything() -> None:
    world = draw_world(NavigationOptions(moving=0.5), 8)
    generator = np.random.default_rng(1)
    for _ in range(50):
        x, y, z = generator.uniform((1, -14, 0.3), (39, 14, 4)).tolist()
        time = float(generator.uniform(0, 20))
        distances = [float(one.find_distances(np.array([x, y, z]), time)) for one in world.obstacles]
        least = min(*distances, x, world.length - x, world.width / 2 - abs(y), z)
        assert world.find_clearance((x, y, z), time, 100.0) == pytest.approx(least)
        assert world.find_clearance((x, y, z), time, 0.5) == pytest.approx(min(least, 0.5))


def test_what_rays_hit_are_the_obstacles_at_rest_and_the_walls_last() -> None:
    obstacle = Obstacle("sphere", (0.5,), (5.0, 0.0, 2.0), motion=SWINGING)
    world = World(20.0, 10.0, (0.5, 4.0), (1.0, 0.0, 1.0), 0.0, (18.0, 0.0, 1.0), (obstacle,))
    scene = gather_primitives(world)
    assert scene.positions[0].tolist() == [5, 0, 2]
    assert scene.sizes[-1, :2].tolist() == [10, 5]


def test_what_swings_is_seen_and_touched_where_it_is() -> None:
    """A plate swings to 3 m and back in front of a hovering drone: depth follows it, and at the end it hits."""
    plate = {"shape": "box", "size": [0.1, 2, 2], "position": [5, 0, 2], "motion": {"reach": [-3.8, 0, 0], "period": 4}}
    env = DepthNavEnv(world=describe_world(obstacles=[plate]))
    obs, _ = env.reset(seed=0)
    for step in range(1, 11):
        assert obs["depth"][-1, 0, 32, 32] * 20 == pytest.approx(
            5 - 0.1 - 3.8 * math.sin(2 * math.pi * (step - 1) / 40) - 1, abs=0.15
        )
        obs, _, terminated, _, info = env.step(np.zeros(3))
        if terminated:
            break
    assert info["collision"]
    assert step == 9
