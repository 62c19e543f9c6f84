"""The agent as scripts use it: `make_agent`, `select_action`, `train`, `save` and `load`, without a training loop.

`train.py` and the runner use `trainer.py`, which resumes to the bit; this is for loops of one's own.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from envs.actions import ActionScale
from experiment.problems import Fault, SettingsError, suggest
from rl.vmamba_td3.agent import VMambaTD3
from rl.vmamba_td3.buffer import SequenceReplayBuffer
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.noise import ShrinkingNoise
from rl.vmamba_td3.spaces import WindowSizes, plan_stream
from rl.vmamba_td3.stream import FrameFeatures
from rl.vmamba_td3.trainer import build_exploration
from training.seeding import spawn_generator

SCRIPT_KEYS = frozenset({"save_interval"})
"""Arguments of the documents' loops that are the loop's own business."""
FORMAT = "vmamba_td3/1"


class VMambaTD3Agent:
    """Two streams, actor, twin critic, their targets, a memory and noise.

    The networks have the names of the documents: `{actor,critic}_{visual_encoder,state_encoder,mamba}`, `actor`,
    `critic`, and each with `_target`. With `encoder_sharing: shared` the actor's are the critic's.

    Args:
        base_dim: numbers of a state.
        depth_shape: of a window of frames, (seq_len, 1, height, width).
        action_space: bounded.
        args: settings by the names of `VMambaTD3Config`, as a namespace or a mapping.
        device: None for the first GPU, or the CPU where there is none.
        depth_scale: what depth goes up to in observations.

    Raises:
        SettingsError: a setting is unknown or out of range.
        ValueError: settings and frames don't go together.
    """

    def __init__(
        self,
        base_dim: int,
        depth_shape: tuple[int, ...],
        action_space: gym.spaces.Box,
        args: Namespace | Mapping[str, Any],
        device: str | torch.device | None = None,
        depth_scale: float = 1.0,
    ) -> None:
        self.config = read_arguments(args)
        chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(chosen)
        steps, channels, height, width = depth_shape
        if steps != self.config.seq_len:
            raise ValueError(
                f"seq_len is {self.config.seq_len}, and a window of depth {depth_shape} has {steps} frames"
            )
        self.action_dim = action_space.shape[0]
        self._scale = ActionScale(action_space)
        self._sizes = WindowSizes(steps, base_dim, (channels, height, width), self.action_dim, depth_scale)
        self._stream_sizes = plan_stream(self.config, self._sizes)
        self._agent = VMambaTD3(self.config, self._stream_sizes, self.action_dim, self.device)
        self.batch_size = self.config.batch_size
        self.replay_buffer = SequenceReplayBuffer(
            self.config.buffer_size,
            steps,
            spawn_generator(self.config.seed, "replay"),
            discount=self.config.gamma,
            n_step=self.config.n_step,
            depth_scale=depth_scale,
            to_unit=self._scale.to_normal,
        )
        self.ou_noise = build_exploration(self.config, self.action_dim)
        self._known = FrameFeatures()
        self.total_it = 0
        self._name_networks()

    def _name_networks(self) -> None:
        """Give every network the name that the documents have for it."""
        for owner in ("actor", "critic"):
            for ending, target in (("", False), ("_target", True)):
                for name, module in self._agent.find_stream(owner, target).named_children():
                    setattr(self, f"{owner}_{name}{ending}", module)
        self.actor: nn.Module = self._agent.networks["actor"]
        self.critic: nn.Module = self._agent.networks["critic"]
        self.actor_target: nn.Module = self._agent.targets["actor"]
        self.critic_target: nn.Module = self._agent.targets["critic"]

    def select_action(self, base_seq: Any, depth_seq: Any, noise: bool = True) -> NDArray[Any]:
        """Give an action in the environment's units.

        Args:
            base_seq: (seq_len, base_dim).
            depth_seq: (seq_len, 1, height, width), in [0, depth_scale].
            noise: whether to explore.
        """
        base = torch.from_numpy(np.asarray(base_seq, np.float32)[None]).to(self.device)
        depth = np.asarray(depth_seq, np.float32) / np.float32(self._sizes.depth_scale)
        self._agent.networks.eval()
        stream = self._agent.find_stream("actor")
        features = self._known.find(stream, self._agent.version, depth, self.device)
        with torch.no_grad():
            action: NDArray[np.float32] = self._agent.choose(stream.gather(features, base))[0].cpu().numpy()
        if noise:
            action = np.clip(action + self.ou_noise.sample()[0], -1, 1)
        return self._scale.to_env(action)

    def train(self, progress_ratio: float = 0.0) -> dict[str, float] | None:
        """Learn from one batch; give `actor_loss` (0 where the actor didn't move) and `critic_loss`.

        Args:
            progress_ratio: how much of the run is done, in [0, 1]; the noise shrinks by it.

        Returns:
            None while the memory holds less than a batch.
        """
        self.total_it += 1
        if isinstance(self.ou_noise, ShrinkingNoise):
            self.ou_noise.scale_sigma(progress_ratio)
        if self.replay_buffer.size < self.batch_size:
            return None
        batch = self._agent.load_batch(self.replay_buffer.sample_windows(self.batch_size))
        metrics = self._agent.update(batch)
        actor_loss = float(metrics["train/actor_loss"]) if "train/actor_loss" in metrics else 0.0
        return {"actor_loss": actor_loss, "critic_loss": float(metrics["train/critic_loss"])}

    def save(self, path: str | Path) -> None:
        """Write networks, targets and optimizers; the memory is left out."""
        state = {"format": FORMAT, "sizes": repr(self._stream_sizes), "agent": self._agent.state_dict()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state | {"total_it": self.total_it}, path)

    def load(self, path: str | Path) -> None:
        """Take over what `save` wrote; opening it never runs code from it.

        Raises:
            ValueError: it is something else, or of other sizes; both sizes are named.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path}: this is not what VMambaTD3Agent.save writes ({FORMAT})")
        if state["sizes"] != repr(self._stream_sizes):
            raise ValueError(
                f"{path}: it was saved by an agent of other sizes:\n{state['sizes']}\nand this one has\n"
                f"{self._stream_sizes!r}"
            )
        self._agent.load_state_dict(state["agent"])
        self._agent.networks.eval()  # who calls them by name next wants no path dropped; `train` puts them back
        self.total_it = state["total_it"]


