"""Environments that a diffusion policy acts in, a chunk at a time, several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser.datasets.batch import History
from diffuser.datasets.normalization import ActionScale, ObsNormalizer
from diffuser.models.diffusion_rl import DiffusionRL
from envs.make import Env
from envs.snapshot import Snapshot, restore_snapshot
from training.measures import read_measures
from training.protocol import Episode, EvaluationStopped

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ChunkOutcome:
    """What executing a chunk came to.

    Attributes:
        rewards: of the steps that were executed.
        terminated: the task ended within the chunk; its later actions were dropped.
        truncated: the clock did.
        episode: the one that ended, if one did.
        fault: what wasn't finite, empty where all was.
    """

    rewards: tuple[float, ...]
    terminated: bool
    truncated: bool
    episode: Episode | None
    fault: str


class RunningHistory:
    """What one policy has seen and done in an episode, one row of `History`'s.

    Args:
        normalizer: of observations.
        action_dim: numbers in an action.
        history_horizon: observations in a history.
    """

    TRANSIENT: ClassVar = ("_normalizer",)

    def __init__(self, normalizer: ObsNormalizer, action_dim: int, history_horizon: int) -> None:
        self._normalizer = normalizer
        self.obs: Floats = np.zeros((history_horizon, 1, normalizer.shift.shape[-1]), np.float32)
        self.action: Floats = np.zeros((history_horizon, 1, action_dim), np.float32)
        self.mask: NDArray[np.bool_] = np.zeros(history_horizon, np.bool_)

    def begin(self) -> None:
        """Forget the episode before."""
        self.obs[:], self.action[:], self.mask[:] = 0, 0, False

    def add(self, raw_obs: Sequence[NDArray[Any]], actions: Floats | None) -> None:
        """Move on by some observations and the action before each.

        Args:
            raw_obs: as the environment gave them, at least one.
            actions: (as many, 1, action_dim) in [-1, 1]; None at an episode's beginning.
        """
        count = min(len(raw_obs), len(self.mask))
        for part in (self.obs, self.action, self.mask):
            part[:-count] = part[count:]
        newest = np.asarray(raw_obs[-count:], np.float32)
        self.obs[-count:] = self._normalizer.apply(newest[:, None])
        self.action[-count:] = 0 if actions is None else actions[-count:]
        self.mask[-count:] = True

    def state_dict(self) -> dict[str, Any]:
        """Give copies of all parts."""
        return {"obs": self.obs.copy(), "action": self.action.copy(), "mask": self.mask.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.obs, self.action = (np.array(state[name], np.float32) for name in ("obs", "action"))
        self.mask = np.array(state["mask"], np.bool_)


class ChunkPolicy:
    """A policy that plans a chunk and executes it, observation by observation; draws from torch's global generator.

    Args:
        model: decides.
        normalizer: of observations.
        action_scale: of actions.
        history_horizon: observations in a history.
    """

    def __init__(
        self, model: DiffusionRL, normalizer: ObsNormalizer, action_scale: ActionScale, history_horizon: int
    ) -> None:
        self._model = model
        self._scale = action_scale
        self._history = RunningHistory(normalizer, action_scale.low.shape[-1], history_horizon)
        self._planned: list[Floats] = []
        self._last: Floats | None = None

    def __call__(self, raw_obs: NDArray[Any]) -> NDArray[Any]:
        """Give the action, in the environment's units, that answers the episode's next observation."""
        self._history.add([raw_obs], None if self._last is None else self._last[None])
        if not self._planned:
            device = self._model.log_std.device
            history = stack_histories([self._history], device)
            chunk = self._model.act(history, generator=torch.default_generator)[0].cpu().numpy()
            self._planned = list(chunk)
        self._last = self._planned.pop(0)
        action: NDArray[np.float32] = self._scale.to_env(self._last)[0]
        return action


class World:
    """One environment with one agent, and the history that its policy sees.

    Attributes:
        env: the environment.
        history: of the episode.
        is_over: an episode has to be begun before the next chunk.
        needs_seed: the environment has never been given a start of ours.
        measures: what the environment reports of the episode that ended last.

    Args:
        make_env: gives a fresh environment.
        normalizer: of observations.
        action_scale: of actions.
        history_horizon: observations in a history.
        name: says which one it is in messages.
    """

    TRANSIENT: ClassVar = ("env", "measures", "_make_env", "_scale", "_name")

    def __init__(
        self,
        make_env: Callable[[], Env],
        normalizer: ObsNormalizer,
        action_scale: ActionScale,
        history_horizon: int,
        name: str,
    ) -> None:
        self.env = make_env()
        self._make_env = make_env
        self._scale = action_scale
        self._name = name
        self.history = RunningHistory(normalizer, action_scale.low.shape[-1], history_horizon)
        self.is_over = True
        self.needs_seed = True
        self.episodes_begun = 0
        self.episode_return = 0.0
        self.episode_length = 0
        self.measures: dict[str, float] = {}

    def begin_episode(self, seed: int | None) -> None:
        """Reset the environment; None lets it draw its own start, as it can after one that was given."""
        obs, _ = self.env.reset(seed=seed)
        self.history.begin()
        self.episodes_begun += 1
        self.episode_return, self.episode_length = 0.0, 0
        self.is_over = self.needs_seed = False
        self.history.add([obs], None)

    def execute(self, chunk: Floats, should_stop: Callable[[], bool] | None = None) -> ChunkOutcome:
        """Take a chunk's actions, (horizon, 1, action_dim) in [-1, 1], one after the other, until the episode ends.

        Args:
            should_stop: asked before each step; None for never.

        Raises:
            EvaluationStopped: `should_stop` said so.
            MeasureError: the environment reports a measure of the episode that isn't a number.
        """
        rewards: list[float] = []
        seen: list[NDArray[Any]] = []
        terminated = truncated = False
        fault = ""
        for action in self._scale.to_env(chunk)[:, 0]:
            if should_stop is not None and should_stop():
                raise EvaluationStopped
            raw_obs, raw_reward, terminated, truncated, info = self.env.step(action)
            rewards.append(float(raw_reward))
            seen.append(raw_obs)
            # A sum isn't finite where a number isn't; and where numbers are too large to add up, they are sick as well.
            if not math.isfinite(rewards[-1] + float(raw_obs.sum())):
                fault = self._describe_fault(rewards[-1], len(rewards))
            if terminated or truncated or fault:
                self.is_over = True
                self.measures = read_measures(info)
                break
        self.history.add(seen, chunk[: len(seen)])
        self.episode_return += math.fsum(rewards) if not fault else 0.0
        self.episode_length += len(rewards)
        ended = self.is_over and not fault
        episode = Episode(self.episode_return, self.episode_length, truncated=not terminated) if ended else None
        return ChunkOutcome(tuple(rewards), bool(terminated), bool(truncated), episode, fault)

    def _describe_fault(self, reward: float, step: int) -> str:
        what = "an observation" if math.isfinite(reward) else f"reward {reward}"
        return f"{what} of {self._name} in its episode {self.episodes_begun}, step {self.episode_length + step}"

    def state_dict(self) -> dict[str, Any]:
        """Give history and episode; the environment's own state is saved beside it."""
        return {
            "history": self.history.state_dict(),
            "is_over": self.is_over,
            "needs_seed": self.needs_seed,
            "episodes_begun": self.episodes_begun,
            "episode_return": self.episode_return,
            "episode_length": self.episode_length,
        }

    def load_state_dict(self, state: dict[str, Any], snapshot: Snapshot | None) -> None:
        """Take over what `state_dict` gave, in a fresh environment; without a snapshot an episode begins anew."""
        self.env.close()
        self.env = self._make_env()
        self.episodes_begun = state["episodes_begun"]
        if snapshot is None:
            self.is_over = self.needs_seed = True
            return
        restore_snapshot(self.env, snapshot)
        self.history.load_state_dict(state["history"])
        self.is_over, self.needs_seed = state["is_over"], state["needs_seed"]
        self.episode_return, self.episode_length = state["episode_return"], state["episode_length"]


def stack_histories(histories: Sequence[RunningHistory], device: torch.device) -> History:
    """Give several histories as a batch, in memory of its own."""
    parts = (np.stack([getattr(history, name) for history in histories]) for name in ("obs", "action", "mask"))
    obs, action, mask = (torch.from_numpy(part).to(device) for part in parts)
    return History(obs, action, mask)
