"""What the networks of VMamba-TD3 are made of: their sizes, checked. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

NUM_STAGES = 4
NUM_PATHS = 4
"""Ways of the cross scan through a feature map: by rows, by columns, and both backwards."""

CNN_LEAST_SIDE = 15
"""The CNN makes a side n of a frame (n - 1) // 2 - 6 long."""


@dataclass(frozen=True)
class TrunkConfig:
    """The VMamba trunk: four stages of blocks, each at half the side and twice the channels of the one before.

    The defaults are those of `vmamba_td3`. With the last four fields and `mlp_ratio` it is also any of the published
    image classifiers; see `presets.PUBLISHED_MODELS`.

    Attributes:
        hidden_dim: channels of the first stage.
        num_vss_blocks: blocks in each of the four stages.
        patch_size: side of the squares of pixels that become one position each.
        ssm_d_state: numbers that the scan remembers for each channel.
        ssm_ratio: channels inside the scan for each channel outside.
        mlp_ratio: hidden units of a block's MLP for each channel; 0 leaves the MLP out.
        layer_scale_init: first factor on what a block adds; None for no factors.
        drop_path_rate: probability of leaving out what the last block adds, in training; earlier blocks have less.
        gate: whether a second projection gates what the scan gives.
        conv_bias: whether the convolution before the scan has a bias.
        stem: `v1` cuts patches; `v2` is two overlapping convolutions of stride 2, for a patch size of 4.
        downsample: `v1` merges 2x2 positions, `v2` is a 2x2 convolution, `v3` a 3x3 convolution of stride 2.
    """

    hidden_dim: int = 64
    num_vss_blocks: tuple[int, ...] = (2, 2, 4, 2)
    patch_size: int = 16
    ssm_d_state: int = 16
    ssm_ratio: float = 2.0
    mlp_ratio: float = 4.0
    layer_scale_init: float | None = 1e-6
    drop_path_rate: float = 0.1
    gate: bool = True
    conv_bias: bool = True
    stem: Literal["v1", "v2"] = "v1"
    downsample: Literal["v1", "v2", "v3"] = "v3"

    def __post_init__(self) -> None:
        """Refuse what can't be built, by the names of the keys.

        Raises:
            ValueError: with the key, its value and what it may be.
        """
        blocks = list(self.num_vss_blocks)
        if len(blocks) != NUM_STAGES or min(blocks) < 1:
            raise ValueError(
                f"vmamba_num_vss_blocks is {blocks}: it must be four numbers from 1 on, one for each stage, "
                "as in [2, 2, 4, 2]"
            )
        for key in ("hidden_dim", "patch_size", "ssm_d_state"):
            _check_at_least_one(f"vmamba_{key}", getattr(self, key))
        if self.d_inners[0] < 1:
            raise ValueError(
                f"vmamba_ssm_ratio is {self.ssm_ratio} with vmamba_hidden_dim {self.hidden_dim}: that leaves the scan "
                "no channel; raise one of them"
            )
        if self.mlp_ratio < 0 or (self.mlp_ratio > 0 and int(self.mlp_ratio * self.hidden_dim) < 1):
            raise ValueError(
                f"vmamba_mlp_ratio is {self.mlp_ratio}: it must be 0 (no MLP), or leave its hidden layer at least "
                f"one of vmamba_hidden_dim = {self.hidden_dim} units"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"vmamba_drop_path_rate is {self.drop_path_rate}: it must be in [0, 1)")
        if self.stem == "v2" and (self.patch_size != 4 or self.hidden_dim % 2):
            raise ValueError("a stem v2 has a patch size of 4 and an even hidden_dim")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.hidden_dim * 2**stage for stage in range(NUM_STAGES))

    @property
    def d_inners(self) -> tuple[int, ...]:
        """Channels inside the scans of each stage."""
        return tuple(widen(dim, self.ssm_ratio) for dim in self.dims)

    def find_sides(self, height: int, width: int) -> list[tuple[int, int]]:
        """Give height and width of each stage's feature map: ceil(side / (patch_size * 2**stage)).

        Raises:
            ValueError: a side is shorter than a patch.
        """
        if min(height, width) < self.patch_size:
            raise ValueError(
                f"frames of {height}x{width} pixels are smaller than one patch of vmamba_patch_size {self.patch_size}; "
                "make the patches smaller, or the frames larger"
            )
        strides = [self.patch_size * 2**stage for stage in range(NUM_STAGES)]
        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]


