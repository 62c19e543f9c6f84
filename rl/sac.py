"""Soft actor-critic with a learned temperature: Haarnoja et al. 2018, arXiv:1812.05905.

Actions are in [-1, 1]; what acts in environments and remembers is in `off_policy.py`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rl.buffers import Batch
from rl.networks import FINAL_BOUND, LOG_STD_RANGE, NumpyMLP, StochasticActor, TwinCritic, build_target
from rl.off_policy import OffPolicyTrainer, count_network_parameters, find_sizes
from rl.residual import ActionMap
from rl.sac_config import SACConfig
from rl.vitals import measure_critic, measure_when_passed_back
from training.adam import Adam, descend, forget_lengths
from training.gate import GradientGate
from training.seeding import derive_seed, spawn_generator
from training.vitals import Metrics, Vitals, descend_measured, note_skips


def build_trainer(config: SACConfig, device: torch.device) -> OffPolicyTrainer:
    """Give a trainer for a config, with its environments made and nothing done yet."""
    return OffPolicyTrainer(config, device, SACAgent)


def count_parameters(config: SACConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    sizes = find_sizes(config)
    actor = StochasticActor(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    critic = TwinCritic(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    return count_network_parameters({"actor": actor, "critic": critic})


def sample_actions(actor: StochasticActor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Give own actions, (batch, action_dim) in (-1, 1), and the logarithms of their densities, (batch, 1).

    The density of a = tanh(x) has the factor 1 / (1 - tanh(x)^2) beside that of x. Its logarithm is computed as
    2 (log 2 - x - softplus(-2 x)), which is right also where 1 - tanh(x)^2 would be rounded to 0.

    Args:
        noise: standard normal, of shape (batch, action_dim); the gradient goes through what is made of it.

    Source: Haarnoja et al. 2018, appendix C.
    """
    mean, log_std = actor(obs)
    raw = mean + log_std.exp() * noise
    log_normal = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(1, keepdim=True)
    correction = 2 * (math.log(2) - raw - functional.softplus(-2 * raw)).sum(1, keepdim=True)
    return torch.tanh(raw), log_normal - correction


def critic_loss(
    critic: TwinCritic,
    actor: StochasticActor,
    target_critic: TwinCritic,
    batch: Batch,
    action_map: ActionMap,
    temperature: Tensor,
    noise: Tensor,
    vitals: Vitals | None = None,
) -> tuple[Tensor, Metrics]:
    """Give the sum of both critics' mean squared errors against one target, and its named numbers.

    The target is `r + discount * (min(Q1', Q2')(s', a') - temperature * log pi(a' | s'))`, with a' from the policy.
    Only `terminated` cuts the bootstrap: an episode stopped by its clock still had a future. With n-step returns the
    entropies of the steps between are left out.

    Args:
        temperature: a number, without gradient.
        noise: as for `sample_actions`, at the next observations.

    Source: Haarnoja et al. 2018, equations 5 and 6, without the factor of one half.
    """
    with torch.no_grad():
        own, log_density = sample_actions(actor, batch.next_obs, noise)
        next_values = target_critic(batch.next_obs, action_map.execute_tensor(batch.next_obs, own))
        next_value = torch.minimum(*next_values)
        soft_value = next_value - temperature * log_density
        target = batch.reward + batch.discount * (1 - batch.terminated) * soft_value
    first, second = critic(batch.obs, batch.action)
    loss = functional.mse_loss(first, target) + functional.mse_loss(second, target)
    if vitals is not None:
        # The entropy's bonus is a reward too.
        soft_reward = target - batch.discount * (1 - batch.terminated) * next_value
        vitals |= measure_critic([first, second], target, soft_reward, next_value, batch.discount)
    metrics = {
        "train/critic_loss": loss.detach(),
        "train/q_mean": first.detach().mean(),
        "train/target_std": target.std(correction=0),
    }
    return loss, metrics


def actor_loss(
    actor: StochasticActor,
    critic: TwinCritic,
    batch: Batch,
    action_map: ActionMap,
    temperature: Tensor,
    noise: Tensor,
    vitals: Vitals | None = None,
) -> tuple[Tensor, Metrics]:
    """Give the mean of `temperature * log pi(a | s) - min(Q1, Q2)(s, a)` over own actions, and its named numbers.

    Source: Haarnoja et al. 2018, equation 9, with the minimum of section 6.
    """
    own, log_density = sample_actions(actor, batch.obs, noise)
    if vitals is not None:
        measure_when_passed_back(own, batch.obs, action_map, vitals)
    values = critic(batch.obs, action_map.execute_tensor(batch.obs, own))
    loss = (temperature * log_density - torch.minimum(*values)).mean()
    return loss, {"train/actor_loss": loss.detach(), "train/entropy": -log_density.detach().mean()}


def temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Give the loss whose descent raises the temperature while the mean entropy is below its target.

    Source: Haarnoja et al. 2018, equation 18, with the logarithm in the place of the temperature, as in their code.
    """
    return log_temperature * (entropy - target_entropy)


class SACAgent:
    """Actor, twin critics, their targets, the temperature and the optimizers, and how one batch changes them."""

    TRANSIENT: ClassVar = ("_config", "_device", "_map", "_target_entropy", "_online", "_targets", "_numpy_mlp")

    def __init__(self, config: SACConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._map = ActionMap(action_dim, config.delta_scale_max)
        self._target_entropy = -float(action_dim) if config.target_entropy is None else config.target_entropy
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        actor = StochasticActor(obs_dim, action_dim, config.hidden_dims, "cpu")
        critic = TwinCritic(obs_dim, action_dim, config.hidden_dims, "cpu")
        # A residual policy's mean begins as no correction at all.
        actor.mlp.initialise(generator, 0.0 if config.base_controller else FINAL_BOUND)
        critic.initialise(generator)
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.target_critic = build_target(self.critic)
        self.log_temperature = torch.tensor(
            math.log(config.temperature or 1.0), device=device, requires_grad=config.temperature is None
        )
        self.actor_optimizer = Adam(list(self.actor.parameters()), config.actor_rate)
        self.critic_optimizer = Adam(list(self.critic.parameters()), config.critic_rate)
        self.temperature_optimizer = Adam([self.log_temperature], config.temperature_rate)
        if config.guard == "repair":
            for optimizer in self._list_optimizers():
                optimizer.gate = GradientGate(device)
        self._online: list[Tensor] = list(self.critic.parameters())
        self._targets: list[Tensor] = list(self.target_critic.parameters())
        self._numpy_mlp = NumpyMLP(self.actor.mlp) if device.type == "cpu" else None
        self._exploring = spawn_generator(config.seed, "noise")
        self._sampling = torch.Generator(device).manual_seed(derive_seed(config.seed, "sampling"))

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the own actions of the policy's means, (n, action_dim), for observations of shape (n, obs_dim)."""
        return np.tanh(self._describe_policy(obs)[0])

    def explore(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give own actions drawn from the policy, one for each environment."""
        mean, log_std = self._describe_policy(obs)
        noise = self._exploring.standard_normal(mean.shape, dtype=np.float32)
        drawn: NDArray[np.float32] = np.tanh(mean + np.exp(log_std) * noise)
        return drawn

    def _describe_policy(self, obs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give means and logarithms of deviations before tanh, each of shape (n, action_dim)."""
        if self._numpy_mlp is not None:
            mean, log_std = np.split(self._numpy_mlp(obs), 2, axis=1)
            return mean, np.clip(log_std, *LOG_STD_RANGE)
        with torch.no_grad():
            means, log_stds = self.actor(torch.from_numpy(obs).to(self._device))
        return means.cpu().numpy(), log_stds.cpu().numpy()

    def value(self, obs: NDArray[np.float32], action: NDArray[np.float32]) -> None:
        """Give nothing: the critics' values hold the entropies to come, and no return does."""

    def begin_episode(self, env: int) -> None:
        """Do nothing: each draw is independent of the ones before."""

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move critics, actor, temperature and target critics by one step each, in this order.

        All losses of an update see the temperature from before it. Gives named numbers without a sync.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        max_norm = self._config.max_grad_norm
        temperature = self.log_temperature.detach().exp()
        noise = self._draw_noise(batch)
        loss, metrics = critic_loss(
            self.critic, self.actor, self.target_critic, batch, self._map, temperature, noise, vitals
        )
        descend_measured(loss, "critic", self.critic_optimizer, max_norm, metrics, vitals)
        noise = self._draw_noise(batch)
        loss, actor_metrics = actor_loss(self.actor, self.critic, batch, self._map, temperature, noise, vitals)
        metrics |= actor_metrics | {"train/temperature": temperature}
        descend_measured(loss, "actor", self.actor_optimizer, max_norm, metrics, vitals)
        if self._config.temperature is None:
            loss = temperature_loss(self.log_temperature, metrics["train/entropy"], self._target_entropy)
            descend(loss, self.temperature_optimizer, 0.0)
        with torch.no_grad():
            torch._foreach_lerp_(self._targets, self._online, self._config.tau)
        note_skips(self._list_optimizers(), vitals)
        return metrics

    def _draw_noise(self, batch: Batch) -> Tensor:
        return torch.empty_like(batch.action).normal_(0.0, 1.0, generator=self._sampling)

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        for optimizer in self._list_optimizers():
            optimizer.scale_learning_rate(factor)

    def probe_critic(self, batch: Batch) -> Tensor:
        """Give the critic's loss as the next update would compute it; nothing is drawn and nothing changes.

        The noise is what the next update will draw: the generator is put back.
        """
        before = self._sampling.get_state()
        noise = self._draw_noise(batch)
        self._sampling.set_state(before)
        temperature = self.log_temperature.detach().exp()
        return critic_loss(self.critic, self.actor, self.target_critic, batch, self._map, temperature, noise)[0]

    def forget_gradients(self) -> None:
        """Judge no gradient by those before; see `training.gate`."""
        forget_lengths(self._list_optimizers())

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        return {"actor": self.actor, "critic": self.critic}

    def networks(self) -> dict[str, nn.Module]:
        """Give the networks by name, the target among them."""
        return {name: part for name, part in self._list_parts().items() if isinstance(part, nn.Module)}

    def state_dict(self) -> dict[str, Any]:
        """Give networks, targets, temperature, optimizers and generators."""
        return {name: part.state_dict() for name, part in self._list_parts().items()} | {
            "log_temperature": self.log_temperature.detach(),
            "exploring": self._exploring.bit_generator.state,
            "sampling": self._sampling.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        for name, part in self._list_parts().items():
            part.load_state_dict(state[name])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self._exploring.bit_generator.state = state["exploring"]
        self._sampling.set_state(state["sampling"].cpu())

    def _list_optimizers(self) -> list[Adam]:
        return [self.actor_optimizer, self.critic_optimizer, self.temperature_optimizer]

    def _list_parts(self) -> dict[str, nn.Module | Adam]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_critic": self.target_critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "temperature_optimizer": self.temperature_optimizer,
        }
