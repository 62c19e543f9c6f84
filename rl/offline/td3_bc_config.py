"""The settings of TD3+BC. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rl.offline.offline_config import OfflineConfig
from training.config import Int
from training.shortening import UPDATES


class TD3BCConfig(OfflineConfig):
    """TD3 whose actor is also pulled to the recorded actions (Fujimoto and Gu 2021, arXiv:2106.06860).

    `q_weight` is the paper's alpha. `target_noise_std` and `target_noise_clip` are of the noise on the target policy's
    action, in normalised units, `policy_delay` the number of critic updates for each update of actor and targets.
    """

    algorithm_name: Literal["td3_bc"]
    q_weight: Annotated[float, Field(ge=0)] = 2.5
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    target_noise_std: Annotated[float, Field(ge=0)] = 0.2
    target_noise_clip: Annotated[float, Field(ge=0)] = 0.5
    policy_delay: Annotated[Int, Field(ge=1)] = 2

    @property
    def learning_cycle(self) -> int:
        """Updates after which everything has learned at least once."""
        return max(UPDATES, self.policy_delay)

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that mean nothing here, whether or not they were set."""
        off = super().list_switched_off()
        if self.target_noise_std == 0:
            off["target_noise_clip"] = "target_noise_std is 0"
        return off
