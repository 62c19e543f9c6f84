"""dm_control's suite as environments of gymnasium. Tests that need dm_control skip themselves where it is missing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.make import describe_spaces, find_environment_faults, make_env
from envs.registration import DMC_STEPS, DMC_TASKS, list_dmc, register_environments
from envs.snapshot import equal_bits, probe_resume_mode, take_snapshot
from tests.envs.test_new_process import AFTER, ROOT, fly_on
from training.state import pack_state

NAMES = [row.env_name for row in list_dmc()]
PARTS = 4
"""Starting a process for each task alone would take longer than what it does there."""
CLOCK = 90
"""A time limit with which episodes end in a test."""
GO_ON = """
import json, sys
import torch
from envs.make import make_env
from envs.snapshot import restore_snapshot
from tests.envs.test_dmc import CLOCK
from tests.envs.test_new_process import AFTER, fly_on
from training.state import unpack_state
answers = {}
for env_name, state in torch.load(sys.argv[1], weights_only=True).items():
    env = make_env(env_name, {"max_episode_steps": CLOCK})
    restore_snapshot(env, unpack_state(state, {}.__getitem__))
    answers[env_name] = fly_on(env, AFTER)
print(json.dumps(answers))
"""
needs_dm_control = pytest.mark.skipif(
    find_spec("dm_control") is None, reason="dm_control is not installed: pip install -e '.[dmc]'"
)


def load_original(domain: str, task: str) -> Any:
    """Give dm_control's own environment, with the generator that ours begins with."""
    from dm_control import suite

    return suite.load(domain, task, task_kwargs={"random": np.random.RandomState(0)})


def flatten(observation: Any) -> Any:
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


@needs_dm_control
def test_the_table_is_the_suite_with_its_clocks() -> None:
    from dm_control import suite

    assert {(domain, task) for domain, tasks in DMC_TASKS.items() for task in tasks} == set(suite.ALL_TASKS)
    for domain, task in suite.ALL_TASKS:
        clock = load_original(domain, task)._step_limit
        assert round(clock, 6) == DMC_STEPS if domain != "lqr" else math.isinf(clock)


@needs_dm_control
@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value is -?infinity")
@pytest.mark.parametrize("env_name", NAMES)
def test_gymnasium_finds_nothing_to_complain_about(env_name: str) -> None:
    env = make_env(env_name, {})
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@needs_dm_control
@pytest.mark.parametrize("env_name", NAMES)
def test_many_at_a_time_give_valid_observations_through_endings(env_name: str) -> None:
    register_environments()
    envs = gym.make_vec(env_name, num_envs=3, vectorization_mode="sync", max_episode_steps=5)
    obs, _ = envs.reset(seed=1)
    assert obs in envs.observation_space
    envs.action_space.seed(0)
    ended = 0
    for _ in range(12):
        obs, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert obs in envs.observation_space
        assert np.isfinite(obs).all()
        assert rewards.shape == (3,)
        assert not terminated.any()
        ended += int(truncated.sum())
    assert ended == 6
    envs.close()


