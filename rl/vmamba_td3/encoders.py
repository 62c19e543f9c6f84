"""Frame -> features, state -> features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.vmamba_td3.architecture import StreamConfig, TrunkConfig, find_cnn_sides
from rl.vmamba_td3.counting import ADAPTED_CHANNELS, CNN_CHANNELS
from rl.vmamba_td3.precision import allow_bfloat16, widen_numbers
from rl.vmamba_td3.presets import PUBLISHED_MODELS
from rl.vmamba_td3.vssm import VSSM, draw_weights
from training.products import Linear


class VMambaRLTiny(nn.Module):
    """A VMamba trunk with few blocks, whose last map's mean becomes features.

    Args:
        config: of the trunk.
        in_channels: of a frame.
        out_features: numbers that a frame becomes.
        use_input_adapter: whether a 1x1 convolution turns a frame's channels into three first.
        use_checkpointing: see `VSSM`.
    """

    def __init__(
        self,
        config: TrunkConfig,
        in_channels: int,
        out_features: int,
        *,
        use_input_adapter: bool = False,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(in_channels, ADAPTED_CHANNELS, 1) if use_input_adapter else None
        seen = ADAPTED_CHANNELS if use_input_adapter else in_channels
        self.trunk = VSSM(config, seen, use_checkpointing=use_checkpointing)
        self.head = Linear(config.dims[-1], out_features)
        draw_weights(self.head, None)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give (batch, out_features) for frames of shape (batch, channels, height, width); see `VSSM.forward`."""
        if self.adapter is not None:
            frames = self.adapter(frames)
        features: Tensor = self.head(_find_mean(self.trunk(frames, generator)))
        return features


