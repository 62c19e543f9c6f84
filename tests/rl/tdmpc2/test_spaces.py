"""What environments are measured as, and what is refused of them before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from envs.action_repeat import ActionRepeat
from envs.make import make_env
from experiment.memory import MemoryRoom
from experiment.problems import Fault, SettingsError
from rl.tdmpc2.buffer import SequenceBuffer
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.spaces import (
    GIB,
    Spaces,
    judge_observations,
    make_agent_env,
    measure_settings,
    measure_spaces,
    plan_sizes,
    read_mask,
)
from rl.tdmpc2.trainer import count_parameters

PENDULUM = {"env_name": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 30}}
CLOCK = {"env_name": "Clock-v0", "env_kwargs": {"max_episode_steps": 11}}
TASKS: list[Any] = [PENDULUM, CLOCK]
"""The second one observes ten numbers and takes two."""
BYTES, FLOATS = np.dtype(np.uint8), np.dtype(np.float32)


class BlankEnv(gym.Env[Any, Any]):
    """Shows and takes whatever it is told to, and nothing happens.

    Args:
        side: of images of bytes that are shown; 0 shows the numbers of `shown`.
        shown: shape of the numbers.
        actions: what is taken: `some` numbers, `grid` of them, `one`, `three` or `shifted` to choose from, or `pairs`.
    """

    def __init__(self, side: int = 0, shown: tuple[int, ...] = (2,), actions: str = "some") -> None:
        self.observation_space = (
            gym.spaces.Box(0, 255, (3, side, side), np.uint8) if side else gym.spaces.Box(-1, 1, tuple(shown))
        )
        taken: dict[str, gym.Space[Any]] = {
            "some": gym.spaces.Box(-1, 1, (2,)),
            "grid": gym.spaces.Box(-1, 1, (2, 2)),
            "one": gym.spaces.Discrete(1),
            "three": gym.spaces.Discrete(3),
            "shifted": gym.spaces.Discrete(3, start=-1),
            "pairs": gym.spaces.MultiDiscrete([2, 3]),
        }
        self.action_space = taken[actions]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action in {self.action_space}"
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), 0.0, False, False, {}


@pytest.fixture(autouse=True)
def _blank_environment() -> Iterator[None]:
    environment: Any = BlankEnv
    gym.register("Blank-v0", environment, max_episode_steps=25)
    yield
    del gym.registry["Blank-v0"]


def make_config(env_name: str = "Pendulum-v1", **settings: Any) -> TDMPC2Config:
    return TDMPC2Config.from_settings({"algorithm_name": "tdmpc2", "env_name": env_name} | settings)


def make_blank(**settings: Any) -> TDMPC2Config:
    kwargs = {key: settings.pop(key) for key in ("side", "shown", "actions") if key in settings}
    return make_config("Blank-v0", env_kwargs=kwargs, **settings)


def find_one_fault(config: TDMPC2Config) -> Fault:
    (fault,) = config.find_environment_faults()
    return fault


@pytest.mark.parametrize(
    ("settings", "spaces"),
    [
        ({}, Spaces((3,), FLOATS, 1, False, 0, (200,))),
        ({"env_name": "CartPole-v1"}, Spaces((4,), FLOATS, 2, True, 0, (500,))),
        ({"env_name": "Blank-v0", "env_kwargs": {"side": 64}}, Spaces((3, 64, 64), BYTES, 2, False, 0, (25,))),
        ({"env_name": "MultiTask-v0", "env_kwargs": {"tasks": TASKS}}, Spaces((10,), FLOATS, 2, False, 2, (30, 11))),
        (
            {"env_name": "MultiTask-v0", "env_kwargs": {"tasks": TASKS, "task": 1}},
            Spaces((10,), FLOATS, 2, False, 2, (None, 11)),
        ),
    ],
)
def test_an_environment_is_measured_by_its_spaces_and_its_clock(settings: dict[str, Any], spaces: Spaces) -> None:
    config = make_config(**settings)
    assert measure_settings(config) == spaces
    assert config.find_environment_faults() == []


@pytest.mark.parametrize(("repeat", "length"), [(1, 200), (2, 100), (3, 67), (7, 29), (100, 2)])
def test_repeated_actions_divide_the_clock_and_the_last_may_be_cut_short(repeat: int, length: int) -> None:
    config = make_config(action_repeat=repeat, horizon=1)
    assert measure_settings(config).episode_lengths == (length,)
    env = make_agent_env(config, {})
    env.action_space.seed(0)
    env.reset(seed=0)
    over, steps = False, 0
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        over, steps = terminated or truncated, steps + 1
    assert steps == length
    assert measure_spaces(env, repeat) == measure_settings(config)
    env.close()


def test_repeated_actions_divide_the_clock_of_each_task() -> None:
    config = make_config("MultiTask-v0", env_kwargs={"tasks": TASKS}, action_repeat=2)
    assert measure_settings(config).episode_lengths == (15, 6)


def test_a_clock_around_all_tasks_ends_each_of_them() -> None:
    config = make_config("MultiTask-v0", env_kwargs={"tasks": TASKS, "max_episode_steps": 20}, action_repeat=2)
    assert measure_settings(config).episode_lengths == (10, 6)
    short = make_config("MultiTask-v0", env_kwargs={"tasks": TASKS, "max_episode_steps": 2})
    assert find_one_fault(short).keys == ("horizon", "env_name")


def test_an_environment_is_wrapped_only_where_actions_are_repeated() -> None:
    single, repeated = make_agent_env(make_config(), {}), make_agent_env(make_config(action_repeat=4), {})
    assert not isinstance(single, ActionRepeat)
    assert isinstance(repeated, ActionRepeat)
    assert repeated.repeat == 4


def test_other_arguments_in_evaluations_are_taken_where_spaces_stay_the_same() -> None:
    changed: dict[str, Any] = {"eval_env_kwargs": {"max_episode_steps": 50}}
    assert make_config(**changed).find_environment_faults() == []
    assert make_config("CartPole-v1", **changed).find_environment_faults() == []
    named = make_config("MultiTask-v0", env_kwargs={"tasks": TASKS}, eval_env_kwargs={"task": "Clock-v0"})
    assert find_one_fault(named).keys[0].startswith("eval_env_kwargs")
    fixed = make_config("MultiTask-v0", env_kwargs={"tasks": TASKS}, eval_env_kwargs={"task": 1})
    assert fixed.find_environment_faults() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"actions": "one"}, r"takes actions in Discrete\(1\); there is nothing to choose"),
        ({"actions": "pairs"}, r"takes actions in MultiDiscrete\(.*; this trainer needs a 1-D Box with finite bounds"),
        ({"actions": "grid"}, r"takes actions in Box\(.*, \(2, 2\), float32\); this trainer needs a 1-D Box"),
        ({"shown": [2, 2]}, r"observes Box\(.*; this trainer needs a flat vector .*, an image .* of bytes, or several"),
        ({"shown": [3, 64, 64]}, r"observes Box\(.*, float32\); this trainer needs a flat vector"),
    ],
)
def test_spaces_that_cannot_be_learnt_in_are_refused_with_the_reason(settings: dict[str, Any], words: str) -> None:
    fault = find_one_fault(make_blank(**settings))
    assert fault.keys == ("env_name",)
    assert re.match("env_name: Blank-v0 " + words, fault.message)


def test_actions_without_bounds_are_refused() -> None:
    fault = find_one_fault(make_config("Unbounded-v0"))
    assert fault.keys == ("env_name",)
    assert "needs a 1-D Box with finite bounds, or one of several actions (Discrete)" in fault.message


def test_one_of_three_actions_is_taken() -> None:
    config = make_blank(actions="three")
    assert config.find_environment_faults() == []
    assert plan_sizes(config, measure_settings(config)).policy_dim == 3


@pytest.mark.parametrize(
    "parts",
    [
        {"obs": gym.spaces.Box(-1, 1, (2,)), "task": gym.spaces.Discrete(2)},
        {"obs": gym.spaces.Box(-1, 1, (2,)), "task": gym.spaces.Box(0, 1), "action_mask": gym.spaces.MultiBinary(2)},
        {"obs": gym.spaces.Discrete(2), "task": gym.spaces.Discrete(2), "action_mask": gym.spaces.MultiBinary(2)},
        {
            "obs": gym.spaces.Box(-1, 1, (2, 2)),
            "task": gym.spaces.Discrete(2),
            "action_mask": gym.spaces.MultiBinary(2),
        },
    ],
)
def test_observations_in_parts_are_taken_only_as_those_of_several_tasks(parts: dict[str, Any]) -> None:
    assert "several tasks as in 'MultiTask-v0'" in str(judge_observations(gym.spaces.Dict(parts)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env_kwargs": {"max_episode_steps": 2}}, "is longer than an episode of Pendulum-v1, which .* after 2 steps$"),
        (
            {"action_repeat": 4, "env_kwargs": {"max_episode_steps": 8}},
            "which its clock ends after 2 steps of 4 frames each$",
        ),
        (
            {"env_name": "MultiTask-v0", "env_kwargs": {"tasks": TASKS}, "horizon": 12, "buffer_size": 500},
            "is longer than an episode of MultiTask-v0, which its clock ends after 11 steps$",
        ),
    ],
)
def test_a_horizon_longer_than_an_episode_is_refused(settings: dict[str, Any], words: str) -> None:
    config = make_config(**settings)
    fault = find_one_fault(config)
    assert fault.keys == ("horizon", "env_name")
    assert re.search(rf"^horizon \({config.horizon}\) .*{words}", fault.message)


@pytest.mark.parametrize(
    "settings",
    [
        {"env_kwargs": {"max_episode_steps": 3}},
        {"action_repeat": 4, "env_kwargs": {"max_episode_steps": 9}},
        {"env_name": "MultiTask-v0", "env_kwargs": {"tasks": TASKS}, "horizon": 11},
    ],
)
def test_a_horizon_as_long_as_an_episode_is_taken(settings: dict[str, Any]) -> None:
    assert make_config(**settings).find_environment_faults() == []


@pytest.mark.parametrize(
    ("settings", "keys", "words"),
    [
        ({"side": 84}, ("latent_dim",), "become 32 x 6 x 6 = 1152 numbers; set latent_dim to that"),
        ({"side": 64, "num_channels": 16}, ("latent_dim",), "become 16 x 4 x 4 = 256 numbers"),
        ({"side": 38}, ("env_kwargs",), "images of 38x38 pixels are too small: 39x39 is the least"),
    ],
)
def test_images_that_do_not_fit_the_latent_state_are_refused(
    settings: dict[str, Any], keys: tuple[str, ...], words: str
) -> None:
    fault = find_one_fault(make_blank(**settings))
    assert fault.keys == keys
    assert words in fault.message


@pytest.mark.parametrize(
    "settings", [{"side": 64}, {"side": 84, "latent_dim": 1_152}, {"side": 39, "num_channels": 8, "latent_dim": 8}]
)
def test_images_that_fit_the_latent_state_are_taken(settings: dict[str, Any]) -> None:
    assert make_blank(**settings).find_environment_faults() == []


def test_an_environment_that_is_not_there_is_refused_by_name() -> None:
    assert "did you mean 'Pendulum-v1'" in find_one_fault(make_config("Pendulum-v9")).message
    with pytest.raises(SettingsError):
        measure_settings(make_config("Pendulum-v9"))


def test_sizes_take_the_task_only_where_there_are_several() -> None:
    single = plan_sizes(make_config(), measure_settings(make_config()))
    assert (single.num_tasks, single.task_dim, single.joint_dim) == (0, 0, 512 + 1)
    config = make_config("MultiTask-v0", env_kwargs={"tasks": TASKS}, task_dim=7)
    several = plan_sizes(config, measure_settings(config))
    assert (several.num_tasks, several.task_dim, several.joint_dim) == (2, 7, 512 + 2 + 7)


def find_memory_fault(config: TDMPC2Config, room: MemoryRoom) -> Fault | None:
    faults = config.find_memory_faults(room)
    assert len(faults) <= 1
    return faults[0] if faults else None


@pytest.mark.parametrize(
    "settings",
    [
        {"buffer_size": 100_000},
        {"env_name": "CartPole-v1", "buffer_size": 50_000},
        {"env_name": "Blank-v0", "env_kwargs": {"side": 64}, "buffer_size": 10_000},
        {"env_name": "MultiTask-v0", "env_kwargs": {"tasks": TASKS}, "max_timesteps": 20_000},
    ],
)
def test_a_buffer_is_taken_into_account_with_all_that_it_keeps(settings: dict[str, Any]) -> None:
    config = make_config(**settings)
    spaces = measure_settings(config)
    buffer = SequenceBuffer(
        config.buffer_steps,
        config.horizon,
        spaces.obs_shape,
        spaces.obs_dtype,
        spaces.action_dim,
        np.random.default_rng(0),
    )
    assert find_memory_fault(config, MemoryRoom(buffer.nbytes - 1, 2**50)) is not None
    beside = config.predict_memory({}, on_gpu=True).host_bytes - buffer.nbytes
    assert find_memory_fault(config, MemoryRoom(beside + int(1.1 * buffer.nbytes), 2**50)) is None


def test_a_buffer_that_does_not_fit_is_refused_with_what_does() -> None:
    config = make_config(max_timesteps=50_000_000, buffer_size=100_000_000)
    room = MemoryRoom(GIB, 80 * GIB)
    fault = find_memory_fault(config, room)
    assert fault is not None
    assert fault.keys == ("buffer_size", "max_timesteps")
    assert "100,000,000 steps" in fault.message
    assert "and 1.0 GiB of memory are free" in fault.message
    found = re.search(r"at most ([\d,]+) steps fit$", fault.message)
    assert found is not None
    most = int(found[1].replace(",", ""))
    fitting = find_memory_fault(make_config(max_timesteps=50_000_000, buffer_size=most), room)
    assert fitting is not None  # the program beside it doesn't fit
    assert "steps fit" not in fitting.message
    larger = find_memory_fault(make_config(max_timesteps=50_000_000, buffer_size=most + 1), room)
    assert larger is not None
    assert "steps fit" in larger.message


def test_a_short_run_is_not_refused_for_a_buffer_that_it_never_fills() -> None:
    assert find_memory_fault(make_config(max_timesteps=10_000, buffer_size=10**9), MemoryRoom(GIB)) is None


def test_networks_that_do_not_fit_are_refused_on_the_gpu_and_beside_the_buffer() -> None:
    config = make_config(max_timesteps=10_000)
    counts = count_parameters(config)
    needed = 16 * sum(counts.values()) + 4 * counts["q"]
    update = config.predict_memory({}, on_gpu=True).update
    assert update < GIB
    for enough in (MemoryRoom(GIB, needed + update), MemoryRoom(GIB + needed)):
        assert find_memory_fault(config, enough) is None
    for tight in (MemoryRoom(GIB, needed - 1), MemoryRoom(needed)):
        fault = find_memory_fault(config, tight)
        assert fault is not None
        assert fault.keys == ("model_size",)
        assert re.match(r"model_size \(5\): weights, gradients and moments take 0\.1 GiB, and 0\.1", fault.message)


@pytest.mark.parametrize("task", [0, 1])
def test_a_mask_is_read_from_an_observation_of_several_tasks(task: int) -> None:
    env = make_env("MultiTask-v0", {"tasks": TASKS, "task": task})
    mask = read_mask(env.reset(seed=0)[0])
    assert mask.dtype == np.float32
    assert mask.tolist() == ([1, 0] if task == 0 else [1, 1])
    env.close()


def test_a_mask_without_an_action_is_refused_with_its_task() -> None:
    with pytest.raises(ValueError, match="action_mask of task 3 leaves no action"):
        read_mask({"obs": np.zeros(2), "task": np.int64(3), "action_mask": np.zeros(4, np.int8)})


def test_actions_that_are_not_counted_from_zero_are_taken_by_their_own_numbers(small_tdmpc2: Any) -> None:
    trainer = small_tdmpc2(env_name="Blank-v0", env_kwargs={"actions": "shifted"})
    assert trainer.config.find_environment_faults() == []
    for _ in range(20):
        trainer.train_step()
