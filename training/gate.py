"""Leaving out an optimizer's step whose gradient is out of all proportion, on the device and without waiting for it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

HISTORY = 200
"""Gradients that the median is taken over."""
RENEW_EVERY = 50
"""Steps from one median to the next."""
LIMIT = 1e5
"""Multiple of the median beyond which a step is left out. A first reward of 100 after many of 0.1 makes single batches
some thousands of times the median, and they are what there is to learn."""


class GradientGate:
    """Says of each gradient's length whether its step is to be left out: it isn't finite, or far beyond the median.

    Lengths that were refused don't count for the median. Until there are `RENEW_EVERY` of them, only those that aren't
    finite are refused.

    Args:
        device: of the lengths.
    """

    TRANSIENT: ClassVar = ()

    def __init__(self, device: torch.device) -> None:
        self._lengths = torch.zeros(HISTORY, device=device)
        self._limit = torch.full((), torch.finfo(torch.float32).max, device=device)
        self._skips = torch.zeros((), device=device)
        self._seen = 0

    def judge(self, length: Tensor) -> Tensor:
        """Give 1.0 where the step of a gradient of this length, of shape (), is to be left out, else 0.0."""
        place = self._seen % HISTORY
        refused = ~(length <= self._limit)  # not `>`: what is no number is refused too
        # A refused length leaves the one that it would have replaced, or, at first, the one before it.
        kept = self._lengths[place] if self._seen >= HISTORY else self._lengths[max(place - 1, 0)]
        self._lengths[place] = torch.where(refused, kept, length.to(self._lengths.dtype))
        self._seen += 1
        if self._seen % RENEW_EVERY == 0:
            median = self._lengths[: min(self._seen, HISTORY)].median()
            # Beyond nothing at all is no proportion; and what is infinite is never within a limit.
            limit = torch.where(median > 0, LIMIT * median, torch.inf)
            self._limit = limit.clamp(max=torch.finfo(torch.float32).max)
        skip = refused.float()
        self._skips += skip
        return skip

    def forget(self) -> None:
        """Begin anew: what comes is of another scale than what was."""
        self._lengths = torch.zeros_like(self._lengths)
        self._limit = torch.full_like(self._limit, torch.finfo(torch.float32).max)
        self._seen = 0

    def take_skips(self) -> Tensor:
        """Give how many steps were left out since the last call."""
        skips, self._skips = self._skips, torch.zeros_like(self._skips)
        return skips

    def state_dict(self) -> dict[str, Any]:
        """Give lengths, limit and counts."""
        return {"lengths": self._lengths, "limit": self._limit, "skips": self._skips, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, on whatever device it is."""
        device = self._lengths.device
        self._lengths, self._limit, self._skips = (
            state[name].to(device, copy=True) for name in ("lengths", "limit", "skips")
        )
        self._seen = state["seen"]
