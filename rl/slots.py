"""A trainer's environments, each with the episode that is going on in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from envs.make import Env
from envs.plain_values import SnapshotError
from envs.snapshot import ResumeProbe, Snapshot, restore_snapshot, take_snapshot
from training.protocol import Episode
from training.seeding import derive_reset_seed

Obs = TypeVar("Obs", NDArray[np.float32], dict[str, NDArray[np.float32]])
"""What an agent sees: a vector, or several arrays by name."""


class EnvironmentSlot(Generic[Obs]):
    """One environment and its episode.

    Args:
        make_env: gives a fresh environment.
        perceive: from an environment's observation to the agent's, in memory of its own.
        seed: the run's.
        number: which of the run's environments this is; each has seeds of its own.
        discount: factor per step of the discounted return.

    Attributes:
        env: the environment.
        obs: what the agent sees now; None where an episode has to be begun.
        episodes_begun: over the whole run; counts on where resuming began a new episode.
        first_step: the episode's first observation and executed action, as the agent sees them.
        discounted_return: of the episode so far, in the environment's own scale.
        discount_so_far: the factor of what comes next.
        frames: steps that the environment itself took in the last step here; one, but for where actions are repeated.
    """

    TRANSIENT: ClassVar = ("env", "_make_env", "_perceive", "_seed", "_stream", "_discount", "frames")

    def __init__(
        self, make_env: Callable[[], Env], perceive: Callable[[Any], Obs], seed: int, number: int, discount: float
    ) -> None:
        self.env = make_env()
        self._make_env = make_env
        self._perceive: Callable[[Any], Obs] = perceive
        self._seed = seed
        self._stream = f"env{number}" if number else "env"
        self._discount = discount
        self.reset_seed: int | None = derive_reset_seed(seed, self._stream)
        self.obs: Obs | None = None
        self.episodes_begun = 0
        self.frames = 0
        self._forget_episode()

    def _forget_episode(self) -> None:
        self.episode_return = 0.0
        self.episode_length = 0
        self.first_step: tuple[Obs, NDArray[np.float32]] | None = None
        self.discounted_return = 0.0
        self.discount_so_far = 1.0

    def begin_episode(self) -> Obs:
        """Reset the environment and give the first observation."""
        raw_obs, _ = self.env.reset(seed=self.reset_seed)
        self.reset_seed = None  # from here on the environment draws its own starts
        self.episodes_begun += 1
        self._forget_episode()
        self.obs = self._perceive(raw_obs)
        return self.obs

    def step(
        self, action: NDArray[Any], obs: Obs, executed: NDArray[np.float32]
    ) -> tuple[Obs, float, bool, Episode | None]:
        """Act once; give the next observation, the reward, whether the task ended, and the episode if it has.

        Args:
            action: in the environment's units.
            obs: that the action was chosen for.
            executed: the action in [-1, 1].
        """
        if self.first_step is None:
            self.first_step = (obs, executed)
        raw_obs, raw_reward, terminated, truncated, info = self.env.step(action)
        self.frames = int(info.get("frames", 1))
        reward = float(raw_reward)
        next_obs = self._perceive(raw_obs)
        self.episode_return += reward
        self.discounted_return += self.discount_so_far * reward
        self.discount_so_far *= self._discount
        self.episode_length += 1
        if not (terminated or truncated):
            self.obs = next_obs
            return next_obs, reward, False, None
        self.obs = None
        episode = Episode(self.episode_return, self.episode_length, truncated=not terminated)
        return next_obs, reward, bool(terminated), episode

    def describe_fault(self, number: int, reward: float) -> str:
        """Say that the last step gave a number that isn't finite: of which environment, and when."""
        what = "an observation" if math.isfinite(reward) else f"reward {reward}"
        return f"{what} of environment {number} in its episode {self.episodes_begun}, step {self.episode_length}"

    def abandon(self) -> None:
        """Have a new episode begun; this one never was."""
        self.obs = None

    def state_dict(self) -> dict[str, Any]:
        """Give the episode's state; that of the environment is saved beside it."""
        return {
            "reset_seed": self.reset_seed,
            "obs": self.obs,
            "episodes_begun": self.episodes_begun,
            "episode_return": self.episode_return,
            "episode_length": self.episode_length,
            "first_step": self.first_step,
            "discounted_return": self.discounted_return,
            "discount_so_far": self.discount_so_far,
        }

    def load_state_dict(self, state: dict[str, Any], snapshot: Snapshot | None) -> None:
        """Take over what `state_dict` gave, in a fresh environment.

        Without a snapshot an episode begins anew, from a seed of its own.
        """
        self.episodes_begun = state["episodes_begun"]
        self.env.close()
        self.env = self._make_env()
        if snapshot is None:
            self.reset_seed = derive_reset_seed(self._seed, f"{self._stream}/{self.episodes_begun}")
            self.obs = None
            self._forget_episode()
            return
        restore_snapshot(self.env, snapshot)
        self.reset_seed = state["reset_seed"]
        self.obs = None if state["obs"] is None else copy_obs(state["obs"])
        self.episode_return = state["episode_return"]
        self.episode_length = state["episode_length"]
        self.first_step = state["first_step"]
        self.discounted_return = state["discounted_return"]
        self.discount_so_far = state["discount_so_far"]


