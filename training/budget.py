"""The end of a run by time: seconds that its training steps have taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from training.protocol import StepResult


class WallBudget:
    """Seconds inside training steps, summed over attempts; evaluations, logging and saves are not among them.

    Whether they are spent is decided once after each step and kept: whatever asks between two steps, in this attempt
    or in one that goes on from a checkpoint, gets the same answer.

    Args:
        limit_s: None for no end by time; then nothing is measured.
    """

    TRANSIENT: ClassVar = frozenset({"_limit_s"})

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._spent_s = 0.0
        self.is_spent = False

    def measure(self, train_step: Callable[[], StepResult]) -> StepResult:
        """Take a step and count its time, what it left to a GPU included."""
        if self._limit_s is None:
            return train_step()
        start = time.perf_counter()
        result = train_step()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        self._spent_s += time.perf_counter() - start
        self.is_spent = self._spent_s >= self._limit_s
        return result

    def state_dict(self) -> dict[str, Any]:
        """Give the seconds so far, and whether they are all."""
        return {"spent_s": self._spent_s, "is_spent": self.is_spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._spent_s, self.is_spent = state["spent_s"], state["is_spent"]
