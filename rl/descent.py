"""One loss, several networks: a rate for each, gradients shortened network by network or all together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from training.adam import Adam, clip_gradients, measure_length
from training.gate import GradientGate
from training.vitals import Metrics, Vitals, note_weights


class Descent:
    """Moves the networks that a loss runs through.

    Args:
        name: of the loss's owner, in metrics.
        parts: networks by name.
        rates: learning rate of each.
        max_norm: longest gradient; 0 means any.
        scope: whether that holds for each network alone, as the documents have it, or for all together.
        gated: whether steps out of all proportion are left out.
        epsilon: see `training.adam.Adam`.

    Attributes:
        optimizers: one for each network, in their order.
    """

    TRANSIENT: ClassVar = ("_name", "_names", "_max_norm", "_scope", "_parameters")

    def __init__(
        self,
        name: str,
        parts: Mapping[str, nn.Module],
        rates: Mapping[str, float],
        max_norm: float,
        scope: Literal["module", "global"],
        gated: bool,
        epsilon: float = 1e-8,
    ) -> None:
        self._name, self._names, self._max_norm, self._scope = name, list(parts), max_norm, scope
        self.optimizers = [Adam(list(part.parameters()), rates[key], epsilon=epsilon) for key, part in parts.items()]
        if gated:
            for optimizer in self.optimizers:
                optimizer.gate = GradientGate(optimizer.parameters[0].device)
        self._parameters = [parameter for optimizer in self.optimizers for parameter in optimizer.parameters]

    def descend(self, loss: Tensor, metrics: Metrics, vitals: Vitals | None) -> None:
        """Take one step; note the gradient's length before it was shortened, and what the guard wants to know."""
        if self._name == "critic":
            self.note_weights(vitals)
        gradients = list(torch.autograd.grad(loss, self._parameters))
        groups, start = [], 0
        for optimizer in self.optimizers:
            groups.append(gradients[start : start + len(optimizer.parameters)])
            start += len(optimizer.parameters)
        lengths = self._shorten(gradients, groups)
        for optimizer, group, length in zip(self.optimizers, groups, lengths, strict=True):
            optimizer.step(group, length)
        if self._max_norm > 0:
            metrics[f"train/{self._name}_grad_norm"] = torch.linalg.vector_norm(torch.stack(lengths))
        if vitals is not None:
            vitals |= {f"gradient/{name}": length for name, length in zip(self._names, lengths, strict=True)}

    def _shorten(self, gradients: list[Tensor], groups: list[list[Tensor]]) -> list[Tensor]:
        """Shorten gradients in place; give the length that each network's had."""
        if self._max_norm > 0 and self._scope == "module":
            return [clip_gradients(group, self._max_norm) for group in groups]
        lengths = [measure_length(group) for group in groups]
        if self._max_norm > 0:
            clip_gradients(gradients, self._max_norm)
        return lengths

    def note_weights(self, vitals: Vitals | None) -> None:
        """Note the lengths of all networks' parameters, where vitals are measured."""
        for name, optimizer in zip(self._names, self.optimizers, strict=True):
            note_weights(name, optimizer, vitals)

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates that it was built with."""
        for optimizer in self.optimizers:
            optimizer.scale_learning_rate(factor)

    def state_dict(self) -> dict[str, Any]:
        """Give the optimizers' states by network."""
        return {name: one.state_dict() for name, one in zip(self._names, self.optimizers, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        for name, optimizer in zip(self._names, self.optimizers, strict=True):
            optimizer.load_state_dict(state[name])
