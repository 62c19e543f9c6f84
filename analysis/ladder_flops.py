"""How much arithmetic one update of DDPG, TD3 or SAC needs, from what its run reports about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_CRITICS = {"ddpg": 1, "td3": 2, "sac": 2}
_ACTOR_OUTPUTS = {"ddpg": 1, "td3": 1, "sac": 2}
"""Numbers that the actor gives for each action: its value, or mean and log standard deviation."""


@dataclass(frozen=True)
class Shape:
    """Sizes of an actor, from observation to outputs, and a critic, from both to a value: plain layers with biases."""

    obs_dim: int
    action_dim: int
    hidden_dims: tuple[int, ...]
    actor_outputs: int

    @property
    def actor_weights(self) -> int:
        """Entries of the actor's weight matrices, biases left out."""
        return _count_weights((self.obs_dim, *self.hidden_dims, self.actor_outputs * self.action_dim))

    @property
    def critic_weights(self) -> int:
        """Entries of one critic's weight matrices, biases left out."""
        return _count_weights((self.obs_dim + self.action_dim, *self.hidden_dims, 1))


def _count_weights(sizes: Sequence[int]) -> int:
    return sum(before * after for before, after in pairwise(sizes))


def count_update_flops(settings: Mapping[str, Any], parameters: Mapping[str, int]) -> float | None:
    """Give the floating-point operations of the matrix products that one update needs, two for each multiply-add.

    A product costs `2 * batch * weights`, forward, for the gradient of the weights, and for the gradient of the
    inputs, which the first layer of a network doesn't need; a critic in the actor's step needs it for the action's
    columns alone. Everything else (activations, losses, optimizer, targets, sampling) is left out. docs/batch_size.md
    has the sums.

    Args:
        settings: of the run; read are algorithm_name, batch_size, hidden_dims and, of TD3, policy_delay.
        parameters: learnable parameters by component, as in `summary.json`.

    Returns:
        None where the trainer is another one, a setting is missing, or the counts are not those of such networks.
    """
    algorithm, batch = settings.get("algorithm_name"), settings.get("batch_size")
    delay = settings.get("policy_delay") if algorithm == "td3" else 1
    shape = find_shape(settings, parameters)
    if shape is None or not batch or not delay:
        return None
    critic = _count_critic_step(shape, _CRITICS[str(algorithm)])
    # TD3's actor climbs its first critic; SAC's the lesser of two, both of which have to be computed.
    actor = _count_actor_step(shape, 2 if algorithm == "sac" else 1)
    return float(2 * batch * (critic + actor / delay))


def _count_critic_step(shape: Shape, critics: int) -> int:
    """Give multiply-adds per sample: next action, target critics, critics, their weights' and inner gradients."""
    weights = shape.critic_weights
    first = (shape.obs_dim + shape.action_dim) * shape.hidden_dims[0]
    return shape.actor_weights + critics * (weights + weights + weights + weights - first)


def _count_actor_step(shape: Shape, critics: int) -> int:
    """Give multiply-adds per sample: action, critics, gradient of the action, the actor's weights' and inner ones."""
    weights, width = shape.actor_weights, shape.hidden_dims[0]
    to_action = shape.critic_weights - shape.obs_dim * width
    return 3 * weights - shape.obs_dim * width + critics * (shape.critic_weights + to_action)


def find_shape(settings: Mapping[str, Any], parameters: Mapping[str, int]) -> Shape | None:
    """Give the sizes of observation and action that a run's parameter counts imply.

    With hidden layers h_1 ... h_k, `inner` parameters between them (all hidden biases among these) and `m` outputs for
    each action: critic = (obs + action) * h_1 + inner + h_k + 1, actor = obs * h_1 + inner + m * action * (h_k + 1).

    Returns:
        None where the trainer is another one or no whole sizes solve both.
    """
    algorithm, hidden = settings.get("algorithm_name"), settings.get("hidden_dims")
    if algorithm not in _CRITICS or not hidden:
        return None
    actor = sum(count for name, count in parameters.items() if name.startswith("actor"))
    critics = sum(count for name, count in parameters.items() if name.startswith("critic"))
    critic, unequal = divmod(critics, _CRITICS[algorithm])
    inner = _count_weights(hidden) + sum(hidden)
    outputs = _ACTOR_OUTPUTS[algorithm]
    both, rest = divmod(critic - inner - hidden[-1] - 1, hidden[0])
    factor = outputs * (hidden[-1] + 1) - hidden[0]
    if unequal or rest or factor == 0:
        return None
    action, rest = divmod(actor - inner - both * hidden[0], factor)
    if rest or not 0 < action < both:
        return None
    return Shape(both - action, action, tuple(hidden), outputs)
