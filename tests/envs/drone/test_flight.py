"""Flights: how the drone answers, what is rewarded, how it ends, and what it knows of itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from envs.drone.depth_nav import DepthNavStateEnv
from envs.drone.flight import BASE_DIM, MAX_CLIMB, MAX_FORWARD, MAX_YAW_RATE, PERIOD
from envs.drone.quadrotor import Quadrotor
from tests.envs.drone.test_world import describe_world

FORWARD, UP, DOWN = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, -1.0, 0])


def open_env(obstacles: list[dict[str, Any]] | None = None, **arguments: Any) -> DepthNavStateEnv:
    """Give a task in a small fixed world, empty unless told, already reset; it looks at the goal."""
    world = describe_world(obstacles=obstacles or [])
    env = DepthNavStateEnv(world=world, **arguments)
    env.reset(seed=0)
    return env


def repeat(env: DepthNavStateEnv, action: Any, count: int) -> list[tuple[Any, float, bool, bool, dict[str, Any]]]:
    results = []
    for _ in range(count):
        results.append(env.step(action))
        if results[-1][2]:
            break
    return results


def test_the_drone_reaches_the_speeds_that_actions_ask_for() -> None:
    env = open_env()
    repeat(env, np.array([0.5, 0.5, 0.0]), 25)
    pose = env.flight.pose
    assert pose is not None
    assert pose.velocity[0] == pytest.approx(0.5 * MAX_FORWARD, rel=0.03)
    assert pose.velocity[2] == pytest.approx(0.5 * MAX_CLIMB, rel=0.1)
    env.reset(seed=0)
    repeat(env, np.array([0.0, 0.0, 0.5]), 20)
    assert env.flight.pose is not None
    assert env.flight.pose.rates[2] == pytest.approx(0.5 * MAX_YAW_RATE, rel=0.03)


def test_the_drone_hovers_where_nothing_is_asked_for() -> None:
    env = open_env()
    repeat(env, np.zeros(3), 50)
    assert env.flight.pose is not None
    assert env.flight.pose.position == pytest.approx((1.0, 0.0, 1.5), abs=0.02)


def test_reaching_the_goal_ends_a_flight_with_its_reward() -> None:
    env = open_env()
    results = repeat(env, FORWARD, 100)
    _, reward, terminated, truncated, info = results[-1]
    assert (terminated, truncated, info["is_success"], info["collision"]) == (True, False, True, False)
    assert reward > 15
    assert info["distance"] < 1
    assert info["path_length"] == pytest.approx(16, abs=0.5)
    # Progress over the whole way is worth its length, so that returns count metres.
    assert sum(result[1] for result in results) == pytest.approx(16 + 20 - 0.05 * len(results), abs=1.5)
    assert not any(result[2] for result in results[:-1])


@pytest.mark.parametrize("shape", ["sphere", "capsule", "cylinder", "box"])
@pytest.mark.parametrize("moving", [False, True])
def test_touching_any_shape_is_a_collision(shape: str, moving: bool) -> None:
    size = {"sphere": [0.8], "capsule": [0.5, 0.5], "cylinder": [0.5, 1.0], "box": [0.4, 0.6, 1.0]}[shape]
    obstacle: dict[str, Any] = {"shape": shape, "size": size, "position": [8, 0, 1.5]}
    if moving:
        obstacle["motion"] = {"reach": [0.1, 0, 0], "period": 3}
    _, reward, terminated, _, info = repeat(open_env([obstacle]), FORWARD, 100)[-1]
    assert (terminated, info["is_success"], info["collision"]) == (True, False, True)
    assert reward < -15
    assert info["path_length"] == pytest.approx(8 - 1 - size[0] - 0.25, abs=0.35)


def test_a_wall_and_the_ground_are_obstacles() -> None:
    env = open_env()
    assert repeat(env, np.array([-1.0, 0, 0]), 30)[-1][4]["collision"]
    env.reset(seed=0)
    _, reward, terminated, _, info = repeat(env, DOWN, 40)[-1]
    assert (terminated, info["collision"], info["is_success"]) == (True, False, False)  # out of the band before it
    assert reward < -15


def test_leaving_the_altitude_band_upwards_ends_a_flight() -> None:
    _, reward, terminated, _, info = repeat(open_env(), UP, 60)[-1]
    assert (terminated, info["collision"], info["is_success"]) == (True, False, False)
    assert reward < -15


def test_a_glancing_touch_between_two_actions_is_a_collision() -> None:
    """A thin post is passed within one period: only a look at every time step sees it."""
    post = {"shape": "cylinder", "size": [0.02, 2.0], "position": [8, 0.262, 2.0]}
    assert repeat(open_env([post]), FORWARD, 60)[-1][4]["collision"]
    post["position"] = [8, 0.30, 2.0]
    assert repeat(open_env([post]), FORWARD, 60)[-1][4]["is_success"]


def test_jerks_closeness_and_time_cost() -> None:
    env = open_env()
    rest = env.step(np.zeros(3))[1]
    assert rest == pytest.approx(-0.05, abs=0.01)
    jerk = env.step(np.array([0.0, 0.0, 1.0]))[1]
    assert jerk == pytest.approx(rest - 0.05, abs=0.01)
    near = open_env([{"shape": "sphere", "size": [0.5], "position": [1, 1.0, 1.5]}])
    assert near.step(np.zeros(3))[1] == pytest.approx(rest - 0.3 * (1 - 0.25 / 0.6), abs=0.01)


def test_the_base_says_where_the_goal_is_and_how_the_drone_moves() -> None:
    env = open_env()
    base = env.flight.observe_base()
    assert base.shape == (BASE_DIM,)
    diagonal = math.hypot(20, 10)
    expected = [17 / diagonal, 0, 0, 1.5 / 5, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(base, expected, atol=1e-6)
    repeat(env, np.array([0.0, 0.0, 1.0]), 10)  # to the left: the goal moves to the right
    pose = env.flight.pose
    assert pose is not None
    yaw = math.atan2(pose.rotation[1, 0], pose.rotation[0, 0])
    assert env.flight.observe_base()[1] == pytest.approx(-yaw / math.pi, abs=1e-3)
    env.reset(seed=0)
    env.step(FORWARD)
    assert env.flight.observe_base()[8] < -0.05  # nose down while it speeds up
    assert env.flight.observe_base()[4] > 0


def test_pitch_and_roll_are_those_of_the_body() -> None:
    env = open_env()
    drone: Quadrotor = env.flight.backend._drone  # type: ignore[attr-defined]
    for axis, sign, index in ((1, -1, 8), (0, 1, 9)):  # about y the nose goes down, about x the right side
        quaternion = np.zeros(4)
        quaternion[0], quaternion[1 + axis] = math.cos(0.2), math.sin(0.2)
        drone.data.qpos[3:7] = quaternion
        env.flight.pose = env.flight.backend.read_pose()
        assert env.flight.observe_base()[index] * math.pi / 2 == pytest.approx(sign * 0.4, abs=1e-6)


def test_wind_pushes_and_differs_between_flights_but_not_between_equal_seeds() -> None:
    env = open_env(wind=4.0)

    def hover(seed: int) -> tuple[float, ...]:
        env.reset(seed=seed)
        repeat(env, np.zeros(3), 30)
        assert env.flight.pose is not None
        return env.flight.pose.position

    one, other, again = hover(1), hover(2), hover(1)
    assert one == again
    assert math.dist(one, other) > 0.1
    assert math.dist(one[:2], (1.0, 0.0)) > 0.1


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ([0.0, math.nan, 0.0], r"action\[1\]: nan is not in \[-1, 1\]"),
        ([0.0, 0.0, -1.1], r"action\[2\]: -1.1 is not in \[-1, 1\]"),
        ([math.inf, 0.0, 0.0], r"action\[0\]: inf is not in \[-1, 1\]"),
        ([0.0, 0.0], r"action: \(2,\) is its shape, and \(3,\) is needed"),
        ([[0.0, 0.0, 0.0]], r"action: \(1, 3\) is its shape"),
    ],
)
def test_actions_that_are_none_are_refused(action: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        open_env().step(np.array(action))


def test_a_period_is_a_tenth_of_a_second_of_simulated_time() -> None:
    env = open_env()
    repeat(env, np.zeros(3), 7)
    assert env.flight.backend.time == pytest.approx(7 * PERIOD)  # type: ignore[attr-defined]