@needs_dm_control
@pytest.mark.parametrize("part", range(PARTS))
def test_a_new_process_goes_on_from_a_snapshot_to_the_bit_in_every_task(part: int, tmp_path: Path) -> None:
    names = NAMES[part::PARTS]
    straight, states = {}, {}
    for env_name in names:
        env = make_env(env_name, {"max_episode_steps": CLOCK})
        env.reset(seed=4)
        env.action_space.seed(9)
        fly_on(env, 30)
        states[env_name] = pack_state(take_snapshot(env))
        straight[env_name] = fly_on(env, AFTER)
        env.close()
    path = tmp_path / "snapshots.pt"
    torch.save(states, path)
    command = [sys.executable, "-c", GO_ON, str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    resumed = json.loads(answer.stdout)
    assert [name for name in names if resumed[name] != straight[name]] == []
    assert all(len(set(hashes)) == AFTER for hashes in straight.values())


@needs_dm_control
@pytest.mark.parametrize("env_name", ["dmc/walker-walk", "dmc/quadruped-escape", "dmc/lqr-lqr_6_2"])
def test_the_probe_says_that_it_resumes_exactly(env_name: str) -> None:
    probe = probe_resume_mode(env_name, {})
    assert (probe.mode, probe.reason) == ("exact", None)


@needs_dm_control
@pytest.mark.parametrize(("domain", "task"), [("walker", "walk"), ("quadruped", "fetch"), ("lqr", "lqr_6_2")])
def test_observations_and_rewards_are_those_of_dm_control(domain: str, task: str) -> None:
    env, original = make_env(f"dmc/{domain}-{task}", {}), load_original(domain, task)
    obs, _ = env.reset(seed=5)
    original.task.random.seed(int(np.random.default_rng(5).integers(2**32)))
    assert equal_bits(obs, flatten(original.reset().observation))
    spec = original.action_spec()
    env.action_space.seed(0)
    for _ in range(20):
        action = env.action_space.sample().astype(np.float64)
        theirs = action if domain == "lqr" else spec.minimum + (action + 1) / 2 * (spec.maximum - spec.minimum)
        obs, reward, *_ = env.step(action)
        step = original.step(theirs)
        np.testing.assert_allclose(obs, flatten(step.observation), rtol=1e-4, atol=1e-5)
        assert reward == pytest.approx(step.reward, rel=1e-6)
    env.close()


@needs_dm_control
def test_actions_are_rescaled_to_the_bounds_of_each_actuator() -> None:
    env = make_env("dmc/quadruped-walk", {})
    env.reset(seed=0)
    core: Any = env.unwrapped
    spec = core._suite_env.action_spec()
    assert spec.maximum.max() > 1
    for action, wanted in ((1.0, spec.maximum), (-1.0, spec.minimum)):
        env.step(np.full(12, action, dtype=np.float32))
        np.testing.assert_allclose(core._suite_env.physics.control(), wanted)


@needs_dm_control
@pytest.mark.parametrize("limit", [None, DMC_STEPS + 200])
def test_the_clock_truncates_after_the_tasks_steps_or_those_that_are_asked_for(limit: int | None) -> None:
    env = make_env("dmc/pendulum-swingup", {} if limit is None else {"max_episode_steps": limit})
    env.reset(seed=0)
    steps = 0
    ended = False
    while not ended:
        _, _, terminated, ended, _ = env.step(np.zeros(1, dtype=np.float32))
        assert not terminated
        steps += 1
    assert steps == (limit or DMC_STEPS)


@needs_dm_control
def test_a_discount_of_zero_terminates() -> None:
    env = make_env("dmc/lqr-lqr_2_1", {})
    env.reset(seed=0)
    core: Any = env.unwrapped
    with core._suite_env.physics.reset_context():
        core._suite_env.physics.data.qpos[:] = 0
    *_, terminated, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
    assert (terminated, truncated) == (True, False)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(np.zeros(1, dtype=np.float32))
    env.reset()
    env.step(np.zeros(1, dtype=np.float32))


@needs_dm_control
def test_a_seed_decides_the_episodes_that_follow_it() -> None:
    env, other = make_env("dmc/reacher-easy", {}), make_env("dmc/reacher-easy", {})
    first = [env.reset(seed=3)[0], env.reset()[0], env.reset(seed=4)[0]]
    other.reset()
    second = [other.reset(seed=3)[0], other.reset()[0], other.reset(seed=4)[0]]
    assert equal_bits(first, second)
    assert len({obs.tobytes() for obs in first}) == 3


@needs_dm_control
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1.5])
def test_actions_that_are_none_are_refused_with_the_entry(value: float) -> None:
    env = make_env("dmc/walker-walk", {})
    env.reset(seed=0)
    action = np.zeros(6)
    action[4] = value
    with pytest.raises(ValueError, match=r"action\[4\]"):
        env.step(action)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(5))
    with pytest.raises(ValueError, match="mean nothing at a reset"):
        env.reset(options={"x": 1})


@needs_dm_control
def test_a_run_finds_no_fault_and_the_sizes() -> None:
    assert find_environment_faults("dmc/humanoid_CMU-run", {}, continuous_actions=True) == []
    sizes = describe_spaces("dmc/humanoid_CMU-run", {})
    assert (sizes.obs_dim, sizes.action_dim) == (137, 56)


@needs_dm_control
def test_neither_a_display_nor_old_model_files_are_talked_about() -> None:
    """In a process of its own: a display is looked for once, and is not to be found here."""
    code = (
        "from envs.make import make_env\n"
        "for name in ('dmc/cheetah-run', 'dmc/quadruped-escape'):\n"
        "    env = make_env(name, {})\n"
        "    env.reset(seed=0)\n"
        "    env.step(env.action_space.sample())\n"
    )
    blind = {
        key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    }
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=blind, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_without_dm_control_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dm_control", None)
    (fault,) = find_environment_faults("dmc/walker-walk", {}, continuous_actions=True)
    assert fault.keys == ("env_name",)
    assert fault.message.startswith("env_name: dmc/walker-walk needs a package that is not installed: dm_control ")
    assert "pip install -e '.[dmc]'" in fault.message


@pytest.mark.parametrize("env_name", ["dmc/walker-wolk", "dmc/walker_walk", "walker-walk", "dmc/walker-walk-v0"])
def test_a_misspelt_task_is_answered_with_the_likely_one(env_name: str) -> None:
    (fault,) = find_environment_faults(env_name, {}, continuous_actions=True)
    assert fault.message == f"env_name: no environment is called '{env_name}'; did you mean 'dmc/walker-walk'?"


def test_registering_imports_no_simulator() -> None:
    code = (
        "import sys; from envs.registration import register_environments; register_environments(); "
        "print([name for name in ('mujoco', 'dm_control', 'torch') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
