"""The ray caster in C, `native/raycast.c`: the same bits as NumPy's, several times as fast."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envs.drone.camera import Camera
from envs.drone.shapes import Primitives
from native.build import load_library

Floats = NDArray[np.float64]

_Pointer = ctypes.c_void_p


class _Lens(ctypes.Structure):
    """A camera as the library reads it."""

    _fields_ = [
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        *((name, _Pointer) for name in ("columns", "rows", "column_norms", "row_norms")),
        ("max_depth", ctypes.c_double),
    ]


class CompiledCaster:
    """Casts rays by a C library; see `envs.drone.raycast.Caster`.

    Raises:
        NativeError: the library can't be had, and why.
    """

    name: Literal["compiled"] = "compiled"

    def __init__(self) -> None:
        self._cast = load_library("raycast").cast_depth
        self._cast.restype = None
        self._cast.argtypes = [ctypes.c_int64, *[_Pointer] * 7]
        self._lenses: dict[Camera, _Lens] = {}

    def cast(self, scene: Primitives, camera: Camera, position: Floats, rotation: Floats) -> Floats:
        """Give planar depth in metres, (height, width)."""
        depth: Floats = self.cast_many([scene], camera, position[None], rotation[None])[0]
        return depth

    def cast_many(self, scenes: Sequence[Primitives], camera: Camera, positions: Floats, rotations: Floats) -> Floats:
        """Give planar depth in metres of several worlds, (worlds, height, width)."""
        num_worlds = len(scenes)
        assert positions.shape == (num_worlds, 3), positions.shape
        assert rotations.shape == (num_worlds, 3, 3), rotations.shape
        positions, rotations = np.ascontiguousarray(positions, np.float64), np.ascontiguousarray(rotations, np.float64)
        depths = np.empty((num_worlds, camera.height, camera.width))
        exits = np.empty((camera.height, camera.width))
        tables = np.array([scene.parts.address for scene in scenes], dtype=np.uintp)
        counts = np.array([len(scene.parts.table) for scene in scenes], dtype=np.int64)
        arrays = (tables, counts, positions, rotations)
        lens = ctypes.addressof(self._find_lens(camera))
        self._cast(num_worlds, *(a.ctypes.data for a in arrays), lens, exits.ctypes.data, depths.ctypes.data)
        return depths

    def _find_lens(self, camera: Camera) -> _Lens:
        lens = self._lenses.get(camera)
        if lens is None:
            arrays = (camera.columns, camera.rows, camera.column_norms, camera.row_norms)
            lens = _Lens(camera.height, camera.width, *(a.ctypes.data for a in arrays), camera.max_depth)
            self._lenses[camera] = lens  # the camera, which is kept with it, owns the arrays
        return lens
