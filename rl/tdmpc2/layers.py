"""What the world model is built of: normed layers, and several networks of one shape as one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.tdmpc2.kernels import norm_mish, norm_simnorm
from rl.tdmpc2.sizes import CONVOLUTIONS
from training.products import Linear, project

FIRST_DEVIATION = 0.02
"""Deviation of the first weights of linear layers."""


class NormedLinear(Linear):
    """A linear layer, a norm and an activation, in this order.

    Args:
        in_features: numbers that come in.
        out_features: numbers that come out.
        activation: `mish`, or `simnorm`: a softmax within each group of `group` numbers.
        group: numbers that add up to 1, with `simnorm`.

    Source: Hansen et al. 2024, arXiv:2310.16828, section 3.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Literal["mish", "simnorm"] = "mish",
        group: int = 8,
    ) -> None:
        super().__init__(in_features, out_features)
        self.norm = nn.LayerNorm(out_features)
        self.activation, self.group = activation, group

    def forward(self, input: Tensor) -> Tensor:
        """Give (..., out_features) for (..., in_features); the argument's name is torch's."""
        out = project(input, self.weight, self.bias)
        if self.activation == "simnorm":
            return norm_simnorm(out, self.norm.weight, self.norm.bias, self.group)
        return norm_mish(out, self.norm.weight, self.norm.bias)


def drop_out(features: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Give the features with a share of them 0 and the others larger by as much, drawn by the generator."""
    kept = torch.rand(features.shape, generator=generator, device=features.device) >= share
    return features * (kept / (1 - share))


class Head(Linear):
    """A last layer, which may be of another number type than those before it."""

    def forward(self, input: Tensor) -> Tensor:
        """Give (..., out_features) in the layer's type; the argument's name is torch's."""
        return super().forward(input.to(self.weight.dtype))


def build_mlp(dims: Sequence[int], last: Literal["simnorm"] | None = None, group: int = 8) -> nn.Sequential:
    """Give normed layers with Mish between them; the last is bare, or ends in `simnorm`."""
    layers: list[nn.Module] = [NormedLinear(inner, outer) for inner, outer in pairwise(dims[:-1])]
    inner, outer = dims[-2:]
    layers.append(Head(inner, outer) if last is None else NormedLinear(inner, outer, activation=last, group=group))
    return nn.Sequential(*layers)


class SimNorm(nn.Module):
    """A softmax within each group of neighbouring numbers."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, features: Tensor) -> Tensor:
        """Give the same shape, (..., features)."""
        return features.view(*features.shape[:-1], -1, self.group).softmax(-1).view(features.shape)


class PixelEncoder(nn.Module):
    """Bytes of an image -> latent numbers: four convolutions without padding, ReLU between them, then `SimNorm`.

    Args:
        channels: of an image.
        num_channels: of the convolutions.
        group: numbers that add up to 1.

    Source: Hansen et al. 2024, arXiv:2310.16828, appendix H.
    """

    def __init__(self, channels: int, num_channels: int, group: int) -> None:
        super().__init__()
        inputs = [channels, *[num_channels] * (len(CONVOLUTIONS) - 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, num_channels, side, stride)
            for inner, (side, stride) in zip(inputs, CONVOLUTIONS, strict=True)
        )
        self.simnorm = SimNorm(group)

    def forward(self, images: Tensor) -> Tensor:
        """Give (..., latent_dim) for bytes of shape (..., channels, height, width)."""
        features = images.flatten(0, -4).float().div(255).sub(0.5)
        for number, convolution in enumerate(self.convolutions):
            features = convolution(features if number == 0 else functional.relu(features))
        latent: Tensor = self.simnorm(features.flatten(1))
        return latent.view(*images.shape[:-3], -1)


class Ensemble(nn.Module):
    """Networks of three layers with the same shape, of which some are run: weights are stacked along the first axis.

    Args:
        members: how many there are.
        in_dim: numbers that come into each.
        hidden_dim: width of both hidden layers.
        out_dim: numbers that come out of each; at first all are 0.
        dropout: share of the first linear layer's numbers that are left out in training, before the norm, as in the
            authors' code.
    """

    def __init__(self, members: int, in_dim: int, hidden_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.members, self.dropout = members, dropout
        ends = ((in_dim, hidden_dim), (hidden_dim, hidden_dim), (hidden_dim, out_dim))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, outer, inner)) for inner, outer in ends)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, outer)) for _, outer in ends)
        self.norm_weights = nn.ParameterList(nn.Parameter(torch.ones(members, hidden_dim)) for _ in range(2))
        self.norm_biases = nn.ParameterList(nn.Parameter(torch.zeros(members, hidden_dim)) for _ in range(2))

    def forward(
        self,
        joint: Tensor,
        chosen: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        *,
        frozen: bool = False,
    ) -> Tensor:
        """Give (chosen, rows, out_dim) for (rows, in_dim).

        Args:
            joint: goes into each member.
            chosen: the members that are run; None for all.
            generator: draws what dropout leaves out in training.
            frozen: let gradients through to `joint` alone.
        """
        # Apart all at once: the gradient of each single one would be as large as that of all.
        weights, biases, norm_weights, norm_biases = (
            [(part.detach() if frozen else part).unbind() for part in parts]
            for parts in (self.weights, self.biases, self.norm_weights, self.norm_biases)
        )
        out = []
        for member in range(self.members) if chosen is None else chosen:
            features = joint
            for layer in range(2):
                features = project(features, weights[layer][member], biases[layer][member])
                if layer == 0 and self.training and self.dropout > 0:
                    features = drop_out(features, self.dropout, generator)
                features = norm_mish(features, norm_weights[layer][member], norm_biases[layer][member])
            out.append(project(features.to(weights[2][member].dtype), weights[2][member], biases[2][member]))
        return torch.stack(out)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters; what comes out is 0 at first."""
        for weight in self.weights[:-1]:
            draw_weight(weight, generator)
        self.weights[-1].zero_()
        for bias in (*self.biases, *self.norm_biases):
            bias.zero_()
        for weight in self.norm_weights:
            weight.fill_(1.0)


def draw_weight(weight: Tensor, generator: torch.Generator) -> None:
    """Draw normal weights."""
    nn.init.trunc_normal_(weight, std=FIRST_DEVIATION, generator=generator)


@torch.no_grad()
def draw_network(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the parameters of linear layers (biases 0), convolutions (torch's own way) and norms (1 and 0)."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            draw_weight(module.weight, generator)
            module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
