"""Two hands with 61 actuators: the body, what is observed and rewarded, and that targets can be reached and held."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from envs.make import describe_spaces, make_env
from envs.reach.env import (
    ACTION_COST,
    BOTH_BONUS,
    DISTANCE_WEIGHT,
    FINGER_WEIGHT,
    FRONT,
    HOLD_STEPS,
    JOINT_SPEED_SCALE,
    PALM_SPEED_SCALE,
    REACHED,
    TARGET_SPREAD,
    TwoHandReachEnv,
)
from envs.reach.model import CHEST_HEIGHT, FINGERS, SIDES

ANGLES, SPEEDS = slice(0, 61), slice(61, 122)
HANDS = {"left": 122, "right": 136}


class RecordingEnv(TwoHandReachEnv):
    """Keeps the pose that its targets were read from."""

    target_pose: NDArray[np.float64]

    def _draw_pose(self, spread: float) -> NDArray[np.float64]:
        pose = super()._draw_pose(spread)
        if spread == TARGET_SPREAD:
            self.target_pose = pose
        return pose


def open_env(seed: int = 0) -> TwoHandReachEnv:
    env = TwoHandReachEnv()
    env.reset(seed=seed)
    return env


def place(env: TwoHandReachEnv, side: str, part: str = "palm") -> NDArray[np.float64]:
    return np.array(env.data.site(f"{side}_{part}").xpos)


def test_there_are_61_actuated_hinges_and_151_observations() -> None:
    sizes = describe_spaces("TwoHandReach-v0", {})
    assert (sizes.action_dim, sizes.obs_dim) == (61, 151)
    model = TwoHandReachEnv().model
    assert model.nq == model.nv == model.nu == 61
    assert (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE).all()
    assert (model.actuator_trnid[:, 0] == np.arange(61)).all()
    np.testing.assert_allclose(model.actuator_ctrlrange, model.jnt_range)
    names = [model.joint(index).name for index in range(61)]
    assert [name.removeprefix("left_") for name in names[3:32]] == [name.removeprefix("right_") for name in names[32:]]
    assert sum("thumb" in name or "index" in name for name in names) == 16


def test_the_sides_are_mirror_images() -> None:
    env = open_env()
    angles = np.random.default_rng(0).uniform(env.model.jnt_range[3:32, 0], env.model.jnt_range[3:32, 1])
    env.data.qpos[:] = np.concatenate([np.zeros(3), angles, angles])
    mujoco.mj_forward(env.model, env.data)
    for part in ("palm", *(f"{finger}_tip" for finger in FINGERS)):
        np.testing.assert_allclose(place(env, "left", part), place(env, "right", part) * (1, -1, 1), atol=1e-12)


def test_fingers_close_around_the_point_that_is_to_reach_the_target() -> None:
    env = open_env()

    def reach_of(angle: str) -> float:
        column = {"open": 0, "closed": 1}[angle]
        env.data.qpos[:] = env.model.jnt_range.mean(axis=1)
        for finger in FINGERS[1:]:
            for joint in ("knuckle", "middle", "tip"):
                index = env.model.joint(f"left_{finger}_{joint}").qposadr[0]
                env.data.qpos[index] = env.model.jnt_range[index, column]
        mujoco.mj_forward(env.model, env.data)
        return max(float(np.linalg.norm(place(env, "left", f"{f}_tip") - place(env, "left"))) for f in FINGERS[1:])

    assert reach_of("closed") < 0.06 < 0.1 < reach_of("open")


def test_an_observation_is_what_the_documentation_says() -> None:
    env = open_env()
    rng = np.random.default_rng(0)
    for _ in range(7):
        obs, *_ = env.step(rng.uniform(-0.3, 0.3, 61))
    low, high = env.model.jnt_range.T
    # What can be derived from positions and speeds alone: nothing in an observation lags behind them.
    copy = mujoco.MjData(env.model)
    copy.qpos[:], copy.qvel[:], copy.mocap_pos[:] = env.data.qpos, env.data.qvel, env.data.mocap_pos
    mujoco.mj_forward(env.model, copy)
    np.testing.assert_allclose(obs[ANGLES], 2 * (copy.qpos - low) / (high - low) - 1, atol=1e-6)
    np.testing.assert_allclose(obs[SPEEDS], JOINT_SPEED_SCALE * copy.qvel, atol=1e-6)
    for side, start in HANDS.items():
        palm, target = copy.site(f"{side}_palm").xpos, copy.body(f"{side}_target").xpos
        jacobian = np.zeros((3, 61))
        mujoco.mj_jacSite(env.model, copy, jacobian, None, copy.site(f"{side}_palm").id)
        tips = [np.linalg.norm(copy.site(f"{side}_{finger}_tip").xpos - target) for finger in FINGERS]
        wanted = [*(palm - (0, 0, CHEST_HEIGHT)), *(PALM_SPEED_SCALE * jacobian @ copy.qvel), *(target - palm), *tips]
        np.testing.assert_allclose(obs[start : start + 14], wanted, atol=1e-6)
    assert obs[150] == 0
    assert np.abs(obs[SPEEDS]).max() > 0.01


def test_a_reward_is_what_the_documentation_says() -> None:
    env = open_env(3)
    action = np.random.default_rng(1).uniform(-1, 1, 61)
    _, reward, _, _, info = env.step(action)
    targets = {side: env.data.body(f"{side}_target").xpos for side in SIDES}
    distances = {side: float(np.linalg.norm(place(env, side) - targets[side])) for side in SIDES}
    tips = [np.linalg.norm(place(env, side, f"{f}_tip") - targets[side]) for side in SIDES for f in FINGERS]
    assert info["distance_left"] == pytest.approx(distances["left"])
    assert info["distance_right"] == pytest.approx(distances["right"])
    assert info["distance"] == pytest.approx(sum(distances.values()) / 2)
    assert min(distances.values()) > REACHED
    wanted = -DISTANCE_WEIGHT * sum(distances.values()) - FINGER_WEIGHT * np.mean(tips)
    assert reward == pytest.approx(wanted - ACTION_COST * np.mean(action**2))


def go_to_target_pose(env: RecordingEnv, steps: int) -> list[tuple[float, dict[str, Any], float]]:
    """Steer to the pose that the targets come from; what gravity takes away is added little by little."""
    low, high = env.model.jnt_range.T
    wanted = 2 * (env.target_pose - low) / (high - low) - 1
    lead = np.zeros(61)
    results = []
    for _ in range(steps):
        obs, reward, _, _, info = env.step(np.clip(wanted + lead, -1, 1))
        lead += 0.15 * (wanted - obs[ANGLES])
        results.append((reward, info, float(obs[150])))
    return results


def test_every_target_can_be_reached_and_held_within_the_time_limit() -> None:
    env = RecordingEnv()
    for seed in range(40):
        env.reset(seed=seed)
        results = go_to_target_pose(env, 100)
        reward, info, held = results[-1]
        assert info["is_success"]
        assert held == 1
        assert max(info["distance_left"], info["distance_right"]) < REACHED
        assert BOTH_BONUS - 2 * DISTANCE_WEIGHT * REACHED - 1 < reward < BOTH_BONUS


def test_success_is_ten_steps_on_end_at_both_targets() -> None:
    env = RecordingEnv()
    env.reset(seed=1)
    results = go_to_target_pose(env, 100)
    at_both = [max(info["distance_left"], info["distance_right"]) < REACHED for _, info, _ in results]
    count = 0
    for both, (_, info, held) in zip(at_both, results, strict=True):
        count = count + 1 if both else 0
        assert info["is_success"] == (count >= HOLD_STEPS)
        assert held == pytest.approx(min(1.0, count / HOLD_STEPS))
    assert not at_both[0]
    assert all(at_both[-HOLD_STEPS:])
    obs, info = env.reset()
    assert (info["is_success"], obs[150]) == (False, 0)


def test_one_hand_alone_is_no_success() -> None:
    env = RecordingEnv()
    env.reset(seed=1)
    assert go_to_target_pose(env, 100)[-1][1]["is_success"]
    env.data.mocap_pos[1] += 0.5  # one hand alone doesn't count
    reward, info, held = go_to_target_pose(env, 1)[0]
    assert (info["is_success"], held) == (False, 0)
    assert reward < -0.4 * DISTANCE_WEIGHT


def test_targets_lie_in_front_and_differ_between_episodes() -> None:
    env = TwoHandReachEnv()
    targets = []
    for seed in range(100):
        env.reset(seed=seed)
        targets.append(np.array(env.data.mocap_pos))
    places = np.array(targets)
    assert (places[:, :, 0] > FRONT).all()
    assert (places.std(axis=0) > 0.1).all()
    assert (np.linalg.norm(places - (0, 0, CHEST_HEIGHT), axis=2) < 1.2).all()


def test_a_seed_decides_the_episodes_that_follow_it() -> None:
    env, other = TwoHandReachEnv(), TwoHandReachEnv()
    first = [env.reset(seed=3)[0], env.reset()[0], env.reset(seed=4)[0]]
    other.step(np.ones(61))
    second = [other.reset(seed=3)[0], other.reset()[0], other.reset(seed=4)[0]]
    assert [obs.tobytes() for obs in first] == [obs.tobytes() for obs in second]
    assert len({obs.tobytes() for obs in first}) == 3


@pytest.mark.parametrize("pattern", ["noise", "swing", "flicker"])
def test_the_body_stays_calm_enough_to_be_observed_whatever_is_done(pattern: str) -> None:
    """Bounds are wide: what reaches them is a simulation that blew up, or a reading that is cut."""
    env = open_env()
    rng = np.random.default_rng(0)
    cut = 0.0
    for step in range(600):
        signs = {"noise": rng.choice([-1, 1], 61), "swing": 1 - 2 * (step // 8 % 2), "flicker": 1 - 2 * (step % 2)}
        obs, reward, *_ = env.step(np.broadcast_to(signs[pattern], 61))
        assert obs in env.observation_space
        assert np.isfinite(reward)
        cut += np.mean(np.abs(obs) >= env.observation_space.high)  # type: ignore[attr-defined]
    assert cut / 600 < 0.005


def test_an_episode_is_cut_after_a_hundred_steps() -> None:
    env = make_env("TwoHandReach-v0", {})
    env.reset(seed=0)
    endings = [env.step(np.zeros(61, dtype=np.float32))[2:4] for _ in range(100)]
    assert endings == [(False, False)] * 99 + [(False, True)]


def test_reset_options_are_refused() -> None:
    with pytest.raises(ValueError, match="mean nothing at a reset"):
        TwoHandReachEnv().reset(options={"target": 1})