class VMamba(nn.Module):
    """An image classifier of VMamba's authors.

    Args:
        config: of the trunk; `presets.PUBLISHED_MODELS` has theirs.
        num_classes: numbers that come out.
        in_channels: of an image.
    """

    def __init__(self, config: TrunkConfig, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.trunk = VSSM(config, in_channels)
        self.head = Linear(config.dims[-1], num_classes)
        draw_weights(self.head, None)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give (batch, num_classes) for images of shape (batch, channels, height, width)."""
        logits: Tensor = self.head(_find_mean(self.trunk(images, generator)))
        return logits


class VMambaT(VMamba):
    """Their first tiny one: 22.9M numbers."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(PUBLISHED_MODELS["vanilla_tiny"].trunk, num_classes, in_channels)


class VMambaS(VMamba):
    """Their first small one: 44.4M numbers."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(PUBLISHED_MODELS["vanilla_small"].trunk, num_classes, in_channels)


class VMambaB(VMamba):
    """Their first base one: 76.3M numbers."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(PUBLISHED_MODELS["vanilla_base"].trunk, num_classes, in_channels)


class VMambaVisualEncoder(nn.Module):
    """Frame -> features, by a VMamba trunk.

    Args:
        frame_shape: channels, height and width.
        config: of the trunk.
        feature_dim: numbers that a frame becomes.
        use_input_adapter: whether a 1x1 convolution turns a frame's channels into three first.
        use_amp: let products and convolutions take bfloat16; scans and features stay in 32 bits.
        use_checkpointing: see `VSSM`.

    Raises:
        ValueError: frames are smaller than a patch.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        config: TrunkConfig,
        feature_dim: int,
        *,
        use_input_adapter: bool = False,
        use_amp: bool = False,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = frame_shape
        config.find_sides(height, width)
        self.feature_dim, self.use_amp = feature_dim, use_amp
        self.backbone = VMambaRLTiny(
            config,
            channels,
            feature_dim,
            use_input_adapter=use_input_adapter,
            use_checkpointing=use_checkpointing,
        )

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give (batch, feature_dim) for frames of shape (batch, channels, height, width), of numbers about 0 to 1.

        Args:
            frames: not smaller than a patch; all windows' frames in one batch.
            generator: of the frames' device; draws, in training, which paths are dropped. None is torch's own.
        """
        with allow_bfloat16(frames.device, self.use_amp):
            features: Tensor = self.backbone(frames, generator)
        return widen_numbers(features)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters anew but the factors on what blocks add."""
        draw_weights(self, generator)


class CNNVisualEncoder(nn.Module):
    """Frame -> features, by four small convolutions: the encoder that the trunk has to beat.

    A convolution of stride 2 and three of stride 1, all 3x3 with 32 channels and ReLU; then a linear layer, a norm and
    tanh. Of its weights, all but 28,000 are the linear layer's.

    Args:
        frame_shape: channels, height and width.
        feature_dim: numbers that a frame becomes.
        use_amp: let products and convolutions take bfloat16; features stay in 32 bits.

    Raises:
        ValueError: frames are too small.

    Source: Yarats et al. 2021, arXiv:2107.09645, whose encoder ends before the linear layer, and whose actor and critic
    have one each. Here features go on to a scan over time, so the encoder has it.
    """

    def __init__(self, frame_shape: tuple[int, int, int], feature_dim: int, *, use_amp: bool = False) -> None:
        super().__init__()
        channels, height, width = frame_shape
        rows, columns = find_cnn_sides(height, width)
        self.feature_dim, self.use_amp = feature_dim, use_amp
        inputs = (channels, CNN_CHANNELS, CNN_CHANNELS, CNN_CHANNELS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, CNN_CHANNELS, 3, stride=1 if number else 2) for number, inner in enumerate(inputs)
        )
        self.linear = Linear(CNN_CHANNELS * rows * columns, feature_dim)
        self.norm = nn.LayerNorm(feature_dim)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give (batch, feature_dim) for frames of shape (batch, channels, height, width), of numbers about 0 to 1.

        Args:
            frames: of the shape that it was built for.
            generator: takes no part: nothing is drawn.
        """
        with allow_bfloat16(frames.device, self.use_amp):
            for convolution in self.convolutions:
                frames = functional.relu(convolution(frames))
            features = torch.tanh(self.norm(self.linear(frames.flatten(1))))
        return widen_numbers(features)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw orthogonal weights, larger by sqrt(2) before ReLU; biases are 0, the norm begins at 1 and 0."""
        for layer in (*self.convolutions, self.linear):
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            assert layer.bias is not None
            gain = math.sqrt(2) if isinstance(layer, nn.Conv2d) else 1.0
            nn.init.orthogonal_(layer.weight, gain, generator=generator)
            layer.bias.zero_()
        self.norm.reset_parameters()


class StateMLP(nn.Module):
    """State -> features: two linear layers with ReLU between them."""

    def __init__(self, state_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.first, self.second = Linear(state_dim, feature_dim), Linear(feature_dim, feature_dim)

    def forward(self, states: Tensor) -> Tensor:
        """Give (..., feature_dim) for states of shape (..., state_dim)."""
        features: Tensor = self.second(functional.relu(self.first(states)))
        return features

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters, uniform within 1 / sqrt(inputs)."""
        draw_uniform((self.first, self.second), generator)


def build_visual_encoder(
    stream: StreamConfig, *, use_amp: bool = False, use_checkpointing: bool = False
) -> VMambaVisualEncoder | CNNVisualEncoder:
    """Give the visual encoder that a stream asks for. The CNN has no blocks to run again."""
    if stream.encoder == "cnn":
        return CNNVisualEncoder(stream.frame_shape, stream.feature_dim, use_amp=use_amp)
    return VMambaVisualEncoder(
        stream.frame_shape,
        stream.trunk,
        stream.feature_dim,
        use_input_adapter=stream.use_input_adapter,
        use_amp=use_amp,
        use_checkpointing=use_checkpointing,
    )


def draw_uniform(layers: tuple[nn.Linear, ...], generator: torch.Generator) -> None:
    """Draw weights and biases of linear layers, uniform within 1 / sqrt(inputs)."""
    for layer in layers:
        bound = 1 / math.sqrt(layer.in_features)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)


def _find_mean(features: Tensor) -> Tensor:
    """Give (batch, channels), the mean over a map's positions."""
    return features.flatten(1, 2).mean(1)
