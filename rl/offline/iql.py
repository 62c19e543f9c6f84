"""Implicit Q-learning: values of recorded actions alone, and a policy cloned from the better of them.

Kostrikov et al. 2021, arXiv:2110.06169. Actions are in [-1, 1]; what loads data and evaluates is in `offline.py`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from envs.episodes import Episodes
from rl.buffers import Batch
from rl.networks import MLP, Actor, NumpyActor, TwinCritic, build_target
from rl.off_policy import count_network_parameters
from rl.offline.iql_config import IQLConfig
from rl.offline.offline import OfflineTrainer, act_on_device, find_sizes, load_parts, save_parts
from rl.vitals import measure_critic
from training.adam import Adam
from training.gate import GradientGate
from training.losses import expectile_loss
from training.seeding import derive_seed
from training.vitals import Metrics, Vitals, descend_measured, note_skips

MAX_WEIGHT = 100.0
"""No transition counts more than this many times in the policy's loss (the paper's code)."""
LOG_STD_RANGE = (-5.0, 2.0)
"""Where the logarithms of the policy's deviations are kept (the paper's code)."""
RETURN_RANGE = 1000.0
"""What the data set's returns differ by at most once rewards are normalised (the paper's appendix B)."""


class GaussianActor(nn.Module):
    """A normal distribution for each action: a mean in [-1, 1], and a deviation that is the same everywhere.

    The deviation begins at 1. Samples may lie beyond [-1, 1]; policies are judged by their means.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden_dims: list[int], device: torch.device | str) -> None:
        super().__init__()
        self.mean = Actor(obs_dim, action_dim, hidden_dims, device)
        self.log_std = nn.Parameter(torch.zeros(action_dim, device=device))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Give the logarithm of the density of actions, (batch, action_dim), at observations; (batch, 1)."""
        log_std = self.log_std.clamp(*LOG_STD_RANGE)
        distance = (action - self.mean(obs)) * torch.exp(-log_std)
        density: Tensor = -0.5 * (distance * distance + math.log(2 * math.pi)) - log_std
        return density.sum(1, keepdim=True)

    def copy_policy(self) -> nn.Sequential:
        """Give the mean as a copy that can be exported."""
        return self.mean.copy_policy()


def build_trainer(config: IQLConfig, device: torch.device) -> OfflineTrainer:
    """Give a trainer for a config, with its data set loaded and nothing done yet."""

    def find_reward_factor(episodes: Episodes) -> float:
        returns = episodes.returns()
        return RETURN_RANGE / float(returns.max() - returns.min()) if config.normalize_reward else 1.0

    return OfflineTrainer(config, device, IQLAgent, discount=config.discount, find_reward_factor=find_reward_factor)


def count_parameters(config: IQLConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    sizes = find_sizes(config)
    actor = GaussianActor(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    critic = TwinCritic(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    value = MLP(sizes.obs_dim, config.hidden_dims, 1, "meta")
    return count_network_parameters({"actor": actor, "critic": critic, "value": value})


def value_loss(value: MLP, target_critic: TwinCritic, batch: Batch, expectile: float) -> tuple[Tensor, Tensor, Metrics]:
    """Give the expectile loss of `V(s)` against `min(Q1', Q2')(s, a)`, the advantages, and the loss's named numbers.

    The advantages, `min(Q1', Q2')(s, a) - V(s)` of shape (batch, 1), are without gradient.
    """
    with torch.no_grad():
        target = torch.minimum(*target_critic(batch.obs, batch.action))
    estimate = value(batch.obs)
    error = target - estimate
    loss = expectile_loss(error, expectile)
    return loss, error.detach(), {"train/value_loss": loss.detach(), "train/value_mean": estimate.detach().mean()}


def actor_loss(actor: GaussianActor, batch: Batch, advantage: Tensor, temperature: float) -> tuple[Tensor, Metrics]:
    """Give `-min(exp(temperature * advantage), 100) * log pi(a | s)`, the batch's mean, and its named numbers.

    Args:
        advantage: (batch, 1), without gradient.
        temperature: the paper's beta, an inverse temperature; 0 clones behaviour.

    Source: Kostrikov et al. 2021, equation 7; the bound is their code's.
    """
    weight = torch.exp(temperature * advantage).clamp(max=MAX_WEIGHT)
    loss = -(weight * actor.log_prob(batch.obs, batch.action)).mean()
    return loss, {
        "train/actor_loss": loss.detach(),
        "train/weight_mean": weight.mean(),
        "train/weight_clipped": (weight == MAX_WEIGHT).float().mean(),
    }


def critic_loss(critic: TwinCritic, value: MLP, batch: Batch, vitals: Vitals | None = None) -> tuple[Tensor, Metrics]:
    """Give the sum of both critics' mean squared errors against `r + discount * V(s')`, and its named numbers.

    Only `terminated` cuts the bootstrap: an episode that the clock or the recorder stopped still had a future.

    Source: Kostrikov et al. 2021, equation 6.
    """
    with torch.no_grad():
        next_value = value(batch.next_obs)
        target = batch.reward + batch.discount * (1 - batch.terminated) * next_value
    first, second = critic(batch.obs, batch.action)
    loss = functional.mse_loss(first, target) + functional.mse_loss(second, target)
    if vitals is not None:
        vitals |= measure_critic([first, second], target, batch.reward, next_value, batch.discount)
    return loss, {
        "train/critic_loss": loss.detach(),
        "train/q_mean": first.detach().mean(),
        "train/target_std": target.std(correction=0),
    }


class IQLAgent:
    """Actor, twin critics with their target, value network, optimizers, and how one batch changes them."""

    TRANSIENT: ClassVar = ("_config", "_device", "_rate_factor", "_online", "_targets", "_numpy_actor")

    def __init__(self, config: IQLConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._rate_factor = 1.0
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        actor = GaussianActor(obs_dim, action_dim, config.hidden_dims, "cpu")
        critic = TwinCritic(obs_dim, action_dim, config.hidden_dims, "cpu")
        value = MLP(obs_dim, config.hidden_dims, 1, "cpu")
        actor.mean.mlp.initialise(generator)
        critic.initialise(generator)
        value.initialise(generator)
        self.actor, self.critic, self.value = actor.to(device), critic.to(device), value.to(device)
        self.target_critic = build_target(self.critic)
        self.actor_optimizer = Adam(list(self.actor.parameters()), config.learning_rate)
        self.critic_optimizer = Adam(list(self.critic.parameters()), config.learning_rate)
        self.value_optimizer = Adam(list(self.value.parameters()), config.learning_rate)
        if config.guard == "repair":
            for optimizer in (self.actor_optimizer, self.critic_optimizer, self.value_optimizer):
                optimizer.gate = GradientGate(device)
        self._online: list[Tensor] = list(self.critic.parameters())
        self._targets: list[Tensor] = list(self.target_critic.parameters())
        self._numpy_actor = NumpyActor(self.actor.mean) if device.type == "cpu" else None
        self._updates = 0

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's means, (n, action_dim), for observations of shape (n, obs_dim)."""
        if self._numpy_actor is not None:
            return self._numpy_actor(obs)
        return act_on_device(self.actor.mean, obs, self._device)

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move value network, actor, critics and target by one step each, and give named numbers without a sync.

        The actor uses the advantages that the value network was moved by; critics use the moved value network.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        config = self._config
        loss, advantage, metrics = value_loss(self.value, self.target_critic, batch, config.expectile)
        descend_measured(loss, "value", self.value_optimizer, 0.0, metrics, vitals)
        loss, actor_metrics = actor_loss(self.actor, batch, advantage, config.temperature)
        self.actor_optimizer.scale_learning_rate(self._rate_factor * self._decay())
        descend_measured(loss, "actor", self.actor_optimizer, 0.0, metrics, vitals)
        loss, critic_metrics = critic_loss(self.critic, self.value, batch, vitals)
        descend_measured(loss, "critic", self.critic_optimizer, 0.0, metrics, vitals)
        with torch.no_grad():
            torch._foreach_lerp_(self._targets, self._online, config.tau)
        self._updates += 1
        note_skips([self.value_optimizer, self.actor_optimizer, self.critic_optimizer], vitals)
        return metrics | actor_metrics | critic_metrics

    def _decay(self) -> float:
        """Give the actor's learning rate as a share of its first: half a cosine, 0 at the end of the run."""
        return (1 + math.cos(math.pi * min(self._updates / self._config.max_timesteps, 1.0))) / 2

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config; the actor's goes on falling."""
        self._rate_factor = factor
        self.critic_optimizer.scale_learning_rate(factor)
        self.value_optimizer.scale_learning_rate(factor)

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        return {"actor": self.actor, "critic": self.critic, "value": self.value}

    def networks(self) -> dict[str, nn.Module]:
        """Give the networks by name, the target among them."""
        return {name: part for name, part in self._list_parts().items() if isinstance(part, nn.Module)}

    def state_dict(self) -> dict[str, Any]:
        """Give networks, target, optimizers, and how far the actor's learning rate has fallen."""
        return save_parts(self._list_parts()) | {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        load_parts(self._list_parts(), state)
        self._updates = state["updates"]

    def _list_parts(self) -> dict[str, nn.Module | Adam]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "value": self.value,
            "target_critic": self.target_critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "value_optimizer": self.value_optimizer,
        }
