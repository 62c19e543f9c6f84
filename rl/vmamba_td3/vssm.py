"""The VMamba trunk: blocks of a scan and an MLP, in four stages. Maps are (batch, height, width, channels)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rl.vmamba_td3.architecture import TrunkConfig
from rl.vmamba_td3.ss2d import SS2D, SelectiveSpace
from rl.vmamba_td3.stems import DOWNSAMPLES, build_stem
from training.products import Linear

FIRST_DEVIATION = 0.02
"""Deviation of the first weights of linear layers, cut at 2."""


class LayerScale(nn.Module):
    """A factor for each channel, on what a branch of a block adds.

    Source: Touvron et al. 2021, arXiv:2103.17239, section 2. In the code that `vmamba_td3` came from, the setting
    existed and nothing read it.
    """

    def __init__(self, dim: int, first: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), first))

    def forward(self, branch: Tensor) -> Tensor:
        """Give the branch, scaled."""
        return branch * self.gamma


class MLP(nn.Module):
    """Two linear layers with GELU between them, at each position alone."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, hidden_dim), Linear(hidden_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Give a map of the same shape."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(features)))
        return out


class VSSBlock(nn.Module):
    """A scan, then an MLP, each on normed features and added to them.

    Args:
        dim: channels.
        config: of the trunk that the block is in.
    """

    def __init__(self, dim: int, config: TrunkConfig) -> None:
        super().__init__()
        first = config.layer_scale_init
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, config.ssm_d_state, config.ssm_ratio, gate=config.gate, conv_bias=config.conv_bias)
        self.scale = None if first is None else LayerScale(dim, first)
        self.norm2 = self.mlp = self.scale2 = None
        if config.mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = MLP(dim, int(config.mlp_ratio * dim))
            self.scale2 = None if first is None else LayerScale(dim, first)

    def forward(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Give a map of the same shape.

        Args:
            features: a map.
            kept: (2, batch), factors on what scan and MLP add to each image's map; None adds it as it is.
        """
        scan_kept, mlp_kept = (None, None) if kept is None else kept
        features = _add_branch(features, self.op(self.norm(features)), self.scale, scan_kept)
        if self.mlp is None or self.norm2 is None:
            return features
        return _add_branch(features, self.mlp(self.norm2(features)), self.scale2, mlp_kept)


def _add_branch(features: Tensor, branch: Tensor, scale: LayerScale | None, kept: Tensor | None) -> Tensor:
    """Give `features + kept * gamma * branch`, in one go over the map."""
    if kept is None:
        return features + branch if scale is None else torch.addcmul(features, branch, scale.gamma)
    factor = kept.view(-1, 1, 1, 1)
    return torch.addcmul(features, branch, factor if scale is None else scale(factor))


class VSSM(nn.Module):
    """Frames -> a normed map of the last stage.

    What dropped paths leave out is decided before any block runs, so that a block that runs again for its gradient
    (`use_checkpointing`) leaves out the same.

    Args:
        config: its sizes.
        in_channels: of a frame.
        use_checkpointing: keep only what goes into each block, and run it again for its gradient.
    """

    keep_rates: Tensor

    def __init__(self, config: TrunkConfig, in_channels: int, *, use_checkpointing: bool = False) -> None:
        super().__init__()
        self.use_checkpointing = use_checkpointing
        self.stem = build_stem(config, in_channels)
        self.stages = nn.ModuleList(
            nn.ModuleList(VSSBlock(dim, config) for _ in range(depth))
            for depth, dim in zip(config.num_vss_blocks, config.dims, strict=True)
        )
        self.downsamples = nn.ModuleList(DOWNSAMPLES[config.downsample](dim) for dim in config.dims[:-1])
        self.norm = nn.LayerNorm(config.dims[-1])
        rates = torch.linspace(0, config.drop_path_rate, sum(config.num_vss_blocks))
        self.register_buffer("keep_rates", 1 - rates, persistent=False)
        self.drops_paths = config.drop_path_rate > 0
        draw_weights(self, None)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give (batch, height, width, channels) for frames of shape (batch, channels, height, width).

        Args:
            frames: not smaller than a patch.
            generator: of the frames' device; draws, in training, which paths are dropped. None is torch's own.
        """
        features: Tensor = self.stem(frames)
        kept = iter(self._draw_kept(frames.shape[0], generator))
        for number, blocks in enumerate(self.stages):
            if number > 0:
                features = self.downsamples[number - 1](features)
            for block in blocks:  # type: ignore[attr-defined]
                features = self._run(block, features, next(kept))
        normed: Tensor = self.norm(features)
        return normed

    def _run(self, block: nn.Module, features: Tensor, kept: Tensor | None) -> Tensor:
        if self.use_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, features, kept, use_reentrant=False, preserve_rng_state=False)
        else:
            out = block(features, kept)
        return out

    def _draw_kept(self, batch: int, generator: torch.Generator | None) -> list[Tensor] | list[None]:
        """Give each block's factors on what it adds: 0 where a path is dropped, else 1 / probability of keeping."""
        if not (self.training and self.drops_paths):
            return [None] * len(self.keep_rates)
        rates = self.keep_rates[:, None, None]
        chances = torch.rand((len(rates), 2, batch), device=rates.device, generator=generator)
        return list(((chances < rates) / rates).unbind())


@torch.no_grad()
def draw_weights(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draw all parameters anew but the factors on what blocks add.

    Linear layers are normal within two deviations of `FIRST_DEVIATION`, their biases 0; convolutions are uniform
    within 1 / sqrt(inputs); norms begin at 1 and 0.

    Args:
        network: of such layers, and of selective spaces.
        generator: of the parameters' device; None is torch's own.
    """
    for module in network.modules():
        if isinstance(module, SelectiveSpace):
            module.draw_space(generator)
        elif isinstance(module, nn.Linear):
            cut = 2 * FIRST_DEVIATION
            nn.init.trunc_normal_(module.weight, std=FIRST_DEVIATION, a=-cut, b=cut, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