class Environments(Sequence[EnvironmentSlot[Obs]]):
    """All environments of a trainer, a slot each, and what becomes of them when the run is resumed.

    Args:
        probe: of an environment made with the same arguments.
        make_env, perceive, seed, discount: as for each `EnvironmentSlot`.
        num_envs: how many there are.

    Attributes:
        resume_mode: `exact` where the environments' states go into checkpoints; `episode` where a resumed run begins
            new episodes, for `resume_reason`. It turns to `episode` when a state can't be saved after all.
    """

    TRANSIENT: ClassVar = ("resume_mode", "resume_reason")

    def __init__(
        self,
        probe: ResumeProbe,
        make_env: Callable[[], Env],
        perceive: Callable[[Any], Obs],
        seed: int,
        num_envs: int,
        discount: float,
    ) -> None:
        self.resume_mode: Literal["exact", "episode"] = probe.mode
        self.resume_reason = probe.reason
        self._slots: list[EnvironmentSlot[Obs]] = [
            EnvironmentSlot(make_env, perceive, seed, number, discount) for number in range(num_envs)
        ]

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, number: int) -> EnvironmentSlot[Obs]: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[EnvironmentSlot[Obs]]: ...

    def __getitem__(self, number: int | slice) -> EnvironmentSlot[Obs] | Sequence[EnvironmentSlot[Obs]]:
        return self._slots[number]

    def close(self) -> None:
        """Let go of the environments."""
        for slot in self._slots:
            slot.env.close()

    def state_dicts(self) -> list[dict[str, Any]]:
        """Give each slot's state, and as `env` its environment's: None where a resumed run begins a new episode.

        Where an environment has come to hold something that can't be saved, and that its first steps didn't show, this
        warns, and the run is resumed by episode from here on.
        """
        snapshots = self._take_snapshots()
        return [slot.state_dict() | {"env": env} for slot, env in zip(self._slots, snapshots, strict=True)]

    def _take_snapshots(self) -> Sequence[Snapshot | None]:
        if self.resume_mode == "exact":
            try:
                return [take_snapshot(slot.env) for slot in self._slots]
            except SnapshotError as error:
                self._resume_by_episode(str(error))
                # It points at who asked the trainer for its state.
                warnings.warn(f"from here on a resumed run begins a new episode: {error}", stacklevel=4)
        return [None] * len(self._slots)

    def _resume_by_episode(self, reason: str) -> None:
        self.resume_mode, self.resume_reason = "episode", reason

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> list[int]:
        """Take over what `state_dicts` gave, in fresh environments; give the numbers of those that begin anew.

        Where the environments' states couldn't be saved, episodes begin anew, from seeds of their own.
        """
        for slot, state in zip(self._slots, states, strict=True):
            slot.load_state_dict(state, state["env"])
        anew = [number for number, state in enumerate(states) if state["env"] is None]
        if anew and self.resume_mode == "exact":
            self._resume_by_episode("the environment's state was not in the checkpoint that the run went on from")
        return anew


def copy_obs(obs: Any) -> Any:
    """Give what an agent sees in memory of its own, as float32."""
    if isinstance(obs, dict):
        return {name: np.array(part, dtype=np.float32) for name, part in obs.items()}
    return np.array(obs, dtype=np.float32)
