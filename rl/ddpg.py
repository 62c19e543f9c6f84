"""Deep deterministic policy gradient: Lillicrap et al. 2015, arXiv:1509.02971.

Actions are in [-1, 1] everywhere here; only `ActionScale` knows the environment's bounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from envs.make import describe_spaces, make_env
from envs.plain_values import SnapshotError
from envs.snapshot import Snapshot, probe_resume_mode, restore_snapshot, take_snapshot
from rl.actions import ActionScale
from rl.adam import Adam, clip_gradients
from rl.buffers import Batch, ReplayBuffer
from rl.ddpg_config import DDPGConfig
from rl.networks import Actor, Critic, NumpyActor
from rl.noise import build_noise
from training.evaluation import evaluate_policy
from training.protocol import Episode, Evaluation, StepResult
from training.seeding import derive_seed, spawn_generator

Metrics = dict[str, Tensor]


def build_trainer(config: DDPGConfig, device: torch.device) -> DDPGTrainer:
    """Give a trainer for a config, with its environment made and nothing done yet."""
    return DDPGTrainer(config, device)


def count_parameters(config: DDPGConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    spaces = describe_spaces(config.env_name, config.env_kwargs)
    actor = Actor(spaces.obs_dim, spaces.action_dim, config.hidden_dims, "meta")
    critic = Critic(spaces.obs_dim, spaces.action_dim, config.hidden_dims, "meta")
    return {name: sum(p.numel() for p in net.parameters()) for name, net in (("actor", actor), ("critic", critic))}


def critic_loss(
    critic: Critic, target_actor: Actor, target_critic: Critic, batch: Batch, discount: float
) -> tuple[Tensor, Metrics]:
    """Give the mean squared error of Q(s, a) against `r + discount * Q'(s', mu'(s'))`, and its named numbers.

    Only `terminated` cuts the bootstrap: an episode stopped by its clock still had a future.

    Source: Lillicrap et al. 2015, Algorithm 1.
    """
    with torch.no_grad():
        next_value = target_critic(batch.next_obs, target_actor(batch.next_obs))
        target = batch.reward + discount * (1 - batch.terminated) * next_value
    value = critic(batch.obs, batch.action)
    loss = functional.mse_loss(value, target)
    metrics = {
        "train/critic_loss": loss.detach(),
        "train/q_mean": value.detach().mean(),
        "train/target_std": target.std(correction=0),
    }
    return loss, metrics


def actor_loss(actor: Actor, critic: Critic, batch: Batch) -> tuple[Tensor, Metrics]:
    """Give minus the mean value of the actor's own actions, and its named numbers.

    Source: Lillicrap et al. 2015, Algorithm 1: the sampled policy gradient is the gradient of this mean.
    """
    loss = -critic(batch.obs, actor(batch.obs)).mean()
    return loss, {"train/actor_loss": loss.detach()}


class DDPGAgent:
    """The four networks and two optimizers, and how one batch changes them."""

    TRANSIENT: ClassVar = (
        "device",
        "_discount",
        "_tau",
        "_max_grad_norm",
        "_actor_parameters",
        "_critic_parameters",
        "_targets",
        "_numpy_actor",
    )

    def __init__(self, config: DDPGConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self.device = device
        self._discount = config.discount
        self._tau = config.tau
        self._max_grad_norm = config.max_grad_norm
        # Drawn on the CPU, so that a seed gives the same first networks on every device.
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        self.actor = Actor(obs_dim, action_dim, config.hidden_dims, "cpu")
        self.critic = Critic(obs_dim, action_dim, config.hidden_dims, "cpu")
        self.actor.mlp.initialise(generator)
        self.critic.mlp.initialise(generator)
        self.actor.to(device)
        self.critic.to(device)
        self.target_actor = Actor(obs_dim, action_dim, config.hidden_dims, device).requires_grad_(False)
        self.target_critic = Critic(obs_dim, action_dim, config.hidden_dims, device).requires_grad_(False)
        self.target_actor.load_state_dict(self.actor.state_dict())
        self.target_critic.load_state_dict(self.critic.state_dict())
        self._actor_parameters: list[Tensor] = list(self.actor.parameters())
        self._critic_parameters: list[Tensor] = list(self.critic.parameters())
        self.actor_optimizer = Adam(self._actor_parameters, config.actor_learning_rate or config.learning_rate)
        self.critic_optimizer = Adam(self._critic_parameters, config.critic_learning_rate or config.learning_rate)
        self._targets: list[Tensor] = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        self._numpy_actor = NumpyActor(self.actor) if device.type == "cpu" else None

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's action, of shape (action_dim,), for one observation, without noise."""
        if self._numpy_actor is not None:
            return self._numpy_actor(obs)
        with torch.no_grad():
            action: NDArray[np.float32] = self.actor(torch.from_numpy(obs).to(self.device)).cpu().numpy()
        return action

    def update(self, batch: Batch) -> Metrics:
        """Move critic, actor and targets by one step each, in this order, and give named numbers without a sync."""
        loss, metrics = critic_loss(self.critic, self.target_actor, self.target_critic, batch, self._discount)
        metrics |= self._descend(loss, self._critic_parameters, self.critic_optimizer, "train/critic_grad_norm")
        loss, actor_metrics = actor_loss(self.actor, self.critic, batch)
        metrics |= actor_metrics | self._descend(
            loss, self._actor_parameters, self.actor_optimizer, "train/actor_grad_norm"
        )
        with torch.no_grad():
            torch._foreach_lerp_(self._targets, self._actor_parameters + self._critic_parameters, self._tau)
        return metrics

    def _descend(self, loss: Tensor, parameters: list[Tensor], optimizer: Adam, norm_name: str) -> Metrics:
        """Take one optimizer step on one network; no gradient is computed for any other that the loss runs through."""
        gradients = torch.autograd.grad(loss, parameters)
        norm = {}
        if self._max_grad_norm > 0:
            norm[norm_name] = clip_gradients(gradients, self._max_grad_norm)
        optimizer.step(gradients)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Give networks, targets and optimizers."""
        return {name: part.state_dict() for name, part in self._list_parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        for name, part in self._list_parts().items():
            part.load_state_dict(state[name])

    def _list_parts(self) -> dict[str, nn.Module | Adam]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }


class DDPGTrainer:
    """DDPG in one environment: a `training.protocol.Trainer`.

    Attributes:
        agent: the networks and how they learn.
        resume_mode: `exact` where the environment's state goes into checkpoints; `episode` where a resumed run begins
            a new episode, for `resume_reason`. It turns to `episode` when a state can't be saved after all.
    """

    TRANSIENT: ClassVar = ("config", "resume_mode", "resume_reason", "_scale")

    def __init__(self, config: DDPGConfig, device: torch.device) -> None:
        probe = probe_resume_mode(config.env_name, config.env_kwargs)
        self.config = config
        self.resume_mode: Literal["exact", "episode"] = probe.mode
        self.resume_reason = probe.reason
        self._env = make_env(config.env_name, config.env_kwargs)
        observations, actions = self._env.observation_space, self._env.action_space
        assert isinstance(observations, gym.spaces.Box)
        assert isinstance(actions, gym.spaces.Box)
        obs_dim, action_dim = observations.shape[0], actions.shape[0]
        self._scale = ActionScale(actions)
        self.agent = DDPGAgent(config, obs_dim, action_dim, device)
        # A run never adds more rows than it has steps.
        capacity = min(config.buffer_size, config.max_timesteps)
        self._buffer = ReplayBuffer(capacity, obs_dim, action_dim, spawn_generator(config.seed, "replay"), device)
        self._noise = build_noise(
            config.noise_type, action_dim, config.noise_std, config.ou_theta, spawn_generator(config.seed, "noise")
        )
        self._warmup = spawn_generator(config.seed, "warmup")
        self._obs: NDArray[np.float32] | None = None  # None: an episode has to be begun
        self._reset_seed: int | None = _derive_reset_seed(config.seed, "env")
        self._env_steps = 0
        self._episodes_begun = 0
        self._episode_return = 0.0
        self._episode_length = 0

    def train_step(self) -> StepResult:
        """Take one step in the environment and, once there is enough to learn from, `updates_per_step` updates."""
        episodes = self._take_env_step()
        updates = self.config.updates_per_step if self._can_learn() else 0
        metrics: Metrics = {}
        for _ in range(updates):
            for name, value in self.agent.update(self._buffer.sample(self.config.batch_size)).items():
                metrics[name] = metrics[name] + value if name in metrics else value
        if updates > 1:
            metrics = {name: value / updates for name, value in metrics.items()}
        return StepResult(metrics, env_steps=1, updates=updates, episodes=episodes)

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Run one episode without noise per seed, in an environment of its own.

        Raises:
            EvaluationStopped: `should_stop` said so.
        """
        config = self.config
        return evaluate_policy(lambda: make_env(config.env_name, config.env_kwargs), self._act, seeds, should_stop)

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        return {"actor": self.agent.actor, "critic": self.agent.critic}

    def close(self) -> None:
        """Let go of the environment."""
        self._env.close()

    def _act(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Give the policy's action in the environment's units, without noise."""
        return self._scale.to_env(self.agent.act(np.asarray(obs, dtype=np.float32)))

    def _can_learn(self) -> bool:
        return self._env_steps > self.config.learning_starts and len(self._buffer) >= self.config.batch_size

    def _take_env_step(self) -> Sequence[Episode]:
        """Act once, remember the transition, and give the episode if it has ended."""
        obs = self._begin_episode() if self._obs is None else self._obs
        action = self._choose_action(obs)
        raw_obs, reward, terminated, truncated, _ = self._env.step(self._scale.to_env(action))
        next_obs = np.array(raw_obs, dtype=np.float32)  # a copy: the environment may write into its own
        self._buffer.add(obs, action, float(reward), terminated, next_obs)
        self._env_steps += 1
        self._episode_return += float(reward)
        self._episode_length += 1
        if not (terminated or truncated):
            self._obs = next_obs
            return ()
        self._obs = None
        return (Episode(self._episode_return, self._episode_length, truncated=not terminated),)

    def _begin_episode(self) -> NDArray[np.float32]:
        raw_obs, _ = self._env.reset(seed=self._reset_seed)
        self._reset_seed = None  # from here on the environment draws its own starts
        self._noise.reset()
        self._episodes_begun += 1
        self._episode_return = 0.0
        self._episode_length = 0
        return np.array(raw_obs, dtype=np.float32)

    def _choose_action(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give a uniformly random action before `learning_starts`, and the policy's with noise after it."""
        if self._env_steps < self.config.learning_starts:
            return 2 * self._warmup.random(len(self._scale.low), dtype=np.float32) - 1
        noisy = self.agent.act(obs) + self._noise.sample()
        np.minimum(noisy, 1, out=noisy)
        np.maximum(noisy, -1, out=noisy)
        return noisy

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs; big parts are the trainer's own memory, not copies.

        Where the environment has come to hold something that can't be saved, and that its first steps didn't show,
        this warns, and the run is resumed by episode from here on.
        """
        return {
            "agent": self.agent.state_dict(),
            "buffer": self._buffer.state_dict(),
            "noise": self._noise.state_dict(),
            "warmup": self._warmup.bit_generator.state,
            "env": self._save_env(),
            "obs": self._obs,
            "reset_seed": self._reset_seed,
            "env_steps": self._env_steps,
            "episodes_begun": self._episodes_begun,
            "episode_return": self._episode_return,
            "episode_length": self._episode_length,
        }

    def _save_env(self) -> Snapshot | None:
        """Give the environment's state, or None where a resumed run begins a new episode."""
        if self.resume_mode == "exact":
            try:
                return take_snapshot(self._env)
            except SnapshotError as error:
                self._resume_by_episode(str(error))
                warnings.warn(f"from here on a resumed run begins a new episode: {error}", stacklevel=3)
        return None

    def _resume_by_episode(self, reason: str) -> None:
        self.resume_mode = "episode"
        self.resume_reason = reason

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, into a fresh environment.

        Where the environment's state couldn't be saved, an episode begins anew, from a seed of its own.
        """
        self.agent.load_state_dict(state["agent"])
        self._buffer.load_state_dict(state["buffer"])
        self._noise.load_state_dict(state["noise"])
        self._warmup.bit_generator.state = state["warmup"]
        self._env_steps = state["env_steps"]
        self._episodes_begun = state["episodes_begun"]
        self._env.close()
        self._env = make_env(self.config.env_name, self.config.env_kwargs)
        if state["env"] is None:
            if self.resume_mode == "exact":
                self._resume_by_episode("the environment's state was not in the checkpoint that the run went on from")
            self._obs = None
            self._reset_seed = _derive_reset_seed(self.config.seed, f"env/{self._episodes_begun}")
            self._episode_return, self._episode_length = 0.0, 0
            return
        restore_snapshot(self._env, state["env"])
        self._obs = None if state["obs"] is None else np.array(state["obs"], dtype=np.float32)
        self._reset_seed = state["reset_seed"]
        self._episode_return = state["episode_return"]
        self._episode_length = state["episode_length"]


def _derive_reset_seed(seed: int, purpose: str) -> int:
    """Give a seed below 2**31, which generators of the old kind and simulators with 32-bit seeds take too."""
    return derive_seed(seed, purpose) >> 32
