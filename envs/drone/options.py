"""The arguments of the navigation task, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from envs.drone.backend import BACKENDS
from envs.drone.world import World
from envs.drone.world_file import WorldError, load_world, read_world
from experiment.problems import suggest

DENSITIES = {"easy": 25.0, "medium": 40.0, "hard": 60.0}
"""Obstacles for each 1,000 square metres of the field."""
LAYOUTS = ("train", "held_out")
CASTERS = ("auto", "compiled", "numpy")
WHOLE_RANGES = {"num_obstacles": (0, 500), "seq_len": (1, 64), "height": (1, 1_024), "width": (1, 1_024)}
RANGES = {
    "moving": (0.0, 1.0),
    "wind": (0.0, 15.0),
    "depth_noise": (0.0, 5.0),
    "horizontal_fov": (1.0, 170.0),
    "max_depth": (0.1, 1_000.0),
}


@dataclass(frozen=True)
class NavigationOptions:
    """What a navigation task is made of; `read_options` checks it.

    Attributes:
        density: how many obstacles there are, a key of `DENSITIES`.
        layouts: which layouts flights are drawn from; those to train on and those held out have no seed in common.
        field: length and width of the field, in metres.
        num_obstacles: instead of what the density comes to.
        moving: share of the obstacles that swing to and fro, in [0, 1].
        wind: root mean square of each horizontal component of the air's velocity, in m/s.
        depth_noise: standard deviation of depth at 10 m, in metres; it grows with the square of depth.
        seq_len: how many frames an observation holds.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        horizontal_fov: angle that a frame spans across, in degrees.
        max_depth: where depth ends, in metres.
        blind: whether depth is 0 everywhere, as if the camera were covered: what is a policy without it?
        privileged: whether observations also say what the simulator knows: `envs.drone.privileged`.
        world: a fixed world, as a file or as its data, instead of drawn layouts.
        backend: what simulates the drone.
        caster: how depth is computed; all give the same bits.
    """

    density: str = "easy"
    layouts: str = "train"
    field: tuple[float, float] = (40.0, 30.0)
    num_obstacles: int | None = None
    moving: float = 0.0
    wind: float = 0.0
    depth_noise: float = 0.0
    seq_len: int = 4
    height: int = 64
    width: int = 64
    horizontal_fov: float = 90.0
    max_depth: float = 20.0
    blind: bool = False
    privileged: bool = False
    world: World | None = None
    backend: str = "embedded"
    caster: Literal["auto", "compiled", "numpy"] = "auto"


def read_options(arguments: Mapping[str, Any]) -> NavigationOptions:
    """Check the arguments of an environment.

    Args:
        arguments: names of `NavigationOptions`' attributes; `world` is a path, or data as in a world file.

    Raises:
        ValueError: with a line for each argument that is no good.
    """
    known = {field.name for field in fields(NavigationOptions)}
    problems = [f"{key}: there is no such argument{suggest(key, known)}" for key in arguments if key not in known]
    values = {key: value for key, value in arguments.items() if key in known}
    for key in ("num_obstacles", "world"):
        if key in values and values[key] is None:
            del values[key]
    for key, choices in (("density", DENSITIES), ("layouts", LAYOUTS), ("caster", CASTERS)):
        if key in values and values[key] not in choices:
            problems.append(
                f"{key}: {values[key]!r} is none of {', '.join(choices)}{suggest(str(values[key]), choices)}"
            )
    if values.get("backend", "embedded") not in BACKENDS:
        problems.append(f"backend: {values['backend']!r} isn't there; there is: {', '.join(BACKENDS)}")
    for key, (least, most) in WHOLE_RANGES.items():
        value = values.get(key)
        if key in values and not (type(value) is int and least <= value <= most):
            problems.append(f"{key}: {value!r} is not a whole number from {least} to {most}")
    for key, (low, high) in RANGES.items():
        if key in values and not _is_within(values[key], low, high):
            problems.append(f"{key}: {values[key]!r} is not a number from {low:g} to {high:g}")
    for key in ("blind", "privileged"):
        if type(values.get(key, False)) is not bool:
            problems.append(f"{key}: {values[key]!r} is neither true nor false")
    problems += _check_field(values)
    problems += _read_world(values)
    if problems:
        raise ValueError("\n".join(problems))
    return NavigationOptions(**values)


def _check_field(values: dict[str, Any]) -> list[str]:
    if "field" not in values:
        return []
    field = values["field"]
    if (
        isinstance(field, list | tuple)
        and len(field) == 2
        and _is_within(field[0], 15, 200)
        and _is_within(field[1], 10, 200)
    ):
        values["field"] = (float(field[0]), float(field[1]))
        return []
    return [f"field: {field!r} is not a length from 15 to 200 m and a width from 10 to 200 m"]


def _read_world(values: dict[str, Any]) -> list[str]:
    world = values.get("world")
    if world is None or isinstance(world, World):
        return []
    drawn = [key for key in ("density", "layouts", "field", "num_obstacles", "moving") if key in values]
    problems = [f"{key}: means nothing in a fixed `world`; leave it out" for key in drawn]
    try:
        values["world"] = load_world(Path(world)) if isinstance(world, str | Path) else read_world(world)
    except WorldError as error:
        problems += [f"world: {line}" for line in str(error).splitlines()]
    return problems


def _is_within(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[operator,arg-type]
