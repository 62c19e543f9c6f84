"""What the offline trainers have in common: recorded transitions, batches of them, and episodes to judge a policy by.

An agent (the networks and how a batch changes them) is in its algorithm's own file; this is all around it. Actions are
in [-1, 1] everywhere here; only `ActionScale` knows the environment's bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.actions import ActionScale
from envs.episodes import Episodes
from envs.make import Env, SpaceSizes, describe_spaces, make_env
from experiment.problems import Fault, SettingsError
from rl.buffers import Batch
from rl.export import build_policy_module
from rl.offline.offline_config import OfflineConfig
from training.adam import Adam
from training.evaluation import evaluate_policy
from training.protocol import Evaluation, References, StepResult, Treatment
from training.seeding import spawn_generator
from training.vitals import Metrics, Vitals, is_measured
from training.weights import copy_weights

Config = TypeVar("Config", bound=OfflineConfig)
EPSILON = 1e-3
"""Added to the deviations that observations are divided by (Fujimoto and Gu 2021, section 5)."""


class Agent(Protocol):
    """Networks that learn from batches. Observations come normalised, actions are in [-1, 1]."""

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the policy's actions, (n, action_dim), for observations of shape (n, obs_dim), without noise."""
        ...

    def update(self, batch: Batch, vitals: Vitals | None = None) -> Metrics:
        """Learn from one batch and give named numbers without a sync; fill `vitals` for the guard, if there are any."""
        ...

    def scale_learning_rates(self, factor: float) -> None:
        """Take a multiple of the learning rates in the config."""
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


@dataclass(frozen=True)
class ObsScale:
    """The mean and deviation of a data set's observations, (obs_dim,) each, that all observations are normalised by."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def apply(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Give observations of shape (..., obs_dim) normalised."""
        normal: NDArray[np.float32] = (np.asarray(obs, dtype=np.float32) - self.mean) / self.deviation
        return normal


class Standardize(nn.Module):
    """What an `ObsScale` does to observations."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, scale: ObsScale) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scale.mean.copy()))
        self.register_buffer("deviation", torch.from_numpy(scale.deviation.copy()))

    def forward(self, obs: Tensor) -> Tensor:
        """Give observations of shape (batch, obs_dim) normalised."""
        normal: Tensor = (obs - self.mean) / self.deviation
        return normal


def measure_obs_scale(obs: NDArray[np.float32]) -> ObsScale:
    """Give the scale of observations of shape (n, obs_dim). Columns that never change are not blown up."""
    mean, deviation = obs.mean(0, dtype=np.float64), obs.std(0, dtype=np.float64)
    return ObsScale(mean.astype(np.float32), (deviation + EPSILON).astype(np.float32))


class Transitions:
    """Recorded transitions as packed rows of float32 on the device: obs, action, reward, terminated, next_obs.

    Only an episode's last step can be terminated. Where the clock or the recorder ended the episode, its last frame is
    the next observation of its last step like any other, and the bootstrap is kept.

    Args:
        episodes: of one agent.
        reward_factor: multiplies rewards.
        normalize_obs: observations become their difference to the data set's mean, in its deviations.
        discount: per step of the environment.
        device: where the rows lie.

    Attributes:
        obs_scale: None where observations stay as they are.
    """

    def __init__(
        self, episodes: Episodes, *, reward_factor: float, normalize_obs: bool, discount: float, device: torch.device
    ) -> None:
        steps, numbers = episodes.num_steps, np.arange(len(episodes))
        # The frame of a step stands as many rows later as there are episodes before its own.
        frames = np.arange(steps) + np.repeat(numbers, episodes.lengths)
        observations = episodes.observations[:, 0]
        obs, next_obs = observations[frames], observations[frames + 1]
        self.obs_scale = measure_obs_scale(obs) if normalize_obs else None
        if self.obs_scale is not None:
            obs, next_obs = self.obs_scale.apply(obs), self.obs_scale.apply(next_obs)
        terminated = np.zeros((steps, 1), dtype=np.float32)
        terminated[np.cumsum(episodes.lengths) - 1, 0] = episodes.terminated
        low, high = episodes.header.action_low[0], episodes.header.action_high[0]
        action = np.clip(2 * (episodes.actions[:, 0] - low) / (high - low) - 1, -1, 1)
        reward = (episodes.rewards * reward_factor).astype(np.float32)
        rows = np.concatenate([obs, action, reward, terminated, next_obs], axis=1, dtype=np.float32)
        self._rows = torch.from_numpy(rows).to(device)
        self._sizes = [episodes.obs_dim, episodes.action_dim, 1, 1, episodes.obs_dim]
        self._discount = torch.tensor(discount, device=device)

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, numbers: NDArray[np.int64]) -> Batch:
        """Give the transitions of these numbers, counted from the data set's first."""
        rows = self._rows.index_select(0, torch.from_numpy(numbers).to(self._rows.device))
        obs, action, reward, terminated, next_obs = rows.split_with_sizes(self._sizes, dim=1)
        return Batch(obs, action, reward, terminated, next_obs, self._discount)


def find_sizes(config: OfflineConfig) -> SpaceSizes:
    """Give the sizes that an agent gets: those of the environment, which are the data set's too.

    Raises:
        SettingsError: the environment can't be made.
    """
    return describe_spaces(config.env_name, config.env_kwargs)


