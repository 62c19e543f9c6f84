"""TD-MPC2: how a batch of sequences changes the world model, its policy and its value heads.

Source: Hansen et al. 2024, arXiv:2310.16828, section 3.1; differences are listed in docs/tdmpc2.md. Actions are in
[-1, 1], or one 1 among zeros where they are discrete. Shapes: H steps, a batch of B sequences, time first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.descent import Descent
from rl.random_shift import shift_images
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.planner import draw_gumbel
from rl.tdmpc2.sizes import NUM_MEMBERS, ModelSizes
from rl.tdmpc2.two_hot import TwoHot
from rl.tdmpc2.world_model import Choice, PolicyRange, Tasks, WorldModel, join
from rl.vitals import measure_critic
from training.adam import forget_lengths
from training.seeding import derive_seed
from training.vitals import Metrics, Vitals, note_skips

FORMAT = 1
"""Of an agent's state; raised when states of before can't be taken over."""
POLICY_EPSILON = 1e-5
"""Of the policy's Adam, as in the authors' code."""
LOW, HIGH = 0.05, 0.95
"""Quantiles of values whose distance is the scale that the policy's loss is divided by."""


@dataclass(frozen=True)
class Batch:
    """Sequences on the device.

    Attributes:
        obs: (H + 1, B, *obs_shape).
        action: (H, B, action_dim).
        reward: (H, B, 1).
        terminated: (H, B, 1), 1 where the step ended the task.
        valid: (H, B, 1), 1 where the step is in its episode.
        discount: (B, 1), per step.
        tasks: of each sequence; None where there is one.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    valid: Tensor
    discount: Tensor
    tasks: Tasks | None = None


class Rollout(NamedTuple):
    """What the model imagines along a batch's actions.

    Attributes:
        latents: (H + 1, B, latent_dim), the first one from an observation.
        joints: (H, B, joint_dim), of each step's latent state, action and task.
        consistency: how far latent states are from those of the observations.
    """

    latents: Tensor
    joints: Tensor
    consistency: Tensor


class TDMPC2:
    """World model and optimizers, and how one batch changes them.

    Args:
        config: of the run.
        sizes: of the world model.
        device: where everything is.

    Attributes:
        model: all networks.
        scale: what values are divided by in the policy's loss, of shape ().
        version: another number whenever the networks have changed.
    """

    TRANSIENT: ClassVar = ("_config", "_device", "_online", "_slow", "_weights", "version")

    def __init__(self, config: TDMPC2Config, sizes: ModelSizes, device: torch.device) -> None:
        self._config, self._device = config, device
        two_hot = TwoHot(config.vmin, config.vmax, config.num_bins)
        policy_range = PolicyRange(config.log_std_min, config.log_std_max)
        # Layers draw first weights from torch's global generator, which is put back: nobody is to notice.
        with torch.random.fork_rng(devices=[]):
            self.model = WorldModel(sizes, two_hot, policy_range, config.dropout)
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        self.model.initialise(torch.Generator().manual_seed(derive_seed(config.seed, "networks")))
        self.model.to(device)
        parts = self.model.components()
        policy = {"policy": parts.pop("policy")}
        rates = {name: config.lr * (config.enc_lr_scale if name == "encoder" else 1.0) for name in parts}
        gated, clip = config.guard == "repair", config.grad_clip_norm
        self._model_descent = Descent("model", parts, rates, clip, "global", gated)
        self._policy_descent = Descent("policy", policy, {"policy": config.lr}, clip, "global", gated, POLICY_EPSILON)
        self._online: list[Tensor] = list(self.model.q.parameters())
        self._slow: list[Tensor] = list(self.model.target_q.parameters())
        self._weights = config.rho ** torch.arange(config.horizon + 1, device=device, dtype=torch.float32)
        self.scale = torch.ones((), device=device)
        self._noise = torch.Generator(device).manual_seed(derive_seed(config.seed, "policy"))
        self._heads = torch.Generator().manual_seed(derive_seed(config.seed, "heads"))
        self._updates = 0
        self.version = 0

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Move the model, then the policy, then the slow copy; give named numbers without a sync.

        Args:
            vitals: filled for the training-health guard; None in an update that isn't measured.
        """
        model, config = self.model.train(), self._config
        self._model_descent.note_weights(vitals)
        self._policy_descent.note_weights(vitals)
        obs = self._shift(batch.obs)
        target, next_latents, next_value = self._find_target(batch, obs)
        rollout = self._roll(batch, obs[0], next_latents)
        logits = model.value(rollout.joints, None, generator=self._noise)
        weights = self._weights[: len(batch.action), None, None] * batch.valid
        value_loss = (weights * model.two_hot.measure(logits, target.expand(len(logits), *target.shape))).mean()
        reward_logits = model.predict_reward(rollout.joints)
        reward_loss = (weights * model.two_hot.measure(reward_logits, batch.reward)).mean()
        total = (
            config.consistency_coef * rollout.consistency
            + config.reward_coef * reward_loss
            + config.value_coef * value_loss
        )
        metrics = {
            "train/consistency_loss": rollout.consistency.detach(),
            "train/reward_loss": reward_loss.detach(),
            "train/value_loss": value_loss.detach(),
        }
        if config.episodic:
            end_loss = self._find_end_loss(batch, rollout)
            total = total + config.termination_coef * end_loss
            metrics["train/termination_loss"] = end_loss.detach()
        metrics["train/total_loss"] = total.detach()
        if vitals is not None:
            self._measure(batch, logits.detach(), target, next_value, vitals)
        self._model_descent.descend(total, metrics, vitals)
        self._update_policy(batch, rollout.latents.detach(), metrics, vitals)
        with torch.no_grad():
            torch._foreach_lerp_(self._slow, self._online, config.tau)
        note_skips([*self._model_descent.optimizers, *self._policy_descent.optimizers], vitals)
        self._updates += 1
        self.version += 1
        return metrics

    @torch.no_grad()
    def _find_target(self, batch: Batch, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give `r + discount * min(Q1', Q2')(z', pi(z'))`, z' of the observations after each step, and the value in it.

        Only `terminated` cuts the bootstrap. Shapes are (H, B, 1), (H, B, latent_dim) and (H, B, 1).
        """
        model = self.model
        task = model.embed(batch.tasks)
        latents = model.encode(obs[1:], task)
        action = model.act(latents, self._draw(latents), task, _read_mask(batch.tasks)).action
        value = model.Q(join(latents, action, task), self._choose_heads(), "min", target=True)
        return batch.reward + batch.discount * (1 - batch.terminated) * value, latents, value

    def _roll(self, batch: Batch, first: Tensor, next_latents: Tensor) -> Rollout:
        """Imagine what follows the first observations."""
        model = self.model
        task = model.embed(batch.tasks)
        latent = model.encode(first, task)
        latents, joints = [latent], []
        consistency = torch.zeros((), device=self._device)
        for number, action in enumerate(batch.action):
            joints.append(join(latent, action, task))
            latent = model.follow(joints[-1])
            latents.append(latent)
            error = (latent - next_latents[number]).square().mean(-1, keepdim=True)
            consistency = consistency + self._weights[number] * (batch.valid[number] * error).mean()
        return Rollout(torch.stack(latents), torch.stack(joints), consistency / len(joints))

    def _find_end_loss(self, batch: Batch, rollout: Rollout) -> Tensor:
        """Give the cross entropy of the predicted ends of tasks, over the steps of their episodes."""
        logits = self.model.predict_end(rollout.latents[1:], self.model.embed(batch.tasks))
        return functional.binary_cross_entropy_with_logits(logits, batch.terminated, weight=batch.valid)

    def _update_policy(self, batch: Batch, latents: Tensor, metrics: Metrics, vitals: Vitals | None) -> None:
        """Move the policy towards higher values, in units of how far apart they are, and towards chance."""
        model = self.model
        with torch.no_grad():
            task = model.embed(batch.tasks)
        choice = model.act(latents, self._draw(latents), task, _read_mask(batch.tasks))
        joint = join(latents, choice.action, task)
        value = model.Q(joint, self._choose_heads(), "avg", frozen=True, generator=self._noise)
        self._follow_scale(value[0].detach())
        within = torch.cat([torch.ones_like(batch.valid[:1]), batch.valid])
        gain = within * (self._config.entropy_coef * choice.entropy + value / self.scale)
        loss = -(self._weights * gain.mean((1, 2))).mean()
        metrics |= {
            "train/policy_loss": loss.detach(),
            "train/policy_entropy": choice.entropy.detach().mean(),
            "train/q_mean": value.detach().mean(),
            "train/q_scale": self.scale.clone(),
        }
        self._policy_descent.descend(loss, metrics, vitals)

    def _follow_scale(self, values: Tensor) -> None:
        """Move the scale a little towards the distance of two quantiles of values, (B, 1); 1 is the least."""
        bounds = torch.quantile(values.flatten(), torch.tensor([LOW, HIGH], device=values.device))
        self.scale.lerp_((bounds[1] - bounds[0]).clamp(min=1.0), self._config.tau)

    def _measure(self, batch: Batch, logits: Tensor, target: Tensor, next_value: Tensor, vitals: Vitals) -> None:
        """Note errors and sizes of all value heads for the guard."""
        values = self.model.two_hot.decode(logits).flatten(1, 2)
        discount = batch.discount.expand(len(target), -1, -1).reshape(-1, 1)
        target, reward, next_value = (part.reshape(-1, 1) for part in (target, batch.reward, next_value))
        vitals |= measure_critic(list(values), target, reward, next_value, discount)

    def _draw(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a policy's noise for latent states (..., latent_dim), from this agent's generator unless given one."""
        shape = (*latents.shape[:-1], self.model.sizes.action_dim)
        drawer = self._noise if generator is None else generator
        if self.model.sizes.discrete:
            return draw_gumbel(shape, self._device, drawer)
        return torch.randn(shape, device=self._device, generator=drawer)

    def _choose_heads(self) -> list[int]:
        """Draw the two value heads that are run."""
        drawn: list[int] = torch.randperm(self.model.sizes.num_q, generator=self._heads)[:NUM_MEMBERS].tolist()
        return drawn

    def _shift(self, obs: Tensor) -> Tensor:
        """Move each sequence's images, up to `random_shift` pixels each way; vectors stay as they are."""
        reach = self._config.random_shift if self.model.sizes.sees_pixels else 0
        return shift_images(obs, reach, self._noise, batch_dim=1)

    @torch.no_grad()
    def act(self, obs: Tensor, tasks: Tasks | None, generator: torch.Generator) -> Choice:
        """Give what the policy alone does at observations (rows, *obs_shape); in eval mode."""
        model = self.model.eval()
        task = model.embed(tasks)
        latents = model.encode(obs, task)
        return model.act(latents, self._draw(latents, generator), task, _read_mask(tasks))

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor, tasks: Tasks | None) -> Tensor:
        """Give the mean of all value heads, (rows, 1), of actions at observations; in eval mode."""
        model = self.model.eval()
        task = model.embed(tasks)
        logits = model.value(join(model.encode(obs, task), action, task), None)
        return model.two_hot.decode(logits).mean(0)

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        for descent in (self._model_descent, self._policy_descent):
            descent.scale_learning_rates(factor)

    def forget_gradients(self) -> None:
        """Judge no gradient by those before; see `training.gate`."""
        forget_lengths([*self._model_descent.optimizers, *self._policy_descent.optimizers])

    def components(self) -> dict[str, nn.Module]:
        """Give the networks that learn, the slow copy left out."""
        return self.model.components()

    def state_dict(self) -> dict[str, Any]:
        """Give networks, optimizers, scale, and where all that is drawn has got to."""
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "model_descent": self._model_descent.state_dict(),
            "policy_descent": self._policy_descent.state_dict(),
            "scale": self.scale,
            "noise": self._noise.get_state(),
            "heads": self._heads.get_state(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave.

        Raises:
            ValueError: it is of another format, or of networks of other sizes.
        """
        check_state(state, self.model)
        self.model.load_state_dict(state["model"])
        self._model_descent.load_state_dict(state["model_descent"])
        self._policy_descent.load_state_dict(state["policy_descent"])
        self.scale.copy_(state["scale"])
        self._noise.set_state(state["noise"].cpu())
        self._heads.set_state(state["heads"].cpu())
        self._updates = state["updates"]
        self.version += 1


def check_state(state: dict[str, Any], model: WorldModel) -> None:
    """Refuse a state of another format, or of a model of other sizes, in one line.

    Raises:
        ValueError: it is one.
    """
    if state["format"] != FORMAT:
        raise ValueError(f"the saved agent is of format {state['format']}, and this version reads format {FORMAT}")
    own, saved = model.state_dict(), state["model"]
    if lacking := sorted(own.keys() ^ saved.keys()):
        raise ValueError(f"the saved model and this run's don't have the same networks: {lacking[0]} is in one alone")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(
                f"the saved model's {name} has shape {tuple(saved[name].shape)}, and this run's {tuple(tensor.shape)}: "
                "model_size, another size or the environment has changed"
            )


def _read_mask(tasks: Tasks | None) -> Tensor | None:
    return None if tasks is None else tasks.mask
