"""The selective scan by plain torch operations: on every device, in float32 and float64, and always there.

Everything is time-major with the channels innermost, so that a step touches one run of memory and every product with
B or C goes over whole rows of channels. Steps are done in chunks that stay in the processor's caches. Forward keeps
the state before each chunk, and backward makes the states of one chunk again before it goes through it: a graph of
every step, which autograd would keep, is never there.

Shape letters: T time steps, b images, G groups, N states, k channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rl.scan.arguments import ScanArguments

CPU_NUMBERS = 2**18
"""Numbers in a chunk's array of states on the CPU, about: 1 MB, a second-level cache."""
CUDA_NUMBERS = 2**24
"""The same on other devices, where starting an operation costs more than memory does."""
LEAST_STEPS = 8
"""Steps of a chunk, if there are as many: a state is kept for each chunk, so an eighth of all of them."""


def scan_by_torch(arguments: ScanArguments) -> Tensor:
    """Give (batch, dim, L) in the type of the arguments, which are all of one type; gradients go through once."""
    u, delta, A, B, C, D, bias, softplus = arguments
    with torch.autocast(u.device.type, enabled=False):
        if bias is not None:
            delta = delta + bias[:, None]
        if softplus:
            delta = functional.softplus(delta)
        if torch.is_grad_enabled():
            y: Tensor = _Recurrence.apply(u, delta, A, B, C)  # type: ignore[no-untyped-call]
        else:
            y, _ = _scan_images(u, delta, A, B, C, keep=False)
        return y if D is None else torch.addcmul(y, u, D[:, None])


