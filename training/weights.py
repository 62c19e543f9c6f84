"""Networks that begin as those of another run have become."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightsError(ValueError):
    """Networks of another run that don't fit. The message names the first that doesn't, and why."""


def copy_weights(networks: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give networks the parameters and buffers of others, by name and shape; where one doesn't fit, none changes.

    Args:
        networks: of this run, slow copies among them.
        states: what the others' `state_dict` gave, under the same names.

    Raises:
        WeightsError: a network, a parameter or a shape is another.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, network in networks.items():
        own, theirs = network.state_dict(), states.get(name)
        if theirs is None:
            raise WeightsError(f"it has no network {name}")
        if missing := [key for key in own if key not in theirs] + [key for key in theirs if key not in own]:
            raise WeightsError(f"{name} is built otherwise there: {missing[0]} is in one of the two alone")
        for key, tensor in own.items():
            if tensor.shape != theirs[key].shape:
                shapes = f"{tuple(theirs[key].shape)} there and {tuple(tensor.shape)} here"
                raise WeightsError(f"{name} is of other sizes there: {key} has the shape {shapes}")
            pairs.append((tensor, theirs[key]))
    with torch.no_grad():
        for tensor, value in pairs:
            tensor.copy_(value)
