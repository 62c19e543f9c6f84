"""Behaviour cloning: a deterministic policy fitted to recorded actions (Pomerleau 1988; Bain and Sammut 1995).

Actions are in [-1, 1]; what loads data and evaluates is in `offline.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rl.buffers import Batch
from rl.networks import Actor, NumpyActor
from rl.off_policy import count_network_parameters
from rl.offline.bc_config import BCConfig
from rl.offline.offline import OfflineTrainer, act_on_device, find_sizes, load_parts, save_parts
from training.adam import Adam
from training.gate import GradientGate
from training.seeding import derive_seed
from training.vitals import Metrics, Vitals, descend_measured, note_skips


def build_trainer(config: BCConfig, device: torch.device) -> OfflineTrainer:
    """Give a trainer for a config, with its data set loaded and nothing done yet."""
    return OfflineTrainer(config, device, BCAgent)


def count_parameters(config: BCConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device.

    Raises:
        SettingsError: the environment can't be made.
    """
    sizes = find_sizes(config)
    return count_network_parameters({"actor": Actor(sizes.obs_dim, sizes.action_dim, config.hidden_dims, "meta")})


def actor_loss(actor: Actor, batch: Batch) -> tuple[Tensor, Metrics]:
    """Give the mean squared error between the policy's actions and the recorded ones, and its named numbers.

    Its least value is the recorded actions' variance where their observation is known: the policy comes to be their
    mean.
    """
    loss = functional.mse_loss(actor(batch.obs), batch.action)
    return loss, {"train/actor_loss": loss.detach()}


class BCAgent:
    """An actor and its optimizer, and how one batch changes them."""

    TRANSIENT: ClassVar = ("_device", "_numpy_actor")

    def __init__(self, config: BCConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self._device = device
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        actor = Actor(obs_dim, action_dim, config.hidden_dims, "cpu")
        actor.mlp.initialise(generator)
        self.actor = actor.to(device)
        self.actor_optimizer = Adam(list(self.actor.parameters()), config.learning_rate)
        if config.guard == "repair":
            self.actor_optimizer.gate = GradientGate(device)
        self._numpy_actor = NumpyActor(self.actor) if device.type == "cpu" else None

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's actions, (n, action_dim), for observations of shape (n, obs_dim)."""
        if self._numpy_actor is not None:
            return self._numpy_actor(obs)
        return act_on_device(self.actor, obs, self._device)

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move the actor by one step and give named numbers without a sync.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        loss, metrics = actor_loss(self.actor, batch)
        descend_measured(loss, "actor", self.actor_optimizer, 0.0, metrics, vitals)
        note_skips([self.actor_optimizer], vitals)
        return metrics

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rate in the config."""
        self.actor_optimizer.scale_learning_rate(factor)

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name."""
        return {"actor": self.actor}

    def networks(self) -> dict[str, nn.Module]:
        """Give the networks by name."""
        return {name: part for name, part in self._list_parts().items() if isinstance(part, nn.Module)}

    def state_dict(self) -> dict[str, Any]:
        """Give network and optimizer."""
        return save_parts(self._list_parts())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        load_parts(self._list_parts(), state)

    def _list_parts(self) -> dict[str, nn.Module | Adam]:
        return {"actor": self.actor, "actor_optimizer": self.actor_optimizer}
