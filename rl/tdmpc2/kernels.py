"""Layer norms with the activation after them, by a C library on the CPU and by torch elsewhere.

Between matrix products a world model does little else, and torch takes a pass over memory and a slow exponential for
each of its operations. The library, `native/normed.c`, makes one pass forward and one backward on a single thread, and
keeps nothing but the arguments between them. It has both in float32; in bfloat16, which plans may be made in, there is
forward alone, and what needs gradients is torch's. Without a compiler all is, which is said once a process.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from native.build import NativeError, find_compiler, load_library
from training.writing import is_written_down

EPSILON = 1e-5
"""Added to a variance; the library has the same."""
MISH = 0
"""The group of a layer that ends in Mish rather than in softmaxes."""

_Pointer = ctypes.c_void_p


def norm_mish(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give `mish(layer_norm(x))`, of x's shape; gradients go through, by the library once.

    Args:
        x: (..., dim).
        weight: (dim,), and so is `bias`.

    Raises:
        ValueError: the shapes don't fit together.

    Source: Misra 2019, arXiv:1908.08681: `mish(x) = x tanh(log(1 + e^x))`.
    """
    if weight.dim() != 1 or x.shape[-1:] != weight.shape:
        raise _refuse("x (..., dim), weight and bias (dim,)", x, weight, bias)
    return _norm(x, weight, bias, MISH)


