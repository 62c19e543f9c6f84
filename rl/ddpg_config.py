"""The settings of DDPG. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rl.off_policy_config import OffPolicyConfig
from training.memory_need import FLOAT, MemoryNeed

FLAT_COPIES = 6
"""Of each number that learns, more than other agents make while they save and update; measured (docs/preflight.md)."""


class DDPGConfig(OffPolicyConfig):
    """Deep deterministic policy gradient (Lillicrap et al. 2015, arXiv:1509.02971).

    Noise is in normalised action units: the action space is [-1, 1] whatever the environment's own bounds.
    """

    batch_copies: ClassVar[int] = 5

    algorithm_name: Literal["ddpg"]
    noise_type: Literal["gaussian", "ou"] = "gaussian"
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    ou_theta: Annotated[float, Field(gt=0, le=1)] = 0.15

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run takes; on the CPU, where networks lie in one piece, they are copied to be saved."""
        need = super().predict_memory(parameters, on_gpu=on_gpu)
        weights = FLOAT * sum(parameters.values())
        return need if on_gpu else replace(need, checkpoint=need.checkpoint + FLAT_COPIES * weights)

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off, whether or not they were set."""
        off = super().list_switched_off()
        if self.noise_type != "ou" or self.noise_std == 0:
            off["ou_theta"] = "there is no Ornstein-Uhlenbeck noise without noise_type: ou and noise_std > 0"
        if self.noise_std == 0:
            off["noise_type"] = "noise_std is 0"
        return off
