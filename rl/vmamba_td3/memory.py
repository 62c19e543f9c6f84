"""How much memory training takes, by arithmetic alone: nothing is built. Imports no torch.

What autograd keeps of each module is written down as that module's code has it, for scans by C or Triton; plain torch
keeps more. Tests hold it against what autograd keeps, and the peak against processes that train. Frames of one update
are `images`, positions of all their maps `n`; sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rl.vmamba_td3.architecture import NUM_PATHS, StreamConfig, TrunkConfig, find_cnn_sides, find_dt_rank, widen
from rl.vmamba_td3.counting import (
    ADAPTED_CHANNELS,
    CNN_CHANNELS,
    count_actor,
    count_attention,
    count_block,
    count_downsample,
    count_fusion,
    count_parameters,
    count_state_mlp,
    count_stem,
    count_temporal_layer,
    count_twin_critic,
    count_visual_encoder,
)

FLOAT = 4
HALF = 2
CHUNK = 16
"""Steps of a scan for which one state is kept."""

PROGRAM = 80 * 2**20
"""What libraries take on the CPU when they are first used, beside what loading them took."""
HOLES, HOLES_AGAIN = 1.35, 2.1
"""What comes and goes in an update takes so many times its size of a process, as the C library's heap keeps holes:
without and with `use_checkpointing`, whose blocks come and go twice. Measured; see docs/vmamba_td3.md."""


@dataclass(frozen=True)
class Span:
    """A part of the way from a window to a value.

    Attributes:
        kept: what it leaves behind for its gradients.
        weights: of its parameters, and so of their gradients.
        backward: what it takes beside that while its gradients are found.
        forward: what it takes while it is run without any.
    """

    kept: int
    weights: int
    backward: int
    forward: int


@dataclass(frozen=True)
class Workload:
    """What one update works on.

    Attributes:
        batch_size: windows.
        seq_len: frames in a window.
        use_amp: products and convolutions in 16 bits.
        use_checkpointing: blocks are run again for their gradients.
        encoder_sharing: `shared` leaves the actor without a stream.
        privileged_dim: numbers that a simulator tells the critic, which then has no images; 0 for one that has them.
    """

    batch_size: int
    seq_len: int
    use_amp: bool = False
    use_checkpointing: bool = False
    encoder_sharing: Literal["separate", "shared"] = "separate"
    privileged_dim: int = 0

    @property
    def images(self) -> int:
        """Frames of all windows."""
        return self.batch_size * self.seq_len

    @property
    def width(self) -> int:
        """Bytes of a number that products and convolutions give."""
        return HALF if self.use_amp else FLOAT


@dataclass(frozen=True)
class MemoryEstimate:
    """What training takes at its peak.

    Attributes:
        weights: of the networks that learn; their targets take as much again.
        adam: both moments.
        batch: windows and those that follow, on the device.
        critic: the critic's update beside all these: what is kept for its gradients, then the gradients.
        actor: the same of the actor's update.
        buffer: the replay buffer when it is full, in the computer's memory wherever the networks are.
        holes: by how much more than tensors a process on the CPU takes of what comes and goes.
    """

    weights: int
    adam: int
    batch: int
    critic: int
    actor: int
    buffer: int
    holes: float

    @property
    def lasting(self) -> int:
        """What is there all the time: networks, targets, moments."""
        return 2 * self.weights + self.adam

    @property
    def peak(self) -> int:
        """The peak of all tensors on the device that trains, without the buffer."""
        return self.lasting + self.batch + max(self.critic, self.actor)

    @property
    def process(self) -> int:
        """The peak of a process that trains on the CPU beyond what loading its libraries took, without the buffer."""
        return PROGRAM + self.lasting + self.batch + round(self.holes * max(self.critic, self.actor))


def estimate_memory(stream: StreamConfig, action_dim: int, work: Workload, buffer_frames: int = 0) -> MemoryEstimate:
    """Give what training takes.

    Args:
        stream: of the actor, and of the critic.
        action_dim: numbers of an action.
        work: what an update works on.
        buffer_frames: frames that the replay buffer keeps.

    Raises:
        ValueError: the trunk isn't one of an agent's.
    """
    counts = count_parameters(stream, action_dim, work.encoder_sharing, work.privileged_dim)
    weights = FLOAT * sum(counts.values())
    channels, height, width = stream.frame_shape
    frame = channels * height * width
    spans = list_spans(stream, work)
    heads = [_span_head(stream.hidden_dim, action_dim, work, critic) for critic in (False, True)]
    passing = max(span.forward for span in spans)
    if work.encoder_sharing == "separate":
        # While the critic looks again, all that the actor's stream has kept is there.
        looking = sum(span.kept for span in spans) + (0 if work.privileged_dim else passing)
        actor = max(looking, find_backward_peak([*spans, *heads]))
    else:
        actor = find_backward_peak(heads)
    judging = [_span_privileged(stream, work)] if work.privileged_dim else spans
    return MemoryEstimate(
        weights=weights,
        adam=2 * weights,
        batch=2 * work.images * (frame + stream.state_dim) * FLOAT,
        critic=max(passing, find_backward_peak([*judging, heads[1]])),
        actor=actor,
        buffer=buffer_frames * (frame + FLOAT * (stream.state_dim + work.privileged_dim + action_dim + 2) + 16),
        holes=HOLES_AGAIN if work.use_checkpointing and stream.encoder == "vmamba" else HOLES,
    )


def find_backward_peak(spans: Sequence[Span]) -> int:
    """Give the most that is there while gradients are found from the last span to the first.

    What a span has kept goes as its gradients come.
    """
    kept, gradients, peak = sum(span.kept for span in spans), 0, 0
    for span in reversed(spans):
        gradients += span.weights
        peak = max(peak, kept + gradients + span.backward)
        kept -= span.kept
    return peak


def list_spans(stream: StreamConfig, work: Workload) -> list[Span]:
    """Give the parts of a stream in the order in which they run.

    Raises:
        ValueError: the trunk isn't one of an agent's.
    """
    visual = _list_cnn_spans(stream, work) if stream.encoder == "cnn" else _list_trunk_spans(stream, work)
    return [*visual, _span_state(stream, work), *_list_sequence_spans(stream, work)]


def _list_trunk_spans(stream: StreamConfig, work: Workload) -> list[Span]:
    trunk = stream.trunk
    if (trunk.stem, trunk.downsample, trunk.gate) != ("v1", "v3", True):
        raise ValueError(
            f"a trunk with stem {trunk.stem}, downsample {trunk.downsample}, gate {trunk.gate} is no agent's; their "
            "memory can be told for stem v1, downsample v3 and gate True alone"
        )
    sides = trunk.find_sides(*stream.frame_shape[1:])
    spans = [_span_stem(stream, work, sides[0])]
    for stage, (blocks, dim) in enumerate(zip(trunk.num_vss_blocks, trunk.dims, strict=True)):
        if stage > 0:
            spans.append(_span_downsample(trunk.dims[stage - 1], sides[stage - 1], sides[stage], trunk, work))
        spans += [_span_block(trunk, dim, sides[stage], work)] * blocks
    rows, columns = sides[-1]
    last, out = trunk.dims[-1], stream.feature_dim
    kept = work.images * (rows * columns * (last + 2) * FLOAT + last * work.width + out * FLOAT)
    weights = FLOAT * (2 * last + last * out + out)
    return [*spans, _span(kept, weights, work, working=2 * work.images * rows * columns * last * FLOAT)]


def _span_stem(stream: StreamConfig, work: Workload, sides: tuple[int, int]) -> Span:
    trunk, channels = stream.trunk, stream.frame_shape[0]
    seen = ADAPTED_CHANNELS if stream.use_input_adapter else channels
    n = work.images * sides[0] * sides[1]
    squares, out = n * seen * trunk.patch_size**2 * work.width, n * trunk.hidden_dim * work.width
    weights = FLOAT * count_stem(trunk, seen)
    return _span(squares + out + 2 * n * FLOAT, weights, work, working=squares + 2 * n * trunk.hidden_dim * FLOAT)


def _span_downsample(
    dim: int, before: tuple[int, int], after: tuple[int, int], trunk: TrunkConfig, work: Workload
) -> Span:
    kept = work.images * before[0] * before[1] * dim * work.width
    positions = work.images * after[0] * after[1]
    kept += positions * (2 * dim * work.width + 2 * FLOAT)
    weights = FLOAT * count_downsample(trunk, dim)
    if max(before) <= 2:  # the taps that meet something, side by side
        kept += 2 * dim * dim * before[0] * before[1] * work.width
    return _span(kept, weights, work, working=weights + 2 * work.images * before[0] * before[1] * dim * FLOAT)


def _span_block(trunk: TrunkConfig, dim: int, sides: tuple[int, int], work: Workload) -> Span:
    length = sides[0] * sides[1]
    n, width = work.images * length, work.width
    # A branch keeps what it adds to, mean and deviation, its norm and, where it is scaled, itself and factors.
    branch = n * (dim * FLOAT + 2 * FLOAT + dim * width)
    if trunk.layer_scale_init is not None:
        branch += n * dim * width + work.images * dim * FLOAT
    kept = branch + _keep_scan(dim, length, work.images, trunk, width)
    if trunk.mlp_ratio > 0:
        kept += branch + n * 2 * int(trunk.mlp_ratio * dim) * width
    full = _span(
        kept, FLOAT * count_block(trunk, dim), work, *_work_on_scan(dim, length, work.images, trunk.ssm_ratio, trunk)
    )
    if not work.use_checkpointing:
        return full
    entering = n * dim * FLOAT
    # All that the block keeps is there again; what was measured is its gradients' part twice.
    return Span(entering, full.weights, full.kept + 2 * full.backward, full.forward)


def _keep_scan(dim: int, length: int, images: int, trunk: TrunkConfig, width: int, causal: bool = False) -> int:
    """Give what an `SS2D` keeps of maps of `length` positions, or a `CausalScan` of as many steps."""
    inner, rank, states = widen(dim, trunk.ssm_ratio), find_dt_rank(dim), trunk.ssm_d_state
    paths, n = 1 if causal else NUM_PATHS, images * length
    # Both halves of the first product, convolution, SiLU; after the scan its gate's SiLU and their product.
    around = n * inner * 6 * width
    parts = n * paths * (rank + 2 * states) * FLOAT
    stepped = n * paths * inner * 2 * FLOAT
    normed = n * (2 * inner + 2) * FLOAT
    if length == 1 and not causal:
        read = n * (inner + paths) * FLOAT  # what is multiplied with what is read
        return around + parts + stepped + normed + read + (n * inner * FLOAT if width < FLOAT else 0)
    shared = n * paths * 2 * states * FLOAT
    starts = images * paths * inner * states * (-(-length // CHUNK) - 1) * FLOAT
    padded = (n + 2 * images) * inner * width if causal else 0
    return around + parts + stepped + normed + shared + starts + padded + 2 * paths * inner * states * FLOAT


def _work_on_scan(
    dim: int, length: int, images: int, ratio: float, trunk: TrunkConfig, paths: int = NUM_PATHS
) -> tuple[int, int]:
    """Give what a scan takes beside what is kept: while its gradients are found, and without any."""
    inner, n = widen(dim, ratio), images * length
    across = n * paths * inner * FLOAT
    shared = n * paths * 4 * trunk.ssm_d_state * FLOAT
    # The gradients of what it gave, of what it read and of its steps, while what came after it has gone.
    return 2 * across + shared, 3 * across + shared + n * (2 * dim + 4 * inner) * FLOAT


def _list_cnn_spans(stream: StreamConfig, work: Workload) -> list[Span]:
    _, height, width = stream.frame_shape
    rows, columns = find_cnn_sides(height, width)
    maps = [CNN_CHANNELS * (rows + 2 * back) * (columns + 2 * back) * work.images for back in (3, 2, 1, 0)]
    weights = FLOAT * count_visual_encoder(stream)
    kept = sum(maps) * work.width + 2 * work.images * stream.feature_dim * FLOAT
    return [_span(kept, weights, work, working=2 * maps[0] * FLOAT, passing=2 * maps[0] * FLOAT)]


def _span_state(stream: StreamConfig, work: Workload) -> Span:
    kept = work.images * 2 * stream.state_feature_dim * FLOAT
    return _span(kept, FLOAT * count_state_mlp(stream.state_dim, stream.state_feature_dim), work)


def _span_privileged(stream: StreamConfig, work: Workload) -> Span:
    entering, hidden = stream.state_dim + work.privileged_dim, stream.hidden_dim
    return Span(work.batch_size * (entering + hidden) * FLOAT, FLOAT * count_state_mlp(entering, hidden), 0, 0)


def _list_sequence_spans(stream: StreamConfig, work: Workload) -> list[Span]:
    hidden, n, trunk = stream.hidden_dim, work.images, stream.trunk
    entering = stream.feature_dim + stream.state_feature_dim
    weights = FLOAT * count_fusion(entering, hidden)
    spans = [_span(n * (entering * FLOAT + 2 * hidden * work.width), weights, work)]
    causal = stream.temporal_scan == "causal"
    scan = _keep_scan(hidden, work.seq_len, work.batch_size, trunk, work.width, causal)
    working = _work_on_scan(hidden, work.seq_len, work.batch_size, trunk.ssm_ratio, trunk, 1 if causal else NUM_PATHS)
    weights = FLOAT * count_temporal_layer(hidden, trunk, stream.temporal_scan)
    layer = _span(scan + n * hidden * (2 * FLOAT + work.width), weights, work, *working)
    attention = _span(n * 3 * hidden * work.width, FLOAT * count_attention(hidden), work)
    return [*spans, *[layer] * stream.temporal_layers, attention]


def _span_head(hidden: int, action_dim: int, work: Workload, critic: bool) -> Span:
    count = count_twin_critic if critic else count_actor
    kept = work.batch_size * hidden * 6 * FLOAT * (2 if critic else 1)
    return Span(kept, FLOAT * count(hidden, hidden, action_dim), 0, kept)


def _span(kept: int, weights: int, work: Workload, working: int = 0, passing: int = 0) -> Span:
    """Give a span; with 16 bits, weights are there once more at half their size."""
    return Span(kept + (weights // 2 if work.use_amp else 0), weights, working, passing)
