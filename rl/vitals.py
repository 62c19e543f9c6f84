"""What an actor-critic agent measures for the training-health guard; see `training.signals.HealthSignals`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.adam import Adam, descend, measure_length
from rl.residual import ActionMap

MEASURE_EVERY = 5
"""One update of so many is measured: 50 in each window of the guard, at a fifth of the cost."""
SATURATED = 0.99
"""Size from which on an action in [-1, 1] sits at its bound, where tanh passes hardly any gradient."""

Vitals = dict[str, Tensor]
Metrics = dict[str, Tensor]


def is_measured(update: int) -> bool:
    """Tell whether an update, counted from 0, is one of those that are measured: the first is.

    Each block of `MEASURE_EVERY` has one, in the first block the first, in the second the second, and so on, so that
    what is done in every fifth update or tenth is measured too.
    """
    block, place = divmod(update, MEASURE_EVERY)
    return place == block % MEASURE_EVERY


def measure_critic(
    values: Sequence[Tensor], target: Tensor, reward: Tensor, next_value: Tensor, discount: Tensor
) -> Vitals:
    """Give the sizes of errors, targets and values over a batch.

    Args:
        values: of each critic, (batch, 1), before the update.
        target: what they are pulled to, (batch, 1).
        reward: the target's share that comes from this step, bonuses included, (batch, 1).
        next_value: what the target's other share is made of, (batch, 1).
        discount: of the next value, one number or (batch, 1).
    """
    with torch.no_grad():
        errors = [torch.linalg.vector_norm(value - target) for value in values]
        size = len(target)
        return {
            "error_square": sum((error * error for error in errors), torch.zeros_like(errors[0]))
            / (size * len(values)),
            "target_variance": target.var(correction=0),
            "reward_square": torch.linalg.vector_norm(reward).square() / size,
            "reward_max": torch.linalg.vector_norm(reward, torch.inf),
            "value_size": torch.linalg.vector_norm(values[0], 1) / size,
            "next_value_size": torch.linalg.vector_norm(next_value, 1) / size,
            "bootstrap_size": torch.linalg.vector_norm(target - reward, 1) / size,
            "discount": discount.max(),
        }


def measure_stuck_share(own: Tensor, slope: Tensor, obs: Tensor, action_map: ActionMap) -> Tensor:
    """Give the share of the policy's own actions that sit at a bound although the critic would not have them there.

    There the policy hardly learns any more, whatever the critic says. Where the best action is at the bound, the critic
    pulls outwards, and all is well; so it is where what is executed has reached the bound, not the correction to it.

    Args:
        own: the policy's own actions, (batch, action_dim), in [-1, 1].
        slope: the loss's derivative by them, of the same shape; the loss falls as values rise.
        obs: (batch, obs_dim), with the base action last where there is one.
    """
    with torch.no_grad():
        stuck = (own.abs() > SATURATED) & (own * slope >= 0)
        if action_map.delta is not None:
            stuck &= action_map.execute_tensor(obs, own).abs() < 1
        return stuck.float().mean()


def measure_when_passed_back(own: Tensor, obs: Tensor, action_map: ActionMap, vitals: Vitals) -> None:
    """Have `stuck_share` measured as soon as the loss's derivative by the own actions is known; see above."""

    def measure(slope: Tensor) -> None:
        vitals["stuck_share"] = measure_stuck_share(own, slope, obs, action_map)

    own.register_hook(measure)  # type: ignore[no-untyped-call]


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
