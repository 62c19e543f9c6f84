"""Worlds from JSON, with all that is wrong with them said at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from envs.drone.mjcf import write_obstacle
from envs.drone.quadrotor import RADIUS, Vector
from envs.drone.world import FORMAT, SIZES, Motion, Obstacle, World

MAX_OBSTACLES = 2_000


class WorldError(ValueError):
    """A world that can't be flown in; each line names an entry, its value, and what is wrong with it."""


def load_world(path: Path) -> World:
    """Read a world from a JSON file and check it.

    Raises:
        WorldError: the file isn't there or isn't JSON, or the world is no good.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorldError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise WorldError(f"{path}: this is not JSON: {error}") from None
    try:
        return read_world(data)
    except WorldError as error:
        raise WorldError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def read_world(data: object) -> World:
    """Turn plain data, as `World.to_json` gives it, into a checked world.

    Raises:
        WorldError: with all that is wrong.
    """
    reader = _Reader()
    fields = reader.open(
        data, "world", ("format", "length", "width", "altitude", "start", "goal", "obstacles"), ("start_yaw",)
    )
    if fields.get("format", FORMAT) != FORMAT:
        raise WorldError(f"format: {fields['format']!r} is not known; this version reads {FORMAT}")
    length, width = reader.number(fields, "length", above=0.0), reader.number(fields, "width", above=0.0)
    altitude = reader.numbers(fields.get("altitude"), "altitude", 2)
    start, goal = (reader.vector(fields.get(name), name) for name in ("start", "goal"))
    yaw = reader.number(fields, "start_yaw") if "start_yaw" in fields else 0.0
    entries = fields.get("obstacles", [])
    if not isinstance(entries, list) or len(entries) > MAX_OBSTACLES:
        reader.problems.append(f"obstacles: give a list of at most {MAX_OBSTACLES}")
        entries = []
    obstacles = tuple(reader.obstacle(entry, f"obstacles[{index}]") for index, entry in enumerate(entries))
    reader.fail()
    world = World(length, width, (altitude[0], altitude[1]), start, yaw, goal, obstacles)
    if problems := [*_find_place_problems(world), *find_overlaps(world.obstacles)]:
        raise WorldError("\n".join(problems))
    return world


def _find_place_problems(world: World) -> Iterator[str]:
    low, high = world.altitude
    if not RADIUS < low < high:
        yield f"altitude: [{low}, {high}] must rise, and begin above the drone's radius of {RADIUS} m"
    for name, place in (("start", world.start), ("goal", world.goal)):
        if not low <= place[2] <= high:
            yield f"{name}: {list(place)} is outside the altitudes {low} to {high} m"
        if not (0 <= place[0] <= world.length and abs(place[1]) <= world.width / 2):
            yield f"{name}: {list(place)} is outside the field of {world.length} x {world.width} m"
            continue
        for index, obstacle in enumerate(world.obstacles):
            distance = float(obstacle.find_distances(np.array(place)))
            if distance < RADIUS:
                where = "inside" if distance < 0 else f"{distance:.2f} m from"
                yield (
                    f"{name}: {list(place)} is {where} obstacles[{index}], a {obstacle.shape} at "
                    f"{list(obstacle.position)}; the drone needs {RADIUS} m"
                )


def find_overlaps(obstacles: Sequence[Obstacle]) -> list[str]:
    """Name the pairs of obstacles that are in each other, at rest. Exact, by MuJoCo's distances between shapes."""
    near = [
        (one, other)
        for other, second in enumerate(obstacles)
        for one, first in enumerate(obstacles[:other])
        if math.dist(first.position, second.position) < first.reach + second.reach
    ]
    if not near:
        return []
    bodies = "".join(write_obstacle(obstacle, f"obstacle{index}") for index, obstacle in enumerate(obstacles))
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    problems = []
    for one, other in near:
        distance = mujoco.mj_geomDistance(model, data, one, other, 1.0, np.zeros(6))
        if distance < -1e-9:
            first, second = obstacles[one], obstacles[other]
            problems.append(
                f"obstacles[{one}], a {first.shape} at {list(first.position)}, and obstacles[{other}], a "
                f"{second.shape} at {list(second.position)}, overlap by {-distance:.3f} m"
            )
    return problems


