"""DDPG's update written out by hand for the CPU: the arithmetic of `rl/ddpg.py` in about half the time.

Three things save it. Nothing is recorded for autograd. Each network lies in one flat tensor, so that Adam, clipping and
the targets' step are one call each. And large products go to oneDNN (`training/products.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rl.buffers import Batch
from rl.networks import MLP, Actor, Critic
from rl.residual import ActionMap
from rl.vitals import measure_critic, measure_stuck_share
from training.adam import Adam
from training.products import multiply
from training.vitals import Metrics, Vitals, note_length, note_weights


def split_flat(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Give the consecutive parts of a flat tensor as views in the shapes of `like`."""
    parts = flat.split_with_sizes([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class FlatMLP:
    """The parameters of an MLP in one flat tensor, and its forward and backward pass over them.

    The module keeps working: its parameters become views of the flat tensor, so that it shows every step, and its
    `load_state_dict` writes into it. What holds on to the module's earlier memory (a `NumpyActor`) must be built anew.

    Args:
        mlp: on the CPU.

    Attributes:
        parameters: (number of parameters,): weight and bias of the first layer, of the second, ...
        gradients: of the same shape; what `backward` wrote.
        parts: `parameters` as weights (out, in) and biases (out,).
    """

    def __init__(self, mlp: MLP) -> None:
        module_parameters = list(mlp.parameters())
        self.parameters = torch.cat([parameter.detach().reshape(-1) for parameter in module_parameters])
        self.gradients = torch.zeros_like(self.parameters)
        self.parts = split_flat(self.parameters, module_parameters)
        for parameter, part in zip(module_parameters, self.parts, strict=True):
            parameter.data = part
        self._first = module_parameters[0]
        self._weights, self._biases = self.parts[::2], self.parts[1::2]
        gradients = split_flat(self.gradients, module_parameters)
        self._weight_gradients, self._bias_gradients = gradients[::2], gradients[1::2]

    def is_shared(self) -> bool:
        """Tell whether the module's parameters still are views of the flat tensor; `.to` and `.double` part them."""
        return self._first.data_ptr() == self.parameters.data_ptr()

    def forward(self, features: Tensor) -> list[Tensor]:
        """Give the input of every layer and, last, the output.

        Args:
            features: (batch, in_dim), contiguous.
        """
        values = [features]
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            values.append(multiply(values[-1], weight, bias, relu=True))
        values.append(multiply(values[-1], self._weights[-1], self._biases[-1]))
        return values

    def backward(self, values: Sequence[Tensor], slope: Tensor) -> None:
        """Write the gradients of all parameters.

        Args:
            values: what `forward` gave.
            slope: (batch, out_dim), the loss's derivative by the output, contiguous.
        """
        for layer in reversed(range(len(self._weights))):
            features = values[layer]
            _write_product(self._weight_gradients[layer], slope, features)
            torch.sum(slope, 0, out=self._bias_gradients[layer])
            if layer > 0:
                slope = self._pass_back(layer, slope, features)

    def backward_to_features(self, values: Sequence[Tensor], slope: Tensor, first_column: int) -> Tensor:
        """Give the loss's derivative by the features from `first_column` on: (batch, in_dim - first_column).

        No gradient of any parameter is computed. Args are those of `backward`.
        """
        for layer in reversed(range(1, len(self._weights))):
            slope = self._pass_back(layer, slope, values[layer])
        return multiply(slope, self._weights[0][:, first_column:].t().contiguous())

    def _pass_back(self, layer: int, slope: Tensor, features: Tensor) -> Tensor:
        """Give the derivative by what came out of the layer before, ahead of its ReLU: (batch, in)."""
        earlier = multiply(slope, self._weights[layer].t())
        return torch.ops.aten.threshold_backward.grad_input(earlier, features, 0, grad_input=earlier)  # type: ignore[no-any-return]


def _write_product(out: Tensor, slope: Tensor, features: Tensor) -> None:
    """Write `slope.T @ features` into `out`, a layer's weight gradient (out, in); the narrower side goes first."""
    if features.shape[1] < slope.shape[1]:
        out.t().copy_(multiply(features.t(), slope.t()))
    else:
        out.copy_(multiply(slope.t(), features.t()))


class FlatAdam(Adam):
    """Adam on a network's flat tensor, whose state has the form that `Adam` on the separate parameters gives it.

    Args:
        network: its `parameters` are changed in place by `step`.
        learning_rate: in (0, inf).
    """

    TRANSIENT: ClassVar[Any] = (*Adam.TRANSIENT, "_network")

    def __init__(self, network: FlatMLP, learning_rate: float) -> None:
        super().__init__([network.parameters], learning_rate)
        self._network = network

    def state_dict(self) -> dict[str, Any]:
        """Give both moments and the number of steps taken, for each parameter of the module."""
        parts = self._network.parts
        first, second, steps = split_flat(self._first[0], parts), split_flat(self._second[0], parts), self._steps
        gate = None if self.gate is None else self.gate.state_dict()
        return {"first": first, "second": second, "steps": [steps[0] for _ in parts], "gate": gate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, here or in `Adam`."""
        mine = self.state_dict()
        for name in ("first", "second", "steps"):
            for tensor, source in zip(mine[name], state[name], strict=True):
                tensor.copy_(source)
        if self.gate is not None:
            self.gate.load_state_dict(state["gate"])


class FastUpdate:
    """DDPG's update by hand: what `rl.ddpg.DDPGAgent.update` does, but for the last digits of its sums.

    It takes over the memory of the networks and keeps optimizers of its own; see `FlatMLP`.

    Args:
        actor, critic, target_actor, target_critic: on the CPU, in float32 or, for tests, float64.
        actor_learning_rate, critic_learning_rate: of the two Adams, which begin anew.
        action_map: from the actor's own actions to those that the critic values.
        tau: part of the way to the networks that the targets take.
        max_grad_norm: longer gradients are shortened to it, each network's on its own; 0 means never.

    Attributes:
        actor_optimizer, critic_optimizer: in form and state like `training.adam.Adam` on the networks' parameters.
    """

    def __init__(
        self,
        actor: Actor,
        critic: Critic,
        target_actor: Actor,
        target_critic: Critic,
        *,
        actor_learning_rate: float,
        critic_learning_rate: float,
        action_map: ActionMap,
        tau: float,
        max_grad_norm: float,
    ) -> None:
        self._actor, self._critic = FlatMLP(actor.mlp), FlatMLP(critic.mlp)
        self._target_actor, self._target_critic = FlatMLP(target_actor.mlp), FlatMLP(target_critic.mlp)
        self.actor_optimizer = FlatAdam(self._actor, actor_learning_rate)
        self.critic_optimizer = FlatAdam(self._critic, critic_learning_rate)
        self._map = action_map
        self._tau = tau
        self._max_grad_norm = max_grad_norm

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move critic, actor and targets by one step each, in this order, and give named numbers.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        networks = (self._actor, self._critic, self._target_actor, self._target_critic)
        assert all(network.is_shared() for network in networks), "a network was moved or converted"
        metrics = self._update_critic(batch, vitals) | self._update_actor(batch, vitals)
        slow = [self._target_actor.parameters, self._target_critic.parameters]
        torch._foreach_lerp_(slow, [self._actor.parameters, self._critic.parameters], self._tau)
        return metrics

    def _update_critic(self, batch: Batch, vitals: Vitals | None) -> Metrics:
        """Descend the mean squared error; its derivative by Q(s, a) is `2 / batch * (Q(s, a) - target)`.

        The target is `r + discount * Q'(s', mu'(s'))`; only `terminated` cuts the bootstrap.
        """
        next_value = self._value_next(batch)
        target = batch.reward + batch.discount * (1 - batch.terminated) * next_value
        values = self._critic.forward(torch.cat([batch.obs, batch.action], dim=1))
        value = values[-1]
        error = value - target
        metrics = {
            "train/critic_loss": (error * error).mean(),
            "train/q_mean": value.mean(),
            "train/target_std": target.std(correction=0),
        }
        if vitals is not None:
            vitals |= measure_critic([value], target, batch.reward, next_value, batch.discount)
        self._critic.backward(values, error.mul_(2 / len(error)))
        self._descend("critic", self._critic, self.critic_optimizer, metrics, vitals)
        return metrics

    def _value_next(self, batch: Batch) -> Tensor:
        """Give `Q'(s', mu'(s'))` of shape (batch, 1)."""
        next_obs = batch.next_obs.contiguous()
        next_action = self._map.execute_tensor(next_obs, self._target_actor.forward(next_obs)[-1].tanh_())
        return self._target_critic.forward(torch.cat([next_obs, next_action], dim=1))[-1]

    def _update_actor(self, batch: Batch, vitals: Vitals | None) -> Metrics:
        """Descend minus the mean of `Q(s, mu(s))`; the derivative of tanh is `1 - tanh**2`."""
        actor_values = self._actor.forward(batch.obs.contiguous())
        own = actor_values[-1].tanh_()
        executed = self._map.execute_tensor(batch.obs, own)
        critic_values = self._critic.forward(torch.cat([batch.obs, executed], dim=1))
        value = critic_values[-1]
        slope = torch.full_like(value, -1 / len(value))
        slope = self._critic.backward_to_features(critic_values, slope, first_column=batch.obs.shape[1])
        slope = self._pass_back_to_own(batch.obs, own, slope)
        if vitals is not None:
            vitals["stuck_share"] = measure_stuck_share(own, slope, batch.obs, self._map)
        self._actor.backward(actor_values, slope * (1 - own * own))
        metrics = {"train/actor_loss": -value.mean()}
        self._descend("actor", self._actor, self.actor_optimizer, metrics, vitals)
        return metrics

    def _pass_back_to_own(self, obs: Tensor, own: Tensor, slope: Tensor) -> Tensor:
        """Give the derivative by the actor's own actions from that by the executed ones, all (batch, action_dim)."""
        delta = self._map.delta
        if delta is None:
            return slope
        unclipped = obs[:, -self._map.action_dim :] + delta * own
        return slope * (delta * (unclipped.abs() <= 1))

    def _descend(
        self, name: str, network: FlatMLP, optimizer: FlatAdam, metrics: Metrics, vitals: Vitals | None
    ) -> None:
        """Take one optimizer step along the gradients that `backward` wrote, shortened if they are too long."""
        note_weights(name, optimizer, vitals)
        length = None
        if self._max_grad_norm > 0 or vitals is not None or optimizer.gate is not None:
            length = torch.linalg.vector_norm(network.gradients)
        if length is not None and self._max_grad_norm > 0:
            network.gradients.mul_(torch.clamp(self._max_grad_norm / (length + 1e-6), max=1.0))
        optimizer.step([network.gradients], length)
        note_length(length, name, self._max_grad_norm, metrics, vitals)
