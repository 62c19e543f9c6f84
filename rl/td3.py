"""Twin delayed deep deterministic policy gradient: Fujimoto et al. 2018, arXiv:1802.09477.

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
from rl.networks import FINAL_BOUND, Actor, NumpyActor, TwinCritic, build_target
from rl.noise import build_noise
from rl.off_policy import OffPolicyTrainer, count_network_parameters, find_sizes
from rl.residual import ActionMap
from rl.td3_config import TD3Config
from rl.vitals import measure_critic, measure_when_passed_back
from training.adam import Adam, forget_lengths
from training.gate import GradientGate
from training.seeding import derive_seed, spawn_generator
from training.vitals import Metrics, Vitals, descend_measured, note_skips, note_weights


def build_trainer(config: TD3Config, device: torch.device) -> OffPolicyTrainer:
    """Give a trainer for a config, with its environments made and nothing done yet."""
    return OffPolicyTrainer(config, device, TD3Agent)


def count_parameters(config: TD3Config) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    sizes = find_sizes(config)
    actor = Actor(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    critic = TwinCritic(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    return count_network_parameters({"actor": actor, "critic": critic})


def critic_loss(
    critic: TwinCritic,
    target_actor: Actor,
    target_critic: TwinCritic,
    batch: Batch,
    action_map: ActionMap,
    smoothing: Tensor,
    vitals: Vitals | None = None,
) -> tuple[Tensor, Metrics]:
    """Give the sum of both critics' mean squared errors against one target, and its named numbers.

    The target is `r + discount * min(Q1', Q2')(s', clip(mu'(s') + smoothing))`. Only `terminated` cuts the bootstrap:
    an episode stopped by its clock still had a future.

    Args:
        smoothing: clipped noise on the target policy's own action, of shape (batch, action_dim).

    Source: Fujimoto et al. 2018, Algorithm 1.
    """
    with torch.no_grad():
        own = (target_actor(batch.next_obs) + smoothing).clamp_(-1, 1)
        next_values = target_critic(batch.next_obs, action_map.execute_tensor(batch.next_obs, own))
        next_value = torch.minimum(*next_values)
        target = batch.reward + batch.discount * (1 - batch.terminated) * next_value
    first, second = critic(batch.obs, batch.action)
    loss = functional.mse_loss(first, target) + functional.mse_loss(second, target)
    if vitals is not None:
        vitals |= measure_critic([first, second], target, batch.reward, next_value, batch.discount)
    metrics = {
        "train/critic_loss": loss.detach(),
        "train/q_mean": first.detach().mean(),
        "train/target_std": target.std(correction=0),
    }
    return loss, metrics


def actor_loss(
    actor: Actor, critic: TwinCritic, batch: Batch, action_map: ActionMap, vitals: Vitals | None = None
) -> tuple[Tensor, Metrics]:
    """Give minus the mean value, by the first critic, of the actor's own actions, and its named numbers.

    Source: Fujimoto et al. 2018, Algorithm 1.
    """
    own = actor(batch.obs)
    if vitals is not None:
        measure_when_passed_back(own, batch.obs, action_map, vitals)
    loss = -critic.first(batch.obs, action_map.execute_tensor(batch.obs, own)).mean()
    return loss, {"train/actor_loss": loss.detach()}


class TD3Agent:
    """Actor, twin critics, their targets and optimizers, and how one batch changes them."""

    TRANSIENT: ClassVar = ("_config", "_device", "_map", "_online", "_targets", "_numpy_actor")

    def __init__(self, config: TD3Config, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._map = ActionMap(action_dim, config.delta_scale_max)
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        actor = Actor(obs_dim, action_dim, config.hidden_dims, "cpu")
        critic = TwinCritic(obs_dim, action_dim, config.hidden_dims, "cpu")
        # A residual policy begins as no correction at all.
        actor.mlp.initialise(generator, 0.0 if config.base_controller else FINAL_BOUND)
        critic.initialise(generator)
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.target_actor, self.target_critic = build_target(self.actor), build_target(self.critic)
        actor_parameters, critic_parameters = list(self.actor.parameters()), list(self.critic.parameters())
        self.actor_optimizer = Adam(actor_parameters, config.actor_rate)
        self.critic_optimizer = Adam(critic_parameters, config.critic_rate)
        if config.guard == "repair":
            for optimizer in self._list_optimizers():
                optimizer.gate = GradientGate(device)
        self._online: list[Tensor] = [*actor_parameters, *critic_parameters]
        self._targets: list[Tensor] = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        self._numpy_actor = NumpyActor(self.actor) if device.type == "cpu" else None
        self._noise = build_noise(
            config.noise_type,
            (config.num_envs, action_dim),
            config.noise_std,
            config.ou_theta,
            spawn_generator(config.seed, "noise"),
        )
        self._smoothing = torch.Generator(device).manual_seed(derive_seed(config.seed, "smoothing"))
        self._updates = 0

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
            return float(self.critic.first(*tensors))

    def begin_episode(self, env: int) -> None:
        """Forget the noise of an environment in which an episode begins."""
        self._noise.reset(env)

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move the critics by one step, and with every `policy_delay`-th update the actor and all targets too.

        Gives named numbers without a sync; the actor's only where it moved.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        max_norm = self._config.max_grad_norm
        note_weights("actor", self.actor_optimizer, vitals)  # in the first update too, in which it doesn't move
        smoothing = self._draw_smoothing(batch)
        loss, metrics = critic_loss(
            self.critic, self.target_actor, self.target_critic, batch, self._map, smoothing, vitals
        )
        descend_measured(loss, "critic", self.critic_optimizer, max_norm, metrics, vitals)
        self._updates += 1
        if self._updates % self._config.policy_delay == 0:
            loss, actor_metrics = actor_loss(self.actor, self.critic, batch, self._map, vitals)
            metrics |= actor_metrics
            descend_measured(loss, "actor", self.actor_optimizer, max_norm, metrics, vitals)
            with torch.no_grad():
                torch._foreach_lerp_(self._targets, self._online, self._config.tau)
        note_skips(self._list_optimizers(), vitals)
        return metrics

    def _draw_smoothing(self, batch: Batch) -> Tensor:
        """Give clipped normal noise for the target policy's actions."""
        clip = self._config.target_noise_clip
        noise = torch.empty_like(batch.action).normal_(0.0, 1.0, generator=self._smoothing)
        return noise.mul_(self._config.target_noise_std).clamp_(-clip, clip)

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        for optimizer in self._list_optimizers():
            optimizer.scale_learning_rate(factor)

    def probe_critic(self, batch: Batch) -> Tensor:
        """Give the critic's loss as the next update would compute it; nothing is drawn and nothing changes.

        The smoothing is what the next update will draw: the generator is put back.
        """
        before = self._smoothing.get_state()
        smoothing = self._draw_smoothing(batch)
        self._smoothing.set_state(before)
        return critic_loss(self.critic, self.target_actor, self.target_critic, batch, self._map, smoothing)[0]

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
        """Give networks, targets, optimizers, noise, and where in the policy's delay it is."""
        return {name: part.state_dict() for name, part in self._list_parts().items()} | {
            "noise": self._noise.state_dict(),
            "smoothing": self._smoothing.get_state(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        for name, part in self._list_parts().items():
            part.load_state_dict(state[name])
        self._noise.load_state_dict(state["noise"])
        self._smoothing.set_state(state["smoothing"].cpu())
        self._updates = state["updates"]

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