class _Reader:
    """Reads plain data and gathers what is wrong with it; what it gives then is only a place holder."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def fail(self) -> None:
        """Raise what was gathered."""
        if self.problems:
            raise WorldError("\n".join(self.problems))

    def open(self, data: object, path: str, needed: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
        """Give a mapping, with its missing and unknown keys noted."""
        if not isinstance(data, Mapping):
            self.problems.append(f"{path}: {data!r} is not a mapping of {', '.join(needed)}")
            return {}
        prefix = "" if path == "world" else f"{path}."
        self.problems += [f"{prefix}{key}: missing" for key in needed if key not in data]
        known = {*needed, *optional}
        self.problems += [
            f"{prefix}{key}: unknown key; there are: {', '.join(sorted(known))}" for key in data if key not in known
        ]
        return data

    def number(self, fields: Mapping[str, Any], key: str, above: float = -math.inf, path: str = "") -> float:
        """Give a finite number above a bound."""
        if key not in fields:
            return 1.0
        value = fields[key]
        if not _is_finite(value) or value <= above:
            bound = "" if above == -math.inf else f" above {above:g}"
            self.problems.append(f"{path}{key}: {value!r} is not a finite number{bound}")
            return 1.0
        return float(value)

    def numbers(self, value: object, path: str, count: int, above: float = -math.inf) -> tuple[float, ...]:
        """Give so many finite numbers above a bound."""
        if value is None:
            return (1.0,) * count
        listed = isinstance(value, list | tuple) and len(value) == count and all(map(_is_finite, value))
        if isinstance(value, list | tuple) and listed and min(value) > above:
            return tuple(map(float, value))
        bound = "" if above == -math.inf else f" above {above:g}"
        self.problems.append(f"{path}: {value!r} is not a list of {count} finite numbers{bound}")
        return (1.0,) * count

    def vector(self, value: object, path: str) -> Vector:
        """Give three finite numbers."""
        x, y, z = self.numbers(value, path, 3)
        return (x, y, z)

    def obstacle(self, data: object, path: str) -> Obstacle:
        """Give an obstacle."""
        fields = self.open(data, path, ("shape", "size", "position"), ("quaternion", "motion"))
        shape = fields.get("shape", "sphere")
        if shape not in SIZES:
            self.problems.append(f"{path}.shape: {shape!r} is unknown; there are: {', '.join(SIZES)}")
            shape = "sphere"
        names = SIZES[shape]
        size = self.numbers(fields.get("size"), f"{path}.size ({', '.join(names)})", len(names), above=0.0)
        position = self.vector(fields.get("position"), f"{path}.position")
        w, x, y, z = self.numbers(fields.get("quaternion", [1, 0, 0, 0]), f"{path}.quaternion", 4)
        length = math.sqrt(w * w + x * x + y * y + z * z)
        if abs(length - 1) > 1e-6:
            self.problems.append(f"{path}.quaternion: {[w, x, y, z]} is {length:g} long; a rotation's is 1 long")
        motion = None
        if (entry := fields.get("motion")) is not None:
            parts = self.open(entry, f"{path}.motion", ("reach", "period"), ("phase",))
            reach = self.vector(parts.get("reach"), f"{path}.motion.reach")
            period = self.number(parts, "period", above=0.0, path=f"{path}.motion.")
            phase = self.number(parts, "phase", path=f"{path}.motion.") if "phase" in parts else 0.0
            motion = Motion(reach, period, phase)
        return Obstacle(shape, size, position, (w, x, y, z), motion)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
