"""The settings of DDPG. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from experiment.problems import Fault
from training.config import SHAPE, Int, TrainerConfig


class DDPGConfig(TrainerConfig):
    """Deep deterministic policy gradient (Lillicrap et al. 2015, arXiv:1509.02971).

    Noise is in normalised action units: the action space is [-1, 1] whatever the environment's own bounds.
    """

    algorithm_name: Literal["ddpg"]
    num_envs: Annotated[Int, Field(ge=1, le=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    actor_learning_rate: Annotated[float, Field(gt=0)] | None = None
    critic_learning_rate: Annotated[float, Field(gt=0)] | None = None
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    hidden_dims: Annotated[list[Annotated[Int, Field(gt=0)]], Field(min_length=1, json_schema_extra=SHAPE)] = [256, 256]
    noise_type: Literal["gaussian", "ou"] = "gaussian"
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    ou_theta: Annotated[float, Field(gt=0, le=1)] = 0.15
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    updates_per_step: Annotated[Int, Field(gt=0)] = 1

    def find_contradictions(self) -> list[Fault]:
        """Name pairs of settings that can't hold together."""
        faults = super().find_contradictions()
        if self.batch_size > self.max_timesteps:
            faults.append(self._pair("batch_size", ">", "max_timesteps", "nothing would be trained"))
        return faults

    def inactive_keys(self) -> dict[str, str]:
        """Give the keys that were set and that another key switches off, each with the reason."""
        inactive = {}
        if self.actor_learning_rate is not None and self.critic_learning_rate is not None:
            inactive["learning_rate"] = "actor_learning_rate and critic_learning_rate are both set"
        if self.noise_type != "ou" or self.noise_std == 0:
            inactive["ou_theta"] = "there is no Ornstein-Uhlenbeck noise without noise_type: ou and noise_std > 0"
        if self.noise_std == 0:
            inactive["noise_type"] = "noise_std is 0"
        return {key: reason for key, reason in inactive.items() if key in self.model_fields_set}

    def find_environment_faults(self) -> list[Fault]:
        """Name what DDPG can't do with this environment: unknown name, discrete actions, unbounded actions."""
        from envs.make import find_environment_faults

        return find_environment_faults(self.env_name, self.env_kwargs, continuous_actions=True)
