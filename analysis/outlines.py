"""Outlines of obstacles as seen from above, from the plain data that a world file has (docs/envs.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]

CORNERS = 48
"""Of a circle."""


def outline_obstacle(obstacle: Mapping[str, Any]) -> Points:
    """Give the corners, (n, 2) in metres and counterclockwise, of what an obstacle at rest covers from above."""
    rotation, centre = rotate(obstacle["quaternion"]), np.array(obstacle["position"], dtype=np.float64)
    shape, size = obstacle["shape"], obstacle["size"]
    if shape == "sphere":
        return np.asarray(centre[:2] + size[0] * _circle())
    if shape == "box":
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        return find_hull((centre + (signs * size) @ rotation.T)[:, :2])
    ends = centre + np.outer((-size[1], size[1]), rotation[:, 2])
    if shape == "capsule":
        return find_hull(np.concatenate([end[:2] + size[0] * _circle() for end in ends]))
    if shape == "cylinder":
        rim = size[0] * _circle() @ rotation[:, :2].T
        return find_hull(np.concatenate([end[:2] + rim[:, :2] for end in ends]))
    raise ValueError(f"no obstacle is called {shape!r}; there are: sphere, capsule, cylinder, box")


def find_heights(obstacle: Mapping[str, Any]) -> tuple[float, float]:
    """Give the altitudes between which an obstacle is, in metres."""
    upward = np.abs(rotate(obstacle["quaternion"])[2])
    size, middle = obstacle["size"], float(obstacle["position"][2])
    if obstacle["shape"] == "box":
        reach = float(upward @ size)
    elif obstacle["shape"] == "sphere":
        reach = float(size[0])
    elif obstacle["shape"] == "capsule":
        reach = float(size[0] + upward[2] * size[1])
    else:
        reach = float(size[0] * math.hypot(*upward[:2]) + upward[2] * size[1])
    return middle - reach, middle + reach


def displace(obstacle: Mapping[str, Any], time: float) -> Points:
    """Give how far an obstacle is from its place of rest at a time in seconds, (2,) in metres."""
    motion = obstacle.get("motion")
    if motion is None:
        return np.zeros(2)
    part = math.sin(2 * math.pi * (time / motion["period"] + motion["phase"]))
    return part * np.array(motion["reach"][:2], dtype=np.float64)


def rotate(quaternion: tuple[float, float, float, float]) -> Points:
    """Give the rotation (3, 3) of a quaternion (w, x, y, z) of length 1."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def find_hull(points: Points) -> Points:
    """Give the corners of the smallest convex outline of points (n, 2), counterclockwise: Andrew 1979's chains."""
    ordered = sorted(set(map(tuple, np.round(points, 9).tolist())))
    halves = []
    for half in (ordered, ordered[::-1]):
        chain: list[tuple[float, ...]] = []
        for point in half:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        halves += chain[:-1]
    return np.array(halves)


def _turn(first: tuple[float, ...], second: tuple[float, ...], third: tuple[float, ...]) -> float:
    """Give twice the area of a triangle, positive where it turns left."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])


def _circle() -> Points:
    angles = np.arange(CORNERS) * (2 * math.pi / CORNERS)
    return np.stack([np.cos(angles), np.sin(angles)], -1)
