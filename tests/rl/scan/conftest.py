"""Scans of any shape, and what they have to give: the recurrence in float64, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

Scan = Callable[..., Tensor]
Arguments = dict[str, Any]


def draw_arguments(
    batch: int,
    groups: int,
    channels: int,
    states: int,
    steps: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    positive: bool = False,
) -> Arguments:
    """Give what a layer's scan is called with.

    Args:
        channels: of one group.
        positive: delta and its bias are, so that they need no softplus.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dim = groups * channels
    tensors = {
        "u": draw(batch, dim, steps),
        "delta": draw(batch, dim, steps),
        "A": -torch.exp(draw(dim, states)),
        "B": draw(batch, groups, states, steps),
        "C": draw(batch, groups, states, steps),
        "D": draw(dim),
        "delta_bias": draw(dim) - 2,
    }
    if positive:
        tensors |= {"delta": tensors["delta"].abs() / 4, "delta_bias": torch.exp(tensors["delta_bias"])}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return {**tensors, "delta_softplus": not positive}


def scan_step_by_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Give y by the definition, one image, one channel's states at a time, in the arguments' type."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = functional.softplus(delta)
    share = u.shape[1] // B.shape[1]
    B, C = (tensor.repeat_interleave(share, 1) for tensor in (B, C))
    state, ys = torch.zeros_like(B[..., 0]), []
    times = (tensor.unbind(-1) for tensor in (u, delta, B, C))
    for now_u, now_delta, now_B, now_C in zip(*times, strict=True):
        state = torch.exp(now_delta[..., None] * A) * state + now_delta[..., None] * now_B * now_u[..., None]
        ys.append((state * now_C).sum(-1))
    y = torch.stack(ys, -1)
    return y if D is None else y + D[:, None] * u


def find_y_and_gradients(scan: Scan, arguments: Arguments) -> dict[str, Tensor]:
    """Give y, and the gradient of each argument where a fixed random slope comes in."""
    leaves = {
        name: value.detach().clone().requires_grad_() for name, value in arguments.items() if isinstance(value, Tensor)
    }
    others = {name: value for name, value in arguments.items() if name not in leaves}
    y = scan(**leaves, **others)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = torch.autograd.grad(y, list(leaves.values()), slope.to(y), allow_unused=True)
    found = {"y": y.detach()}
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient is not None, name
        assert gradient.dtype == leaves[name].dtype, name
        found[name] = gradient
    return found


def find_errors(scan: Scan, arguments: Arguments) -> dict[str, float]:
    """Give the greatest error of y and of each gradient, over the greatest true value."""
    doubles = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    truth, found = find_y_and_gradients(scan_step_by_step, doubles), find_y_and_gradients(scan, arguments)
    errors = {}
    for name, value in truth.items():
        worst, scale = (found[name].double() - value).abs().max().item(), value.abs().max().item()
        errors[name] = worst if scale == 0 else worst / scale
    return errors


class Tools:
    """What the tests of the scan share."""

    draw_arguments = staticmethod(draw_arguments)
    scan_step_by_step = staticmethod(scan_step_by_step)
    find_y_and_gradients = staticmethod(find_y_and_gradients)
    find_errors = staticmethod(find_errors)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools
