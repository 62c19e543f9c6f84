"""The solids that a drone's world is made of, and the simpler parts that rays are cast at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROTATION_TOLERANCE = 1e-6


class ShapeKind(IntEnum):
    """What a primitive is. The sizes of each are MuJoCo's."""

    SPHERE = 0
    CAPSULE = 1
    CYLINDER = 2
    BOX = 3


_NUM_SIZES = np.array([1, 2, 2, 3])
"""How many of a primitive's three sizes are used, by kind; the others are 0."""


@dataclass(frozen=True, eq=False)
class Primitives:
    """The solids of one world, as arrays that can't be written to; there may be none.

    The ground is no primitive: it is the plane z = 0, always there, and seen from above only.

    Attributes:
        kinds: (n,) int32, values of `ShapeKind`.
        positions: (n, 3) float64, metres, in the world's frame, z up.
        rotations: (n, 3, 3) float64; the columns are the primitive's axes in the world's frame.
        sizes: (n, 3) float64, metres. Sphere (radius, 0, 0); capsule and cylinder (radius, half the length along their
            own z, 0), where a capsule's length leaves out its round ends; box half its extents.

    Raises:
        ValueError: an array has another shape, or a primitive isn't one. The message names the array and the primitive.
    """

    kinds: NDArray[np.int32]
    positions: NDArray[np.float64]
    rotations: NDArray[np.float64]
    sizes: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, dtype in (("kinds", np.int32), ("positions", np.float64), ("rotations", float), ("sizes", float)):
            array: NDArray[Any] = np.array(getattr(self, name), dtype=dtype, order="C")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        n = len(self.kinds)
        for name, shape in (("kinds", (n,)), ("positions", (n, 3)), ("rotations", (n, 3, 3)), ("sizes", (n, 3))):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {found}; {n} primitives need {shape}")
        self._check_values()

    def __len__(self) -> int:
        return len(self.kinds)

    @cached_property
    def parts(self) -> Parts:
        """The same solids as parts; made on first use and kept."""
        return split_into_parts(self)

    def place(self, moved: NDArray[np.intp], positions: NDArray[np.float64]) -> Primitives:
        """Give the same solids with some of them elsewhere; nothing but their numbers is computed anew.

        Args:
            moved: (m,), indices of primitives.
            positions: (m, 3), where their centres are then, finite.
        """
        places, parts = self.positions.copy(), self.parts
        places[moved] = positions
        table = parts.table.copy()
        table[:, 2:5] += (places - self.positions)[parts.solids]
        places.setflags(write=False)
        table.setflags(write=False)
        placed = object.__new__(Primitives)  # every array is one that was checked, but for the places
        fields = {"kinds": self.kinds, "positions": places, "rotations": self.rotations, "sizes": self.sizes}
        vars(placed).update(fields, parts=Parts(table))
        return placed

    def _check_values(self) -> None:
        known = np.isin(self.kinds, list(ShapeKind))
        _require("kinds", self.kinds, known, f"a kind is one of {', '.join(f'{int(k)} ({k.name})' for k in ShapeKind)}")
        _require("positions", self.positions, np.isfinite(self.positions).all(axis=1), "a position is finite")
        used = np.arange(3) < _NUM_SIZES[self.kinds][:, None]
        fitting = np.where(used, np.isfinite(self.sizes) & (self.sizes > 0), self.sizes == 0).all(axis=1)
        _require("sizes", self.sizes, fitting, "the sizes that its kind uses are finite and above 0, the others 0")
        products = np.swapaxes(self.rotations, 1, 2) @ self.rotations
        straight = (np.abs(products - np.eye(3)) < _ROTATION_TOLERANCE).all(axis=(1, 2))
        _require("rotations", self.rotations, straight, "the columns are at right angles and of length 1")


def _require(name: str, values: NDArray[Any], right: Any, rule: str) -> None:
    if not right.all():
        first = int(np.argmin(right))
        raise ValueError(f"{name}[{first}] is {values[first].tolist()}; {rule}")


