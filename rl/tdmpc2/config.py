"""The settings of TD-MPC2. Imports no torch.

Names and defaults are those of the document and of the authors' code; `model_size` stands for several of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from experiment.memory import MemoryRoom
from experiment.problems import Fault
from rl.tdmpc2.sizes import MODEL_SIZES
from training.config import MEMORY, SHAPE, Int, TrainerConfig
from training.memory_need import MemoryNeed
from training.shortening import count_steps_until, shorten_acting

Size = Annotated[Int, Field(gt=0, json_schema_extra=SHAPE)]

SHORT_PLAN = 32
"""Samples of a plan in a run that is cut short."""


class TDMPC2Config(TrainerConfig):
    """TD-MPC2 (Hansen et al. 2024, arXiv:2310.16828).

    Steps are the agent's: one action, carried out `action_repeat` times. `learning_starts` is how many of them come
    from random actions; after them `pretrain_updates` updates are made at once.
    """

    memory_keys: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **TrainerConfig.memory_keys,
        "networks": ("model_size",),
    }

    algorithm_name: Literal["tdmpc2"]
    max_timesteps: Annotated[Int, Field(gt=0)] = 500_000
    learning_starts: Annotated[Int, Field(ge=0)] = 5_000
    pretrain_updates: Annotated[Int, Field(ge=0)] | None = None
    train_freq: Annotated[Int, Field(ge=1)] = 1
    action_repeat: Annotated[Int, Field(ge=1, le=100, json_schema_extra=SHAPE)] = 1
    episodic: Annotated[bool, Field(json_schema_extra=SHAPE)] = False

    model_size: Annotated[Literal[1, 5, 19, 48, 317], Field(json_schema_extra=SHAPE)] = 5
    latent_dim: Size = 512
    mlp_dim: Size = 512
    enc_dim: Size = 256
    num_enc_layers: Size = 2
    num_channels: Size = 32
    num_q: Annotated[Int, Field(ge=2, json_schema_extra=SHAPE)] = 5
    num_bins: Annotated[Int, Field(ge=2, json_schema_extra=SHAPE)] = 101
    vmin: float = -10.0
    vmax: float = 10.0
    simnorm_dim: Size = 8
    task_dim: Size = 96
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.01
    log_std_min: float = -10.0
    log_std_max: float = 2.0

    lr: Annotated[float, Field(gt=0)] = 3e-4
    enc_lr_scale: Annotated[float, Field(gt=0)] = 0.3
    grad_clip_norm: Annotated[float, Field(ge=0)] = 20.0
    tau: Annotated[float, Field(gt=0, le=1)] = 0.01
    discount: Annotated[float, Field(gt=0, le=1)] | None = None
    discount_denom: Annotated[float, Field(gt=0)] = 5.0
    discount_min: Annotated[float, Field(gt=0, le=1)] = 0.95
    discount_max: Annotated[float, Field(gt=0, le=1)] = 0.995
    rho: Annotated[float, Field(gt=0, le=1)] = 0.5
    consistency_coef: Annotated[float, Field(ge=0)] = 20.0
    reward_coef: Annotated[float, Field(ge=0)] = 0.1
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    termination_coef: Annotated[float, Field(ge=0)] = 1.0
    entropy_coef: Annotated[float, Field(ge=0)] = 1e-4
    random_shift: Annotated[Int, Field(ge=0, le=32)] = 3

    mpc: bool = True
    horizon: Annotated[Int, Field(ge=1, le=64)] = 3
    iterations: Annotated[Int, Field(ge=1)] | None = None
    num_samples: Annotated[Int, Field(gt=0)] = 512
    num_elites: Annotated[Int, Field(gt=0)] = 64
    num_pi_trajs: Annotated[Int, Field(ge=0)] = 24
    min_std: Annotated[float, Field(ge=0)] = 0.05
    max_std: Annotated[float, Field(gt=0)] = 2.0
    temperature: Annotated[float, Field(gt=0)] = 0.5
    value_uncertainty_weight: Annotated[float, Field(ge=0)] = 0.0
    plan_bf16: Annotated[bool, Field(json_schema_extra=MEMORY)] = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build the config; sizes that aren't set are those that `model_size` stands for.

        Raises:
            SettingsError: with every fault.
        """
        size = settings.get("model_size")
        stands_for = next((sizes for name, sizes in MODEL_SIZES.items() if name == size), {})
        return super().from_settings({**stands_for, **settings})

    @property
    def num_pretrain(self) -> int:
        """Updates that are made at once when learning starts: as many as there were steps, unless said otherwise."""
        return self.learning_starts if self.pretrain_updates is None else self.pretrain_updates

    def find_iterations(self, action_dim: int) -> int:
        """Give the iterations of a plan: 6, and 8 from 20 numbers of an action on, unless set."""
        if self.iterations is not None:
            return self.iterations
        return 8 if action_dim >= 20 else 6

    def find_discount(self, episode_length: int | None) -> float:
        """Give the discount per step: as set, else longer for tasks with longer episodes.

        `(length / denom - 1) / (length / denom)` within `discount_min` and `discount_max`, which it is without a clock.

        Args:
            episode_length: the agent's steps that the clock allows; None without a clock.
        """
        if self.discount is not None:
            return self.discount
        if episode_length is None:
            return self.discount_max
        fraction = episode_length / self.discount_denom
        return min(max((fraction - 1) / fraction, self.discount_min), self.discount_max)

    def find_contradictions(self) -> list[Fault]:
        """Name settings that can't hold together."""
        faults = super().find_contradictions()
        for low, high in (("vmin", "vmax"), ("log_std_min", "log_std_max")):
            if getattr(self, low) >= getattr(self, high):
                faults.append(self._pair(low, ">=", high, "nothing lies between them"))
        for low, high, outcome in (
            ("min_std", "max_std", "no deviation lies between them"),
            ("discount_min", "discount_max", "no discount lies between them"),
            ("num_elites", "num_samples", "there are no more elites than samples"),
            ("num_pi_trajs", "num_samples", "proposals of the policy are among the samples"),
            ("batch_size", "max_timesteps", "nothing would be trained"),
        ):
            if getattr(self, low) > getattr(self, high):
                faults.append(self._pair(low, ">", high, outcome))
        if self.latent_dim % self.simnorm_dim:
            message = f"simnorm_dim ({self.simnorm_dim}) does not divide latent_dim ({self.latent_dim})"
            faults.append(Fault(("simnorm_dim", "latent_dim"), message))
        if self.buffer_size < self.num_envs * (self.horizon + 1):
            message = f"buffer_size ({self.buffer_size}) holds no window of horizon ({self.horizon}) steps"
            faults.append(Fault(("buffer_size", "horizon"), f"{message} for each of num_envs ({self.num_envs})"))
        if self.value_uncertainty_weight > 0 and not self.mpc:
            message = f"value_uncertainty_weight ({self.value_uncertainty_weight}) weighs plans, and mpc is false"
            faults.append(Fault(("value_uncertainty_weight", "mpc"), message))
        return faults

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off."""
        off = super().list_switched_off()
        if not self.mpc:
            keys = ("iterations", "num_samples", "num_elites", "num_pi_trajs", "min_std", "max_std", "temperature")
            off |= dict.fromkeys((*keys, "plan_bf16"), "mpc is false")
        if self.discount is not None:
            off |= dict.fromkeys(("discount_denom", "discount_min", "discount_max"), "discount is set")
        if not self.episodic:
            off["termination_coef"] = "episodic is false"
        return off

    def find_environment_faults(self) -> list[Fault]:
        """Name what can't be done here: other spaces, an episode shorter than the horizon, images of another size."""
        from rl.tdmpc2.spaces import find_environment_faults

        return find_environment_faults(self)

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run takes: the buffer when it is full, networks, and an update; it counts weights itself."""
        from rl.tdmpc2.spaces import predict_memory

        return predict_memory(self, on_gpu=on_gpu)

    def find_memory_faults(self, room: MemoryRoom, parameters: Mapping[str, int] | None = None) -> list[Fault]:
        """Name networks, or a replay buffer, or what else doesn't fit into memory where the run is placed."""
        from rl.tdmpc2.spaces import find_memory_faults

        return find_memory_faults(self, room) or super().find_memory_faults(room, parameters)

    def shortened(self) -> Self:
        """Give the same run cut to a few updates: one of the pretraining, then those that follow steps.

        A plan is made in one iteration of few samples, so that evaluations take seconds.
        """
        steps = count_steps_until(max(self.batch_size, self.num_envs * (self.horizon + 2)), self.num_envs)
        wait = -(-self.train_freq // self.num_envs)
        return shorten_acting(
            self,
            steps,
            wait=wait,
            learning_starts=steps,
            pretrain_updates=min(1, self.num_pretrain),
            iterations=1,
            num_samples=min(self.num_samples, SHORT_PLAN),
            num_elites=min(self.num_elites, SHORT_PLAN // 4),
            num_pi_trajs=min(self.num_pi_trajs, SHORT_PLAN // 4),
        )

    @property
    def buffer_steps(self) -> int:
        """Steps that are kept: no more than a run can see, with the last observation of each of its episodes."""
        return min(self.buffer_size, 2 * self.max_timesteps + self.num_envs * (self.horizon + 1))

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks and of the buffer, and what goes with them."""
        steps = self.buffer_steps
        return super().shape_settings() | {
            "buffer_size": steps,
            "max_timesteps": max(steps, self.num_envs),
            "batch_size": 1,
            "learning_starts": 0,
            "num_envs": self.num_envs,
            "horizon": self.horizon,
        }
