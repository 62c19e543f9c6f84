"""Networks that see a noisy latent, its noise level and the situation, and say what the latent was or will be.

Shapes of latents are (batch, num_tokens, num_agents, latent_dim). Their second axis is time: `TemporalUNet` convolves
along it, so the VAE gives it one token for each step of the chunk. `MLPDenoiser` sees everything at once, and one token
for the whole chunk is all it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from diffuser.models.layers import MLP, LevelFeatures, mish

LEVEL_DIM = 16
"""Features of a noise level."""
GROUPS = 8
"""Groups of the U-Net's norms."""
CHANNEL_UNIT = 4 * GROUPS
"""The U-Net's channels are a multiple of this: at a single time step, groups of fewer would have little to compare."""

Denoise = Callable[[int, Tensor], Tensor]
"""From a position in a chain and noisy latents to the output, shaped as these."""


class MLPDenoiser(nn.Module):
    """Latents of all tokens and agents, side by side with the situation and the noise level, through linear layers."""

    def __init__(self, latent_size: int, c_dim: int, num_diffusion_steps: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        self.levels = LevelFeatures(num_diffusion_steps, LEVEL_DIM)
        self.mlp = MLP(latent_size + c_dim + LEVEL_DIM, hidden_dims, latent_size)

    def forward(self, noisy: Tensor, timesteps: Tensor, c: Tensor) -> Tensor:
        """Give the output, shaped as `noisy`, for noise levels (batch,) and situations (batch, c_dim)."""
        features = torch.cat([noisy.flatten(1), c, self.levels(timesteps)], dim=1)
        out: Tensor = self.mlp(features)
        return out.view_as(noisy)

    def look_ahead(self, timesteps: Tensor, c: Tensor) -> Denoise:
        """Give what denoises at the positions of a chain, whose levels are `timesteps`, (K,), in situations c.

        What the first layer makes of situations and levels is computed here, once for all positions.
        """
        first = self.mlp.layers[0]
        assert isinstance(first, nn.Linear)
        sizes = [first.in_features - c.shape[1] - LEVEL_DIM, c.shape[1], LEVEL_DIM]
        inward, by_c, by_level = (part.t() for part in torch.split(first.weight, sizes, dim=1))
        of_c, of_levels = torch.addmm(first.bias, c, by_c), torch.mm(self.levels(timesteps), by_level).unbind()

        def denoise(position: int, noisy: Tensor) -> Tensor:
            hidden = torch.addmm(of_c + of_levels[position], noisy.flatten(1), inward)
            return self.mlp.finish(hidden).view_as(noisy)

        return denoise


class ResidualBlock(nn.Module):
    """Two convolutions along time; the situation scales and shifts what is between them, channel by channel.

    Source: Perez et al. 2018, arXiv:1709.07871, for the scaling and shifting.
    """

    def __init__(self, in_channels: int, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(in_channels, channels, 3, padding=1)
        self.first_norm = nn.GroupNorm(GROUPS, channels)
        self.modulation = nn.Linear(condition_dim, 2 * channels)
        self.second = nn.Conv1d(channels, channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(GROUPS, channels)
        self.skip = nn.Conv1d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Give (batch, channels, time) for features (batch, in_channels, time) and conditions (batch, dim)."""
        scale, shift = self.modulation(condition)[:, :, None].chunk(2, dim=1)
        hidden = mish(self.first_norm(self.first(features)))
        hidden = self.second_norm(self.second(hidden * (1 + scale) + shift))
        out: Tensor = mish(hidden) + self.skip(features)
        return out


class TemporalUNet(nn.Module):
    """A U-Net along the tokens of a latent sequence, of any length, halved once in the middle.

    Channels are those of all agents side by side.

    Args:
        latent_channels: num_agents times latent_dim.
        channels: of the outer level; the inner one has twice as many. A multiple of 32.

    Source: Janner et al. 2022, arXiv:2205.09991, appendix C, smaller.
    """

    def __init__(self, latent_channels: int, c_dim: int, num_diffusion_steps: int, channels: int) -> None:
        super().__init__()
        if channels % CHANNEL_UNIT:
            raise ValueError(f"channels of the U-Net ({channels}) must be a multiple of {CHANNEL_UNIT}")
        condition_dim = 2 * channels
        self.levels = LevelFeatures(num_diffusion_steps, LEVEL_DIM)
        self.condition = nn.Linear(c_dim + LEVEL_DIM, condition_dim)
        self.enter = ResidualBlock(latent_channels, channels, condition_dim)
        self.down = nn.Conv1d(channels, 2 * channels, 3, stride=2, padding=1)
        self.middle = ResidualBlock(2 * channels, 2 * channels, condition_dim)
        self.up = nn.Conv1d(2 * channels, channels, 3, padding=1)
        self.leave = ResidualBlock(2 * channels, channels, condition_dim)
        self.last = nn.Conv1d(channels, latent_channels, 1)

    def forward(self, noisy: Tensor, timesteps: Tensor, c: Tensor) -> Tensor:
        """Give the output, shaped as `noisy`, for noise levels (batch,) and situations (batch, c_dim)."""
        return self._denoise(noisy, self.condition(torch.cat([c, self.levels(timesteps)], dim=1)))

    def look_ahead(self, timesteps: Tensor, c: Tensor) -> Denoise:
        """Give what denoises at the positions of a chain; see `MLPDenoiser.look_ahead`."""
        by_c, by_level = (part.t() for part in torch.split(self.condition.weight, [c.shape[1], LEVEL_DIM], dim=1))
        of_c = torch.addmm(self.condition.bias, c, by_c)
        of_levels = torch.mm(self.levels(timesteps), by_level).unbind()
        return lambda position, noisy: self._denoise(noisy, of_c + of_levels[position])

    def _denoise(self, noisy: Tensor, condition: Tensor) -> Tensor:
        condition = mish(condition)
        outer = self.enter(noisy.flatten(2).transpose(1, 2), condition)
        inner = self.middle(self.down(outer), condition)
        back = self.up(_double(inner)[:, :, : outer.shape[2]])
        out: Tensor = self.last(self.leave(torch.cat([outer, back], dim=1), condition))
        return out.transpose(1, 2).reshape(noisy.shape)


def _double(features: Tensor) -> Tensor:
    """Repeat every entry along time; `interpolate` would do the same, with a backward pass that may not be exact."""
    return features[..., None].expand(*features.shape, 2).flatten(2)


LatentDenoiser = MLPDenoiser | TemporalUNet


def count_tokens(denoiser: Literal["mlp", "unet"], horizon: int) -> int:
    """Give how many latents a chunk has: one for `mlp`; for `unet`, which needs a time axis, one a step."""
    return horizon if denoiser == "unet" else 1
