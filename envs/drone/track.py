"""`DroneTrack-v0`: a quadrotor follows a moving reference through wind."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.drone.quadrotor import CONTROL_PERIOD, GRAVITY, MASS, Quadrotor
from envs.drone.reference import Point, Reference, draw_reference
from envs.drone.track_obs import (
    ACTION_DIM,
    COMMANDED_RATES,
    DELAYS,
    INTEGRAL_SCALE,
    OBS_DIM,
    PREVIEW_TIMES,
    SCALES,
)
from envs.drone.wind import Wind
from envs.refusals import check_action, refuse_reset_options

LOST_DISTANCE = 2.0
"""Metres from the reference at which an episode ends."""
LOST_PENALTY = 20.0
CHANGE_COST = 0.05
"""Times the mean square of the action's change."""
INTEGRAL_TIME = 10.0
"""Seconds after which the integral has forgotten all but 1/e of an error."""
INTEGRAL_KEPT = math.exp(-CONTROL_PERIOD / INTEGRAL_TIME)
CLEARANCE = 3.0
"""Least height of a reference, in metres: who touches the ground has been lost before."""
UP = np.array([0.0, 0.0, GRAVITY])

OPTIONS = {
    "wind_speed": (0.0, 15.0),
    "gust_speed": (0.0, 5.0),
    "max_speed": (0.1, 8.0),
    "max_acceleration": (0.1, 8.0),
}
"""The least and the largest value of each option."""


class DroneTrackEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A quadrotor, commanded 50 times a second by thrust and body rates, stays close to a point that moves.

    The reward is minus the distance to that point in metres, less a small cost of changing the action, and less
    `LOST_PENALTY` in the last step of an episode that ends because the drone is lost: `LOST_DISTANCE` away, upside down
    or on the ground. docs/envs.md has the observation's layout. `info` holds `tracking_error`, the mean distance over
    the episode so far in metres, and `lost`.

    Args:
        wind_speed: largest steady wind, in m/s.
        gust_speed: standard deviation of the gusts, in m/s.
        max_speed: of the reference, in m/s.
        max_acceleration: of the reference, in m/s^2.

    Raises:
        ValueError: an option isn't a number within its bounds.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self, wind_speed: float = 6.0, gust_speed: float = 2.0, max_speed: float = 5.0, max_acceleration: float = 6.0
    ) -> None:
        check_option("wind_speed", wind_speed)
        check_option("gust_speed", gust_speed)
        check_option("max_speed", max_speed)
        check_option("max_acceleration", max_acceleration)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self._limits = (max_speed, max_acceleration)
        self._drone = Quadrotor()
        self._wind = Wind(wind_speed, gust_speed, CONTROL_PERIOD)
        self._reference: Reference | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget the episode before."""
        self._steps = 0
        self._delay = DELAYS[0]
        self._error_sum = 0.0
        self._integral = np.zeros(3)
        self._specific_force = UP
        self._commands = np.zeros((DELAYS[1], ACTION_DIM))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a reference, a wind and a delay; begin level, where the reference is and as fast.

        Raises:
            ValueError: there are reset options, which mean nothing here.
        """
        super().reset(seed=seed)
        refuse_reset_options(options)
        self._begin()
        self._delay = int(self.np_random.integers(DELAYS[0], DELAYS[1] + 1))
        self._reference = draw_reference(self.np_random, *self._limits, CLEARANCE)
        point = self._reference.locate(0.0)
        x, y, z = point.position.tolist()
        self._drone.reset((x, y, z), 0.0)
        self._drone.data.qvel[:3] = point.velocity
        self._drone.set_wind(self._wind.reset(self.np_random))
        return self._observe(self._reference, point), {"tracking_error": 0.0, "lost": False}

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Hold the thrust and the body rates that were commanded some steps ago for 20 ms.

        Raises:
            ValueError: the action isn't four numbers in [-1, 1].
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self._reference is None:
            raise gym.error.ResetNeeded("DroneTrack-v0: call reset() before the first step()")
        command = check_action(action, ACTION_DIM)
        change = float(np.square(command - self._commands[-1]).mean())
        touched = self._fly(self._commands[-self._delay])
        self._commands = np.vstack([self._commands[1:], command])
        self._steps += 1
        point = self._reference.locate(self._steps * CONTROL_PERIOD)
        error = point.position - self._drone.position
        distance = math.sqrt(float(error @ error))
        self._error_sum += distance
        self._integral = np.clip(
            INTEGRAL_KEPT * self._integral + CONTROL_PERIOD * error, -INTEGRAL_SCALE, INTEGRAL_SCALE
        )
        lost = touched or distance > LOST_DISTANCE or bool(self._drone.rotation[2, 2] < 0)
        reward = -min(distance, LOST_DISTANCE) - CHANGE_COST * change - LOST_PENALTY * lost
        info = {"tracking_error": self._error_sum / self._steps, "lost": lost}
        return self._observe(self._reference, point), reward, lost, False, info

    def _fly(self, command: NDArray[np.float64]) -> bool:
        """Carry out a command and feel the wind of the next step; give whether something was touched."""
        thrust, roll, pitch, yaw = command.tolist()
        rates = (roll * COMMANDED_RATES[0], pitch * COMMANDED_RATES[1], yaw * COMMANDED_RATES[2])
        before = self._drone.velocity
        touched = self._drone.advance(MASS * GRAVITY * (1 + thrust), rates)
        acceleration = (self._drone.velocity - before) / CONTROL_PERIOD
        self._specific_force = self._drone.rotation.T @ (acceleration + UP)
        self._drone.set_wind(self._wind.step(self.np_random))
        return touched

    def _observe(self, reference: Reference, point: Point) -> NDArray[np.float32]:
        """Give the observation at a point of the reference, that of now."""
        time = self._steps * CONTROL_PERIOD
        parts = (
            point.position - self._drone.position,
            point.velocity - self._drone.velocity,
            self._integral,
            self._drone.rotation.ravel(),
            self._drone.rates,
            self._specific_force,
            point.velocity,
            point.acceleration,
            *(reference.locate(time + ahead).acceleration for ahead in PREVIEW_TIMES),
            self._commands.ravel(),
        )
        return np.clip(np.concatenate(parts) / SCALES, -1.0, 1.0).astype(np.float32)

    def snapshot_state(self) -> dict[str, Any]:
        """Give all that the next steps depend on, for `envs.snapshot`."""
        return {
            "drone": self._drone.read_state(),
            "reference": None if self._reference is None else vars(self._reference),
            "wind": {"steady": self._wind.steady, "gust": self._wind.gust},
            "steps": self._steps,
            "delay": self._delay,
            "error_sum": self._error_sum,
            "integral": self._integral,
            "specific_force": self._specific_force,
            "commands": self._commands,
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over what `snapshot_state` gave, with the same options."""
        self._drone.write_state(state["drone"])
        self._reference = None if state["reference"] is None else Reference(**state["reference"])
        self._wind.steady, self._wind.gust = state["wind"]["steady"], state["wind"]["gust"]
        self._steps, self._delay, self._error_sum = state["steps"], state["delay"], state["error_sum"]
        self._integral, self._specific_force = state["integral"], state["specific_force"]
        self._commands = state["commands"]


def check_option(name: str, value: object) -> None:
    """Refuse an option that isn't a number within its bounds.

    Raises:
        ValueError: naming option, value and bounds.
    """
    low, high = OPTIONS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} is not a number from {low:g} to {high:g}")
