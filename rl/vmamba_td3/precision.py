"""Numbers of 16 bits around, of 32 bits where a scan adds up many small steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def allow_bfloat16(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Let matrix products and convolutions on a device take bfloat16, if `enabled`; if not, change nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def keep_float32(device: torch.device) -> AbstractContextManager[object]:
    """Keep products in the precision of what they are given, whatever is allowed around."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def widen_numbers(tensor: Tensor) -> Tensor:
    """Give a tensor in 32 bits if it has fewer, else as it is."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
