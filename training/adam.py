"""Adam in one kernel, without the import of torch's compiler that building a `torch.optim` optimizer brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from training.gate import GradientGate


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
        learning_rate: of the next step.
        gate: decides which steps are left out; None where none is.
    """

    TRANSIENT: ClassVar = ("parameters", "learning_rate", "_first_rate", "_betas", "_epsilon")

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate = self._first_rate = learning_rate
        self.gate: GradientGate | None = None
        self._betas = betas
        self._epsilon = epsilon
        self._first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self.parameters]
        # The kernel counts steps in a tensor for each parameter, on its device.
        self._steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], length: Tensor | None = None) -> None:
        """Move the parameters against the gradients, which are in the order of the parameters.

        Args:
            length: of the gradients together, which the gate judges; without it nothing is left out.
        """
        skip = self.gate.judge(length) if self.gate is not None and length is not None else None
        torch._foreach_add_(self._steps, 1)
        if skip is not None:
            torch._foreach_sub_(self._steps, [skip] * len(self._steps))
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
            found_inf=skip,
        )

    def scale_learning_rate(self, factor: float) -> None:
        """Take a multiple of the learning rate that it was built with."""
        self.learning_rate = self._first_rate * factor

    def state_dict(self) -> dict[str, Any]:
        """Give both moments, the number of steps taken, and the gate's state."""
        gate = None if self.gate is None else self.gate.state_dict()
        return {"first": self._first, "second": self._second, "steps": self._steps, "gate": gate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, on whatever device it is."""
        for mine, theirs in (
            (self._first, state["first"]),
            (self._second, state["second"]),
            (self._steps, state["steps"]),
        ):
            for tensor, source in zip(mine, theirs, strict=True):
                tensor.copy_(source)
        if self.gate is not None:
            self.gate.load_state_dict(state["gate"])


def forget_lengths(optimizers: Sequence[Adam]) -> None:
    """Have the gates of some optimizers begin anew, where they have one."""
    for optimizer in optimizers:
        if optimizer.gate is not None:
            optimizer.gate.forget()


def descend(loss: Tensor, optimizer: Adam, max_norm: float, *, measure: bool = False) -> Tensor | None:
    """Take one step on an optimizer's parameters; no gradient is computed for any others that the loss runs through.

    Args:
        loss: a number.
        max_norm: gradients longer than this are shortened to it; 0 means never.
        measure: give the gradients' length even where nothing needs it.

    Returns:
        The length that the gradients had, or None where nobody asked for it.
    """
    gradients = torch.autograd.grad(loss, optimizer.parameters)
    length = None
    if max_norm > 0:
        length = clip_gradients(gradients, max_norm)
    elif measure or optimizer.gate is not None:
        length = measure_length(gradients)
    optimizer.step(gradients, length)
    return length


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their common length is at most `max_norm`, and give the length they had."""
    length = measure_length(gradients)
    torch._foreach_mul_(list(gradients), torch.clamp(max_norm / (length + 1e-6), max=1.0))
    return length


def measure_length(tensors: Sequence[Tensor]) -> Tensor:
    """Give the length of all numbers of some tensors together."""
    length: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return length
