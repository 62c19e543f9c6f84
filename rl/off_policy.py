"""What DDPG, TD3 and SAC have in common: acting in environments, remembering, learning from what is remembered.

An agent (the networks and how a batch changes them) is in its algorithm's own file; this is all around it. Actions are
in [-1, 1] everywhere here; only `ActionScale` knows the environment's bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.actions import ActionScale
from envs.controllers import CONTROLLERS
from envs.make import Env, SpaceSizes, make_env
from envs.snapshot import probe_resume_mode
from rl.buffers import Batch, ReplayBuffer
from rl.export import build_policy_module
from rl.noise_scale import NoiseScale
from rl.normalizers import ObsNormalizer, RewardNormalizer
from rl.off_policy_config import OffPolicyConfig
from rl.residual import ActionMap, append_base_action
from rl.slots import Environments, EnvironmentSlot
from training.evaluation import evaluate_policy
from training.protocol import Episode, Evaluation, NotOneModuleError, References, StepResult, Treatment
from training.seeding import spawn_generator
from training.vitals import Metrics, Vitals, is_measured
from training.weights import copy_weights

Config = TypeVar("Config", bound=OffPolicyConfig)


class Agent(Protocol):
    """Networks that act and learn.

    The actions that it gives are its own: in [-1, 1], and before what residual control adds to them.
    """

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's own actions, (n, action_dim), for observations of shape (n, obs_dim), without noise."""
        ...

    def explore(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give own actions to learn from, one for each environment, in memory of their own."""
        ...

    def value(self, obs: NDArray[np.float32], action: NDArray[np.float32]) -> float | None:
        """Give the critic's value of an executed action, (action_dim,), at an observation, (obs_dim,).

        None where values hold more than rewards.
        """
        ...

    def begin_episode(self, env: int) -> None:
        """Hear that an episode begins in one environment."""
        ...

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Learn from one batch and give named numbers without a sync; fill `vitals` for the guard, if there are any."""
        ...

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
        ...

    def probe_critic(self, batch: Batch) -> Tensor:
        """Give the critic's loss as the next update would compute it; nothing is drawn and nothing changes."""
        ...

    def forget_gradients(self) -> None:
        """Judge no gradient by those before: they were of another scale."""
        ...

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        ...

    def networks(self) -> dict[str, nn.Module]:
        """Give all networks by their names in the state, targets among them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...


Slot: TypeAlias = EnvironmentSlot[NDArray[np.float32]]


def find_sizes(config: OffPolicyConfig) -> SpaceSizes:
    """Give the sizes that an agent gets: its observations end in the base action of residual control, if there is one.

    Raises:
        SettingsError: the environment can't be made.
    """
    return config.find_sizes()


def _is_fault(
    slot: Slot,
    obs: NDArray[np.float32],
    action: NDArray[np.float32],
    next_obs: NDArray[np.float32],
    reward: float,
) -> bool:
    """Tell whether the environment gave what isn't finite: where its episode began, or as answer to a finite action."""
    if slot.episode_length == 1 and not np.isfinite(obs).all():
        return True
    return bool(np.isfinite(action).all()) and not (math.isfinite(reward) and bool(np.isfinite(next_obs).all()))


def count_network_parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Count the parameters of each network."""
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


class OffPolicyTrainer:
    """An off-policy agent in its environments: a `training.protocol.Trainer`.

    Attributes:
        agent: the networks and how they learn.
    """

    references: References | None = None
    TRANSIENT: ClassVar = ("config", "_scale", "_map", "_controller", "_batch_size")

    def __init__(
        self, config: Config, device: torch.device, build_agent: Callable[[Config, int, int, torch.device], Agent]
    ) -> None:
        self.config: OffPolicyConfig = config
        self._controller = CONTROLLERS[config.base_controller][1] if config.base_controller else None
        probe = probe_resume_mode(config.env_name, config.env_kwargs)
        self._slots = Environments(probe, self._make_env, self._perceive, config.seed, config.num_envs, config.discount)
        actions = self._slots[0].env.action_space
        assert isinstance(actions, gym.spaces.Box)
        self._scale = ActionScale(actions)
        sizes = find_sizes(config)
        self._map = ActionMap(sizes.action_dim, config.delta_scale_max)
        self.agent: Agent = build_agent(config, sizes.obs_dim, sizes.action_dim, device)
        self._buffer = ReplayBuffer(
            config.buffer_rows,
            sizes.obs_dim,
            sizes.action_dim,
            spawn_generator(config.seed, "replay"),
            device,
            discount=config.discount,
            n_step=config.n_step,
            num_envs=config.num_envs,
        )
        self._warmup = spawn_generator(config.seed, "warmup")
        base_dim = sizes.action_dim if config.base_controller else 0
        self._obs_normalizer = ObsNormalizer(sizes.obs_dim - base_dim, base_dim) if config.normalize_obs else None
        self._reward_normalizer = (
            RewardNormalizer(config.num_envs, config.discount) if config.normalize_reward else None
        )
        self._env_steps = 0
        self._updates = 0
        self._rewarded = False
        self._batch_size = config.batch_size
        self._samples_owed = 0
        self._noise_scale = NoiseScale()

    @property
    def resume_mode(self) -> Literal["exact", "episode"]:
        """Whether environments come back to the bit; see `training.protocol.Trainer`."""
        return self._slots.resume_mode

    @property
    def resume_reason(self) -> str | None:
        """Why they don't come back; None where they do."""
        return self._slots.resume_reason

    def train_step(self) -> StepResult:
        """Take one step in each environment and, once there is enough, the updates that `schedule` gives for these."""
        episodes, faults = self._take_env_steps()
        vitals: Vitals = {}
        updates = 0
        if self._can_learn():
            updates, self._samples_owed = self.config.count_due_updates(self._samples_owed)
        metrics = self._update(vitals) if updates == 1 else self._update_often(updates, vitals)
        return StepResult(metrics, self.config.num_envs, updates, episodes, vitals=vitals, faults=faults)

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Run one episode without noise per seed, in an environment of its own; what normalises stays as it is.

        Raises:
            EvaluationStopped: `should_stop` said so.
        """
        return evaluate_policy(self._make_evaluation_env, self._act, seeds, should_stop)

    def begin_acting(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Give the policy without noise, from observations to actions in the environment's units; it holds no state."""
        return self._act

    def build_policy_module(self) -> nn.Module:
        """Give the policy as one module; see `training.protocol.HasPolicyModule`."""
        if self.config.base_controller is not None:
            raise NotOneModuleError(f"the base controller {self.config.base_controller} is code, and no network")
        normalize = nn.Identity() if self._obs_normalizer is None else self._obs_normalizer.build_module()
        return build_policy_module(normalize, self.components()["actor"], self._scale)

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        return self.agent.components()

    def take_weights(self, state: dict[str, Any]) -> None:
        """Take the networks alone out of another run's state; see `training.protocol.TakesWeights`."""
        copy_weights(self.agent.networks(), state["agent"])

    def treat(self, treatment: Treatment) -> None:
        """Go on with other learning rates and batches than the config's."""
        self.agent.scale_learning_rates(treatment.learning_rate_factor)
        self._batch_size = max(1, self.config.batch_size >> treatment.batch_halvings)

    def redraw(self, number: int) -> None:
        """Draw batches from a stream of their own from here on, another one for each number."""
        self._buffer.reseed(spawn_generator(self.config.seed, f"replay/{number}"))

    def close(self) -> None:
        """Let go of the environments."""
        self._slots.close()

    def _make_env(self) -> Env:
        return make_env(self.config.env_name, self.config.env_kwargs)

    def _make_evaluation_env(self) -> Env:
        return make_env(self.config.env_name, self.config.evaluation_kwargs)

    def _perceive(self, raw_obs: NDArray[Any]) -> NDArray[np.float32]:
        return append_base_action(raw_obs, self._controller)

    def _normalize(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        return obs if self._obs_normalizer is None else self._obs_normalizer.apply(obs)

    def _act(self, raw_obs: NDArray[Any]) -> NDArray[Any]:
        """Give the policy's action in the environment's units, without noise."""
        obs = self._perceive(raw_obs)[None]
        return self._scale.to_env(self._map.execute(obs, self.agent.act(self._normalize(obs)))[0])

    def _can_learn(self) -> bool:
        return self._env_steps > self.config.learning_starts and len(self._buffer) >= self._batch_size

    def _sample(self) -> Batch:
        """Give a batch as the agent learns from it."""
        batch = self._buffer.sample(self._batch_size)
        if self._obs_normalizer is not None:
            normalize = self._obs_normalizer.apply_tensor
            batch = replace(batch, obs=normalize(batch.obs), next_obs=normalize(batch.next_obs))
        if self._reward_normalizer is not None:
            batch = replace(batch, reward=batch.reward * self._reward_normalizer.scale())
        return batch

    def _update(self, vitals: Vitals) -> Metrics:
        """Learn from one batch and give named numbers, that of the critic's gradient noise now and then among them.

        In some updates, the first and the last among them, vitals are measured too; the latest count.
        """
        measured = is_measured(self._updates) or self._env_steps >= self.config.max_timesteps
        self._updates += 1
        batch = self._sample()
        noise = self._noise_scale.look(self.agent.components()["critic"], lambda: self.agent.probe_critic(batch))
        return {**self.agent.update(batch, vitals if measured else None), **noise}

    def _update_often(self, updates: int, vitals: Vitals) -> Metrics:
        """Learn from so many batches and give the means of the numbers, each over the updates that gave it."""
        sums: Metrics = {}
        counts: dict[str, int] = {}
        for _ in range(updates):
            for name, value in self._update(vitals).items():
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + 1
        return {name: value / counts[name] for name, value in sums.items()}

    def _take_env_steps(self) -> tuple[list[Episode], list[str]]:
        """Act once in each environment and remember the transitions.

        Gives the episodes that have ended, and, a text each, where an environment gave a number that isn't finite.
        Where the guard may repair, such a transition is left out and its episode cut off; elsewhere it is kept.
        """
        observations = [self._observe(number) for number in range(len(self._slots))]
        stacked = observations[0][None] if len(observations) == 1 else np.stack(observations)
        executed = self._choose_actions(stacked)
        self._env_steps += len(self._slots)
        episodes, rewards, faults = [], [], []
        for number, (slot, obs, action) in enumerate(zip(self._slots, observations, executed, strict=True)):
            next_obs, reward, terminated, episode = slot.step(self._scale.to_env(action), obs, action)
            if _is_fault(slot, obs, action, next_obs, reward):
                faults.append(slot.describe_fault(number, reward))
                if self.config.guard == "repair":
                    slot.abandon()
                    rewards.append(0.0)
                    continue
            self._buffer.add(obs, action, reward, terminated, next_obs, slot.episodes_begun)
            rewards.append(reward)
            if episode is not None:
                episodes.append(self._hold_against_prediction(slot, episode, next_obs))
        if not self._rewarded and any(rewards):
            # Until now values had no scale but the one that networks began with.
            self._rewarded = True
            self.agent.forget_gradients()
        if self._obs_normalizer is not None:
            self._obs_normalizer.add(stacked)
        if self._reward_normalizer is not None:
            self._reward_normalizer.add(np.array(rewards))
        return episodes, faults

    def _hold_against_prediction(self, slot: Slot, episode: Episode, last_obs: NDArray[np.float32]) -> Episode:
        """Add what the critic says of an episode's first step, and the discounted return that came, once it learns."""
        if self._updates == 0 or slot.first_step is None:
            return episode
        first_obs, first_action = slot.first_step
        predicted = self.agent.value(self._normalize(first_obs), first_action)
        if predicted is None:
            return episode
        came = slot.discounted_return * (1.0 if self._reward_normalizer is None else self._reward_normalizer.scale())
        if episode.truncated:
            obs = self._normalize(last_obs)
            action = self._map.execute(last_obs[None], self.agent.act(obs[None]))[0]
            came += slot.discount_so_far * (self.agent.value(obs, action) or 0.0)
        return replace(episode, predicted_return=predicted, discounted_return=came)

    def _observe(self, number: int) -> NDArray[np.float32]:
        """Give what the agent sees in one environment, whose next episode is begun if the last has ended."""
        obs = self._slots[number].obs
        if obs is not None:
            return obs
        self.agent.begin_episode(number)
        if self._reward_normalizer is not None:
            self._reward_normalizer.begin_episode(number)
        return self._slots[number].begin_episode()

    def _choose_actions(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give executed actions: from uniformly random own ones before `learning_starts`, from the agent's after it."""
        if self._env_steps < self.config.learning_starts:
            own = 2 * self._warmup.random((len(obs), self._map.action_dim), dtype=np.float32) - 1
        else:
            own = self.agent.explore(self._normalize(obs))
        return self._map.execute(obs, own)

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs; big parts are the trainer's own memory, not copies."""
        return {
            "agent": self.agent.state_dict(),
            "buffer": self._buffer.state_dict(),
            "warmup": self._warmup.bit_generator.state,
            "slots": self._slots.state_dicts(),
            "obs_normalizer": None if self._obs_normalizer is None else self._obs_normalizer.state_dict(),
            "reward_normalizer": None if self._reward_normalizer is None else self._reward_normalizer.state_dict(),
            "env_steps": self._env_steps,
            "updates": self._updates,
            "samples_owed": self._samples_owed,
            "noise_scale": self._noise_scale.state_dict(),
            "rewarded": self._rewarded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, into fresh environments."""
        self.agent.load_state_dict(state["agent"])
        self._buffer.load_state_dict(state["buffer"])
        self._warmup.bit_generator.state = state["warmup"]
        self._env_steps, self._updates, self._rewarded = state["env_steps"], state["updates"], state["rewarded"]
        self._samples_owed = state["samples_owed"]
        self._noise_scale.load_state_dict(state["noise_scale"])
        if self._obs_normalizer is not None:
            self._obs_normalizer.load_state_dict(state["obs_normalizer"])
        if self._reward_normalizer is not None:
            self._reward_normalizer.load_state_dict(state["reward_normalizer"])
        self._slots.load_state_dicts(state["slots"])
