"""VMamba-TD3: twin delayed DDPG whose actor and critic each look at a window of frames through a stream of its own.

Fujimoto et al. 2018, arXiv:1802.09477, for the algorithm; Liu et al. 2024, arXiv:2401.10166, for the encoder. Actions
are in [-1, 1]; what acts in environments is in `trainer.py`, and the interface that scripts use in `published.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.descent import Descent
from rl.networks import build_target
from rl.random_shift import shift_images
from rl.residual import ActionMap
from rl.vitals import measure_critic, measure_when_passed_back
from rl.vmamba_td3.architecture import StreamConfig
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.frames import LEVELS, Windows
from rl.vmamba_td3.heads import Actor, TwinCritic
from rl.vmamba_td3.stream import PrivilegedStream, Stream
from training.adam import forget_lengths
from training.seeding import derive_seed
from training.vitals import Metrics, Vitals, note_skips


@dataclass(frozen=True)
class Batch:
    """Windows on the device, the oldest frame first.

    Attributes:
        base: (batch, steps, base_dim).
        depth: (batch, steps, 1, height, width), in [0, 1].
        action: (batch, action_dim), in [-1, 1].
        reward: (batch, 1).
        next_base: as `base`.
        next_depth: as `depth`.
        terminated: (batch, 1), 1 where the task ended.
        discount: (batch, 1), of what follows.
        privileged: (batch, privileged_dim), of the newest frame.
        next_privileged: as `privileged`.
    """

    base: Tensor
    depth: Tensor
    action: Tensor
    reward: Tensor
    next_base: Tensor
    next_depth: Tensor
    terminated: Tensor
    discount: Tensor
    privileged: Tensor
    next_privileged: Tensor


def critic_loss(values: tuple[Tensor, Tensor], target: Tensor, huber: bool) -> Tensor:
    """Give the sum of both critics' mean errors against one target: squared, or Huber's.

    Args:
        values: of both critics, (batch, 1).
        target: (batch, 1), without gradient.
        huber: whether errors above 1 count by their size and no longer by their square.
    """
    assert values[0].shape == target.shape, (values[0].shape, target.shape)  # or they would spread over each other
    measure = functional.smooth_l1_loss if huber else functional.mse_loss
    return measure(values[0], target) + measure(values[1], target)


class VMambaTD3:
    """Streams, actor, critic, their targets and optimizers, and how one batch changes them.

    With `encoder_sharing: shared` the actor has no stream: it acts on what the critic's gives, which learns from the
    critic's loss alone. With `asymmetric_critic` the critic's stream has no images: it reads the newest state and what
    the simulator knows, and the actor's stream learns, as ever, from the critic's values alone.

    Args:
        config: of the run.
        sizes: of a stream.
        action_dim: numbers of an action.
        device: where everything is.
        privileged_dim: numbers that the simulator tells an asymmetric critic.

    Attributes:
        networks: those that learn, by name.
        targets: the slow copies, under the same names; always in eval mode.
        version: another number whenever the networks have changed.
    """

    TRANSIENT: ClassVar = ("_config", "_device", "_online", "_slow", "_map", "_separate", "version")

    def __init__(
        self,
        config: VMambaTD3Config,
        sizes: StreamConfig,
        action_dim: int,
        device: torch.device,
        privileged_dim: int = 0,
    ) -> None:
        assert config.asymmetric_critic == (privileged_dim > 0)
        self._config, self._device = config, device
        self._map = ActionMap(action_dim)
        self._separate = config.encoder_sharing == "separate"
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        names = ["critic_stream", "actor_stream"] if self._separate else ["critic_stream"]
        networks: dict[str, Stream | PrivilegedStream | Actor | TwinCritic] = {
            name: Stream(sizes, use_amp=config.use_amp, use_checkpointing=config.use_checkpointing) for name in names
        }
        if config.asymmetric_critic:
            networks["critic_stream"] = PrivilegedStream(sizes.state_dim, privileged_dim, sizes.hidden_dim)
        networks["actor"] = Actor(sizes.hidden_dim, sizes.hidden_dim, action_dim)
        networks["critic"] = TwinCritic(sizes.hidden_dim, sizes.hidden_dim, action_dim)
        for network in networks.values():
            network.initialise(generator)
            network.to(device)
        self.networks = nn.ModuleDict(networks)
        self.targets = nn.ModuleDict({name: build_target(network) for name, network in networks.items()}).eval()
        self._online: list[Tensor] = list(self.networks.parameters())
        self._slow: list[Tensor] = list(self.targets.parameters())
        self._critic_descent = self._build_descent("critic", config.critic_lr)
        self._actor_descent = self._build_descent("actor", config.actor_lr)
        self._smoothing = torch.Generator(device).manual_seed(derive_seed(config.seed, "smoothing"))
        self._paths = torch.Generator(device).manual_seed(derive_seed(config.seed, "paths"))
        self._shifts = torch.Generator(device).manual_seed(derive_seed(config.seed, "shifts"))
        self._updates = 0
        self.version = 0

    def _build_descent(self, owner: str, rate: float) -> Descent:
        """Give what descends one owner's loss: its head, and its stream if it has one."""
        config = self._config
        parts: dict[str, nn.Module] = {owner: self.networks[owner]}
        rates = {owner: rate}
        if f"{owner}_stream" in self.networks:
            stream = self.networks[f"{owner}_stream"]
            for name, module in stream.named_children():
                parts[f"{owner}_{name}"] = module
                rates[f"{owner}_{name}"] = config.encoder_lr or rate if isinstance(stream, Stream) else rate
        return Descent(owner, parts, rates, config.grad_clip, config.grad_clip_scope, config.guard == "repair")

    def find_stream(self, owner: str, target: bool = False) -> Stream:
        """Give the stream that an owner, `actor` or `critic`, looks at windows through, or its slow copy."""
        networks = self.targets if target else self.networks
        stream = networks[f"{owner}_stream" if self._separate else "critic_stream"]
        assert isinstance(stream, Stream)
        return stream

    def _view(
        self,
        base: Tensor,
        depth: Tensor,
        privileged: Tensor,
        paths: torch.Generator | None = None,
        target: bool = False,
    ) -> Tensor:
        """Give what the critic judges actions by, (batch, hidden_dim): of windows, or of what is privileged."""
        stream = (self.targets if target else self.networks)["critic_stream"]
        if isinstance(stream, PrivilegedStream):
            return stream(base, privileged)  # type: ignore[no-any-return]
        return stream(base, depth, paths)  # type: ignore[no-any-return]

    def choose(self, context: Tensor) -> Tensor:
        """Give the actor's actions, (batch, action_dim), for what its stream gave."""
        actions: Tensor = self.networks["actor"](context)
        return actions

    def load_batch(self, windows: Windows) -> Batch:
        """Put a batch on the device, depth as numbers in [0, 1], each window shifted where that is asked for."""
        tensors = {
            name: torch.from_numpy(array).to(self._device, non_blocking=True)
            for name, array in windows._asdict().items()
        }
        for name in ("depth", "next_depth"):
            moved = shift_images(tensors[name], self._config.random_shift, self._shifts, batch_dim=0)
            tensors[name] = moved.float().div_(LEVELS)
        return Batch(**tensors)

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move the critic and its stream by one step, with every `policy_freq`-th update the actor and all targets too.

        Gives named numbers without a sync; the actor's only where it moved.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        self.networks.train()
        self._actor_descent.note_weights(vitals)  # in the first update too, in which it doesn't move
        target, next_value = self._find_target(batch)
        context = self._view(batch.base, batch.depth, batch.privileged, self._paths)
        values = self.networks["critic"](context, batch.action)
        loss = critic_loss(values, target, self._config.critic_loss == "huber")
        if vitals is not None:
            vitals |= measure_critic(list(values), target, batch.reward, next_value, batch.discount)
        metrics = {
            "train/critic_loss": loss.detach(),
            "train/q_mean": values[0].detach().mean(),
            "train/target_std": target.std(correction=0),
        }
        self._critic_descent.descend(loss, metrics, vitals)
        self._updates += 1
        if self._updates % self._config.policy_freq == 0:
            actor_loss = self._find_actor_loss(batch, context.detach(), vitals)
            metrics["train/actor_loss"] = actor_loss.detach()
            self._actor_descent.descend(actor_loss, metrics, vitals)
            with torch.no_grad():
                torch._foreach_lerp_(self._slow, self._online, self._config.tau)
        note_skips([*self._critic_descent.optimizers, *self._actor_descent.optimizers], vitals)
        self.version += 1
        return metrics

    @torch.no_grad()
    def _find_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give `r + discount * min(Q1', Q2')(s', clip(mu'(s') + noise))`, and the value in it, both (batch, 1).

        Only `terminated` cuts the bootstrap: an episode stopped by its clock still had a future.
        """
        context = self._view(batch.next_base, batch.next_depth, batch.next_privileged, target=True)
        seen = context
        if self._separate:
            seen = self.find_stream("actor", target=True)(batch.next_base, batch.next_depth)
        action = (self.targets["actor"](seen) + self._draw_smoothing(batch.action)).clamp_(-1, 1)
        value = torch.minimum(*self.targets["critic"](context, action))
        return batch.reward + batch.discount * (1 - batch.terminated) * value, value

    def _draw_smoothing(self, action: Tensor) -> Tensor:
        """Give clipped normal noise for the target policy's actions."""
        noise = torch.empty_like(action).normal_(0.0, 1.0, generator=self._smoothing)
        return noise.mul_(self._config.policy_noise).clamp_(-self._config.noise_clip, self._config.noise_clip)

    def _find_actor_loss(self, batch: Batch, context: Tensor, vitals: Vitals | None) -> Tensor:
        """Give minus the mean value, by the first critic, of the actor's own actions.

        Where the actor has a stream, the critic looks again, through weights that have just moved, and in eval mode;
        where it has none, it acts on what the critic saw in this update.
        """
        seen = context
        if self._separate:
            seen = self.find_stream("actor")(batch.base, batch.depth, self._paths)
            stream = self.networks["critic_stream"].eval()
            with torch.no_grad():
                context = self._view(batch.base, batch.depth, batch.privileged)
            stream.train()
        actor, critic = self.networks["actor"], self.networks["critic"]
        assert isinstance(actor, Actor)
        assert isinstance(critic, TwinCritic)
        logits = actor.mlp(seen)
        own = torch.tanh(logits)
        if vitals is not None:
            measure_when_passed_back(own, context, self._map, vitals)
        value: Tensor = critic.first(torch.cat([context, own], dim=1))
        loss: Tensor = self._config.saturation_weight * logits.square().mean() - value.mean()
        return loss

    @torch.no_grad()
    def act(self, base: Tensor, depth: Tensor) -> Tensor:
        """Give the policy's actions without noise, (batch, action_dim), for windows on the device; in eval mode."""
        self.networks.eval()
        return self.choose(self.find_stream("actor")(base, depth))

    @torch.no_grad()
    def value(self, base: Tensor, depth: Tensor, privileged: Tensor, action: Tensor) -> Tensor:
        """Give the first critic's values, (batch, 1), in eval mode."""
        self.networks.eval()
        values: tuple[Tensor, Tensor] = self.networks["critic"](self._view(base, depth, privileged), action)
        return values[0]

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        for descent in (self._critic_descent, self._actor_descent):
            descent.scale_learning_rates(factor)

    def forget_gradients(self) -> None:
        """Judge no gradient by those before; see `training.gate`."""
        forget_lengths([*self._critic_descent.optimizers, *self._actor_descent.optimizers])

    def components(self) -> dict[str, nn.Module]:
        """Give the networks that learn by their published names, targets left out."""
        found: dict[str, nn.Module] = {}
        for owner in ("actor", "critic"):
            if f"{owner}_stream" in self.networks:
                for name, module in self.networks[f"{owner}_stream"].named_children():
                    found[f"{owner}_{name}"] = module
            found[owner] = self.networks[owner]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Give networks, targets, optimizers, and where all that is drawn has got to."""
        return {
            "networks": self.networks.state_dict(),
            "targets": self.targets.state_dict(),
            "critic_descent": self._critic_descent.state_dict(),
            "actor_descent": self._actor_descent.state_dict(),
            "smoothing": self._smoothing.get_state(),
            "paths": self._paths.get_state(),
            "shifts": self._shifts.get_state(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self.networks.load_state_dict(state["networks"])
        self.targets.load_state_dict(state["targets"])
        self._critic_descent.load_state_dict(state["critic_descent"])
        self._actor_descent.load_state_dict(state["actor_descent"])
        for generator, name in ((self._smoothing, "smoothing"), (self._paths, "paths"), (self._shifts, "shifts")):
            generator.set_state(state[name].cpu())
        self._updates = state["updates"]
        self.version += 1