class PartKind(IntEnum):
    """What rays are cast at. The numbers are also in `native/raycast.c`."""

    SPHERE = 0
    CYLINDER = 1
    BOX = 2


@dataclass(frozen=True, eq=False)
class Parts:
    """Spheres, cylinders and boxes: the solids of a world, each capsule as a cylinder and two spheres.

    Attributes:
        table: (p, 18) float64, C-contiguous: kind, index of the solid, centre, radius, half extents along the own axes
            beside the radius, rotation row by row. The parts of a solid follow one another.
    """

    table: NDArray[np.float64]

    @cached_property
    def address(self) -> int:
        """Where the table is in memory."""
        return self.table.ctypes.data

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        """Values of `PartKind`, (p,)."""
        return self.table[:, 0].astype(np.int64)

    @cached_property
    def solids(self) -> NDArray[np.int64]:
        """The index of the primitive that each part belongs to, (p,)."""
        return self.table[:, 1].astype(np.int64)

    @cached_property
    def radii(self) -> NDArray[np.float64]:
        """Metres, (p,); 0 for boxes."""
        return np.ascontiguousarray(self.table[:, 5])

    @cached_property
    def halves(self) -> NDArray[np.float64]:
        """How far a part reaches along its own axes, beside its radius, in metres: (p, 3)."""
        return np.ascontiguousarray(self.table[:, 6:9])

    @cached_property
    def endless(self) -> NDArray[np.bool_]:
        """Along which of its axes a part has no flat ends, (p, 3)."""
        endless: NDArray[np.bool_] = self.halves == 0
        return endless

    @cached_property
    def vectors(self) -> NDArray[np.float64]:
        """The three axes and the centre of each part by the world's coordinates: (3, p, 4)."""
        rotations = self.table[:, 9:].reshape(-1, 3, 3)
        vectors = np.concatenate([rotations, self.table[:, 2:5, None]], axis=2)
        return np.ascontiguousarray(vectors.transpose(1, 0, 2))

    @cached_property
    def scales(self) -> NDArray[np.float64]:
        """What turns `vectors` into half extents, leaving the centre alone: (p, 4, 1)."""
        return np.concatenate([self.halves, np.ones((len(self.table), 1))], axis=1)[:, :, None]


_PART_KINDS = np.array(
    [
        [PartKind.SPHERE, -1, -1],
        [PartKind.CYLINDER, PartKind.SPHERE, PartKind.SPHERE],
        [PartKind.CYLINDER, -1, -1],
        [PartKind.BOX, -1, -1],
    ]
)
"""The parts of each kind of primitive; -1 is none."""
_PART_ENDS = np.array([0.0, 1.0, -1.0])
"""At which end of its primitive's axis each part is; 0 is its middle."""


def split_into_parts(scene: Primitives) -> Parts:
    """Give what rays are cast at; the parts of a solid cover just it."""
    candidates = _PART_KINDS[scene.kinds]
    solids, places = np.nonzero(candidates >= 0)
    kinds, sizes, rotations = candidates[solids, places], scene.sizes[solids], scene.rotations[solids]
    boxes = kinds == PartKind.BOX
    halves = np.where(boxes[:, None], sizes, 0)
    halves[:, 2] += np.where(kinds == PartKind.CYLINDER, sizes[:, 1], 0)
    table = np.empty((len(solids), 18))
    table[:, 0] = kinds
    table[:, 1] = solids
    table[:, 2:5] = scene.positions[solids] + (_PART_ENDS[places] * sizes[:, 1])[:, None] * rotations[:, :, 2]
    table[:, 5] = np.where(boxes, 0, sizes[:, 0])
    table[:, 6:9] = halves
    table[:, 9:] = rotations.reshape(-1, 9)
    table.setflags(write=False)
    return Parts(table)
