"""Rewards and values as weights on two neighbouring bins, on a scale that large numbers are short on.

Source: Hansen et al. 2024, arXiv:2310.16828, section 3.1; Hafner et al. 2023, arXiv:2301.04104, for symlog.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def symlog(values: Tensor) -> Tensor:
    """Give `sign(x) log(1 + |x|)`."""
    return values.sign() * values.abs().log1p()


def symexp(values: Tensor) -> Tensor:
    """Give the inverse of `symlog`."""
    return values.sign() * values.abs().expm1()


@dataclass(frozen=True)
class TwoHot:
    """Numbers as distributions over evenly spaced bins of their symlog.

    Attributes:
        low: symlog of the first bin.
        high: symlog of the last.
        num_bins: how many there are, at least two.
    """

    low: float
    high: float
    num_bins: int

    @property
    def width(self) -> float:
        """How far apart neighbouring bins are."""
        return (self.high - self.low) / (self.num_bins - 1)

    def list_bins(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give the bins' places, (num_bins,)."""
        return torch.linspace(self.low, self.high, self.num_bins, device=device, dtype=dtype)

    def encode(self, values: Tensor) -> Tensor:
        """Give (..., num_bins), weights that add up to 1, for numbers of shape (..., 1); beyond the ends, the ends."""
        place = ((symlog(values) - self.low) / self.width).clamp(0, self.num_bins - 1)
        below = place.floor().clamp_(max=self.num_bins - 2)
        upper = place - below
        weights = values.new_zeros(*values.shape[:-1], self.num_bins)
        index = below.long().clamp_(0, self.num_bins - 2)  # a NaN has a place too, and makes NaN of it
        weights.scatter_(-1, index, 1 - upper)
        return weights.scatter_(-1, index + 1, upper)

    def decode(self, logits: Tensor) -> Tensor:
        """Give numbers, (..., 1), for logits of shape (..., num_bins): `symexp` of the mean bin."""
        weights = logits.float().softmax(-1)
        return symexp(weights @ self.list_bins(logits.device)[:, None])

    def measure(self, logits: Tensor, values: Tensor) -> Tensor:
        """Give the cross entropy, (..., 1), between what logits (..., num_bins) say and numbers (..., 1)."""
        found: Tensor = -(self.encode(values) * functional.log_softmax(logits, -1)).sum(-1, keepdim=True)
        return found
