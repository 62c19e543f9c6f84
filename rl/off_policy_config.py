"""The settings that DDPG, TD3 and SAC share. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from experiment.memory import MemoryRoom, show_bytes
from experiment.problems import Fault
from training.config import SHAPE, Int, TrainerConfig
from training.memory_need import FLOAT, MemoryNeed, need_networks
from training.shortening import UPDATES, count_steps_until, shorten_acting

if TYPE_CHECKING:
    from envs.make import SpaceSizes

_LR_EXPONENTS = {"fixed": 0.0, "sqrt": 0.5, "linear": 1.0}


class OffPolicyConfig(TrainerConfig):
    """Actor-critic learning from replayed transitions, in continuous action spaces.

    Actions are in [-1, 1] inside, whatever the environment's own bounds. Rewards and observations are stored as they
    are and normalised, where asked for, when they are used.

    `schedule` says what stays the same when the batch size changes, `lr_rule` how learning rates follow it; both
    compare with `reference_batch_size`. Agents read the `*_rate` properties, which have gone through the rule.
    """

    memory_keys: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **TrainerConfig.memory_keys,
        "networks": ("hidden_dims",),
    }
    batch_copies: ClassVar[int] = 8
    """Numbers that an update takes for each sample and each unit of a hidden layer; measured (docs/preflight.md)."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    actor_learning_rate: Annotated[float, Field(gt=0)] | None = None
    critic_learning_rate: Annotated[float, Field(gt=0)] | None = None
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    hidden_dims: Annotated[list[Annotated[Int, Field(gt=0)]], Field(min_length=1, json_schema_extra=SHAPE)] = [256, 256]
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    updates_per_step: Annotated[Int, Field(gt=0)] = 1
    schedule: Literal["fixed_updates", "fixed_samples", "fixed_wall"] = "fixed_updates"
    lr_rule: Literal["fixed", "sqrt", "linear"] = "fixed"
    reference_batch_size: Annotated[Int, Field(gt=0)] = 256
    n_step: Annotated[Int, Field(ge=1, le=1000)] = 1
    normalize_obs: bool = False
    normalize_reward: bool = False
    base_controller: Annotated[Literal["pendulum_energy", "drone_track_pid"] | None, Field(json_schema_extra=SHAPE)] = (
        None
    )
    delta_scale_max: Annotated[float, Field(gt=0)] | None = None

    @property
    def buffer_rows(self) -> int:
        """Transitions that are kept: a run never adds more than it has steps, of all environments each time."""
        return min(self.buffer_size, count_steps_until(self.max_timesteps, self.num_envs))

    @property
    def wall_limit_s(self) -> float | None:
        """Seconds of training steps after which the run is over, None without such an end."""
        return self.wall_budget_s if self.schedule == "fixed_wall" else None

    @property
    def actor_rate(self) -> float:
        """Learning rate of the actor's optimizer."""
        return self.scale_rate(self.actor_learning_rate)

    @property
    def critic_rate(self) -> float:
        """Learning rate of the critic's optimizer."""
        return self.scale_rate(self.critic_learning_rate)

    def scale_rate(self, own: float | None) -> float:
        """Give an optimizer's own learning rate, or the common one, as `lr_rule` scales it for the batch size."""
        factor: float = (self.batch_size / self.reference_batch_size) ** _LR_EXPONENTS[self.lr_rule]
        return (own or self.learning_rate) * factor

    def count_due_updates(self, samples_owed: int) -> tuple[int, int]:
        """Give the updates that follow a step in every environment, and the samples that are owed after them.

        Samples are owed under `fixed_samples` alone: fewer than a batch, carried on to the next step.

        Args:
            samples_owed: from the step before.
        """
        updates = self.updates_per_step * self.num_envs
        if self.schedule != "fixed_samples":
            return updates, 0
        return divmod(samples_owed + updates * self.reference_batch_size, self.batch_size)

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off, whether or not they were set. A trainer adds its own to these."""
        off = super().list_switched_off()
        if self.actor_learning_rate is not None and self.critic_learning_rate is not None:
            off["learning_rate"] = "actor_learning_rate and critic_learning_rate are both set"
        if self.schedule != "fixed_wall":
            off["wall_budget_s"] = "schedule is not fixed_wall"
        if self.schedule != "fixed_samples" and self.lr_rule == "fixed":
            off["reference_batch_size"] = "schedule is not fixed_samples, and lr_rule is fixed"
        return off

    def find_contradictions(self) -> list[Fault]:
        """Name pairs of settings that can't hold together."""
        faults = super().find_contradictions()
        if self.batch_size > self.max_timesteps:
            faults.append(self._pair("batch_size", ">", "max_timesteps", "nothing would be trained"))
        if self.num_envs > self.buffer_size:
            faults.append(self._pair("num_envs", ">", "buffer_size", "a step of all would not fit into the buffer"))
        if self.schedule == "fixed_wall" and self.wall_budget_s is None:
            message = "schedule is fixed_wall, and nothing says how many seconds that is; set wall_budget_s"
            faults.append(Fault(("schedule", "wall_budget_s"), message))
        if not faults and self._count_samples() < self.batch_size:
            message = (
                f"fixed_samples learns from {self._count_samples():,} samples in this run, and one batch is "
                f"{self.batch_size:,}: nothing would be trained"
            )
            faults.append(Fault(("batch_size", "schedule", "reference_batch_size"), message))
        if self.delta_scale_max is not None and self.base_controller is None:
            message = (
                f"delta_scale_max ({self.delta_scale_max}) bounds what is added to a base controller, and there is none"
            )
            faults.append(Fault(("delta_scale_max", "base_controller"), f"{message}; set base_controller"))
        if self.base_controller is not None and self.delta_scale_max is None:
            message = (
                f"base_controller ({self.base_controller}) is set, and nothing says how far a policy may correct it"
            )
            faults.append(Fault(("base_controller", "delta_scale_max"), f"{message}; set delta_scale_max"))
        return faults

    def _count_samples(self) -> int:
        """Count the samples that a whole run learns from under `fixed_samples`; under others no fewer than a batch."""
        if self.schedule != "fixed_samples":
            return self.batch_size
        first = math.ceil(max(self.learning_starts + 1, self.batch_size) / self.num_envs)
        steps = math.ceil(self.max_timesteps / self.num_envs) - first + 1
        return steps * self.num_envs * self.updates_per_step * self.reference_batch_size

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks and of the buffer, and what goes with them.

        Settings that differ in nothing else give the same; they are a valid config of their own.
        """
        rows = self.buffer_rows
        return super().shape_settings() | {
            "buffer_size": rows,
            "max_timesteps": rows,
            "batch_size": 1,
            "learning_starts": 0,
            "n_step": min(self.n_step, 2),
            "delta_scale_max": None if self.delta_scale_max is None else 1.0,
        }

    def find_environment_faults(self) -> list[Fault]:
        """Name what can't be done here: an unknown name, other spaces, another environment's controller."""
        from envs.controllers import CONTROLLERS
        from envs.make import find_environment_faults, find_evaluation_faults

        faults = find_environment_faults(self.env_name, self.env_kwargs, continuous_actions=True)
        if not faults and self.evaluates:
            faults = find_evaluation_faults(self.env_name, self.env_kwargs, self.eval_env_kwargs)
        if self.base_controller and self.env_name not in (controlled := CONTROLLERS[self.base_controller][0]):
            there = f"{self.base_controller} controls {', '.join(controlled)}"
            message = f"base_controller: {there}, and env_name is {self.env_name}"
            faults.append(Fault(("base_controller", "env_name"), message))
        return faults

    def find_sizes(self) -> SpaceSizes:
        """Give the sizes that an agent gets: its observations end in the base action of residual control, if any.

        Raises:
            SettingsError: the environment can't be made.
        """
        from envs.make import describe_spaces

        spaces = describe_spaces(self.env_name, self.env_kwargs)
        base_dim = spaces.action_dim if self.base_controller else 0
        return replace(spaces, obs_dim=spaces.obs_dim + base_dim)

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run takes: the buffer when it is full, networks with what goes with them, and an update."""
        sizes = self.find_sizes()
        columns = count_columns(sizes.obs_dim, sizes.action_dim, self.n_step)
        units = self.batch_copies * sum(self.hidden_dims)
        return replace(
            need_networks(parameters, on_gpu=on_gpu),
            update=FLOAT * self.batch_size * (units + 4 * columns),
            replay=self.buffer_rows * FLOAT * columns,
        )

    def find_memory_faults(self, room: MemoryRoom, parameters: Mapping[str, int] | None = None) -> list[Fault]:
        """Refuse a buffer that is larger than the memory that is free, and whatever else doesn't fit beside it."""
        needed = self.predict_memory({}, on_gpu=room.gpu_bytes is not None).replay
        if needed <= room.host_bytes:
            return super().find_memory_faults(room, parameters)
        row_bytes, free = needed // self.buffer_rows, room.host_bytes
        message = (
            f"buffer_size: {self.buffer_rows:,} transitions of {row_bytes:,} bytes are {show_bytes(needed)}, and "
            f"{show_bytes(free)} of memory are free; at most {free // row_bytes:,} transitions fit"
        )
        return [Fault(("buffer_size", "max_timesteps"), message)]

    def shortened(self) -> Self:
        """Give the same run cut to a few updates."""
        taken = self.updates_per_step * self.num_envs * self.reference_batch_size
        wait = max(1, -(-self.batch_size // taken)) if self.schedule == "fixed_samples" else 1
        steps = count_steps_until(self.batch_size, self.num_envs)
        return shorten_acting(self, steps, updates=self.learning_cycle, wait=wait)

    @property
    def learning_cycle(self) -> int:
        """Updates after which everything has learned at least once."""
        return UPDATES


def count_columns(obs_dim: int, action_dim: int, n_step: int) -> int:
    """Give the numbers in a row of the replay buffer: both observations, action, reward, terminated, episode."""
    return 2 * obs_dim + action_dim + 2 + (n_step > 1)
