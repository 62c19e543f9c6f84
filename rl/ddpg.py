"""Deep deterministic policy gradient: Lillicrap et al. 2015, arXiv:1509.02971.

Actions are in [-1, 1]; what acts in environments and remembers is in `off_policy.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rl.buffers import Batch
from rl.ddpg_config import DDPGConfig
from rl.fast_ddpg import FastUpdate
from rl.networks import FINAL_BOUND, Actor, Critic, NumpyActor, build_target
from rl.noise import build_noise
from rl.off_policy import OffPolicyTrainer, count_network_parameters, find_sizes
from rl.residual import ActionMap
from rl.vitals import measure_critic, measure_when_passed_back
from training.adam import Adam, forget_lengths
from training.gate import GradientGate
from training.seeding import derive_seed, spawn_generator
from training.vitals import Metrics, Vitals, descend_measured, note_skips


def build_trainer(config: DDPGConfig, device: torch.device) -> DDPGTrainer:
    """Give a trainer for a config, with its environments made and nothing done yet."""
    return DDPGTrainer(config, device)


def count_parameters(config: DDPGConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    sizes = find_sizes(config)
    actor = Actor(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    critic = Critic(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    return count_network_parameters({"actor": actor, "critic": critic})


class DDPGTrainer(OffPolicyTrainer):
    """DDPG in its environments."""

    agent: DDPGAgent

    def __init__(self, config: DDPGConfig, device: torch.device) -> None:
        super().__init__(config, device, build_agent)


def build_agent(config: DDPGConfig, obs_dim: int, action_dim: int, device: torch.device) -> DDPGAgent:
    """Give an agent that updates by hand on the CPU, and by autograd elsewhere."""
    agent = DDPGAgent(config, obs_dim, action_dim, device)
    if device.type == "cpu":
        agent.update_by_hand()
    return agent


def critic_loss(
    critic: Critic,
    target_actor: Actor,
    target_critic: Critic,
    batch: Batch,
    action_map: ActionMap,
    vitals: Vitals | None = None,
) -> tuple[Tensor, Metrics]:
    """Give the mean squared error of Q(s, a) against `r + discount * Q'(s', mu'(s'))`, and its named numbers.

    Only `terminated` cuts the bootstrap: an episode stopped by its clock still had a future.

    Source: Lillicrap et al. 2015, Algorithm 1.
    """
    with torch.no_grad():
        next_action = action_map.execute_tensor(batch.next_obs, target_actor(batch.next_obs))
        next_value = target_critic(batch.next_obs, next_action)
        target = batch.reward + batch.discount * (1 - batch.terminated) * next_value
    value = critic(batch.obs, batch.action)
    loss = functional.mse_loss(value, target)
    if vitals is not None:
        vitals |= measure_critic([value], target, batch.reward, next_value, batch.discount)
    metrics = {
        "train/critic_loss": loss.detach(),
        "train/q_mean": value.detach().mean(),
        "train/target_std": target.std(correction=0),
    }
    return loss, metrics


def actor_loss(
    actor: Actor, critic: Critic, batch: Batch, action_map: ActionMap, vitals: Vitals | None = None
) -> tuple[Tensor, Metrics]:
    """Give minus the mean value of the actor's own actions, and its named numbers.

    Source: Lillicrap et al. 2015, Algorithm 1: the sampled policy gradient is the gradient of this mean.
    """
    own = actor(batch.obs)
    if vitals is not None:
        measure_when_passed_back(own, batch.obs, action_map, vitals)
    loss = -critic(batch.obs, action_map.execute_tensor(batch.obs, own)).mean()
    return loss, {"train/actor_loss": loss.detach()}


class DDPGAgent:
    """The four networks, two optimizers and the noise, and how one batch changes them."""

    TRANSIENT: ClassVar = (
        "_device",
        "_map",
        "_tau",
        "_max_grad_norm",
        "_online",
        "_targets",
        "_numpy_actor",
        "_fast",
        "_gated",
    )

    def __init__(self, config: DDPGConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self._device = device
        self._map = ActionMap(action_dim, config.delta_scale_max)
        self._tau = config.tau
        self._max_grad_norm = config.max_grad_norm
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        actor = Actor(obs_dim, action_dim, config.hidden_dims, "cpu")
        critic = Critic(obs_dim, action_dim, config.hidden_dims, "cpu")
        # A residual policy begins as no correction at all.
        actor.mlp.initialise(generator, 0.0 if config.base_controller else FINAL_BOUND)
        critic.mlp.initialise(generator)
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.target_actor, self.target_critic = build_target(self.actor), build_target(self.critic)
        actor_parameters, critic_parameters = list(self.actor.parameters()), list(self.critic.parameters())
        self.actor_optimizer = Adam(actor_parameters, config.actor_rate)
        self.critic_optimizer = Adam(critic_parameters, config.critic_rate)
        self._online: list[Tensor] = [*actor_parameters, *critic_parameters]
        self._targets: list[Tensor] = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        self._numpy_actor = NumpyActor(self.actor) if device.type == "cpu" else None
        self._gated = config.guard == "repair"
        self._place_gates()
        self._fast: FastUpdate | None = None
        self._noise = build_noise(
            config.noise_type,
            (config.num_envs, action_dim),
            config.noise_std,
            config.ou_theta,
            spawn_generator(config.seed, "noise"),
        )

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's own actions, (n, action_dim), for observations of shape (n, obs_dim), without noise."""
        if self._numpy_actor is not None:
            return self._numpy_actor(obs)
        with torch.no_grad():
            own: NDArray[np.float32] = self.actor(torch.from_numpy(obs).to(self._device)).cpu().numpy()
        return own

    def explore(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's own actions with noise, one for each environment."""
        noisy = self.act(obs) + self._noise.sample()
        np.minimum(noisy, 1, out=noisy)
        np.maximum(noisy, -1, out=noisy)
        return noisy

    def value(self, obs: NDArray[np.float32], action: NDArray[np.float32]) -> float:
        """Give the critic's value of an executed action, (action_dim,), at an observation, (obs_dim,)."""
        with torch.no_grad():
            tensors = (torch.from_numpy(part[None]).to(self._device) for part in (obs, action))
            return float(self.critic(*tensors))

    def begin_episode(self, env: int) -> None:
        """Forget the noise of an environment in which an episode begins."""
        self._noise.reset(env)

    def update_by_hand(self) -> None:
        """Go over from autograd to the same arithmetic written out, on the CPU, before the first update."""
        self._fast = FastUpdate(
            self.actor,
            self.critic,
            self.target_actor,
            self.target_critic,
            actor_learning_rate=self.actor_optimizer.learning_rate,
            critic_learning_rate=self.critic_optimizer.learning_rate,
            action_map=self._map,
            tau=self._tau,
            max_grad_norm=self._max_grad_norm,
        )
        self.actor_optimizer, self.critic_optimizer = self._fast.actor_optimizer, self._fast.critic_optimizer
        self._place_gates()
        self._numpy_actor = NumpyActor(self.actor)  # the parameters have moved

    def _place_gates(self) -> None:
        """Have both optimizers leave out steps that are out of all proportion, where the guard may repair."""
        for optimizer in self._list_optimizers():
            optimizer.gate = GradientGate(self._device) if self._gated else None

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move critic, actor and targets by one step each, in this order, and give named numbers without a sync.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        if self._fast is not None:
            metrics = self._fast.update(batch, vitals)
        else:
            metrics = self._update_by_autograd(batch, vitals)
        note_skips(self._list_optimizers(), vitals)
        return metrics

    def _update_by_autograd(self, batch: Batch, vitals: Vitals | None) -> Metrics:
        max_norm = self._max_grad_norm
        loss, metrics = critic_loss(self.critic, self.target_actor, self.target_critic, batch, self._map, vitals)
        descend_measured(loss, "critic", self.critic_optimizer, max_norm, metrics, vitals)
        loss, actor_metrics = actor_loss(self.actor, self.critic, batch, self._map, vitals)
        metrics |= actor_metrics
        descend_measured(loss, "actor", self.actor_optimizer, max_norm, metrics, vitals)
        with torch.no_grad():
            torch._foreach_lerp_(self._targets, self._online, self._tau)
        return metrics

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        for optimizer in self._list_optimizers():
            optimizer.scale_learning_rate(factor)

    def probe_critic(self, batch: Batch) -> Tensor:
        """Give the critic's loss as the next update would compute it; nothing is drawn and nothing changes."""
        return critic_loss(self.critic, self.target_actor, self.target_critic, batch, self._map)[0]

    def forget_gradients(self) -> None:
        """Judge no gradient by those before; see `training.gate`."""
        forget_lengths(self._list_optimizers())

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        return {"actor": self.actor, "critic": self.critic}

    def networks(self) -> dict[str, nn.Module]:
        """Give the networks by name, targets among them."""
        return {name: part for name, part in self._list_parts().items() if isinstance(part, nn.Module)}

    def state_dict(self) -> dict[str, Any]:
        """Give networks, targets, optimizers and noise."""
        return {name: part.state_dict() for name, part in self._list_parts().items()} | {
            "noise": self._noise.state_dict()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        for name, part in self._list_parts().items():
            part.load_state_dict(state[name])
        self._noise.load_state_dict(state["noise"])

    def _list_optimizers(self) -> list[Adam]:
        return [self.actor_optimizer, self.critic_optimizer]

    def _list_parts(self) -> dict[str, nn.Module | Adam]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }
