"""What makes positions out of pixels, and fewer positions out of many. Maps are (batch, height, width, channels).

Sides that don't divide are filled up with zeros at the right and the bottom, so that one is always rounded up.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from rl.vmamba_td3.architecture import TrunkConfig
from training.products import Linear, project


class PatchPartition(nn.Module):
    """Squares of pixels that become one position each, by a convolution as large as its stride, and a norm."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, frames: Tensor) -> Tensor:
        """Give (batch, height / patch, width / patch, dim) for frames of shape (batch, channels, height, width).

        Raises:
            ValueError: the frames are smaller than a patch.
        """
        side, (height, width) = self.patch_size, frames.shape[2:]
        if min(height, width) < side:
            raise ValueError(f"frames of {height}x{width} pixels are smaller than a patch of {side}x{side}")
        if height % side or width % side:
            frames = functional.pad(frames, (0, -width % side, 0, -height % side))
        # Pixels don't overlap, so that a product of their squares is the convolution, at two thirds of its time.
        batch, channels, height, width = frames.shape
        squares = frames.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        normed: Tensor = self.norm(project(squares.flatten(3), self.proj.weight.flatten(1), self.proj.bias))
        return normed


class OverlappingStem(nn.Module):
    """The stem of later published models: two convolutions of stride 2, a norm after each, for patches of 4."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1), nn.LayerNorm(dim // 2)
        self.second, self.second_norm = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1), nn.LayerNorm(dim)

    def forward(self, frames: Tensor) -> Tensor:
        """Give (batch, height / 4, width / 4, dim) for frames of shape (batch, channels, height, width)."""
        features = functional.gelu(self.first_norm(self.first(frames).permute(0, 2, 3, 1)))
        normed: Tensor = self.second_norm(self.second(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return normed


class DownsampleV1(nn.Module):
    """Four neighbours side by side, normed, and projected to half as many numbers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Give a map of half the sides and twice the channels."""
        features = _pad_to_even(features)
        batch, height, width, dim = features.shape
        pairs = features.reshape(batch, height // 2, 2, width // 2, 2, dim)
        # Columns before rows, as in the published weights.
        reduced: Tensor = self.reduction(self.norm(pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return reduced


class DownsampleV2(nn.Module):
    """A 2x2 convolution of stride 2, and a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, 2, stride=2)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, features: Tensor) -> Tensor:
        """Give a map of half the sides and twice the channels."""
        convolved = self.conv(_pad_to_even(features).permute(0, 3, 1, 2))
        normed: Tensor = self.norm(convolved.permute(0, 2, 3, 1))
        return normed


class DownsampleV3(nn.Module):
    """A 3x3 convolution of stride 2, and a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, features: Tensor) -> Tensor:
        """Give a map of half the sides and twice the channels."""
        normed: Tensor = self.norm(self._convolve(features))
        return normed

    def _convolve(self, features: Tensor) -> Tensor:
        batch, height, width, _ = features.shape
        if max(height, width) > 2:
            convolved: Tensor = self.conv(features.permute(0, 3, 1, 2))
            return convolved.permute(0, 2, 3, 1)
        # One position is left, and of nine taps at most four meet something: ten times as fast on one position.
        taps = self.conv.weight[:, :, 1 : height + 1, 1 : width + 1].permute(0, 2, 3, 1).flatten(1).contiguous()
        return project(features.reshape(batch, -1), taps, self.conv.bias).view(batch, 1, 1, -1)


def build_stem(config: TrunkConfig, in_channels: int) -> PatchPartition | OverlappingStem:
    """Give the stem that a trunk asks for."""
    if config.stem == "v1":
        return PatchPartition(in_channels, config.hidden_dim, config.patch_size)
    return OverlappingStem(in_channels, config.hidden_dim)


DOWNSAMPLES = {"v1": DownsampleV1, "v2": DownsampleV2, "v3": DownsampleV3}


def _pad_to_even(features: Tensor) -> Tensor:
    _, height, width, _ = features.shape
    if height % 2 == width % 2 == 0:
        return features
    return functional.pad(features, (0, 0, 0, width % 2, 0, height % 2))
