"""The settings of TD3. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rl.off_policy_config import OffPolicyConfig
from training.config import Int
from training.shortening import UPDATES


class TD3Config(OffPolicyConfig):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477).

    Noise is in normalised action units. `target_noise_std` and `target_noise_clip` are of the noise on the target
    policy's action, `policy_delay` the number of critic updates for each update of actor and targets.
    """

    algorithm_name: Literal["td3"]
    noise_type: Literal["gaussian", "ou"] = "gaussian"
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    ou_theta: Annotated[float, Field(gt=0, le=1)] = 0.15
    target_noise_std: Annotated[float, Field(ge=0)] = 0.2
    target_noise_clip: Annotated[float, Field(ge=0)] = 0.5
    policy_delay: Annotated[Int, Field(ge=1)] = 2

    @property
    def learning_cycle(self) -> int:
        """Updates after which everything has learned at least once."""
        return max(UPDATES, self.policy_delay)

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off, whether or not they were set."""
        off = super().list_switched_off()
        if self.noise_type != "ou" or self.noise_std == 0:
            off["ou_theta"] = "there is no Ornstein-Uhlenbeck noise without noise_type: ou and noise_std > 0"
        if self.noise_std == 0:
            off["noise_type"] = "noise_std is 0"
        if self.target_noise_std == 0:
            off["target_noise_clip"] = "target_noise_std is 0"
        return off
