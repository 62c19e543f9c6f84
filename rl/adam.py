"""Adam in one kernel, without the import of torch's compiler that building a `torch.optim` optimizer brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980), equal to `torch.optim.Adam(..., fused=True)` to the bit.

    torch.optim loads torch's compiler when an optimizer is built (0.8 s of each run's start) and wraps each step in
    hooks that nobody here uses; this calls the same fused kernel.

    Args:
        parameters: changed in place by `step`.
        learning_rate: in (0, inf).
        betas: decay of the first and second moment.
        epsilon: added to the root of the second moment.

    Attributes:
        parameters: those that it moves, in the order that gradients come in.
    """

    TRANSIENT: ClassVar = ("parameters", "learning_rate", "_betas", "_epsilon")

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self._betas = betas
        self._epsilon = epsilon
        self._first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self.parameters]
        # The kernel counts steps in a tensor for each parameter, on its device.
        self._steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters against the gradients, which are in the order of the parameters."""
        torch._foreach_add_(self._steps, 1)
        torch._fused_adam_(
            self.parameters,
            list(gradients),
            self._first,
            self._second,
            [],
            self._steps,
            lr=self.learning_rate,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=0.0,
            eps=self._epsilon,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Give both moments and the number of steps taken."""
        return {"first": self._first, "second": self._second, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, on whatever device it is."""
        for mine, theirs in (
            (self._first, state["first"]),
            (self._second, state["second"]),
            (self._steps, state["steps"]),
        ):
            for tensor, source in zip(mine, theirs, strict=True):
                tensor.copy_(source)


def descend(loss: Tensor, optimizer: Adam, max_norm: float) -> Tensor | None:
    """Take one step on an optimizer's parameters; no gradient is computed for any others that the loss runs through.

    Args:
        loss: a number.
        max_norm: gradients longer than this are shortened to it; 0 means never.

    Returns:
        The norm that the gradients had, or None where they are never shortened.
    """
    gradients = torch.autograd.grad(loss, optimizer.parameters)
    norm = clip_gradients(gradients, max_norm) if max_norm > 0 else None
    optimizer.step(gradients)
    return norm


def clip_gradients(gradients: tuple[Tensor, ...], max_norm: float) -> Tensor:
    """Scale gradients in place so that their common norm is at most `max_norm`, and give the norm they had."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, factor)
    return norm
