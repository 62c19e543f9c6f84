"""A window of visual and state features -> one vector: fusion, scan over time, attention of the last step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.vmamba_td3.architecture import StreamConfig, check_heads
from rl.vmamba_td3.encoders import draw_uniform
from rl.vmamba_td3.precision import allow_bfloat16, widen_numbers
from rl.vmamba_td3.temporal import TemporalMamba
from rl.vmamba_td3.vssm import draw_weights
from training.products import Linear


class FusionMLP(nn.Module):
    """Visual and state features of a step, side by side, through a linear layer, a norm and ReLU."""

    def __init__(self, visual_dim: int, state_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear = Linear(visual_dim + state_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, visual: Tensor, state: Tensor) -> Tensor:
        """Give (..., hidden_dim) for (..., visual_dim) and (..., state_dim)."""
        return functional.relu(self.norm(self.linear(torch.cat([visual, state], dim=-1))))


class CrossAttention(nn.Module):
    """The last step asks all steps, itself among them, by several heads; positions are not marked.

    What order the steps had is known from the scan before alone. Parameters are called and drawn as in
    `torch.nn.MultiheadAttention`, which this is for a single query, without what it computes for others.

    Args:
        dim: channels of the sequence.
        num_heads: must divide `dim`.

    Raises:
        ValueError: the heads don't divide the channels.
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads = dim, num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = Linear(dim, dim)
        self.draw(None)

    def forward(self, sequence: Tensor) -> Tensor:
        """Give (batch, dim) for a sequence of shape (batch, steps, dim)."""
        keys, values = self._project(sequence, slice(self.dim, None)).chunk(2, dim=-1)
        weights = self._weigh(sequence, keys)
        gathered = weights.unsqueeze(2) @ self._split_heads(values)
        out: Tensor = self.out_proj(gathered.flatten(1))
        return out

    def get_attention_weights(self, sequence: Tensor) -> Tensor:
        """Give (batch, heads, steps), how much of each step each head takes; the weights of a head sum to 1."""
        return self._weigh(sequence, self._project(sequence, slice(self.dim, 2 * self.dim)))

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Draw all parameters; None is torch's own generator."""
        nn.init.xavier_uniform_(self.in_proj_weight, generator=generator)
        bound = 1 / math.sqrt(self.dim)
        self.out_proj.weight.uniform_(-bound, bound, generator=generator)
        self.in_proj_bias.zero_()
        self.out_proj.bias.zero_()

    def _weigh(self, sequence: Tensor, keys: Tensor) -> Tensor:
        """Give (batch, heads, steps)."""
        queries = self._project(sequence[:, -1], slice(self.dim)) / math.sqrt(self.dim // self.num_heads)
        scores: Tensor = self._split_heads(keys) @ queries.reshape(-1, self.num_heads, self.dim // self.num_heads, 1)
        return scores.squeeze(-1).softmax(-1)

    def _project(self, features: Tensor, rows: slice) -> Tensor:
        return functional.linear(features, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def _split_heads(self, sequence: Tensor) -> Tensor:
        """Give (batch, heads, steps, dim / heads)."""
        return sequence.reshape(*sequence.shape[:2], self.num_heads, -1).transpose(1, 2)


class MambaSequenceEncoder(nn.Module):
    """A window of visual and state features -> one vector.

    Args:
        visual_dim: numbers that a frame became.
        state_dim: numbers that a state became.
        hidden_dim: numbers that the window becomes.
        num_layers: scans over time.
        num_heads: of the attention; must divide `hidden_dim`.
        scan: see `TemporalMambaBlock`.
        d_state: see `SS2D`.
        ratio: see `SS2D`.
        use_amp: let products take bfloat16; scans and the vector stay in 32 bits.

    Raises:
        ValueError: the heads don't divide `hidden_dim`.
    """

    def __init__(
        self,
        visual_dim: int,
        state_dim: int,
        hidden_dim: int,
        num_layers: int = 1,
        num_heads: int = 4,
        scan: Literal["cross", "causal"] = "cross",
        d_state: int = 16,
        ratio: float = 2.0,
        *,
        use_amp: bool = False,
    ) -> None:
        super().__init__()
        self.use_amp = use_amp
        self.fusion = FusionMLP(visual_dim, state_dim, hidden_dim)
        self.temporal = TemporalMamba(hidden_dim, num_layers, scan, d_state, ratio)
        self.cross_attn = CrossAttention(hidden_dim, num_heads)
        draw_weights(self.temporal, None)

    def forward(self, visual: Tensor, state: Tensor) -> Tensor:
        """Give (batch, hidden_dim) for windows of shape (batch, steps, visual_dim) and (batch, steps, state_dim)."""
        with allow_bfloat16(visual.device, self.use_amp):
            context: Tensor = self.cross_attn(self.temporal(self.fusion(visual, state)))
        return widen_numbers(context)

    def find_attention(self, visual: Tensor, state: Tensor) -> Tensor:
        """Give (batch, heads, steps), the weights with which `forward` gathers the same windows."""
        with allow_bfloat16(visual.device, self.use_amp):
            weights = self.cross_attn.get_attention_weights(self.temporal(self.fusion(visual, state)))
        return widen_numbers(weights)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters."""
        draw_uniform((self.fusion.linear,), generator)
        self.fusion.norm.reset_parameters()
        draw_weights(self.temporal, generator)
        self.cross_attn.draw(generator)


def build_sequence_encoder(stream: StreamConfig, *, use_amp: bool = False) -> MambaSequenceEncoder:
    """Give the sequence encoder that a stream asks for."""
    return MambaSequenceEncoder(
        stream.feature_dim,
        stream.state_feature_dim,
        stream.hidden_dim,
        stream.temporal_layers,
        stream.num_heads,
        stream.temporal_scan,
        stream.trunk.ssm_d_state,
        stream.trunk.ssm_ratio,
        use_amp=use_amp,
    )
