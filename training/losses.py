"""Losses that agents of several families descend."""

from __future__ import annotations

import torch
from torch import Tensor


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Give the mean of squared errors, those above 0 weighted by `expectile` and the others by 1 less it.

    Args:
        error: what was to be estimated, less the estimate.
        expectile: in (0, 1); 0.5 gives half the mean squared error, and more of it an estimate nearer the largest.

    Source: Kostrikov et al. 2021, arXiv:2110.06169, equations 4 and 5.
    """
    weight = torch.where(error > 0, torch.full_like(error, expectile), 1 - expectile)
    return (weight * error * error).mean()
