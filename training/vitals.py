"""Optimizer steps that note what the training-health guard wants to know; see `training.signals.HealthSignals`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.adam import Adam, descend, measure_length
from training.signals import WEIGHTS

MEASURE_EVERY = 5
"""One update of so many is measured: 50 in each window of the guard, at a fifth of the cost."""

Vitals = dict[str, Tensor]
Metrics = dict[str, Tensor]


def is_measured(update: int) -> bool:
    """Tell whether an update, counted from 0, is one of those that are measured: the first is.

    Each block of `MEASURE_EVERY` has one, in the first block the first, in the second the second, and so on, so that
    what is done in every fifth update or tenth is measured too.
    """
    block, place = divmod(update, MEASURE_EVERY)
    return place == block % MEASURE_EVERY


def descend_measured(
    loss: Tensor, name: str, optimizer: Adam, max_norm: float, metrics: Metrics, vitals: Vitals | None
) -> None:
    """Take one optimizer step, and note the gradient's length where it is clipped and where vitals are measured.

    Args:
        loss: a number.
        name: of the network.
        max_norm: gradients longer than this are shortened to it; 0 means never.
        metrics: gets `train/<name>_grad_norm` where gradients are clipped.
        vitals: gets `gradient/<name>` and `weights/<name>`; None in an update that isn't measured.
    """
    note_weights(name, optimizer, vitals)
    length = descend(loss, optimizer, max_norm, measure=vitals is not None)
    note_length(length, name, max_norm, metrics, vitals)


def note_weights(name: str, optimizer: Adam, vitals: Vitals | None) -> None:
    """Note `weights/<name>`, the length of a network's parameters before a step."""
    if vitals is not None:
        vitals[f"weights/{name}"] = measure_length([parameter.detach() for parameter in optimizer.parameters])


def note_length(length: Tensor | None, name: str, max_norm: float, metrics: Metrics, vitals: Vitals | None) -> None:
    """Note what `descend_measured` notes, of a step that was taken."""
    if length is None:
        return
    if max_norm > 0:
        metrics[f"train/{name}_grad_norm"] = length
    if vitals is not None:
        vitals[f"gradient/{name}"] = length


def note_skips(optimizers: Sequence[Adam], vitals: Vitals | None) -> None:
    """Note `skips`, the steps that gates have left out since they were last asked; nothing where there is no gate."""
    if vitals is not None:
        for optimizer in optimizers:
            if optimizer.gate is not None:
                skips = optimizer.gate.take_skips()
                vitals["skips"] = vitals["skips"] + skips if "skips" in vitals else skips


def combine_vitals(measured: Sequence[Vitals]) -> Vitals:
    """Give the vitals of several updates as those of one training step that made them all.

    Lengths of parameters are those before the first of them, so that a run's first step still says where it began;
    everything else is a mean.

    Args:
        measured: at least one, all with the same names.
    """
    first = measured[0]
    return {
        name: value if name.startswith(WEIGHTS) else torch.stack([vitals[name] for vitals in measured]).mean()
        for name, value in first.items()
    }
