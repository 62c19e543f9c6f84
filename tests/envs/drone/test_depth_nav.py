"""What is seen of a flight, one at a time and many."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs.drone.depth_nav import DepthNavEnv, DepthNavStateEnv
from envs.drone.depth_nav_vector import DepthNavStateVectorEnv, DepthNavVectorEnv
from envs.drone.eyes import NUM_RAYS
from envs.drone.flight import BASE_DIM
from envs.snapshot import equal_bits, restore_snapshot, take_snapshot
from tests.envs.drone.test_world import describe_world

ROUGH: dict[str, Any] = {"moving": 0.5, "wind": 2.0, "depth_noise": 0.5, "num_obstacles": 12}
SMALL: dict[str, Any] = {"height": 8, "width": 12, "seq_len": 3}
AHEAD = np.array([0.6, 0, 0])


def test_the_first_observation_holds_the_first_frame_as_often_as_frames_are_kept() -> None:
    env = DepthNavEnv(**SMALL)
    obs, _ = env.reset(seed=0)
    assert obs["base"].shape == (3, BASE_DIM)
    assert obs["depth"].shape == (3, 1, 8, 12)
    assert (obs["base"] == obs["base"][0]).all()
    assert (obs["depth"] == obs["depth"][0]).all()


def test_frames_move_up_by_one_and_the_last_is_the_newest() -> None:
    env = DepthNavEnv(**SMALL)
    before, _ = env.reset(seed=0)
    for _ in range(5):
        after = env.step(AHEAD)[0]
        for key in ("base", "depth"):
            assert equal_bits(after[key][:-1], before[key][1:])
        assert not equal_bits(after["base"][-1], before["base"][-1])
        assert not equal_bits(after["depth"][-1], before["depth"][-1])
        before = after


def test_depth_is_in_levels_that_a_byte_holds_without_loss() -> None:
    env = DepthNavEnv(depth_noise=1.0)
    env.reset(seed=0)
    depth = env.step(AHEAD)[0]["depth"]
    levels = np.rint(depth * 255).astype(np.uint8)
    assert equal_bits(levels.astype(np.float32) / np.float32(255), depth)
    assert len(np.unique(levels)) > 50


def test_a_wall_ahead_is_as_deep_as_it_is_away() -> None:
    env = DepthNavEnv(world=describe_world(obstacles=[]), max_depth=40)
    obs, _ = env.reset(seed=0)
    middle = obs["depth"][-1, 0, 31:33, 31:33]
    assert np.abs(middle * 40 - 19).max() < 0.1  # the wall at 20 m, seen from 1 m
    assert obs["depth"][-1, 0, -1, 0] * 40 == pytest.approx(1.5 / (63 / 64), abs=0.1)  # the ground, 45 degrees down


def test_noise_grows_with_depth_and_is_none_unless_asked_for() -> None:
    world = describe_world(obstacles=[])
    clean, noisy = (DepthNavEnv(world=world, max_depth=40, depth_noise=noise) for noise in (0.0, 1.0))
    one, other = (env.reset(seed=0)[0]["depth"][-1, 0] * 40 for env in (clean, noisy))
    assert np.std((other - one)[24:33, 26:38]) == pytest.approx(3.6, rel=0.3)  # 1 m at 10 m is 3.6 m at 19 m
    assert np.std(other[-1] - one[-1]) < 0.15


@pytest.mark.parametrize("kind", [DepthNavEnv, DepthNavStateEnv])
def test_the_blind_fly_the_same_flight_and_see_no_depth(kind: type[DepthNavEnv] | type[DepthNavStateEnv]) -> None:
    seeing, blind = (kind(wind=2.0, moving=0.5, blind=covered) for covered in (False, True))
    for number in range(6):
        one, other = (env.step(AHEAD)[0] if number else env.reset(seed=3)[0] for env in (seeing, blind))
        if kind is DepthNavEnv:
            assert equal_bits(one["base"], other["base"])
            assert one["depth"].max() > 0 == other["depth"].max()
        else:
            assert equal_bits(one[:BASE_DIM], other[:BASE_DIM])
            assert one[BASE_DIM:].max() > 0 == other[BASE_DIM:].max()


def test_rays_are_the_shortest_ways_from_left_to_right() -> None:
    left = {"shape": "cylinder", "size": [0.5, 2], "position": [5, 3, 2]}
    env = DepthNavStateEnv(world=describe_world(obstacles=[left]))
    obs, _ = env.reset(seed=0)
    rays = obs[BASE_DIM:] * 20
    assert rays.shape == (NUM_RAYS,)
    assert rays.argmin() < NUM_RAYS / 3
    assert rays.min() == pytest.approx(5 - 0.5, abs=0.05)  # from (1, 0) to the axis at (5, 3) it is 5 m
    ahead = 19 / np.cos(np.radians(1.0))
    assert rays[NUM_RAYS // 2] == pytest.approx(ahead, abs=0.2)


def test_the_ground_hides_nothing_from_the_rays_where_one_usually_flies() -> None:
    env = DepthNavStateEnv(world=describe_world(obstacles=[], start=[1, 0, 1.8], goal=[18, 0, 1.8]), max_depth=18)
    obs, _ = env.reset(seed=0)
    assert obs[BASE_DIM + NUM_RAYS // 2] == 1


def test_the_camera_tilts_with_the_drone_and_the_rays_do_not() -> None:
    world = describe_world(obstacles=[])
    pictures, rays = DepthNavEnv(world=world), DepthNavStateEnv(world=world)
    for env in (pictures, rays):
        env.reset(seed=0)
        for _ in range(3):
            obs = env.step(np.array([1.0, 0, 0]))[0]
        if env is pictures:
            # The nose is down by some 25 degrees: even the middle of the picture shows the ground.
            assert obs["depth"][-1, 0, 32, 32] * 20 < 8
        else:
            assert obs[BASE_DIM + NUM_RAYS // 2] * 20 > 15


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("pictures", [True, False])
def test_many_worlds_give_what_as_many_single_ones_give(mode: AutoresetMode, pictures: bool) -> None:
    arguments = ROUGH | (SMALL if pictures else {})
    single, many = (DepthNavEnv, DepthNavVectorEnv) if pictures else (DepthNavStateEnv, DepthNavStateVectorEnv)

    def build() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(single(**arguments), 25)

    ours = many(3, 25, autoreset_mode=mode, **arguments)
    theirs = gym.vector.SyncVectorEnv([build] * 3, autoreset_mode=mode)
    assert equal_results(ours.reset(seed=5), theirs.reset(seed=5))
    ours.action_space.seed(1)
    endings = 0
    for _ in range(80):
        actions = ours.action_space.sample()
        results = ours.step(actions)
        assert equal_results(results, theirs.step(actions))
        endings += int(results[2].sum() + results[3].sum())
    assert endings >= 6
    assert equal_results(ours.reset(seed=[7, None, 8]), theirs.reset(seed=[7, None, 8]))


def equal_results(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return set(one) == set(other) and all(equal_results(one[key], other[key]) for key in one)
    if isinstance(one, tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        return len(one) == len(other) and all(map(equal_results, one, other))
    return one is other or equal_bits(one, other)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"num_envs": 0}, "num_envs: 0 worlds"),
        ({"autoreset_mode": AutoresetMode.DISABLED}, "autoreset_mode: Disabled isn't there"),
        ({"density": "x"}, "density: 'x' is none of"),
    ],
)
def test_many_worlds_refuse_what_makes_no_sense(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        DepthNavVectorEnv(**({"num_envs": 2, "max_episode_steps": 10} | arguments))


def test_many_worlds_refuse_actions_and_seeds_that_do_not_fit() -> None:
    envs = DepthNavStateVectorEnv(2, 10)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions: \(3, 3\) is their shape, and \(2, 3\) is needed"):
        envs.step(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"action\[0\]: nan"):
        envs.step(np.array([[0, 0, 0], [np.nan, 0, 0]]))
    with pytest.raises(ValueError, match="seed: 3 seeds for 2 worlds"):
        envs.reset(seed=[1, 2, 3])


def test_a_reset_takes_no_options() -> None:
    with pytest.raises(ValueError, match=r"options: .* mean nothing at a reset"):
        DepthNavStateEnv().reset(options={"density": "hard"})


def test_layouts_are_named_and_held_out_where_asked() -> None:
    train, held_out = (DepthNavStateEnv(layouts=layouts).reset(seed=3)[1] for layouts in ("train", "held_out"))
    assert train["layout_seed"] < 2**31 <= held_out["layout_seed"]
    assert "layout_seed" not in DepthNavStateEnv(world=describe_world()).reset(seed=3)[1]


def test_a_snapshot_goes_into_an_environment_of_the_same_frames_only() -> None:
    env = DepthNavEnv(**SMALL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"the frames are \(1, 3, 1, 8, 12\) large, and here \(1, 4, 1, 64, 64\)"):
        restore_snapshot(DepthNavEnv(), take_snapshot(env))


def test_a_snapshot_before_the_first_reset_can_be_taken_too() -> None:
    env, fresh = DepthNavStateEnv(), DepthNavStateEnv()
    restore_snapshot(fresh, take_snapshot(env))
    assert equal_bits(fresh.reset(seed=2)[0], env.reset(seed=2)[0])


def test_everything_that_changes_in_a_flight_is_in_its_state_or_made_from_it() -> None:
    """Names all attributes, so that a new one is thought about: kept, or made from what is kept."""
    env = DepthNavEnv()
    kept = {"_time", "_distance", "_path_length", "_action", "_wind", "layout_seed", "backend"}
    made = {"options", "world", "pose"}
    assert set(vars(env.flight)) == kept | made
    env.reset(seed=0)
    backend = env.flight.backend
    assert set(vars(backend)) == {"_caster", "world", "_periods", "_moving", "_drone", "_resting", "scene"}
    assert set(vars(backend._drone)) == {"model", "data", "_body", "collided", "wind"}  # type: ignore[attr-defined]