@dataclass(frozen=True)
class _Plan:
    """How the work is cut: how many images at a time, and how many steps a chunk has."""

    batch: int
    images: int
    steps: int
    chunk: int

    @classmethod
    def make(cls, u: Tensor, num_states: int) -> _Plan:
        batch, dim, steps = u.shape
        numbers = CPU_NUMBERS if u.device.type == "cpu" else CUDA_NUMBERS
        images = min(batch, max(1, numbers // (LEAST_STEPS * dim * num_states)))
        chunk = min(steps, max(LEAST_STEPS, numbers // (images * dim * num_states)))
        return cls(batch, images, steps, chunk)

    def split_images(self) -> Iterator[slice]:
        for first in range(0, self.batch, self.images):
            yield slice(first, min(self.batch, first + self.images))

    def split_steps(self) -> list[slice]:
        return [slice(first, min(self.steps, first + self.chunk)) for first in range(0, self.steps, self.chunk)]


@dataclass(frozen=True)
class _TimeMajor:
    """Some images' numbers, time first and channels last.

    Attributes:
        delta: T b G k.
        drive: `delta * u`, T b G k.
        B: T b G N, and so is C.
        A: G N k.
    """

    delta: Tensor
    drive: Tensor
    B: Tensor
    C: Tensor
    A: Tensor

    @classmethod
    def arrange(cls, u: Tensor, delta: Tensor, A_by_state: Tensor, B: Tensor, C: Tensor) -> _TimeMajor:
        groups, _, channels = A_by_state.shape
        shape = (u.shape[2], u.shape[0], groups, channels)
        return cls(
            delta.permute(2, 0, 1).contiguous().view(shape),
            torch.mul(delta, u).permute(2, 0, 1).contiguous().view(shape),
            B.permute(3, 0, 1, 2).contiguous(),
            C.permute(3, 0, 1, 2).contiguous(),
            A_by_state,
        )

    def make_states(self, steps: slice, start: Tensor, decay: Tensor, states: Tensor) -> None:
        """Fill `decay` with `exp(delta A)` and `states` with the states after each of some steps, from `start`."""
        torch.mul(self.delta[steps, ..., None, :], self.A, out=decay)
        decay.exp_()
        torch.mul(self.drive[steps, ..., None, :], self.B[steps, ..., None], out=states)
        before = start
        for state, factor in zip(states, decay, strict=True):
            state.addcmul_(factor, before)
            before = state


class _Recurrence(Function):
    """`_run_forward` for many images, with its gradients."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        y, starts = _scan_images(u, delta, A, B, C, keep=True)
        ctx.save_for_backward(u, delta, A, B, C, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        """Give the gradients of u, delta, A, B and C; `slope` is the loss's derivative by y."""
        u, delta, A, B, C, *starts = ctx.saved_tensors
        plan, A_by_state = _Plan.make(u, A.shape[1]), _put_channels_last(A, B.shape[1])
        for_u, for_delta, for_B, for_C = (_allocate_like(tensor) for tensor in (u, delta, B, C))
        for_A = torch.zeros_like(A_by_state)
        with torch.autocast(u.device.type, enabled=False):
            for images, kept in zip(plan.split_images(), starts, strict=True):
                parts = _TimeMajor.arrange(u[images], delta[images], A_by_state, B[images], C[images])
                slope_by_time = slope[images].permute(2, 0, 1).contiguous().view(parts.delta.shape)
                drives, deltas, Bs, Cs, As = _run_backward(parts, plan, kept, slope_by_time)
                drives, deltas = (tensor.flatten(2).permute(1, 2, 0) for tensor in (drives, deltas))
                for_u[images] = drives * delta[images]
                for_delta[images] = torch.addcmul(deltas, drives, u[images])
                for_B[images], for_C[images] = Bs.permute(1, 2, 3, 0), Cs.permute(1, 2, 3, 0)
                for_A += As
        return for_u, for_delta, for_A.transpose(1, 2).reshape(A.shape), for_B, for_C


def _scan_images(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Give y without D, and what backward needs of the states of each part of the batch, if that is to be kept."""
    plan, A_by_state = _Plan.make(u, A.shape[1]), _put_channels_last(A, B.shape[1])
    starts, y = list[Tensor](), _allocate_like(u)
    for images in plan.split_images():
        parts = _TimeMajor.arrange(u[images], delta[images], A_by_state, B[images], C[images])
        kept, y_by_time = _run_forward(parts, plan, keep=keep)
        y[images] = y_by_time.flatten(2).permute(1, 2, 0)
        starts.append(kept)
    return y, starts


def _run_forward(parts: _TimeMajor, plan: _Plan, *, keep: bool) -> tuple[Tensor, Tensor]:
    """Give the states before each chunk (none unless asked to keep them), and y as T b G k.

    `h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t` and `y_t = C_t h_t`, with h before the first step 0.
    """
    chunks = plan.split_steps()
    decay, states = _allocate(parts, plan.chunk), _allocate(parts, plan.chunk)
    starts, state = _allocate(parts, len(chunks) if keep else 0), torch.zeros_like(decay[0])
    y = torch.empty_like(parts.drive)
    for number, steps in enumerate(chunks):
        if keep:
            starts[number] = state
        length = steps.stop - steps.start
        parts.make_states(steps, state, decay[:length], states[:length])
        torch.matmul(parts.C[steps, ..., None, :], states[:length], out=y[steps, ..., None, :])
        state = states[length - 1].clone()
    return starts, y


def _run_backward(
    parts: _TimeMajor, plan: _Plan, starts: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the gradients of `delta * u`, of delta where it decays, of B and C, time-major, and of A as G N k."""
    A_by_state, drive = parts.A, parts.drive
    decay, pull = _allocate(parts, plan.chunk), _allocate(parts, plan.chunk)
    states = _allocate(parts, plan.chunk + 1)
    for_drive, for_delta = torch.empty_like(drive), torch.empty_like(drive)
    for_B, for_C, for_A = torch.empty_like(parts.B), torch.empty_like(parts.B), torch.zeros_like(A_by_state)
    carry = torch.zeros_like(decay[0])
    for number, steps in reversed(list(enumerate(plan.split_steps()))):
        length = steps.stop - steps.start
        decays, pulls, before, after = decay[:length], pull[:length], states[:length], states[1 : length + 1]
        before[0] = starts[number]
        parts.make_states(steps, before[0], decays, after)
        torch.mul(slope[steps, ..., None, :], parts.C[steps, ..., None], out=pulls)
        _pull_back(pulls, decays, carry)
        torch.mul(decays[0], pulls[0], out=carry)
        torch.matmul(after, slope[steps, ..., None], out=for_C[steps, ..., None])
        torch.matmul(pulls, drive[steps, ..., None], out=for_B[steps, ..., None])
        torch.matmul(parts.B[steps, ..., None, :], pulls, out=for_drive[steps, ..., None, :])
        exponents = pulls.mul_(decays).mul_(before)  # the gradient of what the decay is the exponential of
        torch.sum(torch.mul(exponents, A_by_state, out=decays), 3, out=for_delta[steps])
        for_A += exponents.mul_(parts.delta[steps, ..., None, :]).sum((0, 1))
    return for_drive, for_delta, for_B, for_C, for_A


def _pull_back(pulls: Tensor, decays: Tensor, carry: Tensor) -> None:
    """Turn what each step's y asks of its state into the state's gradient, with what later steps ask of it.

    Args:
        carry: what the steps after these ask of the last state.
    """
    pulls[-1] += carry
    for step in range(len(pulls) - 2, -1, -1):
        pulls[step].addcmul_(decays[step + 1], pulls[step + 1])


def _put_channels_last(A: Tensor, num_groups: int) -> Tensor:
    """Give A as G N k."""
    dim, states = A.shape
    return A.reshape(num_groups, dim // num_groups, states).transpose(1, 2).contiguous()


def _allocate(parts: _TimeMajor, length: int) -> Tensor:
    """Give room for `length` steps' states, as T b G N k."""
    images, groups, states = parts.B.shape[1:]
    return parts.B.new_empty(length, images, groups, states, parts.A.shape[2])


def _allocate_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
