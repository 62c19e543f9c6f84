"""The cross scan: a feature map read along four paths, and what came of the paths laid back onto it.

Paths 0 to 3 go by rows, by columns, and both backwards. Shapes: B images, H x W positions, L = H W, K = 4 paths, C
channels. Rows of channels are copied by a table of positions in one go, which is on the CPU three times as fast as
transposing and flipping, and on CUDA adds nothing in an order that could vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rl.vmamba_td3.architecture import NUM_PATHS
from training.writing import is_written_down


@dataclass(frozen=True)
class CrossOrder:
    """Where the four paths of an H x W map lead.

    Attributes:
        visited: (L K,): the position that path k is at in its step l, at l K + k.
        deal: (L K,): row of (L, K) at (position, path) that belongs at (step, path).
        collect: (K L,): row of (L, K) at (step, path) that belongs at (path, position).
        undo: (L K,): row of (L, K) at (step, path) that belongs at (position, path).
    """

    visited: Tensor
    deal: Tensor
    collect: Tensor
    undo: Tensor


@lru_cache(maxsize=64)
def find_order(height: int, width: int, device: torch.device) -> CrossOrder:
    """Give the tables of one size of map; they are made once."""
    by_rows = torch.arange(height * width)
    by_columns = by_rows.view(height, width).t().flatten()
    visited = torch.stack([by_rows, by_columns, by_rows.flip(0), by_columns.flip(0)], dim=1)
    paths = torch.arange(NUM_PATHS)
    undo = visited.argsort(dim=0) * NUM_PATHS + paths
    tables = (visited, visited * NUM_PATHS + paths, undo.t(), undo)
    return CrossOrder(*(table.flatten().to(device) for table in tables))


def cross_scan(features: Tensor) -> Tensor:
    """Give (B, L, K, C): what each of the four paths meets, step by step, on maps of shape (B, H, W, C)."""
    order = find_order(int(features.shape[1]), int(features.shape[2]), features.device)
    if is_written_down():
        return _scan(features, order)
    out: Tensor = _Scan.apply(features, order)  # type: ignore[no-untyped-call]
    return out


def cross_merge(paths: Tensor, height: int, width: int) -> Tensor:
    """Give (B, H, W, C): at each position the sum of what the four paths have there; the adjoint of `cross_scan`.

    Args:
        paths: (B, L, K, C).
        height: H.
        width: W.
    """
    order = find_order(int(height), int(width), paths.device)
    out: Tensor = _merge(paths, order) if is_written_down() else _Merge.apply(paths, order)  # type: ignore[no-untyped-call]
    return out.view(-1, height, width, paths.shape[-1])


def cross_deal(parts: Tensor, height: int, width: int) -> Tensor:
    """Give (B, L, K, C) in the order of the paths' steps from (B, L, K, C) in the order of positions."""
    order = find_order(int(height), int(width), parts.device)
    if is_written_down():
        return _permute(parts, order.deal)
    out: Tensor = _Deal.apply(parts, order)  # type: ignore[no-untyped-call]
    return out


def _scan(features: Tensor, order: CrossOrder) -> Tensor:
    batch, channels = features.shape[0], features.shape[-1]
    rows = features.reshape(batch, -1, channels)
    return rows.index_select(1, order.visited).view(batch, -1, NUM_PATHS, channels)


def _merge(paths: Tensor, order: CrossOrder) -> Tensor:
    batch, length, _, channels = paths.shape
    rows = paths.reshape(batch, -1, channels).index_select(1, order.collect)
    return rows.view(batch, NUM_PATHS, length, channels).sum(1)


def _permute(parts: Tensor, table: Tensor) -> Tensor:
    return parts.reshape(parts.shape[0], -1, parts.shape[-1]).index_select(1, table).view(parts.shape)


class _Scan(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, order: CrossOrder) -> Tensor:
        ctx.order, ctx.shape = order, features.shape
        return _scan(features, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return _merge(slope, ctx.order).view(ctx.shape), None


class _Merge(Function):
    @staticmethod
    def forward(ctx: Any, paths: Tensor, order: CrossOrder) -> Tensor:
        ctx.order = order
        return _merge(paths, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return _scan(slope, ctx.order), None


class _Deal(Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, order: CrossOrder) -> Tensor:
        ctx.order = order
        return _permute(parts, order.deal)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return _permute(slope, ctx.order.undo), None
