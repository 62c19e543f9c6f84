"""Depth images: what casts rays at a world, and which of the two ways is taken."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.drone.camera import Camera
from envs.drone.compiled_caster import CompiledCaster
from envs.drone.numpy_caster import NumpyCaster
from envs.drone.shapes import Primitives
from native.build import NativeError

Floats = NDArray[np.float64]


class Caster(Protocol):
    """Sees worlds through depth cameras. All casters give the same bits.

    From inside a primitive the depth is that of the way out of it, and no other surface of it is seen. The ground is
    seen by cameras at or above it. A ray that only touches a surface may see it or not.
    """

    @property
    def name(self) -> Literal["numpy", "compiled"]:
        """How rays are cast."""

    def cast(self, scene: Primitives, camera: Camera, position: Floats, rotation: Floats) -> Floats:
        """Give planar depth in metres, (height, width), cut at the camera's greatest depth.

        Args:
            position: of the body in the world, (3,), metres.
            rotation: from the body's frame to the world's, (3, 3): its columns are the body's axes in the world.
        """

    def cast_many(self, scenes: Sequence[Primitives], camera: Camera, positions: Floats, rotations: Floats) -> Floats:
        """Give planar depth in metres of several worlds at once, (worlds, height, width).

        Args:
            scenes: one for each world.
            positions: (worlds, 3).
            rotations: (worlds, 3, 3).
        """


def choose_caster(kind: Literal["auto", "compiled", "numpy"]) -> Caster:
    """Give the caster that settings ask for.

    Args:
        kind: "auto" takes the compiled one; where that can't be had, NumPy's, with a warning that says why.

    Raises:
        NativeError: `kind` is "compiled", which can't be had. The message says why and what to do.
    """
    if kind == "numpy":
        return NumpyCaster()
    try:
        return CompiledCaster()
    except NativeError as error:
        if kind == "compiled":
            raise
        warnings.warn(f"depth images are made by NumPy, several times slower: {error}", stacklevel=2)
        return NumpyCaster()
