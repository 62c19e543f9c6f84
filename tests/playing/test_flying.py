"""Flights that are drawn are those that an evaluation flies, and a map shows what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from analysis.flights import ASTRAY, COLLISION, GOAL, TIME
from analysis.outlines import displace, find_heights, outline_obstacle
from envs.drone.flight import GOAL_RADIUS
from envs.drone.world import Motion, Obstacle, World
from envs.make import make_env
from envs.record import build_random_policy, build_scripted_policy
from experiment.problems import SettingsError
from playing.flying import fly, name_outcome
from training.evaluation import evaluate_begun
from training.seeding import spawn_generator

SIZES = {"sphere": (0.6,), "capsule": (0.3, 0.8), "cylinder": (0.4, 0.9), "box": (0.3, 0.6, 0.9)}


@pytest.mark.parametrize("shape", SIZES)
def test_an_outline_holds_an_obstacle_and_nothing_more(shape: str) -> None:
    generator = np.random.default_rng(3)
    for _ in range(4):
        turn = generator.standard_normal(4)
        turn /= np.linalg.norm(turn)
        quaternion = tuple(turn.tolist())
        motion = Motion((0.5, -0.25, 0.0), 5.0, 0.1)
        obstacle = Obstacle(shape, SIZES[shape], (2.0, -1.0, 1.5), quaternion, motion)
        entry = World(20, 10, (0.5, 4), (1, 0, 1), 0.0, (18, 0, 1), (obstacle,)).to_json()["obstacles"][0]
        points = generator.uniform(-1.6, 1.6, (40_000, 3)) + obstacle.position
        at_rest = replace(obstacle, motion=None)
        inside = points[at_rest.find_distances(points) < 0]
        outline = outline_obstacle(entry)
        assert Outline(outline).contains_points(inside[:, :2], radius=1e-3).all()
        low, high = find_heights(entry)
        assert low <= inside[:, 2].min() < low + 0.15
        assert high - 0.15 < inside[:, 2].max() <= high
        # Of what the outline covers, almost all has something of the obstacle above or below it.
        covered = points[Outline(outline).contains_points(points[:, :2])]
        columns = {tuple(column) for column in np.floor(covered[:, :2] * 5).astype(int).tolist()}
        filled = {tuple(column) for column in np.floor(inside[:, :2] * 5).astype(int).tolist()}
        assert len(filled) / len(columns) > 0.8
        for time in (0.0, 1.3, 4.9):
            np.testing.assert_allclose(displace(entry, time), motion.displace(time)[:2])


@pytest.mark.parametrize("env_name", ["DepthNav-v0", "DepthNavState-v0"])
def test_flights_are_those_of_an_evaluation(env_name: str) -> None:
    kwargs = {"density": "hard", "wind": 1.0} | ({"height": 16, "width": 24} if env_name == "DepthNav-v0" else {})
    policy = build_scripted_policy("straight_line", env_name, kwargs)
    seeds = [2_000_000, 2_000_002, 2_000_004]
    flights = fly(policy, seeds)
    evaluation = evaluate_begun(
        lambda: make_env(env_name, kwargs),
        lambda env: policy.begin(env, np.random.default_rng(0)),
        seeds,
        lambda: False,
    )
    assert [flight.episode_return for flight in flights] == list(evaluation.returns)
    assert [len(flight.path) - 1 for flight in flights] == list(evaluation.lengths)
    for flight, length, distance, success in zip(
        flights, *(evaluation.measures[name] for name in ("path_length", "distance", "is_success")), strict=True
    ):
        assert np.linalg.norm(np.diff(flight.path, axis=0), axis=1).sum() == pytest.approx(length)
        assert np.linalg.norm(flight.path[-1] - flight.world["goal"]) == pytest.approx(distance)
        assert (flight.outcome == GOAL) == bool(success) == (distance < GOAL_RADIUS)
        assert flight.path[0] == pytest.approx(flight.world["start"])
        assert flight.depths.shape == (len(flight.path), *((16, 24) if env_name == "DepthNav-v0" else (64, 64)))
        assert flight.depths.dtype == np.float32
        assert 0 <= flight.depths.min() < flight.depths.max() <= 1
    assert [flight.name for flight in flights] == ["seed 2000000", "seed 2000002", "seed 2000004"]


def test_what_a_policy_draws_follows_from_the_seed_as_in_an_evaluation() -> None:
    policy = build_random_policy("DepthNavState-v0", {"max_episode_steps": 5})
    seeds = [5, 6]
    generators = iter([spawn_generator(seed, "acting") for seed in seeds])
    evaluation = evaluate_begun(
        lambda: make_env(policy.env_name, policy.env_kwargs),
        lambda env: policy.begin(env, next(generators)),
        seeds,
        lambda: False,
    )
    flights = fly(policy, seeds)
    assert [flight.episode_return for flight in flights] == list(evaluation.returns)
    assert {flight.outcome for flight in flights} == {TIME}


def test_what_the_agent_sees_is_what_is_drawn() -> None:
    seen: list[Any] = []
    policy = build_random_policy("DepthNav-v0", {"max_episode_steps": 4, "depth_noise": 0.5, "height": 8, "width": 8})

    def begin(env: Any, generator: np.random.Generator) -> Callable[[Any], Any]:
        act = policy.begin(env, generator)

        def watch(obs: Any) -> Any:
            seen.append(obs["depth"][-1, 0].copy())
            return act(obs)

        return watch

    (flight,) = fly(type(policy)(policy.env_name, policy.env_kwargs, {}, begin), [7])
    np.testing.assert_array_equal(flight.depths[:-1], np.stack(seen))


@pytest.mark.parametrize(
    ("info", "terminated", "outcome"),
    [
        ({"is_success": True, "collision": False}, True, GOAL),
        ({"is_success": False, "collision": True}, True, COLLISION),
        ({"is_success": False, "collision": False}, True, ASTRAY),
        ({"is_success": False, "collision": False}, False, TIME),
    ],
)
def test_an_ending_has_one_name(info: dict[str, bool], terminated: bool, outcome: str) -> None:
    assert name_outcome(info, terminated) == outcome


def test_other_environments_are_refused() -> None:
    with pytest.raises(SettingsError, match="Pendulum-v1 can't be drawn: only flights of navigation tasks are"):
        fly(build_random_policy("Pendulum-v1", {}), [1])