def norm_simnorm(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Give the softmaxes of `group` neighbouring features each of `layer_norm(x)`, of x's shape; else as `norm_mish`.

    Raises:
        ValueError: the shapes don't fit together, or groups of that size don't fill a row.

    Source: Hansen et al. 2024, arXiv:2310.16828, section 3.1.
    """
    if weight.dim() != 1 or x.shape[-1:] != weight.shape:
        raise _refuse("x (..., dim), weight and bias (dim,)", x, weight, bias)
    if group < 1 or weight.numel() % group:
        raise ValueError(f"{weight.numel()} features can't be cut into groups of {group}")
    return _norm(x, weight, bias, group)


def norm_mish_stacked(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give `norm_mish` of each member by its own weight and bias, (members, rows, dim).

    Args:
        x: (members, rows, dim).
        weight: (members, dim), and so is `bias`.

    Raises:
        ValueError: the shapes don't fit together.
    """
    if x.dim() != 3 or (x.shape[0], x.shape[2]) != weight.shape:
        raise _refuse("x (members, rows, dim), weight and bias (members, dim)", x, weight, bias)
    return _norm(x, weight, bias, MISH)


def describe_kernels(device: torch.device) -> str:
    """Give what layers on a device are done by, and what their last digits depend on, for a run's notes."""
    compiled = load_kernels() if device.type == "cpu" else None
    return "torch" if compiled is None else f"c ({compiled.num_lanes} lanes; {find_compiler().version})"


class CompiledKernels:
    """The library's functions, for contiguous tensors on the CPU.

    Raises:
        NativeError: the library can't be had, and why.
    """

    def __init__(self) -> None:
        library = load_library("normed")
        self._forward, self._backward = library.run_forward, library.run_backward
        self._forward_halves = library.run_forward_halves
        self._forward.argtypes = self._forward_halves.argtypes = [_Pointer] * 2
        self._backward.argtypes = [_Pointer] * 3
        library.count_lanes.restype = ctypes.c_int64
        self.num_lanes: int = library.count_lanes()

    def run_forward(self, x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
        """Give y; nothing is recorded for autograd.

        Shapes are those of `norm_mish` or of `norm_mish_stacked`; all are float32, or bfloat16: then y is what it would
        be in float32, rounded.
        """
        y = torch.empty_like(x)
        layer = _describe(x, weight, bias, group)
        forward = self._forward_halves if x.dtype == torch.bfloat16 else self._forward
        _check(forward(ctypes.byref(layer), y.data_ptr()))
        return y

    def run_backward(
        self, x: Tensor, weight: Tensor, bias: Tensor, group: int, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the gradients of x, weight and bias, all float32; `slope` is the loss's derivative by y."""
        gradients = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        layer, places = _describe(x, weight, bias, group), _Gradients(*(tensor.data_ptr() for tensor in gradients))
        _check(self._backward(ctypes.byref(layer), slope.data_ptr(), ctypes.byref(places)))
        return gradients


@cache
def load_kernels() -> CompiledKernels | None:
    """Give the library, or None where it can't be had, which is said once a process with the reason."""
    try:
        return CompiledKernels()
    except NativeError as error:
        warnings.warn(f"layer norms and activations are done by torch, several times slower: {error}", stacklevel=2)
        return None


def norm_by_torch(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Give what the library gives by torch's own operations, on any device and in any type."""
    if weight.dim() == 1:
        normed = functional.layer_norm(x, weight.shape, weight, bias, EPSILON)
    else:
        normed = torch.addcmul(bias[:, None], functional.layer_norm(x, weight.shape[1:], eps=EPSILON), weight[:, None])
    if group == MISH:
        return functional.mish(normed)
    groups = normed.reshape(*x.shape[:-1], x.shape[-1] // group, group)
    return groups.softmax(-1).view(x.shape)


class _Layer(ctypes.Structure):
    """A layer's sizes and arguments as the library reads them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("members", "rows", "dim", "group")),
        *((name, _Pointer) for name in ("x", "weight", "bias")),
    ]


class _Gradients(ctypes.Structure):
    """Where the library writes gradients."""

    _fields_ = [(name, _Pointer) for name in ("x", "weight", "bias")]


class _Normed(Function):
    """The library's `run_forward` with its gradients."""

    @staticmethod
    def forward(ctx: Any, compiled: CompiledKernels, group: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        ctx.compiled, ctx.group = compiled, group
        ctx.save_for_backward(x, weight, bias)
        return compiled.run_forward(x, weight, bias, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Give all gradients: each costs little beside what all of them need."""
        x, weight, bias = ctx.saved_tensors
        return None, None, *ctx.compiled.run_backward(x, weight, bias, ctx.group, slope.contiguous())


def _norm(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Give y by whatever is fastest for these tensors; x and the weight are known to fit together."""
    if bias.shape != weight.shape or weight.numel() == 0:
        raise _refuse("a bias for each weight, and some of both", x, weight, bias)
    is_recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad)
    compiled = _find_compiled(x, weight, bias, is_recorded=is_recorded)
    if compiled is None:
        return norm_by_torch(x, weight, bias, group)
    if is_recorded:
        y: Tensor = _Normed.apply(compiled, group, x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return compiled.run_forward(x.contiguous(), weight.contiguous(), bias.contiguous(), group)


def _find_compiled(x: Tensor, weight: Tensor, bias: Tensor, *, is_recorded: bool) -> CompiledKernels | None:
    """Give the library if these tensors are for it: torch's compiler and files get torch's own operations."""
    if any(tensor.device.type != "cpu" or tensor.dtype != x.dtype for tensor in (x, weight, bias)):
        return None
    if x.dtype != torch.float32 and (is_recorded or x.dtype != torch.bfloat16):
        return None
    return None if torch.compiler.is_compiling() or is_written_down() else load_kernels()


def _describe(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> _Layer:
    """Give what the library is called with, for tensors that outlive the call."""
    dim = weight.shape[-1]
    members = weight.numel() // dim
    rows = x.numel() // weight.numel()
    return _Layer(members, rows, dim, group, x.data_ptr(), weight.data_ptr(), bias.data_ptr())


def _refuse(wanted: str, x: Tensor, weight: Tensor, bias: Tensor) -> ValueError:
    shapes = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
    return ValueError(f"{shapes}: wanted {wanted}")


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory left for a few rows of a layer norm")
