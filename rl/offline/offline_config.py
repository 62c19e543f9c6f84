"""The settings that the offline trainers share. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from experiment.problems import Fault, SettingsError
from training.config import SHAPE, Int, TrainerConfig
from training.memory_need import FLOAT, MemoryNeed, need_networks
from training.shortening import UPDATES, shorten_learning

if TYPE_CHECKING:
    from envs.episodes import Episodes

_NO_STEPS = "this trainer learns from the data set alone and takes no step in an environment while it trains"
UNREAD = {
    "learning_starts": _NO_STEPS,
    "num_envs": _NO_STEPS,
    "guard_min_episode_length": _NO_STEPS,
    "buffer_size": "all transitions of the data set are kept",
    "keep_replay": "a checkpoint holds no transitions: the data set has them",
}
"""Keys of every trainer that mean nothing here, each with the reason."""

ROW_COPIES = 2
"""What laying out a data set takes beside its rows, in their sizes."""


class OfflineConfig(TrainerConfig):
    """Learning from recorded transitions, in continuous action spaces; `max_timesteps` counts updates.

    Actions are in [-1, 1] inside, whatever the bounds in the data set. `env_name` is where policies are evaluated.
    """

    memory_keys: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "update": ("batch_size",),
        "networks": ("hidden_dims",),
        "recorded": ("dataset",),
    }
    batch_copies: ClassVar[int] = 8
    """Numbers that an update takes for each sample and each unit of a hidden layer; measured (docs/preflight.md)."""

    dataset: Annotated[str, Field(min_length=1, json_schema_extra=SHAPE)]
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    hidden_dims: Annotated[list[Annotated[Int, Field(gt=0)]], Field(min_length=1, json_schema_extra=SHAPE)] = [256, 256]
    normalize_obs: bool = True

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that mean nothing here, whether or not they were set. A trainer adds its own to these."""
        return super().list_switched_off() | UNREAD

    def find_contradictions(self) -> list[Fault]:
        """Name pairs of settings that can't hold together; those of which one isn't read always can."""
        return [fault for fault in super().find_contradictions() if not UNREAD.keys() & set(fault.keys)]

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run takes: its data set's transitions, networks with what goes with them, and an update.

        A data set that is still to be made counts as nothing.
        """
        from envs.datasets import describe_dataset

        episodes = describe_dataset(self.dataset).episodes
        rows = 0 if episodes is None else episodes.num_steps * FLOAT * (2 * episodes.obs_dim + episodes.action_dim + 2)
        return replace(
            need_networks(parameters, on_gpu=on_gpu),
            update=FLOAT * self.batch_size * self.batch_copies * sum(self.hidden_dims),
            recorded=rows,
            # While the rows are laid side by side their columns are there too, and the file is mapped.
            replay=ROW_COPIES * rows,
        )

    def shortened(self) -> Self:
        """Give the same run cut to a few updates."""
        return shorten_learning(self, updates=self.learning_cycle)

    @property
    def learning_cycle(self) -> int:
        """Updates after which everything has learned at least once."""
        return UPDATES

    def find_environment_faults(self) -> list[Fault]:
        """Name what can't be done here: an unknown environment, other spaces, a data set that isn't of it.

        A reference set that is still to be made is not made for this: its recipe says where it comes from.
        """
        from envs.datasets import describe_dataset
        from envs.episodes import EpisodeError
        from envs.make import find_environment_faults, find_evaluation_faults

        faults = find_environment_faults(self.env_name, self.env_kwargs, continuous_actions=True)
        if not faults and self.evaluates:
            faults = find_evaluation_faults(self.env_name, self.env_kwargs, self.eval_env_kwargs)
        try:
            facts = describe_dataset(self.dataset)
        except EpisodeError as error:
            return [*faults, Fault(("dataset",), f"dataset: {error}")]
        if name_faults := self.find_name_faults(facts.env_name):
            return name_faults
        return faults or ([] if facts.episodes is None else self.find_fitting_faults(facts.episodes))

    def find_name_faults(self, recorded: str) -> list[Fault]:
        """Refuse a data set of another environment; `recorded` is empty where it doesn't say."""
        if recorded in ("", self.env_name):
            return []
        message = f"dataset: {self.dataset} was recorded in {recorded}, and env_name is {self.env_name}"
        return [Fault(("dataset", "env_name"), f"{message}; set env_name: {recorded}, or name another data set")]

    def find_fitting_faults(self, episodes: Episodes) -> list[Fault]:
        """Refuse episodes whose agents, sizes or bounds of actions aren't those of the environment."""
        import gymnasium as gym
        import numpy as np

        from envs.make import make_env_or_fail

        env = make_env_or_fail(self.env_name, self.env_kwargs)
        env.close()
        observations, actions = env.observation_space, env.action_space
        assert isinstance(observations, gym.spaces.Box)
        assert isinstance(actions, gym.spaces.Box)
        header, (obs_dim,), (action_dim,) = episodes.header, observations.shape, actions.shape
        wrong = []
        if episodes.num_agents != 1:
            wrong.append(f"has {episodes.num_agents} agents, and this trainer learns for one")
        elif (episodes.obs_dim, episodes.action_dim) != (obs_dim, action_dim):
            wrong.append(
                f"has observations of {episodes.obs_dim} and actions of {episodes.action_dim} numbers, and "
                f"{self.env_name} has {obs_dim} and {action_dim}"
            )
        elif not (np.allclose(header.action_low[0], actions.low) and np.allclose(header.action_high[0], actions.high)):
            wrong.append(
                f"has actions from {header.action_low[0]} to {header.action_high[0]}, and {self.env_name} from "
                f"{actions.low} to {actions.high}"
            )
        return [Fault(("dataset", "env_name"), f"dataset: {self.dataset} {what}") for what in wrong]

    def load_episodes(self) -> Episodes:
        """Open the data set, or make it where it is a reference set that isn't there yet.

        Raises:
            SettingsError: it can't be used here, and why.
        """
        from envs.datasets import load_dataset
        from envs.episodes import EpisodeError
        from envs.make import find_environment_faults

        if faults := find_environment_faults(self.env_name, self.env_kwargs, continuous_actions=True):
            raise SettingsError(faults)
        try:
            episodes = load_dataset(self.dataset, print)
        except EpisodeError as error:
            raise SettingsError([Fault(("dataset",), f"dataset: {error}")]) from None
        faults = self.find_name_faults(episodes.header.env_name) or self.find_fitting_faults(episodes)
        if faults:
            raise SettingsError(faults)
        return episodes
