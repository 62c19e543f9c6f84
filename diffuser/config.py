"""The settings of VAE + diffusion RL. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from diffuser.models.schedule_rules import ScheduleSettings, find_schedule_faults
from experiment.problems import Fault
from training.config import MEMORY, SHAPE, Int, TrainerConfig
from training.memory_need import FLOAT, PROGRAM, MemoryNeed, need_networks
from training.shortening import UPDATES, shorten_learning

Dims = Annotated[list[Annotated[Int, Field(gt=0)]], Field(min_length=1, json_schema_extra=SHAPE)]
Size = Annotated[Int, Field(gt=0, json_schema_extra=SHAPE)]
Weight = Annotated[float, Field(ge=0)]
DIFFUSERS = 90 * 2**20
"""What the package takes that schedules come from, which is loaded with the first one; without it they are our own."""
BATCH_COPIES = 6
"""Numbers kept for each that a layer gives, on the way to a loss and back; measured (docs/preflight.md)."""


class DiffusionRLConfig(TrainerConfig):
    """A latent diffusion policy: learnt from recorded episodes, then, where asked for, fine-tuned by acting.

    Counts and frequencies are in training steps, also of a run that acts. `diffusion`, `loader` and `evaluator` are
    keys of a closed table, never import paths.
    """

    memory_keys: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "update": ("batch_size", "rl_batch_size"),
        "networks": ("hidden_dims", "denoiser_hidden_dims"),
        "replay": ("dataset",),
    }

    algorithm_name: Literal["vae_diffusion_rl"]
    diffusion: Literal["models.DiffusionRL"] = "models.DiffusionRL"
    loader: Literal["datasets.VAESequenceDataset"] = "datasets.VAESequenceDataset"
    evaluator: Literal["utils.MADEvaluator"] = "utils.MADEvaluator"
    dataset: Annotated[str, Field(min_length=1, json_schema_extra=SHAPE)]

    horizon: Size = 4
    history_horizon: Size = 2
    obs_normalizer: Literal["gaussian", "limits"] = "gaussian"
    vae_latent_dim: Size = 64
    trajectory_latent_dim: Size = 128
    vae_weight: Weight = 1.0
    vae_kl_weight: Weight = 1e-3
    hidden_dims: Dims = [128, 128]
    denoiser: Annotated[Literal["mlp", "unet"], Field(json_schema_extra=SHAPE)] = "mlp"
    denoiser_hidden_dims: Dims = [256, 256, 256]
    unet_channels: Annotated[Int, Field(gt=0, multiple_of=32, json_schema_extra=SHAPE)] = 64
    num_diffusion_steps: Annotated[Int, Field(ge=2, le=10_000)] = 100
    num_sampling_steps: Annotated[Int, Field(ge=1, le=10_000)] = 10
    sampler: Literal["ddpm", "ddim", "dpm_solver"] = "ddim"
    beta_schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    prediction_type: Literal["sample", "v_prediction", "epsilon"] = "sample"
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    clip_range: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    max_grad_norm: Weight = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    gradient_accumulation: Annotated[Int, Field(ge=1)] = 1
    q_weight: Weight = 0.0
    sampling_temperature: Weight = 1.0
    num_candidates: Annotated[Int, Field(ge=1)] = 1
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7

    online_training: bool = False
    use_value_function: bool = True
    rl_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    policy_gradient_weight: Weight = 1.0
    value_function_weight: Weight = 0.5
    entropy_weight: float = 0.01
    offline_loss_weight: Weight = 0.1
    rl_warmup_steps: Annotated[Int, Field(ge=0)] = 10_000
    rl_collect_freq: Annotated[Int, Field(ge=1)] = 1_000
    rl_collect_steps: Annotated[Int, Field(ge=1, json_schema_extra=MEMORY)] = 100
    rl_update_freq: Annotated[Int, Field(ge=1)] = 100
    rl_batch_size: Annotated[Int, Field(ge=1, json_schema_extra=MEMORY)] = 4_096
    rl_clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.1
    rl_target_kl: Annotated[float, Field(gt=0)] | None = None
    rl_tuned_steps: Annotated[Int, Field(ge=1)] = 10
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    denoising_discount: Annotated[float, Field(gt=0, le=1)] = 1.0

    def find_contradictions(self) -> list[Fault]:
        """Name pairs of settings that can't hold together."""
        faults = [fault for fault in super().find_contradictions() if not _UNREAD & set(fault.keys)]
        found = find_schedule_faults(self.schedule, needs_density=self.online_training)
        faults += [Fault(keys, message) for keys, message in found]
        if self.online_training:
            faults += self._find_online_contradictions()
        if self.num_candidates > 1 and self.sampling_temperature == 0:
            outcome = "all candidates would be the same chunk"
            faults.append(self._pair("num_candidates", "beside", "sampling_temperature", outcome))
        return faults

    def _find_online_contradictions(self) -> list[Fault]:
        faults = []
        if self.rl_warmup_steps >= self.max_timesteps:
            outcome = "it would never act; set online_training: false"
            faults.append(self._pair("rl_warmup_steps", ">=", "max_timesteps", outcome))
        if self.rl_collect_steps < self.horizon:
            faults.append(self._pair("rl_collect_steps", "<", "horizon", "not one chunk of actions would be executed"))
        if self.rl_update_freq > self.rl_collect_freq:
            faults.append(self._pair("rl_update_freq", ">", "rl_collect_freq", "some of what is collected is not used"))
        outcome = "the critic is learnt from the data set and doesn't know the policy that acting improves"
        if self.num_candidates > 1:
            faults.append(self._pair("num_candidates", "beside", "online_training", outcome))
        if self.q_weight > 0:
            faults.append(self._pair("q_weight", "beside", "online_training", outcome))
        if self.rl_tuned_steps > self.num_sampling_steps:
            faults.append(self._pair("rl_tuned_steps", ">", "num_sampling_steps", "there are no more steps"))
        return faults

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off, whether or not they were set."""
        off = super().list_switched_off()
        off |= dict.fromkeys(_UNREAD, "a diffusion agent learns from a data set, from its first step on")
        off["unet_channels" if self.denoiser == "mlp" else "denoiser_hidden_dims"] = f"denoiser is {self.denoiser}"
        if self.sampler != "ddim":
            off["eta"] = f"sampler is {self.sampler}"
        if not self.uses_critic:
            off["expectile"] = "num_candidates is 1 and q_weight is 0"
        if not self.online_training:
            off |= dict.fromkeys(_ONLINE, "online_training is false")
            if not self.uses_critic:
                off["discount"] = "online_training is false, num_candidates is 1 and q_weight is 0"
        elif not self.use_value_function:
            off |= dict.fromkeys(("value_function_weight", "gae_lambda"), "use_value_function is false")
        return off

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks, and what goes with them."""
        shape = {"use_value_function": self.use_value_function, "num_candidates": 2 if self.uses_critic else 1}
        return super().shape_settings() | shape | self._shape_online()

    def _shape_online(self) -> dict[str, Any]:
        if not self.online_training:
            return {}
        return {
            "online_training": True,
            "rl_warmup_steps": 0,
            "rl_collect_steps": self.horizon,
            "rl_tuned_steps": 1,
        }

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run takes: the data set, whether mapped or in memory, networks, and an update.

        A data set that is still to be made counts as nothing.
        """
        from envs.datasets import describe_dataset

        episodes = describe_dataset(self.dataset).episodes
        recorded, is_mapped = 0, False
        if episodes is not None:
            numbers = episodes.num_agents * (episodes.obs_dim + episodes.action_dim + 2)
            recorded, is_mapped = FLOAT * episodes.num_steps * numbers, episodes.is_mapped
        samples = max(self.batch_size, self.rl_batch_size if self.online_training else 0)
        return replace(
            need_networks(parameters, on_gpu=on_gpu),
            program=PROGRAM + (DIFFUSERS if importlib.util.find_spec("diffusers") else 0),
            update=FLOAT * samples * self._count_update_numbers(),
            replay=0 if is_mapped else recorded,
            mapped=recorded if is_mapped else 0,
        )

    def _count_update_numbers(self) -> int:
        """Count the numbers that a sample leaves behind in an update, for gradients: about; see `BATCH_COPIES`."""
        denoiser = sum(self.denoiser_hidden_dims) if self.denoiser == "mlp" else 12 * self.unet_channels * self.horizon
        # Encoder, decoder and trajectory encoder; a critic's two heads, their slow copies and its expectile.
        layers = 3 * sum(self.hidden_dims) + denoiser + (4 * sum(self.hidden_dims) if self.uses_critic else 0)
        return BATCH_COPIES * layers

    def shortened(self) -> Self:
        """Give the same run cut to a few updates; one that acts learns from data once, and acts twice."""
        if not self.online_training:
            return shorten_learning(self)
        return shorten_learning(
            self, updates=UPDATES + 1, save=UPDATES, rl_warmup_steps=1, rl_collect_freq=1, rl_update_freq=1
        )

    def find_environment_faults(self) -> list[Fault]:
        """Name what can't be done here: the data set, and, if episodes are ever run, the environment.

        A reference set that is still to be made is not made for this.
        """
        from envs.datasets import describe_dataset
        from envs.episodes import EpisodeError

        try:
            recorded = describe_dataset(self.dataset).env_name
        except EpisodeError as error:
            return [Fault(("dataset",), f"dataset: {error}")]
        if recorded and recorded != self.env_name:
            message = (
                f"dataset: {self.dataset} was recorded in {recorded}, and env_name is {self.env_name}; choose a data "
                f"set of this environment, or set env_name: {recorded}"
            )
            return [Fault(("dataset", "env_name"), message)]
        if not self.runs_episodes:
            return []
        from envs.make import find_environment_faults, find_evaluation_faults

        faults = find_environment_faults(self.env_name, self.env_kwargs, continuous_actions=True)
        if not faults and self.evaluates:
            faults = find_evaluation_faults(self.env_name, self.env_kwargs, self.eval_env_kwargs)
        return faults

    @property
    def schedule(self) -> ScheduleSettings:
        """What decides the noise schedule."""
        return ScheduleSettings(
            num_diffusion_steps=self.num_diffusion_steps,
            num_sampling_steps=self.num_sampling_steps,
            sampler=self.sampler,
            beta_schedule=self.beta_schedule,
            prediction_type=self.prediction_type,
            eta=self.eta,
            clip_range=self.clip_range,
        )

    @property
    def uses_critic(self) -> bool:
        """Whether a critic of chunks is learnt: to learn by, or to choose among candidates."""
        return self.num_candidates > 1 or self.q_weight > 0

    @property
    def runs_episodes(self) -> bool:
        """Whether an environment is ever needed: to act in, or to evaluate in."""
        return self.online_training or self.evaluates


_UNREAD = frozenset({"learning_starts", "buffer_size"})
_ONLINE = (
    "use_value_function",
    "rl_learning_rate",
    "policy_gradient_weight",
    "value_function_weight",
    "entropy_weight",
    "offline_loss_weight",
    "rl_warmup_steps",
    "rl_collect_freq",
    "rl_collect_steps",
    "rl_update_freq",
    "rl_batch_size",
    "rl_clip_range",
    "rl_target_kl",
    "rl_tuned_steps",
    "gae_lambda",
    "denoising_discount",
    "num_envs",
)
