"""What all environments of our own refuse: actions that are none, and reset options that nothing reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ACTION_TOLERANCE = 1e-6
"""How far outside [-1, 1] an entry of an action may be by rounding; it counts as the bound."""


def check_action(action: object, dim: int) -> NDArray[np.float64]:
    """Give an action of `dim` numbers in [-1, 1]; what is over by no more than rounding is put on the bound.

    Raises:
        ValueError: it has another shape, or an entry isn't finite or is out of range; the entry is named.
    """
    array = np.asarray(action, dtype=np.float64)
    if array.shape != (dim,):
        raise ValueError(f"action: {array.shape} is its shape, and ({dim},) is needed")
    for index, value in enumerate(array.tolist()):
        if not abs(value) <= 1 + ACTION_TOLERANCE:  # also where it isn't a number
            raise ValueError(f"action[{index}]: {value!r} is not in [-1, 1]")
    return np.clip(array, -1, 1)


def refuse_reset_options(options: dict[str, Any] | None) -> None:
    """Raise `ValueError` where there are any."""
    if options:
        raise ValueError(f"options: {options!r} mean nothing at a reset; they are arguments of the environment")
