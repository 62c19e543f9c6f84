"""The selective scan, the recurrence inside Mamba's layers, and one step of it for streams."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rl.scan.arguments import ScanArguments
from rl.scan.backends import BackendName, choose_backend
from rl.scan.by_steps import scan_by_steps
from training.writing import is_written_down


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: BackendName = "auto",
) -> Tensor:
    """Give `y_t = C_t h_t + D u_t` with `h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`, from h = 0 on.

    Computed in float32 whatever the types, also inside autocast; float64 stays float64 by `torch`, which "auto"
    takes for it. Gradients go to all tensors, once: they can't be differentiated again. Memory beyond arguments,
    result and gradients is a small part of what all the states would take.

    Args:
        u: (batch, dim, L).
        delta: (batch, dim, L), the size of each step.
        A: (dim, N), usually negative.
        B: (batch, groups, N, L): dim / groups neighbouring channels share one.
        C: like B.
        D: (dim,); None is 0.
        delta_bias: (dim,), added to delta first.
        delta_softplus: then the softplus of it is taken.
        backend: see docs/vmamba_td3.md; "auto" is the fastest that is here, and says so where a faster one is not.

    Returns:
        (batch, dim, L), of u's type.

    Raises:
        ScanBackendError: the backend can't be had here, and why.
        ValueError: the arguments don't fit together.

    Source: Gu and Dao 2023, arXiv:2312.00752, Algorithm 2, with B discretised as in the code they published.
    """
    arguments = ScanArguments(u, delta, A, B, C, D, delta_bias, delta_softplus)
    arguments.check()
    if is_written_down():
        return scan_by_steps(arguments.cast(torch.float32)).to(u.dtype)
    chosen = choose_backend(backend, u.device.type, u.dtype)
    return chosen.scan(arguments.cast(chosen.choose_dtype(u.dtype))).to(u.dtype)


def scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Give y of one time step, (batch, dim), and the state after it, for streams; `selective_scan` is many of these.

    Computed in the state's type by plain torch operations, also inside autocast. `state` is left as it was.

    Args:
        state: (batch, dim, N); zeros before the first step.
        u: (batch, dim), and so is delta.
        B: (batch, groups, N), and so is C.
    """
    batch, dim, states = state.shape
    groups = B.shape[1]
    with torch.autocast(state.device.type, enabled=False):
        u, delta, A, B, C = (tensor.to(state.dtype) for tensor in (u, delta, A, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias.to(state.dtype)
        if delta_softplus:
            delta = functional.softplus(delta)
        driven = (delta * u).view(batch, groups, dim // groups, 1) * B[:, :, None]
        after = torch.addcmul(driven.view(batch, dim, states), torch.exp(delta[..., None] * A), state)
        y = (after.view(batch, groups, dim // groups, states) @ C[..., None]).view(batch, dim)
        if D is not None:
            y = torch.addcmul(y, u, D.to(state.dtype))
    return y, after
