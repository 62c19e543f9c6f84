"""What the simulator knows: the numbers are true, and asking for them changes nothing else."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.drone.depth_nav import DepthNavEnv, DepthNavStateEnv
from envs.drone.depth_nav_vector import DepthNavVectorEnv
from envs.drone.layouts import draw_world
from envs.drone.options import NavigationOptions, read_options
from envs.drone.privileged import NEIGHBOUR_DIM, NUM_NEIGHBOURS, OWN_DIM, PRIVILEGED_DIM
from envs.drone.surroundings import Surroundings, measure_radius
from envs.drone.world import Motion, Obstacle, World
from envs.make import make_env
from envs.snapshot import equal_bits, restore_snapshot, take_snapshot
from tests.envs.drone.test_depth_nav import AHEAD, ROUGH, SMALL, equal_results
from tests.envs.drone.test_world import describe_world

SHAPES = {"sphere": (0.6,), "capsule": (0.3, 0.9), "cylinder": (0.5, 1.1), "box": (0.3, 0.5, 0.8)}


def open_env(obstacles: list[dict[str, Any]] | None = None, **changes: Any) -> DepthNavEnv:
    """Give a task in a small fixed world, empty unless told, already reset."""
    env = DepthNavEnv(world=describe_world(obstacles=obstacles or [], **changes), privileged=True, **SMALL)
    env.reset(seed=0)
    return env


def read(env: DepthNavEnv) -> tuple[Any, Any]:
    """Give the drone's own numbers, and those of each obstacle."""
    numbers = env.eyes.read(0)["privileged"]
    return numbers[:OWN_DIM], numbers[OWN_DIM:].reshape(NUM_NEIGHBOURS, NEIGHBOUR_DIM)


def draw_obstacle(generator: np.random.Generator, shape: str) -> Obstacle:
    quaternion = generator.normal(size=4)
    w, x, y, z = (quaternion / np.linalg.norm(quaternion)).tolist()
    px, py, pz = generator.uniform((2, -4, 0.5), (18, 4, 4)).tolist()
    motion = Motion(tuple(generator.uniform(-1, 1, 3).tolist()), 5.0, 0.3) if generator.uniform() < 0.5 else None
    return Obstacle(shape, SHAPES[shape], (px, py, pz), (w, x, y, z), motion)


def draw_turned_world(seed: int) -> World:
    """Give a world with three obstacles of each shape, turned anyhow, half of them swinging."""
    generator = np.random.default_rng(seed)
    obstacles = tuple(draw_obstacle(generator, shape) for shape in SHAPES for _ in range(3))
    return World(20.0, 10.0, (0.5, 4.0), (1.0, 0.0, 1.5), 0.0, (18.0, 0.0, 1.5), obstacles)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 20), st.integers(1, 12))
def test_the_nearest_obstacles_are_those_of_one_distance_after_the_other(seed: int, time: float, count: int) -> None:
    world = draw_turned_world(seed)
    x, y, z = np.random.default_rng(seed + 1).uniform((0, -5, 0), (20, 5, 5)).tolist()
    point = np.array([x, y, z])
    distances = np.array([float(one.find_distances(point, time)) for one in world.obstacles])
    near = Surroundings(world).find_nearest((x, y, z), time, count)
    np.testing.assert_allclose(near.distances, np.sort(np.maximum(distances, 0))[:count], atol=1e-9)
    order = np.argsort(np.maximum(distances, 0), kind="stable")
    for index, distance, way in zip(order, near.distances, near.ways, strict=False):
        if distance > 0:  # the way ends on the obstacle, and is as long as it is away
            assert float(world.obstacles[index].find_distances(point + way, time)) == pytest.approx(0, abs=1e-9)
        assert np.linalg.norm(way) == pytest.approx(distance)


def test_velocities_are_how_fast_places_change() -> None:
    motion = Motion((0.5, -1.0, 0.2), period=4.0, phase=0.1)
    for time in (0.0, 0.7, 3.1):
        ahead, behind = (np.array(motion.displace(time + step)) for step in (1e-5, -1e-5))
        np.testing.assert_allclose(motion.find_velocity(time), (ahead - behind) / 2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_a_radius_just_holds_an_obstacle_seen_from_above(shape: str, seed: int) -> None:
    obstacle = draw_obstacle(np.random.default_rng(seed), shape)
    obstacle = Obstacle(shape, obstacle.size, (0.0, 0.0, 0.0), obstacle.quaternion)
    points = np.random.default_rng(1).uniform(-1.5, 1.5, (400_000, 3))
    inside = points[obstacle.find_distances(points) <= 0]
    widest = np.hypot(inside[:, 0], inside[:, 1]).max()
    assert widest <= measure_radius(obstacle) <= widest + 0.06


def test_upright_and_level_cylinders_are_as_wide_as_they_look() -> None:
    half = math.sqrt(0.5)
    for quaternion, wanted in (((1.0, 0.0, 0.0, 0.0), 0.5), ((half, half, 0.0, 0.0), math.hypot(0.5, 1.1))):
        assert measure_radius(Obstacle("cylinder", (0.5, 1.1), (0, 0, 0), quaternion)) == pytest.approx(wanted)


def test_the_drones_own_numbers_are_true() -> None:
    env = open_env(goal=[1, 4, 3.5], start_yaw=0.3)  # the goal is to the left: its frame's x is the world's y
    for action in (AHEAD, np.array([0.2, 0.5, -0.8])):
        env.step(action)
    own, _ = read(env)
    pose = env.flight.pose
    assert pose is not None
    (x, y, z), (vx, vy, vz) = pose.position, pose.velocity
    diagonal = math.hypot(20, 10)
    np.testing.assert_allclose(own[:3], (x / 10 - 1, y / 5, z / 5), atol=1e-6)
    np.testing.assert_allclose(own[3:6], ((4 - y) / diagonal, (x - 1) / diagonal, (3.5 - z) / 5), atol=1e-6)
    np.testing.assert_allclose(own[6:9], (vy / 5, -vx / 5, vz / 5), atol=1e-6)
    rotation = pose.rotation
    np.testing.assert_allclose(own[9:18], np.stack([rotation[1], -rotation[0], rotation[2]]).ravel(), atol=1e-6)
    np.testing.assert_allclose(own[18:21], np.divide(pose.rates, (6, 6, 3)), atol=1e-6)
    assert own[21:23].tolist() == [0, 0]
    np.testing.assert_allclose(own[23:], (0.2, 0.5, -0.8), atol=1e-6)
    env.reset(seed=0)
    assert read(env)[0][23:].tolist() == [0, 0, 0]


def test_the_wind_is_that_which_blows() -> None:
    env = DepthNavEnv(world=describe_world(goal=[1, 4, 1.5]), privileged=True, wind=3.0)
    env.reset(seed=3)
    for _ in range(4):
        env.step(AHEAD)
        east, north, _ = env.flight.backend._drone.wind  # type: ignore[attr-defined]
        assert read(env)[0][21:23] == pytest.approx([north / 10, -east / 10], abs=1e-6)
        assert east != 0


def test_obstacles_are_told_of_along_the_heading_and_the_others_are_far() -> None:
    ball = {"shape": "sphere", "size": [0.5], "position": [1, 3, 1.5]}  # to the left of a drone that looks along x
    moving = {"shape": "sphere", "size": [0.5], "position": [6, 0, 1.5], "motion": {"reach": [0, 2, 0], "period": 8}}
    far = {"shape": "sphere", "size": [0.5], "position": [14, 0, 1.5]}
    env = open_env([moving, far, ball])
    near = read(env)[1]
    np.testing.assert_allclose(near[0], [0.25, 0, 1, 0, 0.25, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(near[1], [0.45, 1, 0, 0, 0.25, 0, math.pi / 2 / 5, 0], atol=1e-6)
    assert (near[2:] == [1, 0, 0, 0, 0, 0, 0, 0]).all()
    env = open_env([ball, moving], start_yaw=math.pi / 2)
    np.testing.assert_allclose(read(env)[1][0, :4], [0.25, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(read(env)[1][1], [0.45, 0, -1, 0, 0.25, math.pi / 2 / 5, 0, 0], atol=1e-6)


def test_each_flight_is_told_of_its_own_world() -> None:
    env = DepthNavEnv(privileged=True, **SMALL)
    env.reset(seed=0)
    env.reset()
    again = DepthNavEnv(world=env.flight.world, privileged=True, **SMALL)
    assert equal_bits(again.reset()[0], env.eyes.read(0))


def test_only_so_many_obstacles_are_told_of() -> None:
    world = draw_world(NavigationOptions(density="hard"), 5)
    env = DepthNavEnv(world=world, privileged=True)
    env.reset(seed=0)
    for _ in range(60):
        env.step(np.array([0.5, 0, 0]))
    near = read(env)[1]
    assert near.shape == (8, 8)
    assert (np.diff(near[:, 0]) >= 0).all()
    clearance = world.find_clearance(env.flight.pose.position, 0.0, 10.0)  # type: ignore[union-attr]
    assert near[0, 0] * 10 >= clearance - 1e-5  # the ground may be nearer


@pytest.mark.parametrize("env_name", ["DepthNav-v0", "AirSimEnv-v42"])
def test_gymnasiums_checks_pass_and_all_numbers_stay_within_their_bounds(env_name: str) -> None:
    env = make_env(env_name, ROUGH | SMALL | {"privileged": True, "wind": 15.0})
    assert env.observation_space["privileged"] == gym.spaces.Box(-1, 1, (PRIVILEGED_DIM,), np.float32)  # type: ignore[index]
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(60):
        obs, _, terminated, _, _ = env.step(env.action_space.sample())
        assert obs in env.observation_space
        if terminated:
            env.reset()
    env.close()


def test_asking_for_it_leaves_all_else_as_it_is_to_the_bit() -> None:
    without, asked = DepthNavEnv(**ROUGH, **SMALL), DepthNavEnv(**ROUGH, **SMALL, privileged=True)
    plain, told = without.reset(seed=4), asked.reset(seed=4)
    for _ in range(40):
        assert set(plain[0]) == {"base", "depth"}
        seen = {key: told[0][key] for key in plain[0]}
        assert equal_results((seen, *told[1:]), plain)
        plain, told = without.step(AHEAD), asked.step(AHEAD)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_many_worlds_are_told_of_as_single_ones_are(mode: AutoresetMode) -> None:
    arguments = ROUGH | SMALL | {"privileged": True}
    ours = DepthNavVectorEnv(3, 25, autoreset_mode=mode, **arguments)
    theirs = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.TimeLimit(DepthNavEnv(**arguments), 25)] * 3, autoreset_mode=mode
    )
    assert ours.observation_space == theirs.observation_space
    assert equal_results(ours.reset(seed=5), theirs.reset(seed=5))
    ours.action_space.seed(1)
    for _ in range(60):
        actions = ours.action_space.sample()
        assert equal_results(ours.step(actions), theirs.step(actions))


def test_a_snapshot_goes_on_to_the_bit() -> None:
    env, fresh = (DepthNavEnv(**ROUGH, **SMALL, privileged=True) for _ in range(2))
    env.reset(seed=2)
    for _ in range(12):
        env.step(AHEAD)
    restore_snapshot(fresh, take_snapshot(env))
    for _ in range(20):
        one, other = env.step(AHEAD), fresh.step(AHEAD)
        assert equal_bits(one[0], other[0])
        if one[2]:
            assert equal_bits(env.reset()[0], fresh.reset()[0])


def test_a_goal_right_above_the_start_has_a_frame_too() -> None:
    own, _ = read(open_env(goal=[1, 0, 3.5]))
    np.testing.assert_allclose(own[3:6], (0, 0, 0.4), atol=1e-6)
    np.testing.assert_allclose(own[9:18], np.eye(3).ravel(), atol=1e-6)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_what_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"privileged: {value!r} is neither true nor false"):
        read_options({"privileged": value})


def test_a_flat_observation_refuses_it() -> None:
    with pytest.raises(ValueError, match="privileged: means nothing in a flat observation; leave it out"):
        DepthNavStateEnv(privileged=True)
