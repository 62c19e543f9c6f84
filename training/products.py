"""Matrix products by whichever library does them faster on the CPU, and linear layers whose gradients are made of them.

oneDNN runs large ones about twice as fast on AMD's processors as the library behind `torch.mm` (docs/benchmarks.md).
Which library is asked follows from shapes, number type and device alone, as a resumed run must ask the same one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from training.writing import is_written_down

ONEDNN_FROM = 2**20
"""Number of multiplications from which oneDNN gets a product; for smaller ones, calling it costs more than it gains."""


def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Give `left @ right.T + bias`, of shape (rows of left, rows of right); `relu` turns negative numbers into 0.

    Nothing is recorded for autograd.

    Args:
        left: (rows, inner), on the CPU, it or its transpose contiguous; with gaps oneDNN takes a hundred times as long.
        right: (columns, inner), likewise.
        bias: (columns,).
    """
    if is_for_onednn(left, right):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "relu" if relu else "none", [], "")
        return out
    out = torch.mm(left, right.t()) if bias is None else torch.addmm(bias, left, right.t())
    return out.relu_() if relu else out


def is_for_onednn(left: Tensor, right: Tensor) -> bool:
    """Tell whether oneDNN gets the product of (..., inner) and (columns, inner), both on one device."""
    if left.dtype != torch.float32 or left.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return left.numel() * right.shape[0] >= ONEDNN_FROM


class Linear(nn.Linear):
    """A linear layer like torch's, with the same parameters, whose large products go to oneDNN.

    Small ones, other number types and other devices go the way they would in torch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Give (..., out_features) for (..., in_features); gradients of large products can't be differentiated again.

        The argument's name is torch's.
        """
        return project(input, self.weight, self.bias)


def project(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give `features @ weight.T + bias`, (..., out_dim), by whichever library is faster; gradients go through.

    Under autocast torch is left to choose the precision, and with it the library.

    Args:
        features: (..., in_dim).
        weight: (out_dim, in_dim), contiguous.
        bias: (out_dim,).
    """
    if is_written_down() or not is_for_onednn(features, weight) or torch.is_autocast_enabled("cpu"):
        return functional.linear(features, weight, bias)
    rows = features.reshape(-1, weight.shape[1]).contiguous()
    return apply_linear(rows, weight, bias).view(*features.shape[:-1], weight.shape[0])


def apply_linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give `features @ weight.T + bias`, (rows, out_dim), by `multiply`; gradients go through.

    Args:
        features: (rows, in_dim), contiguous.
        weight: (out_dim, in_dim), contiguous.
        bias: (out_dim,).
    """
    if not torch.is_grad_enabled():
        return multiply(features, weight, bias)
    out: Tensor = _LinearProduct.apply(features, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _LinearProduct(Function):
    """`multiply` whose backward pass is made of `multiply` too."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(features, weight)
        return multiply(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Give the gradients that somebody needs."""
        features, weight = ctx.saved_tensors
        slope = slope.contiguous()  # autograd may hand on one number, spread over all rows
        for_features, for_weight, for_bias = ctx.needs_input_grad
        return (
            multiply(slope, weight.t()) if for_features else None,
            find_weight_gradient(slope, features) if for_weight else None,
            slope.sum(0) if for_bias else None,
        )


def find_weight_gradient(slope: Tensor, features: Tensor) -> Tensor:
    """Give `slope.T @ features`, (out_dim, in_dim), contiguous.

    Args:
        slope: (rows, out_dim), contiguous: the loss's derivative by a layer's output.
        features: (rows, in_dim), contiguous: the layer's input.
    """
    # With the much narrower side first oneDNN is up to three times as fast, which pays for the copy.
    if 2 * features.shape[1] < slope.shape[1]:
        return multiply(features.t(), slope.t()).t().contiguous()
    return multiply(slope.t(), features.t())
