"""TD3+BC: TD3 whose actor is also pulled to the recorded actions. Fujimoto and Gu 2021, arXiv:2106.06860.

Actions are in [-1, 1]; what loads data and evaluates is in `offline.py`, and the critics' loss is TD3's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rl.buffers import Batch
from rl.networks import Actor, NumpyActor, TwinCritic, build_target
from rl.off_policy import count_network_parameters
from rl.offline.offline import OfflineTrainer, act_on_device, find_sizes, load_parts, save_parts
from rl.offline.td3_bc_config import TD3BCConfig
from rl.residual import ActionMap
from rl.td3 import critic_loss
from rl.vitals import measure_when_passed_back
from training.adam import Adam
from training.gate import GradientGate
from training.seeding import derive_seed
from training.vitals import Metrics, Vitals, descend_measured, note_skips


def build_trainer(config: TD3BCConfig, device: torch.device) -> OfflineTrainer:
    """Give a trainer for a config, with its data set loaded and nothing done yet."""
    return OfflineTrainer(config, device, TD3BCAgent, discount=config.discount)


def count_parameters(config: TD3BCConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    sizes = find_sizes(config)
    actor = Actor(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    critic = TwinCritic(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")
    return count_network_parameters({"actor": actor, "critic": critic})


def actor_loss(
    actor: Actor,
    critic: TwinCritic,
    batch: Batch,
    q_weight: float,
    action_map: ActionMap,
    vitals: Vitals | None = None,
) -> tuple[Tensor, Metrics]:
    """Give `-lambda * Q(s, mu(s)) + (mu(s) - a)^2`, means over the batch, and its named numbers.

    `lambda = q_weight / mean |Q(s, mu(s))|`, without gradient, takes the unit of reward out of the first term.

    Args:
        q_weight: the paper's alpha; 0 clones behaviour.

    Source: Fujimoto and Gu 2021, equations 3 and 5, with the first critic, as in TD3.
    """
    own = actor(batch.obs)
    if vitals is not None:
        measure_when_passed_back(own, batch.obs, action_map, vitals)
    value = critic.first(batch.obs, own)
    cloning = functional.mse_loss(own, batch.action)
    loss = cloning - q_weight / value.detach().abs().mean() * value.mean()
    return loss, {"train/actor_loss": loss.detach(), "train/bc_loss": cloning.detach()}


class TD3BCAgent:
    """Actor, twin critics, their targets and optimizers, and how one batch changes them."""

    TRANSIENT: ClassVar = ("_config", "_device", "_map", "_online", "_targets", "_numpy_actor")

    def __init__(self, config: TD3BCConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._map = ActionMap(action_dim)
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        actor = Actor(obs_dim, action_dim, config.hidden_dims, "cpu")
        critic = TwinCritic(obs_dim, action_dim, config.hidden_dims, "cpu")
        actor.mlp.initialise(generator)
        critic.initialise(generator)
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.target_actor, self.target_critic = build_target(self.actor), build_target(self.critic)
        actor_parameters, critic_parameters = list(self.actor.parameters()), list(self.critic.parameters())
        self.actor_optimizer = Adam(actor_parameters, config.learning_rate)
        self.critic_optimizer = Adam(critic_parameters, config.learning_rate)
        if config.guard == "repair":
            for optimizer in (self.actor_optimizer, self.critic_optimizer):
                optimizer.gate = GradientGate(device)
        self._online: list[Tensor] = [*actor_parameters, *critic_parameters]
        self._targets: list[Tensor] = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        self._numpy_actor = NumpyActor(self.actor) if device.type == "cpu" else None
        self._smoothing = torch.Generator(device).manual_seed(derive_seed(config.seed, "smoothing"))
        self._updates = 0

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's actions, (n, action_dim), for observations of shape (n, obs_dim), without noise."""
        if self._numpy_actor is not None:
            return self._numpy_actor(obs)
        return act_on_device(self.actor, obs, self._device)

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move the critics by one step, and with every `policy_delay`-th update the actor and all targets too.

        Gives named numbers without a sync; the actor's only where it moved.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        config = self._config
        smoothing = self._draw_smoothing(batch)
        loss, metrics = critic_loss(
            self.critic, self.target_actor, self.target_critic, batch, self._map, smoothing, vitals
        )
        descend_measured(loss, "critic", self.critic_optimizer, 0.0, metrics, vitals)
        self._updates += 1
        if self._updates % config.policy_delay == 0:
            loss, actor_metrics = actor_loss(self.actor, self.critic, batch, config.q_weight, self._map, vitals)
            metrics |= actor_metrics
            descend_measured(loss, "actor", self.actor_optimizer, 0.0, metrics, vitals)
            with torch.no_grad():
                torch._foreach_lerp_(self._targets, self._online, config.tau)
        note_skips([self.actor_optimizer, self.critic_optimizer], vitals)
        return metrics

    def _draw_smoothing(self, batch: Batch) -> Tensor:
        """Give clipped normal noise for the target policy's actions."""
        clip = self._config.target_noise_clip
        noise = torch.empty_like(batch.action).normal_(0.0, 1.0, generator=self._smoothing)
        return noise.mul_(self._config.target_noise_std).clamp_(-clip, clip)

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        self.actor_optimizer.scale_learning_rate(factor)
        self.critic_optimizer.scale_learning_rate(factor)

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        return {"actor": self.actor, "critic": self.critic}

    def networks(self) -> dict[str, nn.Module]:
        """Give the networks by name, targets among them."""
        return {name: part for name, part in self._list_parts().items() if isinstance(part, nn.Module)}

    def state_dict(self) -> dict[str, Any]:
        """Give networks, targets, optimizers, the noise's generator, and where in the policy's delay it is."""
        return save_parts(self._list_parts()) | {"smoothing": self._smoothing.get_state(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        load_parts(self._list_parts(), state)
        self._smoothing.set_state(state["smoothing"].cpu())
        self._updates = state["updates"]

    def _list_parts(self) -> dict[str, nn.Module | Adam]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }
