"""PyFlyt's quadrotor on flights that are given to it; runs inside its own virtual environment, away from our packages.

Reads requests as lines of JSON and answers each with a line: how long the steps took, by the clocks of the processor,
of the wall and of the simulation, and what was seen. A request names a frame's `size` in pixels, the `period` between
two commands in seconds, and `flights`: obstacles, as in our world files, and a `track` of (x, y, z, yaw), one point a
period. The drone follows the track by velocities over ground, given once a period, so it sees what ours saw.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import zlib
from typing import Any, TextIO

import numpy as np
from PyFlyt.core import Aviary

GROUND_VELOCITY = 6
"""PyFlyt's flight mode of commanded velocities: vx, vy, yaw rate, vz."""
SETTLING_STEPS = 10
"""Control steps before a flight, as many as PyFlyt's own environments let pass."""
FOLLOWING = 1.5
"""How fast an error in place or heading is made up for, in 1/s."""
TOP_SPEED = 3.0


def main() -> None:
    """Answer requests until there are no more."""
    answers = keep_answers_apart()
    for line in sys.stdin:
        print(json.dumps(fly(json.loads(line))), file=answers, flush=True)


def keep_answers_apart() -> TextIO:
    """Give what was standard output, and send there nothing else: PyFlyt and pybullet print to it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def fly(request: dict[str, Any]) -> dict[str, Any]:
    """Fly all flights of a request and sum up; building the worlds is timed apart from the steps."""
    total: dict[str, Any] = {"threads": len(os.listdir("/proc/self/task")), "fingerprints": []}
    for flight in request["flights"]:
        started = time.process_time()
        aviary, first_obstacle = build(flight, request["size"], request["period"])
        told = {"reset_s": time.process_time() - started}
        told |= follow(aviary, first_obstacle, flight["track"], request["period"], request["size"])
        aviary.disconnect()
        total["fingerprints"] += told.pop("fingerprints")
        for name, value in told.items():
            total[name] = max(total.get(name, 0), value) if name == "off_track_m" else total.get(name, 0) + value
    total["distinct"] = len(set(total.pop("fingerprints")))
    return total


def build(flight: dict[str, Any], size: int, period: float) -> tuple[Any, int]:
    """Give a world with a hovering drone in it, and the number of its first obstacle."""
    x, y, z, yaw = flight["track"][0]
    camera = {"use_camera": True, "camera_resolution": (size, size), "camera_fps": round(1 / period)}
    aviary = Aviary(
        start_pos=np.array([[x, y, z]]),
        start_orn=np.array([[0.0, 0.0, yaw]]),
        drone_type="quadx",
        drone_options={**camera, "camera_angle_degrees": 0, "camera_FOV_degrees": 90},
        seed=1,
    )
    first_obstacle = aviary.getNumBodies()
    for obstacle in flight["obstacles"]:
        add_obstacle(aviary, obstacle)
    aviary.register_all_new_bodies()
    aviary.set_mode(GROUND_VELOCITY)
    for _ in range(SETTLING_STEPS):
        aviary.step()
    return aviary, first_obstacle


def add_obstacle(aviary: Any, obstacle: dict[str, Any]) -> None:
    """Put a solid into the world; both sides take the same sizes, pybullet whole lengths where ours are halves."""
    size, shape = obstacle["size"], obstacle["shape"]
    kind = getattr(aviary, f"GEOM_{shape.upper()}")
    if shape == "box":
        solid = look = {"halfExtents": size}
    elif shape == "sphere":
        solid = look = {"radius": size[0]}
    else:
        solid = {"radius": size[0], "height": 2 * size[1]}
        look = {"radius": size[0], "length": 2 * size[1]}
    w, x, y, z = obstacle["quaternion"]
    aviary.createMultiBody(
        0,
        aviary.createCollisionShape(kind, **solid),
        aviary.createVisualShape(kind, **look),
        obstacle["position"],
        (x, y, z, w),
    )


def follow(aviary: Any, first_obstacle: int, track: list[list[float]], period: float, size: int) -> dict[str, Any]:
    """Fly along a track, a frame a period, and give what it took."""
    drone, points = aviary.drones[0], np.array(track)
    num_updates = round(period / aviary.step_period)
    frames = np.full((len(points) - 1, size, size), -1, np.float32)  # written to, so that no step pays for new pages
    labels = np.full(frames.shape, -1, np.int32)
    off_track, touches = 0.0, 0
    before = aviary.elapsed_time
    started, wall_started = time.process_time(), time.perf_counter()
    for index in range(len(points) - 1):
        aviary.set_setpoint(0, steer(drone.state, points[index], points[index + 1], period))
        for _ in range(num_updates):
            aviary.step()
        frames[index], labels[index] = drone.depthImg[..., 0], drone.segImg[..., 0]
        off_track = max(off_track, math.dist(drone.state[3], points[index + 1, :3]))
        touches += int(aviary.contact_array.any())
    seconds, wall = time.process_time() - started, time.perf_counter() - wall_started
    return {
        "steps": len(frames),
        "cpu_s": seconds,
        "wall_s": wall,
        "simulated_s": aviary.elapsed_time - before,
        "obstacles": aviary.getNumBodies() - first_obstacle,
        "obstacle_pixels": float((labels >= first_obstacle).mean(axis=(1, 2)).sum()),
        "off_track_m": off_track,
        "touches": touches,
        "fingerprints": [zlib.crc32(frame.tobytes()) for frame in frames],
    }


def steer(state: Any, here: Any, there: Any, period: float) -> Any:
    """Give the velocity over ground that leads back to the track and along it."""
    velocity = (there[:3] - here[:3]) / period + FOLLOWING * (here[:3] - state[3])
    vx, vy, vz = np.clip(velocity, -TOP_SPEED, TOP_SPEED)
    rate = wrap(there[3] - here[3]) / period + FOLLOWING * wrap(here[3] - state[1, 2])
    return np.array([vx, vy, rate, vz])


def wrap(angle: float) -> float:
    """Give an angle in (-pi, pi]."""
    return math.atan2(math.sin(angle), math.cos(angle))


if __name__ == "__main__":
    main()
