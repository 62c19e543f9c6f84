"""The ray caster in NumPy: the reference, and what is used where there is no compiler.

`native/raycast.c` does the same operations on the same numbers in the same order, so that both give the same bits: a
change here is a change there. Matrix products would leave the order of sums to a library, hence the sums by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envs.drone.camera import Camera
from envs.drone.shapes import PartKind, Parts, Primitives

Floats = NDArray[np.float64]

_SLACK = 1e-6
"""Metres by which parts are taken to be larger where those pixels are sought that can see them."""
_PARALLEL = 1e-12
"""The least squared length of a direction across a cylinder's axis; what is shorter (1e-6 rad) runs along the axis."""
_TOUCHING = 1e-300
"""Stands for a distance of 0 from a box's face, as 0 times infinity is no number."""


class NumpyCaster:
    """Casts rays with NumPy alone; see `envs.drone.raycast.Caster`."""

    name: Literal["numpy"] = "numpy"

    def cast(self, scene: Primitives, camera: Camera, position: Floats, rotation: Floats) -> Floats:
        """Give planar depth in metres, (height, width)."""
        depth = np.full((camera.height, camera.width), camera.max_depth, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # rays that miss, or run along a face
            _cast_ground(depth, camera, position, rotation)
            if len(scene):
                _cast_parts(depth, scene.parts, camera, position, rotation)
        return depth

    def cast_many(self, scenes: Sequence[Primitives], camera: Camera, positions: Floats, rotations: Floats) -> Floats:
        """Give planar depth in metres of several worlds, (worlds, height, width)."""
        depths = np.empty((len(scenes), camera.height, camera.width))
        for depth, scene, position, rotation in zip(depths, scenes, positions, rotations, strict=True):
            depth[...] = self.cast(scene, camera, position, rotation)
        return depths


def _cast_ground(depth: Floats, camera: Camera, position: Floats, rotation: Floats) -> None:
    """Put the plane z = 0 into a frame, unless the camera is below it."""
    if position[2] < 0:
        return
    fall = (-rotation[2, 0] + camera.columns * -rotation[2, 1]) + (camera.rows * -rotation[2, 2])[:, None]
    np.minimum(depth, position[2] / fall, out=depth, where=fall > 0)


def _cast_parts(depth: Floats, parts: Parts, camera: Camera, position: Floats, rotation: Floats) -> None:
    """Put parts into a frame, each where it can be seen."""
    vectors = parts.vectors.copy()
    vectors[:, :, 3] -= position[:, None]
    columns = vectors[:, :, :, None]
    turned = (columns[0] * rotation[0] + columns[1] * rotation[1]) + columns[2] * rotation[2]
    extents = turned * parts.scales
    chosen = _find_in_range(extents, parts.radii, camera.max_depth)
    if not len(chosen):
        return
    windows = _find_windows(extents[chosen], parts.radii[chosen], camera)
    near_parts = _place_parts(parts, chosen, vectors[:, chosen], turned[chosen])
    leftwards = near_parts.forms[:, :, :1] + near_parts.forms[:, :, 1:2] * camera.columns
    upwards = near_parts.forms[:, :, 2:] * camera.rows
    exits: dict[int, Floats] = {}
    for index, (top, bottom, left, right) in enumerate(windows):
        if left >= right or top >= bottom:
            continue
        forms = leftwards[index, :, None, left:right] + upwards[index, :, top:bottom, None]
        near, far = _cross(near_parts, index, forms, camera.squared_lengths[top:bottom, left:right])
        solid = near_parts.solids[index]
        if solid in near_parts.around:
            if solid not in exits:
                exits[solid] = np.zeros(depth.shape)
            target = exits[solid][top:bottom, left:right]
            np.maximum(target, far, out=target, where=near <= far)
        else:
            target = depth[top:bottom, left:right]
            np.minimum(target, near, out=target, where=near <= far)
    for exit_depth in exits.values():
        np.minimum(depth, exit_depth, out=depth)


def _find_in_range(extents: Floats, radii: Floats, max_depth: float) -> NDArray[np.intp]:
    """Give the indices of the parts that reach into the space between the camera and its greatest depth.

    Args:
        extents: of each part the three half extents and the way to its centre, in the body's frame, (p, 4, 3).
        radii: (p,).
    """
    sizes = np.abs(extents[:, :3, 0])
    reach = ((sizes[:, 0] + sizes[:, 1]) + sizes[:, 2]) + (radii + _SLACK)
    ahead = extents[:, 3, 0]
    return np.flatnonzero((ahead + reach > 0) & (ahead - reach < max_depth))


def _find_windows(extents: Floats, radii: Floats, camera: Camera) -> list[list[int]]:
    """Give the rows and columns of pixels that can see each part, as [top, bottom, left, right], ends excluded."""
    reaches = (radii + _SLACK)[:, None]
    left, right = _find_span(extents, 1, camera.columns, reaches * camera.column_norms)
    top, bottom = _find_span(extents, 2, camera.rows, reaches * camera.row_norms)
    windows: list[list[int]] = np.stack([top, bottom, left, right], axis=1).tolist()
    return windows


def _find_span(
    extents: Floats, side: int, slopes: Floats, reaches: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the first pixel of a row or column that can see each part, and the one after the last.

    The rays of all pixels of a column lie in one plane through the eye, and a plane meets a part if its centre is no
    farther from it than the part reaches across it. Likewise for rows.
    """
    across = np.abs(extents[:, :, side, None] - extents[:, :, :1] * slopes)
    seen = across[:, 3] <= ((across[:, 0] + across[:, 1]) + across[:, 2]) + reaches
    first = seen.argmax(axis=1)
    last = len(slopes) - seen[:, ::-1].argmax(axis=1)
    return first, np.where(seen.any(axis=1), last, 0)


@dataclass(frozen=True)
class _NearParts:
    """Parts as one camera has them before it. A linear form gives a number for each direction (1, u, v).

    Attributes:
        kinds: values of `PartKind`.
        solids: the primitive that each part belongs to.
        around: the primitives that the eye is in.
        forms: (q, 4, 3): how far a ray goes along each of the part's axes, and how far towards its centre (a
            cylinder: towards its axis), times the distance from there.
        low: from the eye to the faces at the negative ends of the axes, (q, 3).
        high: likewise at the positive ends.
        gaps: the squared distance of the eye from the centre or axis, less the squared radius.
    """

    kinds: list[int]
    solids: list[int]
    around: set[int]
    forms: Floats
    low: Floats
    high: Floats
    gaps: list[float]


def _place_parts(parts: Parts, chosen: NDArray[np.intp], vectors: Floats, turned: Floats) -> _NearParts:
    """Give chosen parts as the eye has them before it.

    Args:
        vectors: their axes and the ways from the eye to their centres by the world's coordinates, (3, q, 4).
        turned: the same in the body's frame, (q, 4, 3).
    """
    kinds, halves, radii = parts.kinds[chosen], parts.halves[chosen], parts.radii[chosen]
    ways = (vectors[0] * vectors[0, :, 3:] + vectors[1] * vectors[1, :, 3:]) + vectors[2] * vectors[2, :, 3:]
    eye = -ways[:, :3]
    low, high = -halves - eye, halves - eye
    along = np.where(kinds == PartKind.CYLINDER, eye[:, 2], 0.0)
    turned[:, 3] += along[:, None] * turned[:, 2]
    squares = ways[:, :3] * ways[:, :3]
    gaps = ((squares[:, 0] + squares[:, 1]) + (squares[:, 2] - along * along)) - radii * radii
    inside = (kinds == PartKind.BOX) | (gaps < 0)
    inside &= (((low < 0) & (high > 0)) | parts.endless[chosen]).all(axis=1)
    low[low == 0] = -_TOUCHING
    high[high == 0] = _TOUCHING
    solids = parts.solids[chosen]
    return _NearParts(kinds.tolist(), solids.tolist(), set(solids[inside].tolist()), turned, low, high, gaps.tolist())


def _cross(parts: _NearParts, index: int, forms: Floats, squared_lengths: Floats) -> tuple[Floats, Floats]:
    """Give where rays go into a part, 0 at the least, and where they come out; a ray that misses it, `near > far`.

    Args:
        forms: of each pixel, what the four linear forms of the part give, (4, height, width).
        squared_lengths: of the directions of the pixels, (height, width).
    """
    kind = parts.kinds[index]
    if kind == PartKind.BOX:
        nears, fars = _cross_slabs(forms[:3], parts.low[index, :, None, None], parts.high[index, :, None, None])
        return np.maximum.reduce(nears, initial=0.0), np.minimum.reduce(fars)
    if kind == PartKind.SPHERE:
        near, far = _cross_round(forms[3], squared_lengths, parts.gaps[index])
        return np.maximum(near, 0.0, out=near), far
    across = np.maximum(squared_lengths - forms[2] * forms[2], _PARALLEL)
    near, far = _cross_round(forms[3], across, parts.gaps[index])
    end, other_end = _cross_slabs(forms[2], parts.low[index, 2], parts.high[index, 2])
    return np.maximum(np.maximum(near, end), 0.0), np.minimum(far, other_end)


def _cross_round(toward: Floats, squared_lengths: Floats, gap: float) -> tuple[Floats, Floats]:
    """Give both solutions t of `squared_lengths t^2 - 2 toward t + gap = 0`; no numbers where there are none."""
    root = np.sqrt(toward * toward - squared_lengths * gap)
    return (toward - root) / squared_lengths, (toward + root) / squared_lengths


def _cross_slabs(directions: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Give where rays go in between two faces, and where they come out."""
    inverse = 1 / directions
    one, other = low * inverse, high * inverse
    return np.minimum(one, other), np.maximum(one, other)
