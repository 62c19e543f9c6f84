"""What VMamba-TD3 asks of an environment's observations, and the sizes of its networks there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from envs.make import make_env_or_fail
from envs.pilots import NAVIGATION
from envs.registration import WINDOWED
from rl.vmamba_td3.architecture import StreamConfig, TrunkConfig
from rl.vmamba_td3.config import VMambaTD3Config


@dataclass(frozen=True)
class WindowSizes:
    """The sizes of windows and actions.

    Attributes:
        steps: frames in a window.
        base_dim: numbers of a state.
        frame_shape: channels, height and width.
        action_dim: numbers of an action.
        depth_scale: what depth goes up to in the environment's observations, as 255 in raw images.
        privileged_dim: numbers that a simulator tells the critic alone; 0 where it tells none.
    """

    steps: int
    base_dim: int
    frame_shape: tuple[int, int, int]
    action_dim: int
    depth_scale: float
    privileged_dim: int = 0


def judge_windows(space: gym.Space[Any]) -> str | None:
    """Say what is wrong with observations that aren't windows of states and depth images, and nothing else."""
    if isinstance(space, gym.spaces.Dict) and set(space.spaces) == {"base", "depth", "privileged"}:
        return "nothing reads `privileged` unless asymmetric_critic is true"
    return judge_seen(space)


def judge_privileged(space: gym.Space[Any]) -> str | None:
    """Say what is wrong with observations that an asymmetric critic shall learn from."""
    if complaint := judge_seen(space):
        return complaint
    assert isinstance(space, gym.spaces.Dict)
    known = space.spaces.get("privileged")
    if not isinstance(known, gym.spaces.Box) or len(known.shape) != 1 or known.shape[0] == 0:
        return (
            "asymmetric_critic needs `privileged` (numbers,) beside them, what the simulator knows, as 'DepthNav-v0' "
            "gives it; leave asymmetric_critic out where there is none"
        )
    return None


def judge_seen(space: gym.Space[Any]) -> str | None:
    """Say what is wrong with observations that a policy shall act by; it reads nothing that is privileged."""
    wanted = (
        "this trainer needs a Dict of base (steps, numbers) and depth (steps, 1, height, width), as in 'DepthNav-v0'"
    )
    if not isinstance(space, gym.spaces.Dict) or set(space.spaces) - {"privileged"} != {"base", "depth"}:
        return wanted
    base, depth = space["base"], space["depth"]
    if not isinstance(base, gym.spaces.Box) or not isinstance(depth, gym.spaces.Box):
        return wanted
    if len(base.shape) != 2 or len(depth.shape) != 4 or depth.shape[1] != 1 or base.shape[0] != depth.shape[0]:
        return wanted
    if not (depth.low == 0).all() or not (depth.high == depth.high.flat[0]).all() or not depth.is_bounded("both"):
        return "this trainer needs depth from 0 to one largest value"
    return None


def measure_windows(observations: gym.Space[Any], actions: gym.Space[Any]) -> WindowSizes:
    """Give the sizes of spaces that `judge_windows` or `judge_privileged` finds nothing wrong with."""
    assert isinstance(observations, gym.spaces.Dict)
    assert isinstance(actions, gym.spaces.Box)
    base, depth = observations["base"], observations["depth"]
    assert isinstance(base, gym.spaces.Box)
    assert isinstance(depth, gym.spaces.Box)
    steps, channels, height, width = depth.shape
    frame = (channels, height, width)
    known = observations.spaces.get("privileged")
    privileged_dim = known.shape[0] if isinstance(known, gym.spaces.Box) else 0
    return WindowSizes(steps, base.shape[1], frame, actions.shape[0], float(depth.high.flat[0]), privileged_dim)


def measure_settings(config: VMambaTD3Config) -> WindowSizes:
    """Give the sizes of windows and actions, from an environment made for this and closed.

    Raises:
        SettingsError: the environment can't be made.
    """
    env = make_env_or_fail(config.env_name, complete_env_kwargs(config, config.env_kwargs))
    try:
        return measure_windows(env.observation_space, env.action_space)
    finally:
        env.close()


def plan_stream(config: VMambaTD3Config, windows: WindowSizes) -> StreamConfig:
    """Give the sizes of a stream.

    Raises:
        ValueError: the settings don't go with these frames, or with one another; the message names the key.
    """
    trunk = TrunkConfig(
        hidden_dim=config.vmamba_hidden_dim,
        num_vss_blocks=tuple(config.vmamba_num_vss_blocks),
        patch_size=config.vmamba_patch_size,
        ssm_d_state=config.vmamba_ssm_d_state,
        ssm_ratio=config.vmamba_ssm_ratio,
        mlp_ratio=config.vmamba_mlp_ratio,
        layer_scale_init=config.vmamba_layer_scale_init,
        drop_path_rate=config.vmamba_drop_path_rate,
    )
    return StreamConfig(
        windows.frame_shape,
        windows.base_dim,
        trunk=trunk,
        encoder=config.encoder,
        feature_dim=config.feature_dim,
        state_feature_dim=config.state_feature_dim,
        hidden_dim=config.hidden_dim,
        temporal_layers=config.vmamba_temporal_layers,
        num_heads=config.vmamba_num_heads,
        temporal_scan=config.temporal_scan,
        use_input_adapter=config.use_input_adapter,
    )


def complete_env_kwargs(config: VMambaTD3Config, env_kwargs: Mapping[str, Any], acting: bool = False) -> dict[str, Any]:
    """Give an environment's arguments with what follows from a config, where it is one that takes that from here.

    Args:
        config: has the window's length, and says whether the critic is asymmetric.
        env_kwargs: what was asked for.
        acting: whether the policy acts there and nothing learns: then nobody reads what is privileged.
    """
    follows: dict[str, Any] = {"seq_len": config.seq_len} if config.env_name in WINDOWED else {}
    if not config.asymmetric_critic or config.env_name not in NAVIGATION:
        return follows | dict(env_kwargs)
    if acting:
        return follows | dict(env_kwargs) | {"privileged": False}
    return follows | {"privileged": True} | dict(env_kwargs)
