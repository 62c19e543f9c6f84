"""The settings of IQL. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from experiment.problems import Fault
from rl.offline.offline_config import OfflineConfig

if TYPE_CHECKING:
    from envs.episodes import Episodes


class IQLConfig(OfflineConfig):
    """Implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169).

    `expectile` is the paper's tau, `temperature` its beta, by which advantages are multiplied before exp: 0 clones
    behaviour. `tau` is the targets' step. With `normalize_reward` rewards are multiplied by 1000 over the difference
    between the data set's highest and lowest return.
    """

    algorithm_name: Literal["iql"]
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7
    temperature: Annotated[float, Field(ge=0)] = 3.0
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    normalize_reward: bool = True

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks, and what a data set may be refused for."""
        return super().shape_settings() | {"normalize_reward": self.normalize_reward}

    def find_fitting_faults(self, episodes: Episodes) -> list[Fault]:
        """Refuse episodes that aren't of the environment, or whose returns are all the same, where they are a unit."""
        faults = super().find_fitting_faults(episodes)
        returns = episodes.returns()
        if self.normalize_reward and not faults and returns.min() == returns.max():
            message = f"dataset: all {len(episodes)} episodes of {self.dataset} have the return {returns.max():g}"
            repair = "rewards can't be divided by the difference between returns; set normalize_reward: false"
            faults.append(Fault(("dataset", "normalize_reward"), f"{message}: {repair}"))
        return faults
