"""The selective scan one step after the other, for files: nothing but plain operations, for batches of any size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rl.scan.arguments import ScanArguments


def scan_by_steps(arguments: ScanArguments) -> Tensor:
    """Give (batch, dim, L) in the type of the arguments, which are all of one type.

    Slow, and each step's states are kept for autograd. Shapes but for the batch are written down as they are.
    """
    u, delta, A, B, C, D, bias, softplus = arguments
    if bias is not None:
        delta = delta + bias[:, None]
    if softplus:
        delta = functional.softplus(delta)
    dim, groups, steps = int(A.shape[0]), int(B.shape[1]), int(u.shape[2])
    decays = A.reshape(groups, dim // groups, -1)
    deltas, drives = (part.reshape(-1, groups, dim // groups, steps) for part in (delta, delta * u))
    states: Tensor | None = None
    read = []
    for step in range(steps):
        driven = drives[..., step, None] * B[:, :, None, :, step]
        states = driven if states is None else torch.exp(deltas[..., step, None] * decays) * states + driven
        read.append((states * C[:, :, None, :, step]).sum(-1))
    y = torch.stack(read, dim=-1).flatten(1, 2)
    return y if D is None else y + u * D[:, None]
