"""How many learnable numbers the networks have, by arithmetic alone: nothing is built. Imports no torch.

A test holds each formula against the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rl.vmamba_td3.architecture import (
    NUM_PATHS,
    StreamConfig,
    TrunkConfig,
    find_cnn_sides,
    find_dt_rank,
    widen,
)

ADAPTED_CHANNELS = 3
CNN_CHANNELS = 32


def count_parameters(
    stream: StreamConfig,
    action_dim: int,
    encoder_sharing: Literal["separate", "shared"] = "separate",
    privileged_dim: int = 0,
) -> dict[str, int]:
    """Count each network of an agent that learns. Each has a target of the same size, which doesn't count.

    Args:
        stream: of the actor, and of the critic.
        action_dim: numbers of an action.
        encoder_sharing: `shared` leaves the actor without a stream of its own.
        privileged_dim: numbers that a simulator tells the critic, which then has no images; 0 for one that has them.
    """
    owners = ("actor", "critic") if encoder_sharing == "separate" else ("critic",)
    own = count_stream(stream)
    parts = dict.fromkeys(owners, own)
    if privileged_dim:
        parts["critic"] = {"state_encoder": count_state_mlp(stream.state_dim + privileged_dim, stream.hidden_dim)}
    counts = {f"{owner}_{name}": count for owner, part in parts.items() for name, count in part.items()}
    counts["actor"] = count_actor(stream.hidden_dim, stream.hidden_dim, action_dim)
    counts["critic"] = count_twin_critic(stream.hidden_dim, stream.hidden_dim, action_dim)
    return counts


def sum_with_targets(counts: Mapping[str, int]) -> int:
    """Give the numbers of all networks and of their targets."""
    return 2 * sum(counts.values())


def count_stream(stream: StreamConfig) -> dict[str, int]:
    """Count the parts of one stream."""
    hidden = stream.hidden_dim
    layer = count_temporal_layer(hidden, stream.trunk, stream.temporal_scan)
    return {
        "visual_encoder": count_visual_encoder(stream),
        "state_encoder": count_state_mlp(stream.state_dim, stream.state_feature_dim),
        "mamba": count_fusion(stream.feature_dim + stream.state_feature_dim, hidden)
        + stream.temporal_layers * layer
        + count_attention(hidden),
    }


def count_visual_encoder(stream: StreamConfig) -> int:
    """Count what turns a frame into features."""
    channels, height, width = stream.frame_shape
    if stream.encoder == "cnn":
        return _count_cnn(channels, height, width, stream.feature_dim)
    return count_rl_encoder(stream.trunk, channels, stream.feature_dim, use_input_adapter=stream.use_input_adapter)


def count_rl_encoder(trunk: TrunkConfig, channels: int, feature_dim: int, *, use_input_adapter: bool) -> int:
    """Count a `VMambaRLTiny`."""
    adapter = _count_linear(channels, ADAPTED_CHANNELS) if use_input_adapter else 0
    seen = ADAPTED_CHANNELS if use_input_adapter else channels
    return adapter + count_trunk(trunk, seen) + _count_linear(trunk.dims[-1], feature_dim)


def count_classifier(trunk: TrunkConfig, num_classes: int, channels: int = 3) -> int:
    """Count a `VMamba`, an image classifier."""
    return count_trunk(trunk, channels) + _count_linear(trunk.dims[-1], num_classes)


def count_trunk(trunk: TrunkConfig, channels: int) -> int:
    """Count stem, stages and the last norm."""
    blocks = sum(depth * count_block(trunk, dim) for depth, dim in zip(trunk.num_vss_blocks, trunk.dims, strict=True))
    downsamples = sum(count_downsample(trunk, dim) for dim in trunk.dims[:-1])
    return count_stem(trunk, channels) + blocks + downsamples + _count_norm(trunk.dims[-1])


def count_block(trunk: TrunkConfig, dim: int) -> int:
    """Count a `VSSBlock`."""
    count = _count_norm(dim) + count_ss2d(
        dim, trunk.ssm_d_state, trunk.ssm_ratio, gate=trunk.gate, conv_bias=trunk.conv_bias
    )
    branches = 1
    if trunk.mlp_ratio > 0:
        hidden = int(trunk.mlp_ratio * dim)
        count += _count_norm(dim) + _count_linear(dim, hidden) + _count_linear(hidden, dim)
        branches = 2
    return count + (branches * dim if trunk.layer_scale_init is not None else 0)


def count_ss2d(
    dim: int, d_state: int, ratio: float, *, gate: bool = True, conv_bias: bool = True, taps: int = 9, paths: int = 4
) -> int:
    """Count an `SS2D`, or with 3 taps and 1 path the scan of `temporal_scan: causal`."""
    inner, rank = widen(dim, ratio), find_dt_rank(dim)
    projections = dim * inner * (2 if gate else 1) + inner * dim
    convolution = inner * (taps + (1 if conv_bias else 0))
    # The step size from its rank with a bias, A and D: for each path and channel.
    each = rank + 1 + d_state + 1
    return projections + convolution + paths * inner * (rank + 2 * d_state + each) + _count_norm(inner)


def count_state_mlp(state_dim: int, feature_dim: int) -> int:
    """Count a `StateMLP`."""
    return _count_linear(state_dim, feature_dim) + _count_linear(feature_dim, feature_dim)


def count_fusion(in_dim: int, hidden_dim: int) -> int:
    """Count a `FusionMLP` for visual and state features of `in_dim` numbers together."""
    return _count_linear(in_dim, hidden_dim) + _count_norm(hidden_dim)


def count_temporal_layer(hidden_dim: int, trunk: TrunkConfig, scan: Literal["cross", "causal"]) -> int:
    """Count one layer of a `TemporalMamba`, and the norm after it."""
    taps, paths = (9, NUM_PATHS) if scan == "cross" else (3, 1)
    scanned = count_ss2d(hidden_dim, trunk.ssm_d_state, trunk.ssm_ratio, taps=taps, paths=paths)
    return scanned + 2 * _count_norm(hidden_dim)


def count_attention(hidden_dim: int) -> int:
    """Count a `CrossAttention`: queries, keys, values and what comes out."""
    return 4 * _count_linear(hidden_dim, hidden_dim)


def count_actor(repr_dim: int, hidden_dim: int, action_dim: int) -> int:
    """Count an `Actor`."""
    return _count_head(repr_dim, hidden_dim, action_dim)


def count_twin_critic(repr_dim: int, hidden_dim: int, action_dim: int) -> int:
    """Count a `TwinCritic`."""
    return 2 * _count_head(repr_dim + action_dim, hidden_dim, 1)


def _count_head(in_dim: int, hidden_dim: int, out_dim: int) -> int:
    hidden = _count_linear(in_dim, hidden_dim) + _count_linear(hidden_dim, hidden_dim) + 2 * _count_norm(hidden_dim)
    return _count_norm(in_dim) + hidden + _count_linear(hidden_dim, out_dim)


def count_stem(trunk: TrunkConfig, channels: int) -> int:
    """Count what makes positions of pixels."""
    dim = trunk.hidden_dim
    if trunk.stem == "v1":
        return _count_convolution(channels, dim, trunk.patch_size) + _count_norm(dim)
    half = dim // 2
    first = _count_convolution(channels, half, 3) + _count_norm(half)
    return first + _count_convolution(half, dim, 3) + _count_norm(dim)


def count_downsample(trunk: TrunkConfig, dim: int) -> int:
    """Count what makes fewer positions of many, from `dim` channels."""
    if trunk.downsample == "v1":
        return 4 * dim * 2 * dim + _count_norm(4 * dim)
    side = 2 if trunk.downsample == "v2" else 3
    return _count_convolution(dim, 2 * dim, side) + _count_norm(2 * dim)


def _count_cnn(channels: int, height: int, width: int, feature_dim: int) -> int:
    rows, columns = find_cnn_sides(height, width)
    convolutions = _count_convolution(channels, CNN_CHANNELS, 3) + 3 * _count_convolution(CNN_CHANNELS, CNN_CHANNELS, 3)
    return convolutions + _count_linear(CNN_CHANNELS * rows * columns, feature_dim) + _count_norm(feature_dim)


def _count_linear(in_dim: int, out_dim: int) -> int:
    return in_dim * out_dim + out_dim


def _count_convolution(in_channels: int, out_channels: int, side: int) -> int:
    return in_channels * out_channels * side**2 + out_channels


def _count_norm(dim: int) -> int:
    return 2 * dim
