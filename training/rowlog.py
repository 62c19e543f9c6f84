"""Data that only grow: what a checkpoint writes in append-only segments instead of anew each time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowLog:
    """A ring of rows as a leaf of a `state_dict`.

    `rows` is the ring's own memory, of shape (capacity, ...): row `i`, counted from the first ever added, stands at
    `i % capacity`. `total` counts all rows ever added, those included that were written over. After loading, a `RowLog`
    has the last `min(total, capacity)` rows in their places and zeros elsewhere; its owner may keep the array.
    """

    rows: NDArray[np.generic]
    total: int

    @property
    def capacity(self) -> int:
        """The number of rows that the ring holds."""
        return int(self.rows.shape[0])

    def fits(self, capacity: int) -> bool:
        """Tell whether a ring of so many rows can be made of it: a larger one only while none was written over."""
        return capacity == self.capacity or (capacity > self.capacity and self.first == 0)

    def widen(self, capacity: int) -> RowLog:
        """Give the same rows as they would stand in a ring of another size, if it `fits`: the same ring, or a copy."""
        assert self.fits(capacity)
        if capacity == self.capacity:
            return self
        rows = np.zeros((capacity, *self.rows.shape[1:]), self.rows.dtype)
        rows[: self.total] = self.rows[: self.total]
        return RowLog(rows, self.total)

    @property
    def first(self) -> int:
        """The number, counted from the first ever added, of the oldest row that is still there."""
        return max(0, self.total - self.capacity)
