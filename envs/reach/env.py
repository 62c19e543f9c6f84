"""`TwoHandReach-v0`: two hands go to two targets and stay there, by 61 position servos.

The task is for the setting of many actions: 61 of them, and 151 observations. docs/envs.md says what each number is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import NDArray

from envs.reach.model import CHEST_HEIGHT, FINGERS, SIDES, write_model
from envs.refusals import check_action, refuse_reset_options

TIMESTEP, SUBSTEPS = 0.01, 5
REACHED = 0.05
"""Distance in metres from which on a palm is at its target."""
HOLD_STEPS = 10
"""For so many steps on end both palms have to be at their targets: success."""
DISTANCE_WEIGHT, FINGER_WEIGHT, BOTH_BONUS, ACTION_COST = 10.0, 2.0, 5.0, 0.1
START_SPREAD, TARGET_SPREAD = 0.1, 0.8
"""How far poses are drawn from the middle of each joint's range, as shares of half the range."""
FRONT = 0.15
"""Targets are so many metres in front of the spine, or further."""

JOINT_SPEED_SCALE, PALM_SPEED_SCALE = 0.1, 0.2
"""What speeds are multiplied by in observations, so that they are about as large as the rest."""
_HAND_BOUNDS = [2.0] * 3 + [2.0] * 3 + [2.0] * 3 + [2.0] * 5
_ANGLE_BOUND, _SPEED_BOUND = 1.5, 5.0


class TwoHandReachEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Reach with both hands at once.

    Attributes:
        data: the simulation, with all of the state but for `held`. The targets are its mocap bodies.
        held: steps on end, the last among them, that both palms have been at their targets.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(write_model(TIMESTEP))
        self.data = mujoco.MjData(self.model)
        self.held = 0
        low, high = np.array(self.model.jnt_range).T
        self._centre, self._half = (low + high) / 2, (high - low) / 2
        self._palms = [self.model.site(f"{side}_palm").id for side in SIDES]
        self._tips = [[self.model.site(f"{side}_{finger}_tip").id for finger in FINGERS] for side in SIDES]
        joints = self.model.nq
        bounds = [_ANGLE_BOUND] * joints + [_SPEED_BOUND] * joints + 2 * _HAND_BOUNDS + [1.0]
        self._bounds = np.array(bounds, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (self.model.nu,), np.float32)
        self.observation_space = gym.spaces.Box(-self._bounds, self._bounds, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin near the middle of all ranges, with new targets that some pose reaches together.

        Raises:
            ValueError: there are reset options, which mean nothing here.
        """
        super().reset(seed=seed)
        refuse_reset_options(options)
        mujoco.mj_resetData(self.model, self.data)
        targets = self._draw_targets()
        self.data.mocap_pos[:] = targets
        self.data.qpos[:] = self._draw_pose(START_SPREAD)
        mujoco.mj_forward(self.model, self.data)
        self.held = 0
        to_targets, tip_distances = self._measure()
        return self._observe(to_targets, tip_distances), self._inform(to_targets)

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Have the servos go to the angles that an action names; the clock is the wrapper's.

        Raises:
            ValueError: the action isn't 61 numbers in [-1, 1].
        """
        numbers = check_action(action, self.model.nu)
        self.data.ctrl[:] = self._centre + self._half * numbers
        # Begun by half a step and ended by the other half, so that places and speeds in `data` are those of now.
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS - 1)
        mujoco.mj_step1(self.model, self.data)
        to_targets, tip_distances = self._measure()
        distances = np.linalg.norm(to_targets, axis=1)
        both = bool((distances < REACHED).all())
        self.held = self.held + 1 if both else 0
        reward = BOTH_BONUS * both - DISTANCE_WEIGHT * distances.sum() - FINGER_WEIGHT * tip_distances.mean()
        reward -= ACTION_COST * np.square(numbers).mean()
        return self._observe(to_targets, tip_distances), float(reward), False, False, self._inform(to_targets)

    def _draw_pose(self, spread: float) -> NDArray[np.float64]:
        pose: NDArray[np.float64] = self._centre + spread * self._half * self.np_random.uniform(-1, 1, self.model.nq)
        return pose

    def _draw_targets(self) -> NDArray[np.float64]:
        """Give where the palms are in a random pose with both of them in front; leaves `data` in that pose."""
        while True:
            self.data.qpos[:] = self._draw_pose(TARGET_SPREAD)
            mujoco.mj_kinematics(self.model, self.data)
            palms: NDArray[np.float64] = self.data.site_xpos[self._palms]
            if (palms[:, 0] > FRONT).all():
                return palms

    def _measure(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the way from each palm to its target, and the distances of each hand's fingertips from it."""
        places, targets = self.data.site_xpos, self.data.mocap_pos
        return targets - places[self._palms], np.linalg.norm(places[self._tips] - targets[:, None], axis=2)

    def _observe(self, to_targets: NDArray[np.float64], tip_distances: NDArray[np.float64]) -> NDArray[np.float32]:
        palms = self.data.site_xpos[self._palms] - (0.0, 0.0, CHEST_HEIGHT)
        speeds = PALM_SPEED_SCALE * self.data.sensordata.reshape(len(SIDES), 3)
        hands = np.concatenate([palms, speeds, to_targets, tip_distances], axis=1)
        angles = (self.data.qpos - self._centre) / self._half
        obs = np.concatenate(
            [angles, JOINT_SPEED_SCALE * self.data.qvel, hands.ravel(), [min(1.0, self.held / HOLD_STEPS)]]
        )
        return np.clip(obs.astype(np.float32), -self._bounds, self._bounds)

    def _inform(self, to_targets: NDArray[np.float64]) -> dict[str, Any]:
        left, right = np.linalg.norm(to_targets, axis=1).tolist()
        return {
            "is_success": self.held >= HOLD_STEPS,
            "distance": (left + right) / 2,
            "distance_left": left,
            "distance_right": right,
        }
