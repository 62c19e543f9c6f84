"""One flight through a world: commands in, rewards and endings out. What is seen is the environments' business."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.drone.backend import BACKENDS, Backend, Pose
from envs.drone.embedded import EmbeddedBackend
from envs.drone.layouts import draw_layout_seed, draw_world
from envs.drone.options import NavigationOptions
from envs.drone.quadrotor import MAX_RATES, RADIUS, Vector
from envs.drone.raycast import choose_caster
from envs.drone.world import World

PERIOD = 0.1
"""Seconds between two actions."""
MAX_FORWARD, MAX_CLIMB, MAX_YAW_RATE = 3.0, 1.0, 1.5
"""What an action of 1 asks for, in m/s, m/s and rad/s."""
GOAL_RADIUS = 1.0
PROGRESS_WEIGHT, TIME_COST, JERK_COST, CLOSENESS_COST = 1.0, 0.05, 0.05, 0.3
CLOSE = 0.6
"""Metres from the drone's surface to the nearest obstacle below which flying costs."""
GOAL_REWARD, CRASH_REWARD = 20.0, -20.0
GUST_TIME = 2.0
"""Seconds over which the wind changes."""
BASE_SCALES = ("diagonal", math.pi, 5.0, 5.0, 5.0, 5.0, 5.0, MAX_RATES[2], math.pi / 2, math.pi / 2)
"""What each number of the base vector is divided by; the first by the field's diagonal."""
BASE_NAMES = (
    "distance to the goal",
    "bearing of the goal",
    "height of the goal",
    "altitude",
    "speed forward",
    "speed to the left",
    "speed up",
    "yaw rate",
    "pitch",
    "roll",
)
"""The same numbers for people."""
BASE_DIM = len(BASE_SCALES)


@dataclass(frozen=True)
class Outcome:
    """What one action came to."""

    reward: float
    terminated: bool
    info: dict[str, Any]


