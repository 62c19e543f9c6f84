"""Layouts: reproducible, passable, and those held out never trained on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.drone.layouts import ALTITUDE, FIRST_HELD_OUT, GAPS, draw_layout_seed, draw_world, measure_footprint
from envs.drone.options import DENSITIES, NavigationOptions, read_options
from envs.drone.planning import plan_path
from envs.drone.quadrotor import RADIUS
from envs.drone.world import Obstacle, World
from envs.drone.world_file import read_world

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from(sorted(DENSITIES)), st.sampled_from([0.0, 0.5]))
def test_every_layout_is_valid_and_leaves_a_gap_around_everything(seed: int, density: str, moving: float) -> None:
    options = NavigationOptions(density=density, moving=moving)
    world = draw_world(options, seed)
    assert read_world(world.to_json()) == world
    assert len(world.obstacles) == round(DENSITIES[density] * 1.2)
    places = [(*one.position[:2], measure_footprint(one)) for one in world.obstacles]
    for index, (x, y, radius) in enumerate(places):
        for other_x, other_y, other_radius in places[:index]:
            assert math.hypot(x - other_x, y - other_y) - radius - other_radius >= GAPS[density]
        assert world.width / 2 - abs(y) - radius >= 2 * RADIUS


def test_gaps_are_wider_than_the_drone() -> None:
    assert min(GAPS.values()) > 2 * RADIUS
    assert ALTITUDE[0] > RADIUS


def test_a_footprint_holds_the_obstacle_from_above() -> None:
    for obstacle in draw_world(NavigationOptions(), 5).obstacles:
        angles = np.linspace(0, 2 * np.pi, 64)
        circle = measure_footprint(obstacle) + 1e-6
        ring = np.stack([np.cos(angles), np.sin(angles)], -1) * circle + obstacle.position[:2]
        for altitude in np.linspace(0, 6, 25):
            points = np.concatenate([ring, np.full((64, 1), altitude)], -1)
            assert (obstacle.find_distances(points) > 0).all()


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_there_is_a_way_through_the_densest_layouts(seed: int) -> None:
    world = draw_world(NavigationOptions(density="hard"), seed)
    path = plan_path(world)
    assert path is not None
    assert path[0] == world.start[:2]
    assert path[-1] == world.goal[:2]
    for one, other in itertools.pairwise(path):
        for part in np.linspace(0, 1, 20):
            x, y = ((1 - part) * one[axis] + part * other[axis] for axis in range(2))
            assert world.find_clearance((x, y, world.start[2]), 0.0, 1.0) > RADIUS
            assert world.find_clearance((x, y, world.goal[2]), 0.0, 1.0) > RADIUS


def test_there_is_no_way_through_a_closed_wall() -> None:
    wall = Obstacle("box", (0.2, 5.0, 3.0), (10.0, 0.0, 3.0))
    world = World(20.0, 10.0, (0.5, 4.0), (1.0, 0.0, 1.0), 0.0, (18.0, 0.0, 1.0), (wall,))
    assert plan_path(world) is None


def test_layouts_to_train_on_and_held_out_ones_have_no_seed_in_common() -> None:
    generator = np.random.default_rng(0)
    train = [draw_layout_seed(generator, "train") for _ in range(500)]
    held_out = [draw_layout_seed(generator, "held_out") for _ in range(500)]
    assert max(train) < FIRST_HELD_OUT <= min(held_out)
    assert max(held_out) < 2**32


GOLDEN = ("sphere", 18.242442, 0.136448, 2.989546)


def test_a_seed_always_gives_the_same_layout() -> None:
    """The first obstacle of a known seed: what is drawn must not change under those who name it."""
    one, again = (draw_world(NavigationOptions(), 7) for _ in range(2))
    assert one == again
    assert draw_world(NavigationOptions(), 8) != one
    first = one.obstacles[0]
    assert (first.shape, *np.round(first.position, 6).tolist()) == GOLDEN


def test_too_many_obstacles_for_the_field_are_refused() -> None:
    options = read_options({"num_obstacles": 400, "field": [20, 15]})
    with pytest.raises(ValueError, match=r"num_obstacles: only \d+ obstacles found a place in a field of 20 x 15 m"):
        draw_world(options, 0)


def test_the_share_that_swings_is_as_asked() -> None:
    worlds = [draw_world(NavigationOptions(moving=0.3), seed) for seed in range(20)]
    swinging = [one.motion is not None for world in worlds for one in world.obstacles]
    assert 0.15 < np.mean(swinging) < 0.4
    assert not any(one.motion for one in draw_world(NavigationOptions(), 0).obstacles)
