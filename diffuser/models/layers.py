"""What the networks of the diffusion agents are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from training.products import Linear

MISH_LINEAR = 20.0
"""Beyond this, mish(x) is x, in float64 too, and e^x would soon be too large for its square."""

MISH_FROM = 2**12
"""Number of elements from which our Mish is the faster one; below, calling its parts costs more than it gains."""


def mish(features: Tensor) -> Tensor:
    """Give x tanh(log(1 + e^x)) (Misra 2019, arXiv:1908.08681), on the CPU by one exponential.

    With h = e^x + e^2x / 2 it is x h / (h + 1). Few elements, other number types and other devices are left to torch.
    """
    exact = features.dtype in (torch.float32, torch.float64)
    if features.numel() < MISH_FROM or not exact or features.device.type != "cpu":
        return functional.mish(features)
    if features.requires_grad and torch.is_grad_enabled():
        out: Tensor = _Mish.apply(features)  # type: ignore[no-untyped-call]
        return out
    grown = features.clamp(max=MISH_LINEAR).exp_()
    grown.addcmul_(grown, grown, value=0.5)
    divisor = grown + 1
    return torch.div(features, divisor, out=divisor).mul_(grown)


class _Mish(Function):
    """`mish` that finds its derivative on the way forward, so that the way back is one multiplication."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Give mish(x), to the bit as without gradient; the derivative is (h + x (e^x + e^2x) / (h + 1)) / (h + 1)."""
        exponential = features.clamp(max=MISH_LINEAR).exp_()
        grown = torch.addcmul(exponential, exponential, exponential, value=0.5)
        divisor = grown + 1
        out = features / divisor
        slope = exponential.addcmul_(exponential, exponential).mul_(out).add_(grown).div_(divisor)
        ctx.save_for_backward(slope)
        return out.mul_(grown)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (own,) = ctx.saved_tensors
        product: Tensor = slope * own
        return product


class MLP(nn.Module):
    """Linear layers with Mish between them; the last one is bare."""

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(*ends) for ends in pairwise([in_dim, *hidden_dims, out_dim]))

    def forward(self, features: Tensor) -> Tensor:
        """Give the last layer's output, (..., out_dim), for features of shape (..., in_dim)."""
        return self.finish(self.layers[0](features))

    def finish(self, first: Tensor) -> Tensor:
        """Give the output from what the first layer gives before its Mish."""
        features = first
        for layer in self.layers[1:]:
            features = layer(mish(features))
        return features


class LevelFeatures(nn.Module):
    """Sines and cosines of a noise level, a row for each of the T levels; nothing is learned.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with the slowest wave a quarter turn over all levels.
    """

    table: Tensor

    def __init__(self, num_diffusion_steps: int, dim: int) -> None:
        super().__init__()
        assert dim % 2 == 0
        waves = torch.exp(torch.linspace(0, -math.log(num_diffusion_steps), dim // 2)) * (math.pi / 2)
        angles = torch.arange(num_diffusion_steps)[:, None] * waves
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], dim=1), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Give features of shape (batch, dim) for levels of shape (batch,)."""
        return self.table[timesteps]


def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights and biases anew, uniform within 1 / sqrt(inputs); group norms begin at 1 and 0.

    Args:
        network: of linear layers, 1-D convolutions and group norms, on the CPU.
        generator: of the CPU, so that a seed gives the same network on every device.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
