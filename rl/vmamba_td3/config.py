"""The settings of VMamba-TD3. Imports no torch.

Names and defaults are those of the documents that describe the agent; what they leave open is off by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from experiment.memory import MemoryRoom
from experiment.problems import Fault
from training.config import MEMORY, SHAPE, Int, TrainerConfig
from training.memory_need import PROGRAM, MemoryNeed
from training.shortening import UPDATES, count_steps_until, shorten_acting

if TYPE_CHECKING:
    from rl.vmamba_td3.memory import Workload
    from rl.vmamba_td3.spaces import WindowSizes

STAGES = 4
Size = Annotated[Int, Field(gt=0, json_schema_extra=SHAPE)]


class VMambaTD3Config(TrainerConfig):
    """TD3 on windows of depth images and states, each stream with an encoder of its own.

    Actions are in [-1, 1] inside. `buffer_size` counts frames, each kept once.
    """

    env_name: Annotated[str, Field(min_length=1, json_schema_extra=SHAPE)] = "AirSimEnv-v42"
    max_timesteps: Annotated[Int, Field(gt=0)] = 200_000
    learning_starts: Annotated[Int, Field(ge=0)] = 2_000
    batch_size: Annotated[Int, Field(gt=0)] = 128
    buffer_size: Annotated[Int, Field(gt=0)] = 20_000
    seq_len: Annotated[Int, Field(ge=1, le=64, json_schema_extra=SHAPE)] = 4

    vmamba_patch_size: Size = 16
    vmamba_hidden_dim: Size = 64
    vmamba_num_vss_blocks: Annotated[list[Annotated[Int, Field(ge=1)]], Field(json_schema_extra=SHAPE)] = [2, 2, 4, 2]
    vmamba_drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    vmamba_layer_scale_init: Annotated[float, Field(gt=0)] | None = 1e-6
    vmamba_ssm_d_state: Size = 16
    vmamba_ssm_ratio: Annotated[float, Field(gt=0, json_schema_extra=SHAPE)] = 2.0
    vmamba_mlp_ratio: Annotated[float, Field(ge=0, json_schema_extra=SHAPE)] = 4.0
    vmamba_temporal_layers: Size = 1
    vmamba_num_heads: Size = 4
    feature_dim: Size = 128
    state_feature_dim: Size = 128
    hidden_dim: Size = 256
    use_input_adapter: Annotated[bool, Field(json_schema_extra=SHAPE)] = False
    use_amp: Annotated[bool, Field(json_schema_extra=MEMORY)] = False
    use_checkpointing: Annotated[bool, Field(json_schema_extra=MEMORY)] = False
    encoder: Annotated[Literal["vmamba", "cnn"], Field(json_schema_extra=SHAPE)] = "vmamba"
    encoder_sharing: Annotated[Literal["separate", "shared"], Field(json_schema_extra=SHAPE)] = "separate"
    asymmetric_critic: Annotated[bool, Field(json_schema_extra=SHAPE)] = False
    temporal_scan: Annotated[Literal["cross", "causal"], Field(json_schema_extra=SHAPE)] = "cross"

    actor_lr: Annotated[float, Field(gt=0)] = 5e-4
    critic_lr: Annotated[float, Field(gt=0)] = 1e-3
    encoder_lr: Annotated[float, Field(gt=0)] | None = None
    lr_schedule: Literal["constant", "linear"] = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    policy_noise: Annotated[float, Field(ge=0)] = 0.2
    noise_clip: Annotated[float, Field(ge=0)] = 0.2
    policy_freq: Annotated[Int, Field(ge=1)] = 2
    grad_clip: Annotated[float, Field(ge=0)] = 10.0
    grad_clip_scope: Literal["module", "global"] = "module"
    critic_loss: Literal["mse", "huber"] = "mse"
    n_step: Annotated[Int, Field(ge=1, le=100)] = 1
    saturation_weight: Annotated[float, Field(ge=0)] = 0.0
    random_shift: Annotated[Int, Field(ge=0, le=32)] = 0
    train_freq: Annotated[Int, Field(ge=1)] = 1

    exploration: Literal["ou", "gaussian"] = "ou"
    ou_theta: Annotated[float, Field(gt=0, le=1)] = 0.15
    ou_sigma: Annotated[float, Field(ge=0)] = 0.2
    ou_sigma_min: Annotated[float, Field(ge=0)] = 0.01
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    random_steps: Annotated[Int, Field(ge=0)] = 0

    @property
    def buffer_frames(self) -> int:
        """Frames that are kept: no more than a run can see, with the first frame of each of its episodes."""
        return min(self.buffer_size, 2 * self.max_timesteps + self.num_envs * (self.seq_len + self.n_step + 1))

    def find_contradictions(self) -> list[Fault]:
        """Name settings that can't hold, alone or together."""
        faults = super().find_contradictions()
        if len(self.vmamba_num_vss_blocks) != STAGES:
            message = (
                f"vmamba_num_vss_blocks: {self.vmamba_num_vss_blocks} are {len(self.vmamba_num_vss_blocks)} numbers"
            )
            faults.append(Fault(("vmamba_num_vss_blocks",), f"{message}; there are {STAGES} stages"))
        if self.hidden_dim % self.vmamba_num_heads:
            faults.append(
                Fault(
                    ("vmamba_num_heads", "hidden_dim"),
                    f"vmamba_num_heads ({self.vmamba_num_heads}) does not divide hidden_dim ({self.hidden_dim})",
                )
            )
        if self.batch_size > self.max_timesteps:
            faults.append(self._pair("batch_size", ">", "max_timesteps", "nothing would be trained"))
        if self.buffer_size < self.num_envs * (self.seq_len + self.n_step + 1):
            message = f"buffer_size ({self.buffer_size}) holds no window of seq_len ({self.seq_len}) frames"
            faults.append(Fault(("buffer_size", "seq_len"), f"{message} for each of num_envs ({self.num_envs})"))
        if self.ou_sigma_min > self.ou_sigma and self.exploration == "ou":
            faults.append(self._pair("ou_sigma_min", ">", "ou_sigma", "the noise would grow"))
        if (given := self.env_kwargs.get("seq_len", self.seq_len)) != self.seq_len:
            message = f"env_kwargs.seq_len ({given}) is not seq_len ({self.seq_len}); leave it out, it follows"
            faults.append(Fault(("env_kwargs.seq_len", "seq_len"), message))
        return faults + self._find_asymmetric_contradictions()

    def _find_asymmetric_contradictions(self) -> list[Fault]:
        faults = []
        if self.asymmetric_critic and self.encoder_sharing == "shared":
            message = (
                "asymmetric_critic with encoder_sharing: shared: the critic sees no images, so no stream would learn "
                "from its loss; take encoder_sharing: separate"
            )
            faults.append(Fault(("asymmetric_critic", "encoder_sharing"), message))
        if self.asymmetric_critic and self.env_kwargs.get("privileged") is False:
            message = "env_kwargs.privileged is false, and asymmetric_critic reads it; leave it out, it follows"
            faults.append(Fault(("env_kwargs.privileged", "asymmetric_critic"), message))
        return faults

    @property
    def evaluation_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment in evaluations, with the window's length: whoever looks on sees what it sees."""
        from rl.vmamba_td3.spaces import complete_env_kwargs

        return complete_env_kwargs(self, super().evaluation_kwargs, acting=True)

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off."""
        off = super().list_switched_off()
        if self.encoder == "cnn":
            keys = ("patch_size", "hidden_dim", "num_vss_blocks", "drop_path_rate", "layer_scale_init", "mlp_ratio")
            off |= {f"vmamba_{key}": "encoder is cnn" for key in keys}
            off |= {"use_input_adapter": "encoder is cnn", "use_checkpointing": "encoder is cnn"}
        if self.exploration == "ou":
            off["noise_std"] = "exploration is ou"
        else:
            off |= dict.fromkeys(("ou_theta", "ou_sigma", "ou_sigma_min"), "exploration is gaussian")
        return off

    def find_environment_faults(self) -> list[Fault]:
        """Name what can't be done here: other observations, windows of another length, frames that don't fit."""
        from envs.make import find_environment_faults, find_evaluation_faults
        from rl.vmamba_td3 import spaces

        kwargs = spaces.complete_env_kwargs(self, self.env_kwargs)
        judge = spaces.judge_privileged if self.asymmetric_critic else spaces.judge_windows
        faults = find_environment_faults(self.env_name, kwargs, continuous_actions=True, judge=judge)
        if not faults and self.evaluates:
            acting = spaces.complete_env_kwargs(self, self.env_kwargs, acting=True)
            faults = find_evaluation_faults(self.env_name, acting, self.eval_env_kwargs, judge=spaces.judge_seen)
        if faults:
            return faults
        windows = spaces.measure_settings(self)
        if windows.steps != self.seq_len:
            message = f"seq_len ({self.seq_len}): the windows of {self.env_name} have {windows.steps} frames"
            return [Fault(("seq_len", "env_name"), message)]
        try:
            spaces.plan_stream(self, windows)
        except ValueError as error:
            key = str(error).split(" ", 1)[0]
            return [Fault((key if key in type(self).model_fields else "env_kwargs",), str(error))]
        return []

    def find_memory_faults(self, room: MemoryRoom, parameters: Mapping[str, int] | None = None) -> list[Fault]:
        """Name a batch, or a replay buffer, or what else doesn't fit into memory where the run is placed."""
        from rl.vmamba_td3.fitting import find_memory_faults
        from rl.vmamba_td3.spaces import measure_settings, plan_stream

        windows = measure_settings(self)
        work = self._describe_work(windows)
        stream = plan_stream(self, windows)
        faults = find_memory_faults(stream, windows.action_dim, work, self.buffer_frames, room)
        return faults or super().find_memory_faults(room, parameters)

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run takes, by the arithmetic in `memory.py`, which counts weights itself, and a checkpoint."""
        from rl.vmamba_td3.fitting import find_need
        from rl.vmamba_td3.memory import estimate_memory
        from rl.vmamba_td3.spaces import measure_settings, plan_stream

        windows = measure_settings(self)
        work = self._describe_work(windows)
        estimate = estimate_memory(plan_stream(self, windows), windows.action_dim, work, self.buffer_frames)
        return MemoryNeed(
            on_gpu,
            networks=estimate.lasting,
            checkpoint=estimate.lasting * (2 if on_gpu else 1),
            update=find_need(estimate, on_gpu) - estimate.lasting,
            replay=estimate.buffer,
            program=PROGRAM if on_gpu else 0,
        )

    def _describe_work(self, windows: WindowSizes) -> Workload:
        from rl.vmamba_td3.memory import Workload

        return Workload(
            self.batch_size,
            self.seq_len,
            use_amp=self.use_amp,
            use_checkpointing=self.use_checkpointing,
            encoder_sharing=self.encoder_sharing,
            privileged_dim=windows.privileged_dim,
        )

    def shortened(self) -> Self:
        """Give the same run cut to a few updates, the actor's among them."""
        steps = count_steps_until(self.batch_size, self.num_envs)
        wait = -(-self.train_freq // self.num_envs)
        return shorten_acting(self, steps, updates=max(UPDATES, self.policy_freq), wait=wait)

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks and of the buffer, and what goes with them."""
        frames = self.buffer_frames
        return super().shape_settings() | {
            "buffer_size": frames,
            "max_timesteps": max(frames, 1),
            "batch_size": 1,
            "learning_starts": 0,
            "num_envs": self.num_envs,
            "n_step": self.n_step,
        }