class Flight:
    """A drone on its way to a goal.

    Args:
        options: of the task.
        backend: simulates the drone.

    Attributes:
        world: of the flight that is going on; None before the first.
        layout_seed: of that world; None where the world is fixed.
        pose: where the drone is now.
    """

    def __init__(self, options: NavigationOptions, backend: Backend) -> None:
        self.options, self.backend = options, backend
        self.world: World | None = None
        self.layout_seed: int | None = None
        self._forget()

    def _forget(self) -> None:
        self.pose: Pose | None = None
        self._time = 0.0
        self._distance = 0.0
        self._path_length = 0.0
        self._action: Vector = (0.0, 0.0, 0.0)
        self._wind = np.zeros(2)

    @property
    def time(self) -> float:
        """Give the seconds since the flight began."""
        return self._time

    @property
    def wind(self) -> Vector:
        """Give the velocity of the air, in m/s."""
        return (float(self._wind[0]), float(self._wind[1]), 0.0)

    @property
    def action(self) -> Vector:
        """Give the last action; at the beginning, that of hovering."""
        return self._action

    def begin(self, generator: np.random.Generator) -> dict[str, Any]:
        """Begin a flight in a newly drawn world, or the fixed one; give its info, with the `layout_seed` if drawn."""
        self._forget()
        if self.options.world is not None:
            self.world = self.options.world
        else:
            self.layout_seed = draw_layout_seed(generator, self.options.layouts)
            self.world = draw_world(self.options, self.layout_seed)
        self.backend.reset(self.world)
        if self.options.wind:
            self._wind = self.options.wind * generator.standard_normal(2)
            self._blow()
        self.pose = self.backend.read_pose()
        self._distance = math.dist(self.pose.position, self.world.goal)
        seed = {} if self.layout_seed is None else {"layout_seed": self.layout_seed}
        return self._describe(False, False) | seed

    def advance(self, action: NDArray[Any], generator: np.random.Generator) -> Outcome:
        """Fly for one period.

        Args:
            action: forward speed, climb rate and yaw rate, each in [-1, 1].
            generator: of the wind.
        """
        assert self.world is not None
        assert self.pose is not None
        forward, climb, turn = map(float, action)
        before, came_from = self._distance, self.pose.position
        if self.options.wind:
            self._change_wind(generator)
        collision = self.backend.fly(MAX_FORWARD * forward, MAX_CLIMB * climb, MAX_YAW_RATE * turn, PERIOD)
        self._time += PERIOD
        self.pose = self.backend.read_pose()
        self._distance = math.dist(self.pose.position, self.world.goal)
        self._path_length += math.dist(came_from, self.pose.position)
        low, high = self.world.altitude
        outside = not low <= self.pose.position[2] <= high
        success = self._distance < GOAL_RADIUS and not (collision or outside)
        reward = PROGRESS_WEIGHT * (before - self._distance) - self._find_costs((forward, climb, turn))
        self._action = (forward, climb, turn)
        if success:
            reward += GOAL_REWARD
        elif collision or outside:
            reward += CRASH_REWARD
        return Outcome(reward, success or collision or outside, self._describe(success, collision))

    def _find_costs(self, action: Vector) -> float:
        """Give what a period of time, a jerk of the controls and closeness to something cost."""
        assert self.world is not None
        assert self.pose is not None
        jerk = sum((new - old) ** 2 for new, old in zip(action, self._action, strict=True))
        clearance = self.world.find_clearance(self.pose.position, self._time, RADIUS + CLOSE) - RADIUS
        closeness = min(max(1 - clearance / CLOSE, 0.0), 1.0)
        return TIME_COST + JERK_COST * jerk + CLOSENESS_COST * closeness

    def _change_wind(self, generator: np.random.Generator) -> None:
        """Let the wind go on, an Ornstein-Uhlenbeck process about still air."""
        keep = math.exp(-PERIOD / GUST_TIME)
        fresh = generator.standard_normal(2)
        self._wind = keep * self._wind + self.options.wind * math.sqrt(1 - keep * keep) * fresh
        self._blow()

    def _blow(self) -> None:
        self.backend.set_wind(self.wind)

    def _describe(self, success: bool, collision: bool) -> dict[str, Any]:
        return {
            "is_success": success,
            "collision": collision,
            "distance": self._distance,
            "path_length": self._path_length,
        }

    def observe_base(self) -> NDArray[np.float32]:
        """Give the ten numbers that a drone knows of itself and of its goal, each scaled and clipped to [-1, 1].

        Distance to the goal over ground, bearing of the goal, its height above the drone, altitude; speed forward, to
        the left and up, as seen along the heading; yaw rate, pitch (nose up) and roll (right side down).
        """
        assert self.world is not None
        assert self.pose is not None
        rotation = self.pose.rotation
        (x, y, z), (vx, vy, vz) = self.pose.position, self.pose.velocity
        r = rotation.ravel().tolist()
        yaw = math.atan2(r[3], r[0])
        cosine, sine = math.cos(yaw), math.sin(yaw)
        dx, dy = self.world.goal[0] - x, self.world.goal[1] - y
        numbers = (
            math.hypot(dx, dy),
            math.atan2(cosine * dy - sine * dx, cosine * dx + sine * dy),
            self.world.goal[2] - z,
            z,
            cosine * vx + sine * vy,
            cosine * vy - sine * vx,
            vz,
            self.pose.rates[2],
            math.asin(min(max(r[6], -1.0), 1.0)),
            math.atan2(r[7], r[8]),
        )
        scales = (math.hypot(self.world.length, self.world.width), *BASE_SCALES[1:])
        scaled = [number / scale for number, scale in zip(numbers, scales, strict=True)]
        return np.clip(np.array(scaled, dtype=np.float32), -1, 1)

    def read_state(self) -> dict[str, Any]:
        """Give all that the rest of the flight depends on."""
        return {
            "backend": self.backend.read_state(),
            "layout_seed": self.layout_seed,
            "time": self._time,
            "distance": self._distance,
            "path_length": self._path_length,
            "action": self._action,
            "wind": self._wind,
            "flying": self.pose is not None,
        }

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over what `read_state` gave."""
        self._forget()
        self.backend.write_state(state["backend"])
        self.layout_seed = state["layout_seed"]
        self._time, self._distance, self._path_length = state["time"], state["distance"], state["path_length"]
        self._action, self._wind = state["action"], state["wind"]
        self.world = self.backend.world
        self.pose = self.backend.read_pose() if state["flying"] else None


def open_backend(options: NavigationOptions) -> Backend:
    """Give the backend that the options name."""
    assert options.backend in BACKENDS
    return EmbeddedBackend(choose_caster(options.caster))
