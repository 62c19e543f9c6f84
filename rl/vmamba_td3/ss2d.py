"""The selective state space over images: SS2D, and what it shares with the scan over time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from rl.scan.selective import selective_scan
from rl.vmamba_td3.architecture import NUM_PATHS, find_dt_rank, widen
from rl.vmamba_td3.crossing import cross_deal, cross_merge, cross_scan
from rl.vmamba_td3.precision import keep_float32, widen_numbers
from training.products import Linear, project
from training.writing import is_written_down

FIRST_STEPS = (1e-3, 0.1)
"""Range of the first step sizes."""

LEAST_FIRST_STEP = 1e-4


class SelectiveSpace(nn.Module):
    """A state space for each channel of some paths, whose step sizes, inputs and outputs depend on what is read.

    h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and y_t = C_t h_t + D u_t, with A = -exp(A_logs) < 0 and delta > 0.
    Parameters are called as in VMamba's code.

    Args:
        dim: channels outside; they decide the rank of the step sizes.
        d_state: numbers that each channel remembers.
        ratio: channels inside for each outside.
        num_paths: with parameters of their own.

    Source: Gu and Dao 2023, arXiv:2312.00752, Algorithm 2.
    """

    def __init__(self, dim: int, d_state: int, ratio: float, num_paths: int) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.num_paths = widen(dim, ratio), d_state, num_paths
        self.dt_rank = find_dt_rank(dim)
        inner = self.d_inner
        self.x_proj_weight = nn.Parameter(torch.empty(num_paths, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(num_paths, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(num_paths, inner))
        self.A_logs = nn.Parameter(torch.empty(num_paths * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(num_paths * inner))
        self.draw_space(None)

    @torch.no_grad()
    def draw_space(self, generator: torch.Generator | None) -> None:
        """Draw the first parameters: step sizes spread over `FIRST_STEPS` by their logarithms, A = -1, -2, ..., D = 1.

        Args:
            generator: of the parameters' device; None is torch's own.
        """
        bound = 1 / math.sqrt(self.d_inner)
        self.x_proj_weight.uniform_(-bound, bound, generator=generator)
        bound = 1 / math.sqrt(self.dt_rank)
        self.dt_projs_weight.uniform_(-bound, bound, generator=generator)
        low, high = (math.log(step) for step in FIRST_STEPS)
        steps = torch.empty_like(self.dt_projs_bias).uniform_(low, high, generator=generator).exp_()
        steps.clamp_(min=LEAST_FIRST_STEP)
        self.dt_projs_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
        self.A_logs.copy_(torch.arange(1, self.d_state + 1, device=self.A_logs.device).log())
        self.Ds.fill_(1)

    def project(self, features: Tensor) -> Tensor:
        """Give (..., K, rank + 2 N): parts of step sizes, inputs and outputs for each of K paths, from (..., C)."""
        parts = project(features, self.x_proj_weight.flatten(0, 1), None)
        return parts.view(*parts.shape[:-1], self.num_paths, -1)

    def scan(self, paths: Tensor, parts: Tensor) -> Tensor:
        """Give (B, L, K, C), in 32 bits: what the state spaces make of what they read.

        Args:
            paths: (B, L, K, C), what each path meets.
            parts: (B, L, K, rank + 2 N), of `project`, in the same order.
        """
        batch, length, num_paths, inner = paths.shape
        with keep_float32(paths.device):
            rank, inputs, outputs = self.split(parts)
            delta = self.raise_rank(rank.reshape(-1, num_paths, self.dt_rank))
            out = selective_scan(
                widen_numbers(paths).reshape(batch, length, -1).transpose(1, 2),
                delta.view(batch, length, -1).transpose(1, 2),
                -self.A_logs.exp(),
                inputs.permute(0, 2, 3, 1),
                outputs.permute(0, 2, 3, 1),
                self.Ds,
                self.dt_projs_bias.flatten(),
                delta_softplus=True,
            )
        return out.transpose(1, 2).reshape(batch, length, num_paths, inner)

    def read_once(self, features: Tensor, parts: Tensor) -> Tensor:
        """Give (B, C), in 32 bits: the sum over paths that are one step long, in closed form.

        With h_0 = 0 all that is left is y = (delta (B C) + D) u, so A has no say, and B C is one number a path.

        Args:
            features: (B, C), what all paths meet.
            parts: (B, K, rank + 2 N), of `project`.
        """
        with keep_float32(features.device):
            rank, inputs, outputs = self.split(parts)
            delta = functional.softplus(self.raise_rank(rank) + self.dt_projs_bias)
            seen = (inputs * outputs).sum(-1, keepdim=True)
            factor = (delta * seen).sum(1) + self.Ds.view(self.num_paths, -1).sum(0)
            return _pass_over(widen_numbers(features) * factor, self.A_logs)

    def split(self, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sizes = [self.dt_rank, self.d_state, self.d_state]
        rank, inputs, outputs = torch.split(widen_numbers(parts), sizes, dim=-1)
        return rank, inputs, outputs

    def raise_rank(self, rank: Tensor) -> Tensor:
        """Give step sizes before bias and softplus, (rows, K, C), contiguous, from (rows, K, rank)."""
        product = torch.bmm(rank.transpose(0, 1), self.dt_projs_weight.transpose(1, 2))
        return product.transpose(0, 1).contiguous()


class SS2D(SelectiveSpace):
    """A selective state space that reads a feature map along four paths.

    Maps are (batch, height, width, dim), channels last throughout.

    Args:
        dim: channels of a map.
        d_state: numbers that each channel of each path remembers.
        ratio: channels inside for each outside.
        gate: whether a second projection gates what was read.
        conv_bias: whether the convolution has a bias.

    Source: Liu et al. 2024, arXiv:2401.10166, section 4.2. Parameters are called as in their code.
    """

    def __init__(
        self, dim: int, d_state: int = 16, ratio: float = 2.0, *, gate: bool = True, conv_bias: bool = True
    ) -> None:
        super().__init__(dim, d_state, ratio, NUM_PATHS)
        inner = self.d_inner
        self.gate = gate
        self.in_proj = Linear(dim, (2 if gate else 1) * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Give a map of the same shape."""
        inner = self.in_proj(features)
        gate = None
        if self.gate:
            inner, gate = inner.chunk(2, dim=-1)
        out = self.out_norm(self._read(functional.silu(self._convolve(inner))))
        if gate is not None:
            out = out * functional.silu(gate)
        projected: Tensor = self.out_proj(out)
        return projected

    def _convolve(self, features: Tensor) -> Tensor:
        """Give each channel's 3x3 convolution, (B, H, W, C); on one position only the middle of the kernel counts."""
        if features.shape[1:3] == (1, 1):
            middle = self.conv2d.weight[:, 0, 1, 1]
            return features * middle if self.conv2d.bias is None else torch.addcmul(self.conv2d.bias, features, middle)
        convolved: Tensor = self.conv2d(features.permute(0, 3, 1, 2))
        return convolved.permute(0, 2, 3, 1)

    def _read(self, features: Tensor) -> Tensor:
        """Give (B, H, W, C): the sum of what the four paths make of a map."""
        batch, height, width, inner = features.shape
        if height == width == 1:
            features = features.view(batch, inner)
            return self.read_once(features, self.project(features)).view(batch, 1, 1, inner)
        parts = self.project(features.reshape(batch, -1, inner))
        paths = self.scan(cross_scan(features), cross_deal(parts, height, width))
        return cross_merge(paths, height, width)


class _PassOver(Function):
    """What it is given first; the second had no say in it, and its gradient is 0 rather than missing."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, passed_over: Tensor) -> Tensor:
        ctx.save_for_backward(passed_over)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        (passed_over,) = ctx.saved_tensors
        return slope, torch.zeros_like(passed_over) if ctx.needs_input_grad[1] else None


def _pass_over(out: Tensor, passed_over: Tensor) -> Tensor:
    if is_written_down():
        return out
    whole: Tensor = _PassOver.apply(out, passed_over)  # type: ignore[no-untyped-call]
    return whole