def make_agent(
    env: gym.Env[Any, Any], initial_obs: Mapping[str, Any], args: Namespace | Mapping[str, Any]
) -> VMambaTD3Agent:
    """Give an agent for an environment.

    Args:
        env: with a bounded Box of actions.
        initial_obs: `base` and `depth`, as from its reset.
        args: as for `VMambaTD3Agent`.
    """
    space = env.observation_space
    pictures = space["depth"] if isinstance(space, gym.spaces.Dict) else None
    scale = float(np.max(pictures.high)) if isinstance(pictures, gym.spaces.Box) else 1.0
    base, depth = np.asarray(initial_obs["base"]), np.asarray(initial_obs["depth"])
    actions = env.action_space
    if not isinstance(actions, gym.spaces.Box):
        raise ValueError(f"the agent needs a Box of actions, and the environment has {actions}")
    return VMambaTD3Agent(base.shape[-1], depth.shape, actions, args, depth_scale=scale)


def read_arguments(args: Namespace | Mapping[str, Any]) -> VMambaTD3Config:
    """Give the config that a script's arguments make.

    Raises:
        SettingsError: one is unknown or out of range, or `asymmetric_critic` is true, which is for `train.py` alone.
    """
    given = dict(args) if isinstance(args, Mapping) else vars(args)
    settings = {key: value for key, value in given.items() if key not in SCRIPT_KEYS}
    if unknown := [key for key in settings if key not in VMambaTD3Config.model_fields]:
        fields = VMambaTD3Config.model_fields
        raise SettingsError([Fault((key,), f"unknown key {key!r}{suggest(key, fields)}") for key in unknown])
    config = VMambaTD3Config.from_settings({"algorithm_name": "vmamba_td3"} | settings)
    if config.asymmetric_critic:
        message = (
            "asymmetric_critic: this interface is base and depth alone, and its critic has streams for both; "
            "leave it out, or train with train.py --algorithm_name vmamba_td3"
        )
        raise SettingsError([Fault(("asymmetric_critic",), message)])
    return config
