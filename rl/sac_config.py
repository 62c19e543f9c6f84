"""The settings of SAC. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rl.off_policy_config import OffPolicyConfig


class SACConfig(OffPolicyConfig):
    """Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv:1812.05905).

    `temperature` fixes the weight of the entropy. Where it is null the weight is learned, from 1, so that the policy's
    mean entropy comes to `target_entropy`, which is minus the number of action dimensions unless set.
    """

    batch_copies: ClassVar[int] = 10

    algorithm_name: Literal["sac"]
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    temperature: Annotated[float, Field(gt=0)] | None = None
    temperature_learning_rate: Annotated[float, Field(gt=0)] | None = None
    target_entropy: float | None = None

    @property
    def temperature_rate(self) -> float:
        """Learning rate of the temperature's optimizer."""
        return self.scale_rate(self.temperature_learning_rate)

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off, whether or not they were set."""
        off = super().list_switched_off()
        if self.temperature is None and self.temperature_learning_rate is None:
            off.pop("learning_rate", None)  # the temperature's own Adam takes it
        if self.temperature is not None:
            reason = "temperature is fixed"
            off |= {"temperature_learning_rate": reason, "target_entropy": reason}
        return off