def save_parts(parts: Mapping[str, nn.Module | Adam]) -> dict[str, Any]:
    """Give the states of networks and optimizers by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_parts(parts: Mapping[str, nn.Module | Adam], state: Mapping[str, Any]) -> None:
    """Take over what `save_parts` gave."""
    for name, part in parts.items():
        part.load_state_dict(state[name])


class OfflineTrainer:
    """An agent that learns from a data set: a `training.protocol.Trainer`.

    Batches are drawn uniformly with replacement. No step is taken in any environment but in evaluations.

    Args:
        config: of the agent.
        device: where it learns.
        build_agent: gives the agent for the sizes of observations and actions.
        discount: per step of the environment; for agents without a critic it is of no account.
        find_reward_factor: gives what rewards are multiplied by.

    Attributes:
        agent: the networks and how they learn.
        references: of the data set, for normalised scores.

    Raises:
        SettingsError: the environment or the data set can't be used, and why.
    """

    resume_mode: Literal["exact", "episode"] = "exact"
    resume_reason: str | None = None
    TRANSIENT: ClassVar = ("config", "references", "_transitions", "_scale", "_batch_size")

    def __init__(
        self,
        config: Config,
        device: torch.device,
        build_agent: Callable[[Config, int, int, torch.device], Agent],
        *,
        discount: float = 1.0,
        find_reward_factor: Callable[[Episodes], float] = lambda episodes: 1.0,
    ) -> None:
        self.config: OfflineConfig = config
        episodes = config.load_episodes()
        self._transitions = Transitions(
            episodes,
            reward_factor=find_reward_factor(episodes),
            normalize_obs=config.normalize_obs,
            discount=discount,
            device=device,
        )
        header = episodes.header
        pair = header.find_references(config.evaluation_kwargs)
        self.references = None if pair is None else References(*pair)
        self._scale = ActionScale(gym.spaces.Box(header.action_low[0], header.action_high[0]))
        self.agent: Agent = build_agent(config, episodes.obs_dim, episodes.action_dim, device)
        self._dataset_sha256 = episodes.sha256
        self._generator = spawn_generator(config.seed, "batches")
        self._updates = 0
        self._batch_size = config.batch_size

    def train_step(self) -> StepResult:
        """Learn from one batch; in some updates, the first among them, vitals are measured too."""
        batch = self._transitions.gather(self._generator.integers(0, len(self._transitions), self._batch_size))
        vitals: Vitals = {}
        measured = is_measured(self._updates)
        self._updates += 1
        metrics = self.agent.update(batch, vitals if measured else None)
        return StepResult(metrics, env_steps=0, updates=1, vitals=vitals)

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Run one episode without noise per seed.

        Raises:
            EvaluationStopped: `should_stop` said so.
        """
        return evaluate_policy(self._make_env, self._act, seeds, should_stop)

    def begin_acting(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Give the policy without noise, from observations to actions in the environment's units; it holds no state."""
        return self._act

    def build_policy_module(self) -> nn.Module:
        """Give the policy as one module; see `training.protocol.HasPolicyModule`."""
        obs_scale = self._transitions.obs_scale
        normalize = nn.Identity() if obs_scale is None else Standardize(obs_scale)
        return build_policy_module(normalize, self.agent.components()["actor"], self._scale)

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
        self._generator = spawn_generator(self.config.seed, f"batches/{number}")

    def close(self) -> None:
        """Let go of nothing: environments live as long as an evaluation, and the rows are memory."""

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs; of the data set that is its hash."""
        return {
            "agent": self.agent.state_dict(),
            "generator": self._generator.bit_generator.state,
            "updates": self._updates,
            "dataset_sha256": self._dataset_sha256,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave.

        Raises:
            SettingsError: it was learned from another content of the data set.
        """
        if state["dataset_sha256"] != self._dataset_sha256:
            message = (
                f"dataset: {self.config.dataset} is no longer what the run has learned from: its SHA-256 was "
                f"{state['dataset_sha256'][:12]}..., and is {self._dataset_sha256[:12]}... now; put the old file back, "
                "or train from the start with continue_training: false"
            )
            raise SettingsError([Fault(("dataset",), message)])
        self.agent.load_state_dict(state["agent"])
        self._generator.bit_generator.state = state["generator"]
        self._updates = state["updates"]

    def _make_env(self) -> Env:
        return make_env(self.config.env_name, self.config.evaluation_kwargs)

    def _act(self, raw_obs: NDArray[Any]) -> NDArray[Any]:
        """Give the policy's action in the environment's units, without noise."""
        obs_scale = self._transitions.obs_scale
        obs = np.asarray(raw_obs, dtype=np.float32) if obs_scale is None else obs_scale.apply(raw_obs)
        return self._scale.to_env(self.agent.act(obs[None])[0])


def act_on_device(
    actor: Callable[[Tensor], Tensor], obs: NDArray[np.float32], device: torch.device
) -> NDArray[np.float32]:
    """Give a policy's actions, (n, action_dim), through torch, for observations of shape (n, obs_dim)."""
    with torch.no_grad():
        action: NDArray[np.float32] = actor(torch.from_numpy(obs).to(device)).cpu().numpy()
    return action
