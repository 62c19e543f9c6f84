"""The selective scan by a C library, `native/selective_scan.c`: float32 on the CPU.

It keeps a state for every 16 steps for the gradients, and nothing else that grows with the batch. It follows
`torch.get_num_threads()`, and gives the same bits on any number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from native.build import load_library
from rl.scan.arguments import ScanArguments

UPDATES_FOR_A_THREAD = 2**18
"""State updates that pay for starting another thread: some tenths of a millisecond's worth."""

_Pointer = ctypes.c_void_p
_TENSORS = ("u", "delta", "A", "B", "C", "D", "bias")


class _Scan(ctypes.Structure):
    """A scan's sizes and arguments as the library reads them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "groups", "channels", "states", "steps", "softplus", "threads")),
        *((name, _Pointer) for name in _TENSORS),
    ]


class _Gradients(ctypes.Structure):
    """Where the library writes gradients."""

    _fields_ = [(name, _Pointer) for name in _TENSORS]


class CompiledScan:
    """Scans by the library.

    Raises:
        NativeError: the library can't be had, and why.
    """

    def __init__(self) -> None:
        library = load_library("selective_scan")
        self._count_kept = library.count_kept
        self._count_kept.restype, self._count_kept.argtypes = ctypes.c_int64, [_Pointer]
        self._forward, self._backward = library.run_forward, library.run_backward
        self._forward.argtypes, self._backward.argtypes = [_Pointer] * 3, [_Pointer] * 4
        library.count_lanes.restype = ctypes.c_int64
        self.num_lanes: int = library.count_lanes()

    def scan(self, arguments: ScanArguments) -> Tensor:
        """Give (batch, dim, L) for float32 arguments on the CPU; gradients go through once."""
        if torch.is_grad_enabled():
            y: Tensor = _Scanned.apply(self, arguments.delta_softplus, *arguments.tensors)  # type: ignore[no-untyped-call]
            return y
        return self.run_forward(_make_contiguous(arguments.tensors), arguments.delta_softplus, keep=False)[0]

    def run_forward(
        self, tensors: Sequence[Tensor | None], softplus: bool, *, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Give y, and what `run_backward` needs of the states, if that is to be kept."""
        scan = _describe(tensors, softplus)
        u = tensors[0]
        assert u is not None
        y = torch.empty_like(u)
        kept = u.new_empty(self._count_kept(ctypes.byref(scan))) if keep else None
        _check(self._forward(ctypes.byref(scan), y.data_ptr(), None if kept is None else kept.data_ptr()))
        return y, kept

    def run_backward(
        self, tensors: Sequence[Tensor | None], softplus: bool, slope: Tensor, kept: Tensor
    ) -> list[Tensor | None]:
        """Give the gradients of all tensors; `slope` is the loss's derivative by y, contiguous."""
        scan = _describe(tensors, softplus)
        gradients = [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]
        places = _Gradients(*map(_find_address, gradients))
        _check(self._backward(ctypes.byref(scan), slope.data_ptr(), kept.data_ptr(), ctypes.byref(places)))
        return gradients


class _Scanned(Function):
    """A scan with its gradients."""

    @staticmethod
    def forward(ctx: Any, compiled: CompiledScan, softplus: bool, *tensors: Tensor | None) -> Tensor:
        dense = _make_contiguous(tensors)
        y, kept = compiled.run_forward(dense, softplus, keep=True)
        ctx.compiled, ctx.softplus = compiled, softplus
        ctx.save_for_backward(kept, *dense)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Give all gradients: each costs little beside the states that all of them need."""
        kept, *tensors = ctx.saved_tensors
        return None, None, *ctx.compiled.run_backward(tensors, ctx.softplus, slope.contiguous(), kept)


def _make_contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _describe(tensors: Sequence[Tensor | None], softplus: bool) -> _Scan:
    """Give what the library is called with, for contiguous tensors that outlive the call."""
    u, _, _, B, *_ = tensors
    assert u is not None
    assert B is not None
    (batch, dim, steps), (groups, states) = u.shape, B.shape[1:3]
    threads = min(torch.get_num_threads(), 1 + u.numel() * states // UPDATES_FOR_A_THREAD)
    addresses = map(_find_address, tensors)
    return _Scan(batch, groups, dim // groups, states, steps, softplus, threads, *addresses)


def _find_address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory left for a selective scan; take smaller batches")
