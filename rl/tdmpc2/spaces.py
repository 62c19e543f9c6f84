"""What TD-MPC2 asks of an environment, and the sizes of its networks there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs import make
from envs.action_repeat import ActionRepeat
from envs.make import Env
from envs.multitask import MultiTaskEnv
from experiment.memory import MemoryRoom
from experiment.problems import Fault
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.sizes import ModelSizes, check_pixels, count_components, count_update_numbers, sum_with_targets
from training.memory_need import FLOAT, MemoryNeed

GIB = 2**30


@dataclass(frozen=True)
class Spaces:
    """What an environment observes and how it is acted in.

    Attributes:
        obs_shape: (obs_dim,), or (channels, height, width) of pixels.
        obs_dtype: of what is kept: bytes of pixels, or float32.
        action_dim: numbers of an action; of discrete ones, how many there are.
        discrete: whether actions are one of so many.
        num_tasks: 0 where there is one.
        episode_lengths: the agent's steps that the clock of each task allows at most; None without a clock.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype[Any]
    action_dim: int
    discrete: bool
    num_tasks: int
    episode_lengths: tuple[int | None, ...]


def judge_observations(space: gym.Space[Any]) -> str | None:
    """Say what is wrong with observations that aren't vectors, images, or those of several tasks."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return None
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8:
        return None
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {}
    if set(parts) == {"obs", "task", "action_mask"} and isinstance(parts["task"], gym.spaces.Discrete):
        return judge_observations(parts["obs"])
    return (
        "this trainer needs a flat vector (a 1-D Box), an image (channels, height, width) of bytes, or several tasks "
        "as in 'MultiTask-v0'"
    )


def make_agent_env(config: TDMPC2Config, env_kwargs: dict[str, Any]) -> Env:
    """Make an environment in which a step is one action, carried out `action_repeat` times."""
    env = make.make_env(config.env_name, env_kwargs)
    return ActionRepeat(env, config.action_repeat) if config.action_repeat > 1 else env


def measure_spaces(env: Env, action_repeat: int) -> Spaces:
    """Give the sizes of an environment whose observations `judge_observations` finds nothing wrong with."""
    space, actions = env.observation_space, env.action_space
    num_tasks = 0
    if isinstance(space, gym.spaces.Dict):
        tasks, space = space["task"], space["obs"]
        assert isinstance(tasks, gym.spaces.Discrete)
        num_tasks = int(tasks.n)
    assert isinstance(space, gym.spaces.Box)
    discrete = isinstance(actions, gym.spaces.Discrete)
    action_dim = int(actions.n) if isinstance(actions, gym.spaces.Discrete) else int(np.prod(actions.shape or (1,)))
    dtype = np.dtype(np.uint8 if len(space.shape) == 3 else np.float32)
    return Spaces(space.shape, dtype, action_dim, discrete, num_tasks, _list_lengths(env, action_repeat))


def _list_lengths(env: Env, action_repeat: int) -> tuple[int | None, ...]:
    """Give the agent's steps that the clock of each task allows; None for a task that no episode is of here."""
    outer = make.find_time_limit(env)
    clocks = [outer]
    if isinstance(env.unwrapped, MultiTaskEnv):
        held = env.unwrapped.held_envs
        own = [make.find_time_limit(held[task.name]) if task.name in held else None for task in env.unwrapped.tasks]
        clocks = [None if clock is None else min(clock, outer or clock) for clock in own]
    return tuple(None if frames is None else -(-frames // action_repeat) for frames in clocks)


def measure_settings(config: TDMPC2Config) -> Spaces:
    """Give the sizes of an environment that is made for this and closed.

    Raises:
        SettingsError: the environment can't be made.
    """
    env = make.make_env_or_fail(config.env_name, config.env_kwargs)
    try:
        return measure_spaces(env, config.action_repeat)
    finally:
        env.close()


def plan_sizes(config: TDMPC2Config, spaces: Spaces) -> ModelSizes:
    """Give the sizes of the world model.

    Raises:
        ValueError: images don't become as many numbers as `latent_dim` says; the message begins with the key.
    """
    sizes = ModelSizes(
        spaces.obs_shape,
        spaces.action_dim,
        discrete=spaces.discrete,
        num_tasks=spaces.num_tasks,
        task_dim=config.task_dim if spaces.num_tasks else 0,
        latent_dim=config.latent_dim,
        mlp_dim=config.mlp_dim,
        enc_dim=config.enc_dim,
        num_enc_layers=config.num_enc_layers,
        num_channels=config.num_channels,
        num_q=config.num_q,
        num_bins=config.num_bins,
        simnorm_dim=config.simnorm_dim,
        episodic=config.episodic,
    )
    if sizes.sees_pixels:
        check_pixels(sizes)
    return sizes


def find_environment_faults(config: TDMPC2Config) -> list[Fault]:
    """Name what can't be done in the environment; it is made, reset and stepped once to find out."""
    faults = make.find_environment_faults(config.env_name, config.env_kwargs, False, judge_observations)
    if not faults and config.evaluates:
        faults = make.find_evaluation_faults(
            config.env_name,
            config.env_kwargs,
            config.eval_env_kwargs,
            judge=judge_observations,
            continuous_actions=False,
        )
    if faults:
        return faults
    env = make.make_env_or_fail(config.env_name, config.env_kwargs)
    try:
        spaces = measure_spaces(env, config.action_repeat)
        if complaint := _judge_actions(env.action_space):
            return [
                Fault(("env_name",), f"env_name: {config.env_name} takes actions in {env.action_space}; {complaint}")
            ]
    finally:
        env.close()
    return _find_size_faults(config, spaces)


def _judge_actions(space: gym.Space[Any]) -> str | None:
    if isinstance(space, gym.spaces.Discrete):
        return None if int(space.n) > 1 else "there is nothing to choose"
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded("both"):
        return None
    return "this trainer needs a 1-D Box with finite bounds, or one of several actions (Discrete)"


def _find_size_faults(config: TDMPC2Config, spaces: Spaces) -> list[Fault]:
    length = min((length for length in spaces.episode_lengths if length is not None), default=None)
    if length is not None and config.horizon > length:
        repeat = f" of {config.action_repeat} frames each" if config.action_repeat > 1 else ""
        message = (
            f"horizon ({config.horizon}) is longer than an episode of {config.env_name}, which its clock ends after "
            f"{length} steps{repeat}"
        )
        return [Fault(("horizon", "env_name"), message)]
    try:
        plan_sizes(config, spaces)
    except ValueError as error:
        key = str(error).split(" ", 1)[0]
        return [Fault((key if key in type(config).model_fields else "env_kwargs",), str(error))]
    return []


def predict_memory(config: TDMPC2Config, *, on_gpu: bool) -> MemoryNeed:
    """Give what a run takes at its peak.

    Raises:
        SettingsError: the environment can't be made.
    """
    spaces = measure_settings(config)
    # Beside the observation: action, reward, end, and four numbers of 8 bytes that find windows.
    step = int(np.prod(spaces.obs_shape)) * spaces.obs_dtype.itemsize + 4 * (spaces.action_dim + 10)
    sizes = plan_sizes(config, spaces)
    counts = count_components(sizes)
    weights, all_weights = FLOAT * sum(counts.values()), FLOAT * sum_with_targets(counts)
    # Weights, gradients and two moments of what learns; the value heads' slow copy.
    networks = 3 * weights + all_weights
    return MemoryNeed(
        on_gpu,
        networks=networks + (all_weights // 2 if config.plan_bf16 else 0),
        checkpoint=(networks - weights) * (2 if on_gpu else 1),
        update=FLOAT * config.batch_size * count_update_numbers(sizes, config.horizon),
        replay=config.buffer_steps * step,
    )


def find_memory_faults(config: TDMPC2Config, room: MemoryRoom) -> list[Fault]:
    """Refuse a buffer, or networks, that can't fit, with the estimate and what would."""
    need = predict_memory(config, on_gpu=room.gpu_bytes is not None)
    buffer, networks = need.replay, need.networks
    step = buffer // config.buffer_steps
    faults = []
    if buffer > room.host_bytes:
        message = (
            f"buffer_size: {config.buffer_steps:,} steps of {step:,} bytes are {_show(buffer)}, and "
            f"{_show(room.host_bytes)} of memory are free; at most {room.host_bytes // step:,} steps fit"
        )
        faults.append(Fault(("buffer_size", "max_timesteps"), message))
    left = room.gpu_bytes if room.gpu_bytes is not None else max(0, room.host_bytes - buffer)
    if not faults and networks > left:
        message = (
            f"model_size ({config.model_size}): weights, gradients and moments take {_show(networks)}, and "
            f"{_show(left)} are left; take a smaller one"
        )
        faults.append(Fault(("model_size",), message))
    return faults


def read_mask(obs: Mapping[str, Any]) -> NDArray[np.float32]:
    """Give the action mask of an observation of several tasks, (action_dim,).

    Raises:
        ValueError: it leaves no action.
    """
    mask = np.asarray(obs["action_mask"], np.float32)
    if not mask.any():
        raise ValueError(f"action_mask of task {int(obs['task'])} leaves no action")
    return mask


def _show(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"
