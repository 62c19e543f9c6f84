"""`MultiTask-v0`: each episode is one of a task's own, in the shapes that all tasks have in common."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.action_repeat import ActionRepeat
from envs.actions import ActionScale
from envs.make import (
    Env,
    find_environment_faults,
    find_evaluation_faults,
    find_time_limit,
    make_env,
    need_vector,
    take_anything,
)
from envs.multitask import ENV_NAME, MultiTaskEnv, find_task, read_tasks
from envs.plain_values import SnapshotError
from envs.snapshot import equal_bits, probe_resume_mode, restore_snapshot, take_snapshot
from tests.envs.test_new_process import AFTER, ROOT, fly_on
from training.state import pack_state

HARD = {"env_name": "DepthNavState-v0", "env_kwargs": {"density": "hard", "max_episode_steps": 15}}
EASY = {"env_name": "DepthNavState-v0", "env_kwargs": {"max_episode_steps": 12}}
SHORT_PENDULUM = {"env_name": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 9}}
SHORT_CHEETAH = {"env_name": "HalfCheetah-v5", "env_kwargs": {"max_episode_steps": 11}}
MIXED: list[Any] = [SHORT_PENDULUM, HARD, SHORT_CHEETAH, EASY]
SUITE = [
    {"env_name": name, "env_kwargs": {"max_episode_steps": 10}}
    for name in ("dmc/walker-walk", "dmc/quadruped-escape", "dmc/pendulum-swingup")
]
GO_ON = """
import json, sys
import torch
from envs.action_repeat import ActionRepeat
from envs.make import make_env
from envs.snapshot import restore_snapshot
from tests.envs.test_new_process import AFTER, fly_on
from training.state import unpack_state
env = ActionRepeat(make_env("MultiTask-v0", json.loads(sys.argv[2])), 2)
restore_snapshot(env, unpack_state(torch.load(sys.argv[1], weights_only=True), {}.__getitem__))
print(json.dumps(fly_on(env, AFTER)))
"""
needs_dm_control = pytest.mark.skipif(
    find_spec("dm_control") is None, reason="dm_control is not installed: pip install -e '.[dmc]'"
)


def make(tasks: list[Any], task: int | str | None = None) -> tuple[Env, MultiTaskEnv]:
    """Give the environment as users get it, and its core."""
    env = make_env(ENV_NAME, {"tasks": tasks} | ({} if task is None else {"task": task}))
    core = env.unwrapped
    assert isinstance(core, MultiTaskEnv)
    return env, core


def begin(env: Env, name: str) -> dict[str, Any]:
    """Begin episodes until one is in the task that is asked for."""
    while True:
        obs, info = env.reset()
        if info["task"] == name:
            return dict(obs)


def find_refusal(tasks: Any, task: Any = None) -> list[str]:
    """Give the lines with which arguments are refused."""
    with pytest.raises(ValueError, match=r".") as caught:
        MultiTaskEnv(tasks, task)
    return str(caught.value).splitlines()


def test_all_tasks_have_the_shapes_of_the_largest() -> None:
    env, _ = make(["Pendulum-v1", "DepthNavState-v0", "HalfCheetah-v5"])
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    assert set(space.spaces) == {"obs", "task", "action_mask"}
    assert space["obs"] == gym.spaces.Box(-np.inf, np.inf, (42,), np.float32)
    assert space["task"] == gym.spaces.Discrete(3)
    assert space["action_mask"] == gym.spaces.MultiBinary(6)
    assert env.action_space == gym.spaces.Box(-1, 1, (6,), np.float32)
    env.reset(seed=0)
    for index, (name, obs_dim, action_dim) in enumerate(
        [("Pendulum-v1", 3, 1), ("DepthNavState-v0", 42, 3), ("HalfCheetah-v5", 17, 6)]
    ):
        obs = begin(env, name)
        for _ in range(3):
            assert space.contains(obs)
            assert obs["task"] == index
            assert obs["action_mask"].tolist() == [1] * action_dim + [0] * (6 - action_dim)
            assert obs["obs"][:obs_dim].any()
            assert not obs["obs"][obs_dim:].any()
            obs, *_, info = env.step(env.action_space.sample())
            assert info["task"] == name
    env.close()


@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value is -?infinity")
def test_gymnasium_finds_nothing_to_complain_about() -> None:
    env, core = make(MIXED)
    check_env(core, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("task", range(3))
def test_a_fixed_task_is_the_task_alone(task: int) -> None:
    """The same starts from the same seeds, the same steps, the same endings, and the same starts after them."""
    env, _ = make(MIXED, task)
    alone = make_env(MIXED[task]["env_name"], MIXED[task]["env_kwargs"])
    assert isinstance(alone.action_space, gym.spaces.Box)
    scale = ActionScale(alone.action_space)
    obs, info = env.reset(seed=6)
    wanted, wanted_info = alone.reset(seed=6)
    name = read_tasks(MIXED)[task].name
    env.action_space.seed(1)
    endings = 0
    for _ in range(40):
        assert equal_bits(obs["obs"][: len(wanted)], np.float32(wanted))
        assert repr(info) == repr({**wanted_info, "task": name})
        action = env.action_space.sample()
        obs, reward, terminated, truncated, info = env.step(action)
        own = scale.to_env(action[: len(scale.low)].astype(np.float64))
        wanted, wanted_reward, *wanted_endings, wanted_info = alone.step(own)
        assert (reward, [terminated, truncated]) == (float(wanted_reward), wanted_endings)
        if terminated or truncated:
            endings += 1
            (obs, info), (wanted, wanted_info) = env.reset(), alone.reset()
    assert endings >= 2
    env.close()


def test_actions_are_scaled_to_the_bounds_of_the_task_and_the_rest_is_ignored() -> None:
    tasks: list[Any] = ["Pendulum-v1", "HalfCheetah-v5"]
    results = []
    for rest in (-1.0, 0.0, 1.0):
        env, core = make(tasks, "Pendulum-v1")
        env.reset(seed=0)
        pendulum: Any = core.held_envs["Pendulum-v1"].unwrapped
        results.append(env.step(np.array([0.75, *[rest] * 5], np.float32))[:2])
        assert pendulum.last_u == 1.5
    assert equal_bits(results[0], results[1])
    assert equal_bits(results[0], results[2])


@pytest.mark.parametrize(("entry", "value"), [(0, np.nan), (5, np.inf), (3, 1.5)])
def test_actions_that_are_none_are_refused_with_the_entry(entry: int, value: float) -> None:
    env, _ = make(["Pendulum-v1", "HalfCheetah-v5"], 0)
    env.reset(seed=0)
    action = np.zeros(6)
    action[entry] = value
    with pytest.raises(ValueError, match=rf"action\[{entry}\]"):
        env.step(action)
    with pytest.raises(ValueError, match=r"\(1,\) is its shape, and \(6,\) is needed"):
        env.step(np.zeros(1))


def test_there_is_no_step_before_an_episode_and_no_reset_with_options() -> None:
    _, core = make(["Pendulum-v1"])
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        core.step(np.zeros(1))
    with pytest.raises(ValueError, match="mean nothing at a reset"):
        core.reset(options={"task": 1})


def test_tasks_are_drawn_evenly_and_their_seeds_anew() -> None:
    env, core = make(["Pendulum-v1", "MountainCarContinuous-v0", "HalfCheetah-v5"])
    env.reset(seed=0)
    counts = dict.fromkeys(core.held_envs, 0)
    starts = set()
    for _ in range(300):
        obs, info = env.reset()
        counts[info["task"]] += 1
        starts.add(obs["obs"].tobytes())
    assert all(70 < count < 130 for count in counts.values()), counts
    assert len(starts) == 300


def test_a_seed_decides_the_episodes_that_follow_it_whatever_was_before() -> None:
    (env, _), (other, _) = make(MIXED), make(MIXED)
    first = [env.reset(seed=3), *(env.reset() for _ in range(6))]
    other.reset(seed=8)
    for _ in range(20):
        *_, terminated, truncated, _ = other.step(other.action_space.sample())
        if terminated or truncated:
            other.reset()
    second = [other.reset(seed=3), *(other.reset() for _ in range(6))]
    assert equal_bits([obs for obs, _ in first], [obs for obs, _ in second])
    assert [info["task"] for _, info in first] == [info["task"] for _, info in second]


def test_the_clock_of_each_task_truncates() -> None:
    env, core = make(MIXED)
    limits = {name: find_time_limit(part) for name, part in core.held_envs.items()}
    assert list(limits.values()) == [9, 15, 11, 12]
    assert find_time_limit(env) == 15
    env.reset(seed=0)
    for name, limit in limits.items():
        begin(env, name)
        steps, over = 0, False
        while not over:
            *_, terminated, over, _ = env.step(np.zeros(6, np.float32))
            assert not terminated
            steps += 1
        assert steps == limit


def test_a_limit_of_its_own_cuts_all_tasks() -> None:
    env = make_env(ENV_NAME, {"tasks": MIXED, "max_episode_steps": 10})
    assert find_time_limit(env) == 10
    assert find_time_limit(make_env(ENV_NAME, {"tasks": MIXED, "max_episode_steps": 100})) == 15


def test_an_observation_is_the_receivers_own() -> None:
    env, _ = make(MIXED, 0)
    first, _ = env.reset(seed=0)
    before = {key: np.array(part) for key, part in first.items()}
    second, *_ = env.step(np.zeros(6, np.float32))
    second["action_mask"][:] = 0
    env.step(np.zeros(6, np.float32))
    assert equal_bits(first, before)


def test_many_at_a_time_give_valid_observations_through_endings() -> None:
    envs = gym.make_vec(ENV_NAME, num_envs=3, vectorization_mode="sync", tasks=MIXED)
    obs, _ = envs.reset(seed=1)
    envs.action_space.seed(0)
    seen = set()
    for _ in range(120):
        assert obs in envs.observation_space
        seen |= set(obs["task"].tolist())
        obs, rewards, *_ = envs.step(envs.action_space.sample())
        assert np.isfinite(rewards).all()
    assert seen == {0, 1, 2, 3}
    envs.close()


@pytest.mark.parametrize("task", [None, 2])
def test_a_new_process_goes_on_from_a_snapshot_to_the_bit(task: int | None, tmp_path: Path) -> None:
    assert_a_new_process_goes_on({"tasks": MIXED, "task": task}, tmp_path)


@needs_dm_control
def test_a_new_process_goes_on_from_a_snapshot_in_the_suite(tmp_path: Path) -> None:
    assert_a_new_process_goes_on({"tasks": [*SUITE, SHORT_PENDULUM]}, tmp_path)


def assert_a_new_process_goes_on(env_kwargs: dict[str, Any], tmp_path: Path) -> None:
    """Through an `ActionRepeat`, within and past the episodes of all tasks."""
    env = ActionRepeat(make_env(ENV_NAME, env_kwargs), 2)
    env.reset(seed=4)
    env.action_space.seed(9)
    fly_on(env, 32)
    path = tmp_path / "snapshot.pt"
    torch.save(pack_state(take_snapshot(env)), path)
    straight = fly_on(env, AFTER)
    env.close()
    command = [sys.executable, "-c", GO_ON, str(path), json.dumps(env_kwargs)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == straight
    assert len(set(straight)) == AFTER


class CarryingEnv(gym.Env[Any, Any]):
    """Counts its episodes in what it observes: state that outlives a reset, whatever the seed.

    With a flaw it draws from where no snapshot looks, or counts in its class, or holds what isn't plain data.
    """

    count = 0

    def __init__(self, flaw: str = "none") -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
        self.flaw, self.episodes = flaw, 0
        if flaw == "object":
            self.helper = object()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episodes += 1
        return np.full(1, float(self.episodes)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.flaw == "class":
            CarryingEnv.count += 1
        if self.flaw == "broken":
            raise RuntimeError("the simulator is not running")
        noise = np.random.default_rng().uniform() if self.flaw == "hidden" else 0.0
        return np.full(1, self.episodes + noise), 0.0, False, False, {}


@pytest.fixture
def carrying_env() -> Iterator[str]:
    gym.register("Carrying-v0", CarryingEnv, max_episode_steps=3)
    gym.register("Endless-v0", CarryingEnv)
    yield "Carrying-v0"
    del gym.registry["Carrying-v0"], gym.registry["Endless-v0"]


def test_tasks_that_no_episode_is_in_keep_their_state(carrying_env: str) -> None:
    env, core = make([carrying_env, SHORT_PENDULUM])
    env.reset(seed=0)
    for _ in range(5):
        begin(env, carrying_env)
    begin(env, "Pendulum-v1(max_episode_steps=9)")
    carrying: Any = core.held_envs[carrying_env].unwrapped
    fresh, _ = make([carrying_env, SHORT_PENDULUM])
    restore_snapshot(fresh, take_snapshot(env))
    assert begin(fresh, carrying_env)["obs"][0] == carrying.episodes + 1 >= 6


def test_a_snapshot_goes_into_the_same_tasks_only() -> None:
    env, _ = make([SHORT_PENDULUM, EASY])
    fixed, _ = make([SHORT_PENDULUM, EASY], 1)
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    pendulum, easy = (task.name for task in read_tasks([SHORT_PENDULUM, EASY]))
    said = f"its tasks were {pendulum}, {easy}, and here they are "
    for tasks in ([EASY, SHORT_PENDULUM], [SHORT_PENDULUM]):
        with pytest.raises(SnapshotError) as caught:
            restore_snapshot(make(tasks)[0], snapshot)
        assert said in str(caught.value)
    with pytest.raises(SnapshotError) as caught:
        restore_snapshot(fixed, snapshot)
    assert str(caught.value).endswith(said + easy)


def test_a_snapshot_before_the_first_episode_is_one_too() -> None:
    env, _ = make(MIXED)
    fresh, core = make(MIXED)
    snapshot = take_snapshot(env)
    fresh.reset(seed=1)
    restore_snapshot(fresh, snapshot)
    assert core.index is None
    assert equal_bits(env.reset(seed=2)[0], fresh.reset(seed=2)[0])


@pytest.mark.parametrize("task", [None, 1])
def test_the_probe_says_that_it_resumes_exactly(task: int | None) -> None:
    probe = probe_resume_mode(ENV_NAME, {"tasks": MIXED, "task": task})
    assert (probe.mode, probe.reason) == ("exact", None)


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("hidden", "obs differs 1 steps after restoring Carrying-v0(flaw=hidden)"),
        ("object", "layer 2: CarryingEnv.helper is a builtins.object, which a snapshot can't hold"),
        ("class", "CarryingEnv.count changed in steps of Carrying-v0(flaw=class), outside what a snapshot can hold"),
    ],
)
def test_one_task_that_cannot_be_resumed_is_found_among_many(carrying_env: str, flaw: str, reason: str) -> None:
    flawed = {"env_name": carrying_env, "env_kwargs": {"flaw": flaw}}
    tasks = [{"env_name": "Pendulum-v1", "env_kwargs": {"g": g}} for g in range(5, 15)]
    probe = probe_resume_mode(ENV_NAME, {"tasks": [*tasks, flawed]})
    assert probe.mode == "episode"
    assert probe.reason is not None
    assert probe.reason.startswith(f"in its {carrying_env}(flaw={flaw}): ")
    assert reason in probe.reason
    unaffected = probe_resume_mode(ENV_NAME, {"tasks": [*tasks, flawed], "task": 0})
    assert (unaffected.mode, unaffected.reason) == ("exact", None)


def test_a_task_whose_state_cannot_be_taken_is_named(carrying_env: str) -> None:
    env, _ = make([SHORT_PENDULUM, {"env_name": carrying_env, "env_kwargs": {"flaw": "object"}}])
    env.reset(seed=0)
    with pytest.raises(SnapshotError, match=r"in task Carrying-v0\(flaw=object\): .*CarryingEnv\.helper"):
        take_snapshot(env)


def test_a_run_finds_no_fault_where_its_trainer_takes_the_observations() -> None:
    kwargs = {"tasks": MIXED}
    assert find_environment_faults(ENV_NAME, kwargs, continuous_actions=True, judge=take_anything) == []
    (fault,) = find_environment_faults(ENV_NAME, kwargs, continuous_actions=True, judge=need_vector)
    assert "this trainer needs a flat vector" in fault.message


def test_evaluations_may_fix_the_task() -> None:
    kwargs = {"tasks": MIXED}
    for task in (3, "Pendulum-v1(max_episode_steps=9)"):
        assert find_evaluation_faults(ENV_NAME, kwargs, {"task": task}, judge=take_anything) == []
    (fault,) = find_evaluation_faults(ENV_NAME, kwargs, {"task": 4}, judge=take_anything)
    assert fault.keys == ("eval_env_kwargs",)
    assert "task: 4 is none of the tasks; there are: 0 (Pendulum-v1(max_episode_steps=9)), 1 (" in fault.message


def test_a_task_that_fails_when_stepped_is_found_whichever_is_drawn_first(carrying_env: str) -> None:
    tasks = [SHORT_PENDULUM, {"env_name": carrying_env, "env_kwargs": {"flaw": "broken"}}, EASY]
    (fault,) = find_environment_faults(ENV_NAME, {"tasks": tasks}, continuous_actions=True, judge=take_anything)
    assert fault.keys == ("env_kwargs",)
    assert fault.message == (
        "env_kwargs: Carrying-v0(flaw=broken) in MultiTask-v0 fails on its first step: RuntimeError: "
        "the simulator is not running"
    )


def test_arguments_that_do_not_exist_and_missing_tasks_are_said_before_a_run() -> None:
    (fault,) = find_environment_faults(ENV_NAME, {"taks": ["Pendulum-v1"]}, True, take_anything)
    assert fault.message == "env_kwargs.taks: MultiTask-v0 has no argument 'taks'; did you mean 'tasks'?"
    (fault,) = find_environment_faults(ENV_NAME, {}, True, take_anything)
    assert "tasks: there are none; name some, as `tasks: [dmc/walker-walk" in fault.message


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([], "tasks: there are none; name some"),
        ("Pendulum-v1", "tasks: 'Pendulum-v1' is not a list; write one"),
        ({"env_name": "Pendulum-v1"}, "is not a list; write one"),
        ([7], "tasks[0]: 7 is not a task; write an id, or {env_name: ..., env_kwargs: ...}"),
        ([{"env_name": None}], "tasks[0]: None is not a task"),
        ([{"env_kwargs": {}}], "tasks[0]: {'env_kwargs': {}} has no env_name; write one"),
        ([{"env_name": "Pendulum-v1", "kwargs": {}}], "a task has no key 'kwargs'; did you mean 'env_kwargs'?"),
        ([{"env_name": "Pendulum-v1", "env_kwargs": [1]}], "tasks[0].env_kwargs: [1] are not arguments"),
        ([{"env_name": "Pendulum-v1", "env_kwargs": {1: 2}}], "tasks[0].env_kwargs: {1: 2} are not arguments"),
        ([ENV_NAME], "tasks[0]: MultiTask-v0 can't be a task of itself"),
        ([{"env_name": ENV_NAME, "env_kwargs": {"tasks": ["Pendulum-v1"]}}], "can't be a task of itself"),
        (
            ["Pendulum-v1", "Pendulum-v9"],
            "tasks[1]: no environment is called 'Pendulum-v9'; did you mean 'Pendulum-v1'?",
        ),
        (["dmc/walker-wolk"], "tasks[0]: no environment is called 'dmc/walker-wolk'; did you mean 'dmc/walker-walk'?"),
        ([HARD | {"env_kwargs": {"densty": 1}}], "tasks[0].env_kwargs"),
        (["CartPole-v1"], "tasks[0]: CartPole-v1 has discrete actions, Discrete(2); a task needs continuous ones, as"),
        (["DepthRecall-v0"], "tasks[0]: DepthRecall-v0 observes Dict("),
        (["Endless-v0"], "give it one, as {env_name: Endless-v0, env_kwargs: {max_episode_steps: 1000}}"),
        (
            [{"env_name": "Pendulum-v1", "env_kwargs": {"max_episode_steps": -1}}],
            "tasks[0]: Pendulum-v1(max_episode_steps=-1) has no time limit",
        ),
        (
            ["Pendulum-v1", "Pendulum-v1"],
            "tasks[1]: Pendulum-v1 is tasks[0] already; a task may stand there again with",
        ),
        ([HARD, EASY, HARD], "(density=hard, max_episode_steps=15) is tasks[0] already"),
    ],
)
@pytest.mark.usefixtures("carrying_env")
def test_tasks_that_are_none_are_refused_with_their_place(tasks: Any, said: str) -> None:
    (line,) = find_refusal(tasks)
    assert line.startswith("tasks")
    assert said in line


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf, (1,)), (-1, 1, (2, 2))])
def test_unbounded_actions_and_tables_of_them_are_refused(bounds: tuple[float, float, tuple[int, ...]]) -> None:
    class OddEnv(CarryingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Box(*bounds)

    gym.register("Odd-v0", OddEnv, max_episode_steps=3)
    try:
        (line,) = find_refusal(["Odd-v0"])
    finally:
        del gym.registry["Odd-v0"]
    assert line.endswith("a task needs a 1-D Box with finite bounds")


def test_all_that_is_wrong_with_tasks_is_said_at_once_and_none_is_left_open() -> None:
    closed = []

    class ClosingEnv(CarryingEnv):
        def close(self) -> None:
            closed.append(True)

    gym.register("Closing-v0", ClosingEnv, max_episode_steps=3)
    try:
        lines = find_refusal(["Closing-v0", "CartPole-v1", "Pendulum-v2", "DepthRecall-v0"])
        assert closed == [True]
        make(["Closing-v0", "Pendulum-v1"], 1)
        assert closed == [True, True], "the one that isn't acted in"
        make(["Closing-v0", "Pendulum-v1"])[0].close()
        assert closed == [True, True, True]
    finally:
        del gym.registry["Closing-v0"]
    assert [line[:9] for line in lines] == ["tasks[1]:", "tasks[2]:", "tasks[3]:"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (2, "task: 2 is none of the tasks; there are: 0 (Pendulum-v1), 1 (HalfCheetah-v5)"),
        (-1, "task: -1 is none of the tasks"),
        (True, "task: True is none of the tasks"),
        (0.0, "task: 0.0 is none of the tasks"),
        ("HalfCheetah-v4", "task: 'HalfCheetah-v4' is none of the tasks; did you mean 'HalfCheetah-v5'?"),
    ],
)
def test_a_fixed_task_that_is_none_is_refused_with_the_likely_one(task: Any, said: str) -> None:
    (line,) = find_refusal(["Pendulum-v1", "HalfCheetah-v5"], task)
    assert line.startswith(said)


def test_a_task_is_called_by_its_id_and_its_arguments_in_order() -> None:
    entries = [{"env_name": "DepthNavState-v0", "env_kwargs": {"wind": 2.0, "field": [40, 30]}}, "Pendulum-v1", HARD]
    tasks = read_tasks(entries)
    names = [task.name for task in tasks]
    assert names == [
        "DepthNavState-v0(field=[40, 30], wind=2.0)",
        "Pendulum-v1",
        "DepthNavState-v0(density=hard, max_episode_steps=15)",
    ]
    assert [find_task(tasks, name) for name in names] == [0, 1, 2]


def test_without_dm_control_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dm_control", None)
    (line,) = find_refusal(["Pendulum-v1", "dmc/walker-walk"])
    assert line.startswith("tasks[1]: dmc/walker-walk needs a package that is not installed: dm_control ")


def test_looking_it_up_and_making_it_imports_no_more_than_its_tasks() -> None:
    code = (
        "import sys; from envs.make import make_env; heavy = ('mujoco', 'dm_control', 'torch')\n"
        "def tell(): print([name for name in heavy if name in sys.modules])\n"
        "from envs.registration import register_environments; register_environments(); tell()\n"
        "make_env('MultiTask-v0', {'tasks': ['Pendulum-v1']}); tell()\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n") == ["[]", "[]", ""]