@dataclass(frozen=True)
class StreamConfig:
    """What turns a window of frames and states into one vector: one of the two streams.

    Attributes:
        frame_shape: channels, height and width of a frame.
        state_dim: numbers of a state vector.
        encoder: what looks at frames: the VMamba trunk, or a small CNN to compare it with, for which `trunk` means
            nothing but `ssm_d_state` and `ssm_ratio`, which the scan over time has too.
        feature_dim: numbers that a frame becomes.
        state_feature_dim: numbers that a state becomes.
        hidden_dim: numbers that a window becomes.
        temporal_layers: scans over time, one on the other.
        num_heads: of the attention that gathers a window.
        temporal_scan: `cross` scans time as it does images, back and forth; `causal` never looks ahead.
        use_input_adapter: whether a 1x1 convolution turns a frame's channels into three first.
    """

    frame_shape: tuple[int, int, int]
    state_dim: int
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    encoder: Literal["vmamba", "cnn"] = "vmamba"
    feature_dim: int = 128
    state_feature_dim: int = 128
    hidden_dim: int = 256
    temporal_layers: int = 1
    num_heads: int = 4
    temporal_scan: Literal["cross", "causal"] = "cross"
    use_input_adapter: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be built, by the names of the keys.

        Raises:
            ValueError: with the key, its value and what it may be.
        """
        for key in ("state_dim", "feature_dim", "state_feature_dim", "hidden_dim"):
            _check_at_least_one(key, getattr(self, key))
        _check_at_least_one("vmamba_temporal_layers", self.temporal_layers)
        check_heads(self.hidden_dim, self.num_heads)
        _, height, width = self.frame_shape
        if self.encoder == "vmamba":
            self.trunk.find_sides(height, width)
        else:
            find_cnn_sides(height, width)


def widen(dim: int, ratio: float) -> int:
    """Give the channels inside a scan."""
    return int(ratio * dim)


def find_dt_rank(dim: int) -> int:
    """Give the numbers that a step size is made of, for `dim` channels outside the scan."""
    return math.ceil(dim / 16)


def find_cnn_sides(height: int, width: int) -> tuple[int, int]:
    """Give height and width of the CNN's last feature map: a convolution of stride 2, then three of stride 1.

    Raises:
        ValueError: nothing of the frame would be left.
    """
    if min(height, width) < CNN_LEAST_SIDE:
        raise ValueError(
            f"frames of {height}x{width} pixels are too small for encoder: cnn, which needs {CNN_LEAST_SIDE} pixels a "
            "side; take encoder: vmamba, or larger frames"
        )
    return (height - 1) // 2 - 6, (width - 1) // 2 - 6


def check_heads(hidden_dim: int, num_heads: int) -> None:
    """Refuse heads that can't share the channels evenly.

    Raises:
        ValueError: with both keys, and numbers of heads that work.
    """
    _check_at_least_one("vmamba_num_heads", num_heads)
    if hidden_dim % num_heads:
        fitting = [heads for heads in range(1, min(hidden_dim, 16) + 1) if hidden_dim % heads == 0]
        raise ValueError(
            f"vmamba_num_heads is {num_heads}, which does not divide hidden_dim {hidden_dim}; {fitting} do"
        )


def _check_at_least_one(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{key} is {value}: it must be at least 1")
