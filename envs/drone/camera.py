"""A depth camera: how many pixels, how wide, how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in a body's origin that looks along the body's x axis; y is left, z is up.

    Row 0 of a frame is the top, column 0 the left. A ray goes through the centre of each pixel; its direction in the
    body's frame is (1, u, v), so that the way along it is planar depth: the distance along the camera's axis.

    Attributes:
        height: pixels.
        width: pixels.
        horizontal_fov: angle between the left and the right edge, in degrees.
        vertical_fov: angle between the upper and the lower edge, in degrees; None makes pixels square.
        max_depth: metres along the camera's axis; whatever is farther away is reported at this depth.

    Raises:
        ValueError: a value is out of its range. The message names it.
    """

    height: int
    width: int
    horizontal_fov: float = 90.0
    vertical_fov: float | None = None
    max_depth: float = 20.0

    def __post_init__(self) -> None:
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels < 1:
                raise ValueError(f"{name} is {pixels}; a camera has 1 pixel or more each way")
        for name, angle in (("horizontal_fov", self.horizontal_fov), ("vertical_fov", self.vertical_fov)):
            if angle is not None and not 0 < angle < 180:
                raise ValueError(f"{name} is {angle}; a field of view is above 0 and below 180 degrees")
        if not 0 < self.max_depth < math.inf:
            raise ValueError(f"max_depth is {self.max_depth}; it is a finite distance above 0, in metres")

    @cached_property
    def columns(self) -> NDArray[np.float64]:
        """The u of each column, (width,): tangents of angles to the left."""
        return _spread(self._half_width, self.width)

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        """The v of each row, (height,): tangents of angles upwards."""
        if self.vertical_fov is None:
            return _spread(self._half_width * self.height / self.width, self.height)
        return _spread(math.tan(math.radians(self.vertical_fov) / 2), self.height)

    @cached_property
    def column_norms(self) -> NDArray[np.float64]:
        """The lengths of (1, u), (width,)."""
        norms: NDArray[np.float64] = np.sqrt(1 + self.columns * self.columns)
        return norms

    @cached_property
    def row_norms(self) -> NDArray[np.float64]:
        """The lengths of (1, v), (height,)."""
        norms: NDArray[np.float64] = np.sqrt(1 + self.rows * self.rows)
        return norms

    @cached_property
    def squared_lengths(self) -> NDArray[np.float64]:
        """The squared lengths of the directions (1, u, v), (height, width)."""
        return (1 + self.columns * self.columns) + (self.rows * self.rows)[:, None]

    @property
    def _half_width(self) -> float:
        return math.tan(math.radians(self.horizontal_fov) / 2)


def _spread(edge: float, num_pixels: int) -> NDArray[np.float64]:
    """Give the centres of pixels between `edge` and `-edge`, (num_pixels,)."""
    centres: NDArray[np.float64] = edge * (num_pixels - 1 - 2 * np.arange(num_pixels, dtype=np.float64)) / num_pixels
    return centres
