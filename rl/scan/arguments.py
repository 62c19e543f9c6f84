"""What a selective scan is called with, checked once for all backends.

The letters are those of the Mamba paper and of mamba_ssm, whose users know these layouts by heart:
u, delta (batch, dim, L); A (dim, N); B, C (batch, groups, N, L); D, delta_bias (dim,).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ScanArguments(NamedTuple):
    """The arguments of one scan. The channels of a group lie side by side and share B and C."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

    def check(self) -> None:
        """Refuse shapes that don't fit together, numbers that aren't real, and tensors on two devices.

        Raises:
            ValueError: names the argument, what it is, and what it has to be.
        """
        if self.u.dim() != 3 or self.B.dim() != 4 or self.A.dim() != 2:
            shapes = ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in ("u", "A", "B"))
            raise ValueError(f"{shapes}: wanted u (batch, dim, L), A (dim, N), B (batch, groups, N, L)")
        (batch, dim, steps), (groups, states) = self.u.shape, self.B.shape[1:3]
        if 0 in (batch, dim, steps, groups, states):
            raise ValueError(f"u {tuple(self.u.shape)} and B {tuple(self.B.shape)}: no axis may be empty")
        if dim % groups:
            raise ValueError(f"B has {groups} groups, which don't divide the {dim} channels of u")
        shared = (batch, groups, states, steps)
        wanted = (self.u.shape, self.u.shape, (dim, states), shared, shared, (dim,), (dim,))
        for name, value, shape in zip(self._fields[:7], self.tensors, wanted, strict=True):
            if value is None:
                continue
            if value.shape != shape:
                raise ValueError(f"{name} is of shape {tuple(value.shape)}; with u and B as they are it is {shape}")
            if not value.is_floating_point():
                raise ValueError(f"{name} holds {value.dtype}; only real floating-point numbers can be scanned")
            if value.device != self.u.device:
                raise ValueError(f"{name} is on {value.device} and u on {self.u.device}; move it there")

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Everything but `delta_softplus`, in order."""
        return self[:7]

    def cast(self, dtype: torch.dtype) -> ScanArguments:
        """Give the same numbers in another type; gradients come back in each argument's own."""
        u, delta, A, B, C = (tensor.to(dtype) for tensor in self[:5])
        D, bias = (None if tensor is None else tensor.to(dtype) for tensor in self[5:7])
        return ScanArguments(u, delta, A, B, C, D, bias, self.delta_softplus)
