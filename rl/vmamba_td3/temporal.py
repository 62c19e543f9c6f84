"""Scans over time: a window of fused features -> the same window, each step knowing of others."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.scan.selective import scan_step
from rl.vmamba_td3.precision import widen_numbers
from rl.vmamba_td3.ss2d import SS2D, SelectiveSpace
from training.products import Linear

NUM_TAPS = 3
"""Steps that the causal scan's convolution sees: as many as count of the 3x3 one on a map one position wide."""


class CausalState(NamedTuple):
    """What a `CausalScan` remembers between two steps.

    Attributes:
        recent: (batch, taps - 1, channels), what the convolution saw last.
        memory: (batch, channels, states), the state spaces.
    """

    recent: Tensor
    memory: Tensor


class CausalScan(SelectiveSpace):
    """A selective state space that reads a sequence forward only, so that no step knows of later ones.

    Args:
        dim: channels of the sequence.
        d_state: numbers that each channel remembers.
        ratio: channels inside for each outside.

    Source: Gu and Dao 2023, arXiv:2312.00752, section 3.4, with a norm before the gate as in SS2D.
    """

    def __init__(self, dim: int, d_state: int = 16, ratio: float = 2.0) -> None:
        super().__init__(dim, d_state, ratio, num_paths=1)
        inner = self.d_inner
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, NUM_TAPS, groups=inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, dim, bias=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """Give (batch, steps, dim) for a sequence of that shape, from a state of zeros."""
        inner, gate = self.in_proj(sequence).chunk(2, dim=-1)
        seen = self._convolve(functional.pad(inner, (0, 0, NUM_TAPS - 1, 0)))
        read = self.scan(seen.unsqueeze(2), self.project(seen)).squeeze(2)
        return self._finish(read, gate)

    def begin(self, batch: int) -> CausalState:
        """Give the state before a first step."""
        zeros = self.Ds.new_zeros
        return CausalState(zeros(batch, NUM_TAPS - 1, self.d_inner), zeros(batch, self.d_inner, self.d_state))

    def step(self, features: Tensor, state: CausalState) -> tuple[Tensor, CausalState]:
        """Give (batch, dim) for the next step's features of that shape, and the state after it."""
        inner, gate = self.in_proj(features).chunk(2, dim=-1)
        window = torch.cat([state.recent, inner.unsqueeze(1)], dim=1)
        seen = self._convolve(window).squeeze(1)
        read, memory = self.take_step(seen, self.project(seen), state.memory)
        return self._finish(read, gate), CausalState(window[:, 1:], memory)

    def take_step(self, features: Tensor, parts: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Give (batch, channels) that the state spaces make of one step, and their memory after it.

        Args:
            features: (batch, channels).
            parts: (batch, 1, rank + 2 N), of `project`.
            memory: (batch, channels, N).
        """
        rank, inputs, outputs = self.split(parts)
        return scan_step(
            memory,
            widen_numbers(features),
            self.raise_rank(rank).squeeze(1),
            -self.A_logs.exp(),
            inputs,
            outputs,
            self.Ds,
            self.dt_projs_bias.flatten(),
            delta_softplus=True,
        )

    def _convolve(self, window: Tensor) -> Tensor:
        """Give (batch, steps, channels) from a window with `NUM_TAPS` - 1 steps more at its beginning."""
        steps = window.shape[1] - NUM_TAPS + 1
        assert self.conv1d.bias is not None
        total: Tensor = self.conv1d.bias
        for tap, weight in enumerate(self.conv1d.weight.squeeze(1).unbind(1)):
            total = torch.addcmul(total, window[:, tap : tap + steps], weight)
        return functional.silu(total)

    def _finish(self, read: Tensor, gate: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.out_norm(read) * functional.silu(gate))
        return out


class TemporalMambaBlock(nn.Module):
    """One scan over time, on normed features and added to them.

    Args:
        dim: channels of the sequence.
        scan: `cross` takes time for the height of a map one position wide and scans that as SS2D does: forward and
            backward, twice each, so that every step knows of all. `causal` reads forward only.
        d_state: see `SS2D`.
        ratio: see `SS2D`.
    """

    def __init__(self, dim: int, scan: Literal["cross", "causal"], d_state: int, ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, d_state, ratio) if scan == "cross" else CausalScan(dim, d_state, ratio)

    def forward(self, sequence: Tensor) -> Tensor:
        """Give (batch, steps, dim) for a sequence of that shape."""
        normed = self.norm(sequence)
        scanned: Tensor = (
            self.op(normed) if isinstance(self.op, CausalScan) else self.op(normed.unsqueeze(2)).squeeze(2)
        )
        return sequence + scanned

    def begin(self, batch: int) -> CausalState:
        """Give the state before a first step."""
        return self._find_causal().begin(batch)

    def step(self, features: Tensor, state: CausalState) -> tuple[Tensor, CausalState]:
        """Give (batch, dim) for the next step's features of that shape, and the state after it."""
        scanned, after = self._find_causal().step(self.norm(features), state)
        return features + scanned, after

    def _find_causal(self) -> CausalScan:
        if not isinstance(self.op, CausalScan):
            raise ValueError("temporal_scan is cross, which needs the whole window: only causal goes step by step")
        return self.op


class TemporalMamba(nn.Module):
    """Scans over time, one on the other, with a norm after each.

    Args:
        dim: channels of the sequence.
        num_layers: how many.
        scan: see `TemporalMambaBlock`.
        d_state: see `SS2D`.
        ratio: see `SS2D`.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 1,
        scan: Literal["cross", "causal"] = "cross",
        d_state: int = 16,
        ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TemporalMambaBlock(dim, scan, d_state, ratio) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers))

    def forward(self, sequence: Tensor) -> Tensor:
        """Give (batch, steps, dim) for a sequence of that shape."""
        for block, norm in zip(self.blocks, self.norms, strict=True):
            sequence = norm(block(sequence))
        return sequence

    def begin(self, batch: int) -> list[CausalState]:
        """Give each layer's state before a first step.

        Raises:
            ValueError: it scans both ways.
        """
        return [block.begin(batch) for block in self._list_blocks()]

    def step(self, features: Tensor, states: list[CausalState]) -> tuple[Tensor, list[CausalState]]:
        """Give (batch, dim) for the next step's features of that shape, as `forward` would, and the states after it.

        Raises:
            ValueError: it scans both ways.
        """
        after = []
        for block, norm, state in zip(self._list_blocks(), self.norms, states, strict=True):
            features, next_state = block.step(features, state)
            features = norm(features)
            after.append(next_state)
        return features, after

    def _list_blocks(self) -> list[TemporalMambaBlock]:
        return [block for block in self.blocks if isinstance(block, TemporalMambaBlock)]
