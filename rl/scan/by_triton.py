"""The selective scan by Triton: float32 on CUDA. Importing this needs Triton, which comes with torch for CUDA."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rl.scan.arguments import ScanArguments
from rl.scan.triton_kernels import scan_backward, scan_forward

LONGEST_CHUNK = 512
NUMBERS = 1024
"""Numbers in a program's arrays: channels times steps."""
WARPS = 4
ENOUGH_PROGRAMS = 1024
"""Programs that fill a device. More mean more parts of the gradients of B and C, which have to be added up."""


@dataclass(frozen=True)
class _Grid:
    """How a scan is cut into programs; it follows from shapes alone, so the same call gives the same bits.

    Attributes:
        width: channels of a block.
        chunk: steps.
        blocks: of a group's channels.
        parts: of a group's blocks, each of which is a program on the way back.
    """

    images: int
    groups: int
    channels: int
    states: int
    steps: int
    width: int
    chunk: int
    blocks: int
    parts: int

    @classmethod
    def make(cls, u: Tensor, B: Tensor) -> _Grid:
        (images, dim, steps), (groups, states) = u.shape, B.shape[1:3]
        channels = dim // groups
        chunk = min(_round_up(steps), LONGEST_CHUNK)
        width = min(_round_up(channels), NUMBERS // chunk)
        blocks = -(-channels // width)
        parts = min(blocks, -(-ENOUGH_PROGRAMS // (images * groups)))
        parts = -(-blocks // -(-blocks // parts))  # none is left empty
        return cls(images, groups, channels, states, steps, width, chunk, blocks, parts)

    @property
    def chunks(self) -> int:
        return -(-self.steps // self.chunk)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.groups, self.channels, self.states, self.steps, self.chunks


def scan_by_triton(arguments: ScanArguments) -> Tensor:
    """Give (batch, dim, L) for float32 arguments on a CUDA device; gradients go through once."""
    if torch.is_grad_enabled():
        y: Tensor = _Scanned.apply(arguments.delta_softplus, *arguments.tensors)  # type: ignore[no-untyped-call]
        return y
    return _run_forward([_make_contiguous(tensor) for tensor in arguments.tensors], arguments.delta_softplus)[0]


class _Scanned(Function):
    """A scan with its gradients."""

    @staticmethod
    def forward(ctx: Any, softplus: bool, *tensors: Tensor | None) -> Tensor:
        dense = [_make_contiguous(tensor) for tensor in tensors]
        y, starts = _run_forward(dense, softplus)
        ctx.softplus = softplus
        ctx.save_for_backward(starts, *dense)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Give all gradients: each costs little beside the states that all of them need."""
        starts, *tensors = ctx.saved_tensors
        return None, *_run_backward(tensors, ctx.softplus, slope.contiguous(), starts)


def _run_forward(tensors: list[Any], softplus: bool) -> tuple[Tensor, Tensor]:
    """Give y, and the states before each chunk but the first."""
    u, _, _, B, _, D, bias = tensors
    grid, y = _Grid.make(u, B), torch.empty_like(u)
    starts = u.new_empty(u.shape[0], u.shape[1], grid.chunks - 1, grid.states)
    with _use_device(u):
        scan_forward[(grid.images * grid.groups * grid.blocks,)](
            *_fill_in(tensors), y, starts, *grid.sizes, grid.blocks, **_choose_options(grid, D, bias, softplus)
        )
    return y, starts


def _run_backward(tensors: list[Any], softplus: bool, slope: Tensor, starts: Tensor) -> list[Tensor | None]:
    """Give the gradients of all tensors; `slope` is the loss's derivative by y."""
    u, delta, A, B, _, D, bias = tensors
    grid = _Grid.make(u, B)
    for_u, for_delta = torch.empty_like(u), torch.empty_like(delta)
    for_A, for_D, for_bias = (u.new_empty(grid.images, *shape) for shape in (A.shape, A.shape[:1], A.shape[:1]))
    for_B, for_C = (u.new_empty(grid.images, grid.groups, grid.parts, grid.states, grid.steps) for _ in "BC")
    pulls = torch.empty_like(for_A)
    gradients = (for_u, for_delta, for_A, for_B, for_C, for_D, for_bias)
    with _use_device(u):
        scan_backward[(grid.images * grid.groups * grid.parts,)](
            *_fill_in(tensors), slope, starts, pulls, *gradients,
            *grid.sizes, grid.parts, -(-grid.blocks // grid.parts), **_choose_options(grid, D, bias, softplus),
        )  # fmt: skip
    sums: list[Tensor | None] = [for_u, for_delta, for_A.sum(0), for_B.sum(2), for_C.sum(2)]
    return [*sums, None if D is None else for_D.sum(0), None if bias is None else for_bias.sum(0)]


def _choose_options(grid: _Grid, D: Tensor | None, bias: Tensor | None, softplus: bool) -> dict[str, Any]:
    return {
        "HAS_D": D is not None,
        "HAS_BIAS": bias is not None,
        "SOFTPLUS": softplus,
        "ONE_CHUNK": grid.chunks == 1,
        "D": grid.width,
        "T": grid.chunk,
        "num_warps": WARPS,
        "enable_fp_fusion": True,
    }


def _fill_in(tensors: list[Any]) -> list[Tensor]:
    """Give u for what there isn't: the kernels are told that it isn't there."""
    return [tensors[0] if tensor is None else tensor for tensor in tensors]


def _make_contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _use_device(tensor: Tensor) -> Any:
    """Launch on the tensor's own device; Triton's interpreter takes the CPU's too."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _round_up(number: int) -> int:
    """Give the power of two that isn't smaller."""
    return 1 << (number - 1).bit_length()
