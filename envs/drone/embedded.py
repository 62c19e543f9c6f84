"""The embedded backend: MuJoCo for the drone's motion and its collisions, our own ray caster for what it sees."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.drone.backend import Pose
from envs.drone.camera import Camera
from envs.drone.mjcf import write_moving_obstacle, write_obstacle, write_walls
from envs.drone.quadrotor import CONTROL_PERIOD, Quadrotor, Vector
from envs.drone.raycast import Caster
from envs.drone.shapes import Primitives
from envs.drone.world import World, gather_primitives
from envs.drone.world_file import read_world


class EmbeddedBackend:
    """A drone in a world, in this process. Obstacles that move do so once a control period.

    Args:
        caster: makes the depth.

    Attributes:
        world: that the drone is in.
        scene: what rays hit now.
    """

    keeps_state = True

    def __init__(self, caster: Caster) -> None:
        self._caster = caster
        self.world: World | None = None
        self._periods = 0

    def reset(self, world: World) -> None:
        """Put the drone at the start of a world."""
        self._build(world)
        self._drone.reset(world.start, world.start_yaw)
        self._move_obstacles()

    def _build(self, world: World) -> None:
        self.world, self._periods = world, 0
        moving = [index for index, obstacle in enumerate(world.obstacles) if obstacle.motion is not None]
        self._moving = np.array(moving, dtype=np.intp)
        still = [
            write_obstacle(obstacle, f"obstacle{index}")
            for index, obstacle in enumerate(world.obstacles)
            if obstacle.motion is None
        ]
        mocap = [write_moving_obstacle(world.obstacles[index], f"obstacle{index}") for index in moving]
        self._drone = Quadrotor("".join(still) + write_walls(world), "".join(mocap))
        self._resting = gather_primitives(world)
        self.scene: Primitives = self._resting

    @property
    def time(self) -> float:
        """Give the seconds since the reset."""
        return self._periods * CONTROL_PERIOD

    def fly(self, forward: float, climb: float, yaw_rate: float, duration: float) -> bool:
        """Follow a velocity for a whole number of control periods, at least one."""
        periods = max(1, round(duration / CONTROL_PERIOD))
        if not len(self._moving):
            self._periods += periods
            return self._drone.fly(forward, climb, yaw_rate, periods)
        for _ in range(periods):
            self._periods += 1
            self._move_obstacles()
            if self._drone.fly(forward, climb, yaw_rate, 1):
                break
        return self._drone.collided

    def _move_obstacles(self) -> None:
        if not len(self._moving):
            return
        assert self.world is not None
        swings = [self.world.obstacles[index].motion for index in self._moving]
        shifts = [swing.displace(self.time) for swing in swings if swing is not None]
        places = self._resting.positions[self._moving] + shifts
        self.scene = self._resting.place(self._moving, places)
        self._drone.data.mocap_pos[:] = places

    def set_wind(self, wind: Vector) -> None:
        """Set the velocity of the air."""
        self._drone.set_wind(wind)

    def read_pose(self) -> Pose:
        """Give where the drone is now."""
        data = self._drone.data
        x, y, z = data.qpos[:3].tolist()
        vx, vy, vz, roll, pitch, yaw = data.qvel.tolist()
        return Pose((x, y, z), (vx, vy, vz), self._drone.rotation, (roll, pitch, yaw))

    def see(self, camera: Camera) -> NDArray[np.float64]:
        """Give the depth that the drone's camera sees."""
        return self._caster.cast(self.scene, camera, self._drone.position, self._drone.rotation)

    def scan(self, camera: Camera) -> NDArray[np.float64]:
        """Give the depth that a level camera sees."""
        return self._caster.cast(self.scene, camera, self._drone.position, self.level_rotation())

    def aim(self, level: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give where a camera is and how it is turned, fixed to the drone or kept level."""
        return self._drone.position, self.level_rotation() if level else self._drone.rotation

    def level_rotation(self) -> NDArray[np.float64]:
        """Give the rotation of the heading alone."""
        rotation = self._drone.rotation
        length = math.hypot(rotation[0, 0], rotation[1, 0])
        cosine, sine = (rotation[0, 0] / length, rotation[1, 0] / length) if length > 1e-9 else (1.0, 0.0)
        return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])

    def read_state(self) -> dict[str, Any]:
        """Give the world, the time and the drone's state."""
        if self.world is None:
            return {}
        return {"world": json.dumps(self.world.to_json()), "periods": self._periods, "drone": self._drone.read_state()}

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over what `read_state` gave."""
        if not state:
            self.world = None
            return
        self._build(read_world(json.loads(state["world"])))
        self._periods = state["periods"]
        self._move_obstacles()
        self._drone.write_state(state["drone"])

    def close(self) -> None:
        """Hold nothing that needs closing."""


def see_many(caster: Caster, backends: Sequence[EmbeddedBackend], camera: Camera, level: bool) -> NDArray[np.float64]:
    """Give what the cameras of several drones see, in one call: (drones, H, W), in metres."""
    positions, rotations = zip(*(backend.aim(level) for backend in backends), strict=True)
    scenes = [backend.scene for backend in backends]
    return caster.cast_many(scenes, camera, np.array(positions), np.array(rotations))
