"""What an actor-critic agent measures for the training-health guard; see `training.signals.HealthSignals`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.residual import ActionMap
from training.vitals import Vitals

SATURATED = 0.99
"""Size from which on an action in [-1, 1] sits at its bound, where tanh passes hardly any gradient."""


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
    # Without its graph: that holds the hook, and if the hook held it too, no update would ever be let go.
    done = own.detach()

    def measure(slope: Tensor) -> None:
        vitals["stuck_share"] = measure_stuck_share(done, slope, obs, action_map)

    own.register_hook(measure)  # type: ignore[no-untyped-call]
