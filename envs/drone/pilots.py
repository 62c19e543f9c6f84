"""Pilots that learned agents are read against: one that sees the map, and one that flies straight to the goal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.drone.depth_nav import NavigationEnv
from envs.drone.flight import BASE_DIM, BASE_SCALES, MAX_CLIMB, MAX_FORWARD, MAX_YAW_RATE
from envs.drone.planning import plan_path
from envs.drone.world import World

Act: TypeAlias = Callable[[Any], NDArray[np.float32]]
CRUISE, SLOW = 2.0, 0.8
"""Speeds ahead and where the way turns, in m/s."""
LOOK_AHEAD = 1.2
"""Metres along the way to where the pilot aims."""
TURN_GAIN, CLIMB_GAIN = 3.0, 1.5


def fly_straight(obs: Any) -> NDArray[np.float32]:
    """Give the action in [-1, 1] that turns to the goal and flies straight there, whatever is in the way.

    Args:
        obs: of a navigation task, as pictures or flat; only the base is looked at.
    """
    base = obs["base"][-1] if isinstance(obs, dict) else obs[:BASE_DIM]
    bearing, height = float(base[1]) * math.pi, float(base[2]) * float(BASE_SCALES[2])
    return steer(bearing, height, CRUISE)


class PrivilegedPilot:
    """Knows the map and where it is: plans a way once and follows it.

    Args:
        env: a navigation task after its reset.
    """

    def __init__(self, env: NavigationEnv) -> None:
        self._flight = env.flight
        world = env.flight.world
        assert world is not None
        self._world: World = world
        path = plan_path(world)
        self._path = np.array(path if path is not None else [world.start[:2], world.goal[:2]])
        self._along = 0.0
        self._lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(self._path, axis=0).T))])

    def act(self, obs: Any) -> NDArray[np.float32]:
        """Give the action in [-1, 1]; the observation isn't looked at."""
        pose = self._flight.pose
        assert pose is not None
        x, y, z = pose.position
        self._along = self._find_progress(x, y)
        aim = self._find_point(self._along + LOOK_AHEAD)
        heading = math.atan2(pose.rotation[1, 0], pose.rotation[0, 0])
        bearing = wrap(math.atan2(aim[1] - y, aim[0] - x) - heading)
        beyond = self._find_point(self._along + 2.5 * LOOK_AHEAD)
        bend = abs(wrap(math.atan2(beyond[1] - y, beyond[0] - x) - heading))
        part = min(self._along / max(self._lengths[-1] - LOOK_AHEAD, LOOK_AHEAD), 1.0)
        altitude = self._world.start[2] + part * (self._world.goal[2] - self._world.start[2])
        room = self._world.find_clearance(pose.position, 0.0, 1.0)
        speed = CRUISE - (CRUISE - SLOW) * min(max(bend / 0.8, (0.9 - room) / 0.4, 0.0), 1.0)
        return steer(bearing, altitude - z, speed)

    def _find_progress(self, x: float, y: float) -> float:
        """Give how far along the way the nearest point ahead is, in metres."""
        ahead = np.arange(self._along, min(self._along + 2.0, self._lengths[-1]) + 0.05, 0.05)
        points = np.stack([np.interp(ahead, self._lengths, self._path[:, axis]) for axis in range(2)], -1)
        return float(ahead[np.hypot(points[:, 0] - x, points[:, 1] - y).argmin()])

    def _find_point(self, along: float) -> tuple[float, float]:
        x, y = (float(np.interp(along, self._lengths, self._path[:, axis])) for axis in range(2))
        return x, y


def open_privileged(env: gym.Env[Any, Any]) -> Act:
    """Give the pilot that sees the map, for the flight that an environment has just begun."""
    task = env.unwrapped
    assert isinstance(task, NavigationEnv)
    return PrivilegedPilot(task).act


def steer(bearing: float, height: float, speed: float) -> NDArray[np.float32]:
    """Give the action in [-1, 1] that turns to a bearing (rad) and climbs by a height (m), slower while turning."""
    forward = speed * max(math.cos(bearing), 0.0) ** 2
    commands = (forward / MAX_FORWARD, CLIMB_GAIN * height / MAX_CLIMB, TURN_GAIN * bearing / MAX_YAW_RATE)
    return np.clip(np.array(commands, dtype=np.float32), -1, 1)


def wrap(angle: float) -> float:
    """Give an angle in (-pi, pi]."""
    return math.atan2(math.sin(angle), math.cos(angle))
