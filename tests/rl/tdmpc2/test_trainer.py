"""The agent in its environments: what it counts, remembers and refuses; straight equals resumed to the bit."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rl.tdmpc2.trainer import PRETRAIN_CHUNK, TDMPC2Trainer
from tests.rl.tdmpc2.conftest import SMALL, BuildTrainer
from tests.rl.test_vitals import FaultyEnv, list_faults
from training.protocol import ActsInEnvironment, StepResult, Trainer, Treatment
from training.resources import hash_state
from training.rowlog import RowLog
from training.state import find_row_logs, pack_state, unpack_state
from training.weights import WeightsError

ROOT = Path(__file__).parents[3]
TASKS = {
    "tasks": [
        {"env_name": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 6}},
        {"env_name": "Reacher-v5", "env_kwargs": {"max_episode_steps": 4}},
    ]
}
"""Observations of 3 and 10 numbers, actions of 1 and 2."""
CLOCK: dict[str, Any] = {"env_name": "Clock-v0", "env_kwargs": {"terminate": True}}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "ends": {"env_name": "InvertedPendulum-v5", "episodic": True},
    "short": {"env_name": "Dice-v0", "episodic": True, "horizon": 5, "buffer_size": 40},
    "depth": {"env_name": "DepthNavState-v0", "episodic": True, "env_kwargs": {"num_obstacles": 5}},
    "several": {"num_envs": 3, "train_freq": 5},
    "repeated": {**CLOCK, "action_repeat": 4, "episodic": True},
    "tasks": {"env_name": "MultiTask-v0", "env_kwargs": TASKS, "task_dim": 4, "num_envs": 2},
    "discrete": {"env_name": "CartPole-v1", "episodic": True},
    "pixels": {"env_name": "Pixels-v0", "num_channels": 16, "random_shift": 2},
    "policy": {"mpc": False},
    "repair": {"guard": "repair", "dropout": 0.2},
    "careful": {"value_uncertainty_weight": 1.0, "plan_bf16": True},
}


class PixelsEnv(gym.Env[Any, Any]):
    """Images of noise for up to ten steps; the mean action is rewarded."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (1, 40, 40), np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,))
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def observe(self) -> NDArray[np.uint8]:
        return self.np_random.integers(0, 256, (1, 40, 40), dtype=np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observe(), float(np.mean(action)), False, self.time == 10, {}


@pytest.fixture(autouse=True)
def _more_environments() -> Iterator[None]:
    environments: dict[str, Any] = {"Pixels-v0": PixelsEnv, "Faulty-v0": FaultyEnv}
    for name, environment in environments.items():
        gym.register(name, environment, max_episode_steps=1_000)
    yield
    for name in environments:
        del gym.registry[name]


def run_steps(trainer: TDMPC2Trainer, number: int) -> list[StepResult]:
    return [trainer.train_step() for _ in range(number)]


def save_and_load(trainer: TDMPC2Trainer, fresh: TDMPC2Trainer) -> None:
    """Carry a state over as a checkpoint does, in plain values and copies of the logs."""
    state = trainer.state_dict()
    logs = {path: RowLog(log.rows.copy(), log.total) for path, log in find_row_logs(state).items()}
    packed = copy.deepcopy(pack_state(state))
    fresh.load_state_dict(unpack_state(packed, logs.__getitem__))


def read_numbers(result: StepResult) -> dict[str, Any]:
    """Give everything that a step told, as plain values."""
    told = {name: float(value) for name, value in {**result.metrics, **result.vitals}.items()}
    counted = {"updates": result.updates, "env_steps": result.env_steps, "ticks": result.ticks, **result.counts}
    return told | counted | {"episodes": list(result.episodes), "faults": list(result.faults)}


def read_steps(trainer: TDMPC2Trainer, env: int = 0) -> NDArray[Any]:
    """Give the steps that the buffer has of an environment, a row each: action, reward, terminated."""
    log = trainer._buffer.state_dict()["rings"][env]["steps"]
    rows: NDArray[Any] = log.rows[: log.total]
    return rows


@pytest.mark.parametrize("stop", [11, 37], ids=["pretraining", "training"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_straight_equals_resumed_in_mid_episode_and_in_mid_pretraining(
    small_tdmpc2: BuildTrainer, variant: str, stop: int
) -> None:
    settings = {"pretrain_updates": 25, "max_timesteps": 200} | VARIANTS[variant]
    straight, resumed = small_tdmpc2(**settings), small_tdmpc2(**settings)
    if "num_envs" in settings:
        stop -= 10 - math.ceil(10 / settings["num_envs"])
    run_steps(straight, stop)
    assert (straight._pretrained, straight.resume_mode) == (PRETRAIN_CHUNK if stop < 12 else 25, "exact")
    assert (straight._steps_owed > 0) == (variant == "several" and stop > 12)
    save_and_load(straight, resumed)
    for _ in range(14):
        assert read_numbers(straight.train_step()) == read_numbers(resumed.train_step())
    assert hash_state(straight.state_dict()) == hash_state(resumed.state_dict())
    assert straight._pretrained == 25
    assert straight._updates > 25
    if variant in ("repeated", "tasks"):
        assert straight.evaluate([5, 6]) == resumed.evaluate([5, 6])


@pytest.mark.parametrize("stop", [0, 1, 10, 13, 14, 23])
def test_every_kind_of_moment_can_be_resumed(small_tdmpc2: BuildTrainer, stop: int) -> None:
    """Before the first reset, in random steps, before, in and after pretraining, at an episode's end and after it."""
    settings = CLOCK | {"pretrain_updates": 35}
    straight, resumed = small_tdmpc2(**settings), small_tdmpc2(**settings)
    run_steps(straight, stop)
    save_and_load(straight, resumed)
    run_steps(straight, 30 - stop)
    run_steps(resumed, 30 - stop)
    assert hash_state(straight.state_dict()) == hash_state(resumed.state_dict())


def test_loading_wipes_out_all_that_another_life_left(small_tdmpc2: BuildTrainer) -> None:
    one, other = small_tdmpc2(seed=1), small_tdmpc2(seed=2)
    run_steps(one, 21)
    run_steps(other, 40)
    save_and_load(one, other)
    assert hash_state(one.state_dict()) == hash_state(other.state_dict())
    assert one._means.abs().sum() > 0
    run_steps(one, 10)
    run_steps(other, 10)
    assert hash_state(one.state_dict()) == hash_state(other.state_dict())


def test_an_environment_that_can_not_be_saved_begins_anew_and_windows_stop_there(small_tdmpc2: BuildTrainer) -> None:
    settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden": True}, "num_envs": 2}
    trainer, resumed = small_tdmpc2(**settings), small_tdmpc2(**settings)
    assert trainer.resume_mode == "episode"
    assert trainer.resume_reason is not None
    run_steps(trainer, 9)
    save_and_load(trainer, resumed)
    run_steps(resumed, 3)
    clocks: list[Any] = [slot.env.unwrapped for each in (trainer, resumed) for slot in each._slots]
    starts = [clock.start for clock in clocks]
    assert len(set(starts)) == 4
    windows = resumed._buffer.sample(400)
    time = windows.obs.argmax(-1)
    assert (np.diff(time, axis=0)[windows.valid[..., 0] == 1] == 1).all()
    assert resumed.state_dict()["slots"][0]["episode_length"] == resumed.state_dict()["env_steps"] // 2 - 8


def test_every_attribute_is_saved_or_declared_transient(small_tdmpc2: BuildTrainer) -> None:
    trainer = small_tdmpc2(**VARIANTS["tasks"])
    run_steps(trainer, 12)
    parts: dict[str, Any] = {
        "buffer": trainer._buffer,
        "slot": trainer._slots[0],
        "agent": trainer.agent,
        "trainer": trainer,
    }
    for descent in (trainer.agent._model_descent, trainer.agent._policy_descent):
        parts[f"{descent._name} optimizer"] = descent.optimizers[0]
        assert set(vars(descent)) - set(descent.TRANSIENT) == {"optimizers"}
    parts["ring"] = trainer._buffer._rings[0]
    for name, part in parts.items():
        saved = {f"_{key}" for key in part.state_dict()} | set(part.state_dict())
        assert set(vars(part)) <= saved | set(part.TRANSIENT), name
        assert set(part.TRANSIENT) <= set(vars(part)), f"{name} has a transient attribute that isn't there"
    assert set(vars(trainer._slots)) - set(trainer._slots.TRANSIENT) == {"_slots"}
    assert set(vars(trainer._pilot)) <= set(trainer._pilot.TRANSIENT), "what acts keeps nothing of its own"


def test_it_is_a_trainer_that_acts(small_tdmpc2: BuildTrainer) -> None:
    trainer: Trainer = small_tdmpc2()
    assert isinstance(trainer, ActsInEnvironment)
    assert set(trainer.components()) == {"encoder", "dynamics", "reward", "policy", "q"}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_pretraining_comes_once_between_the_last_random_action_and_the_first_planned_one(
    small_tdmpc2: BuildTrainer, num_envs: int
) -> None:
    """Ten random steps, or four of three environments; 25 updates at once, in chunks that move no clock."""
    random = math.ceil(10 / num_envs)
    results = run_steps(small_tdmpc2(pretrain_updates=25, num_envs=num_envs), random + 3 + 6)
    assert [result.updates for result in results] == [0] * random + [10, 10, 5] + [num_envs] * 6
    assert [result.env_steps for result in results] == [num_envs] * random + [0] * 3 + [num_envs] * 6
    assert [result.ticks for result in results] == [None] * random + [0] * 3 + [None] * 6
    planned = ["rollout/plan_value" in result.metrics for result in results]
    assert planned == [False] * (random + 3) + [True] * 6
    assert all("train/total_loss" in result.metrics for result in results[random:])


def test_as_many_updates_are_made_at_once_as_there_were_steps_unless_it_is_said(small_tdmpc2: BuildTrainer) -> None:
    settings = {"learning_starts": 14, "pretrain_updates": None}
    assert [result.updates for result in run_steps(small_tdmpc2(**settings), 18)] == [0] * 14 + [10, 4, 1, 1]
    settings = {"learning_starts": 14, "pretrain_updates": 0}
    assert [result.updates for result in run_steps(small_tdmpc2(**settings), 18)] == [0] * 14 + [1] * 4


def test_updates_that_are_owed_come_with_a_later_step(small_tdmpc2: BuildTrainer) -> None:
    trainer = small_tdmpc2(num_envs=2, train_freq=3, pretrain_updates=0)
    assert [result.updates for result in run_steps(trainer, 11)] == [0] * 5 + [0, 1, 1, 0, 1, 1]


def test_a_step_is_an_action_and_frames_are_counted_beside_it(small_tdmpc2: BuildTrainer) -> None:
    """Of ten frames, actions that are repeated four times make 4, 4 and 2: the episode ends inside the third."""
    trainer = small_tdmpc2(**VARIANTS["repeated"])
    results = [result for result in run_steps(trainer, 20) if result.env_steps]
    counts = [(result.counts["rollout/agent_steps"], result.counts["rollout/env_frames"]) for result in results]
    assert counts[:7] == [(1, 4), (2, 8), (3, 10), (4, 14), (5, 18), (6, 20), (7, 24)]
    assert all(result.env_steps == 1 for result in results)
    episodes = [episode for result in results for episode in result.episodes]
    assert {(episode.length, episode.episode_return, episode.truncated) for episode in episodes} == {(3, 10.0, False)}
    steps = read_steps(trainer)
    assert steps[:6, 2:].tolist() == [[4, 0], [4, 0], [2, 1]] * 2


def test_frames_of_all_environments_add_up(small_tdmpc2: BuildTrainer) -> None:
    results = run_steps(small_tdmpc2(**VARIANTS["repeated"], num_envs=3), 3)
    assert [result.counts["rollout/agent_steps"] for result in results] == [3, 6, 9]
    assert [result.counts["rollout/env_frames"] for result in results] == [12, 24, 30]


def test_an_evaluation_changes_nothing_that_training_reads_and_gives_the_same_twice(small_tdmpc2: BuildTrainer) -> None:
    for variant in ("repeated", "tasks", "discrete", "pixels"):
        one, other = small_tdmpc2(**VARIANTS[variant]), small_tdmpc2(**VARIANTS[variant])
        run_steps(one, 16)
        run_steps(other, 16)
        drawn = torch.get_rng_state()
        first, again = one.evaluate([3, 4]), one.evaluate([3, 4])
        assert first == again
        assert one.evaluate([4]).returns == first.returns[1:], "an episode's plans depend on the one before"
        assert torch.equal(torch.get_rng_state(), drawn)
        run_steps(one, 6)
        run_steps(other, 6)
        assert hash_state(one.state_dict()) == hash_state(other.state_dict()), variant


@pytest.mark.parametrize("variant", ["default", "ends", "several", "discrete", "policy", "pixels", "careful"])
def test_actions_are_those_that_the_environment_takes(
    small_tdmpc2: BuildTrainer, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_tdmpc2(**VARIANTS[variant])
    given: list[Any] = []
    for slot in trainer._slots:
        step = slot.env.step

        def keep(action: Any, step: Any = step) -> Any:
            given.append(action)
            return step(action)

        monkeypatch.setattr(slot.env, "step", keep)
    run_steps(trainer, 40)
    act, env = trainer.begin_acting(), trainer._make_evaluation_env()
    obs, _ = env.reset(seed=1)
    for _ in range(6):
        given.append(act(obs))
        obs, *_ = env.step(given[-1])
    env.close()
    assert all(env.action_space.contains(action) for action in given)
    own = read_steps(trainer)[:, :-2]
    assert np.isfinite(own).all()
    assert np.abs(own).max() <= 1
    if variant == "discrete":
        assert set(map(type, given)) == {int}
        assert set(given) == {0, 1}
        assert own.sum(1).tolist() == [1] * len(own)
        assert own.argmax(1).tolist() == given[: len(own)]


def test_actions_that_a_task_does_not_have_are_nought_random_ones_too(small_tdmpc2: BuildTrainer) -> None:
    trainer = small_tdmpc2(**VARIANTS["tasks"] | {"num_envs": 1})
    run_steps(trainer, 34)
    state = trainer._buffer.state_dict()["rings"][0]
    starts = state["starts"].rows[: state["starts"].total]
    steps = read_steps(trainer)
    missing = {0: [1], 1: []}
    found: dict[int, list[NDArray[Any]]] = {0: [], 1: []}
    for first, length, task in starts:
        found[task].append(steps[first : first + length, :2])
    for task, windows in found.items():
        actions = np.concatenate(windows)
        assert (actions[:, missing[task]] == 0).all()
        assert (np.delete(actions, missing[task], axis=1) != 0).all()
    batch = trainer._load(trainer._buffer.sample(50))
    assert batch.tasks is not None
    assert batch.tasks.mask.tolist() == [[1, number] for number in batch.tasks.number.tolist()]
    assert batch.obs[:, batch.tasks.number == 0, 3:].abs().max() == 0
    discounts = [trainer.config.find_discount(length) for length in (6, 4)]
    torch.testing.assert_close(batch.discount[:, 0], torch.tensor(discounts)[batch.tasks.number])


def test_an_episodes_windows_end_with_it_and_only_a_tasks_end_is_terminal(small_tdmpc2: BuildTrainer) -> None:
    trainer = small_tdmpc2(**VARIANTS["short"] | {"buffer_size": 500})
    episodes = [episode for result in run_steps(trainer, 58) for episode in result.episodes]
    assert {episode.truncated for episode in episodes} == {True, False}
    assert read_steps(trainer)[:, -1].sum() == sum(not episode.truncated for episode in episodes)
    batch = trainer._load(trainer._buffer.sample(300))
    number, time = batch.obs[..., 0], batch.obs[..., 1]
    assert (number == number[0]).all()
    assert ((time[1:] - time[:-1]) == batch.valid[..., 0]).all()
    assert (batch.valid == 0).any()
    assert ((batch.reward[..., 0] == number[:-1] + time[:-1]) | (batch.valid[..., 0] == 0)).all()
    assert (batch.terminated[:-1][batch.valid[1:] == 1] == 0).all()


@pytest.mark.parametrize("terminate", [True, False])
def test_what_was_predicted_of_an_episode_is_held_against_what_came(
    small_tdmpc2: BuildTrainer, terminate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rewards of 1; after a clock's end the value of what was seen last still counts."""
    trainer = small_tdmpc2(env_name="Clock-v0", env_kwargs={"terminate": terminate}, discount=0.9)
    monkeypatch.setattr(trainer.agent, "value", lambda obs, *_: torch.full((len(obs), 1), 7.0))
    episodes = [episode for result in run_steps(trainer, 32) for episode in result.episodes]
    assert (episodes[0].predicted_return, episodes[0].discounted_return) == (None, None)  # nothing was learned yet
    for episode in episodes[1:]:
        assert episode.predicted_return == 7.0
        assert episode.discounted_return == pytest.approx(10 * (1 - 0.9**10) + (0 if terminate else 7 * 0.9**10))


def test_plans_begin_with_the_last_one_a_step_on_and_with_nothing_in_a_new_episode(
    small_tdmpc2: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_tdmpc2(**CLOCK, num_envs=2)
    seen: list[tuple[Any, Any]] = []
    plan = trainer._pilot.plan

    def keep(rows: Any, means: Any, *given: Any, **more: Any) -> Any:
        found = plan(rows, means, *given, **more)
        seen.append((means.clone(), found.mean.clone()))
        return found

    run_steps(trainer, 16)
    monkeypatch.setattr(trainer._pilot, "plan", keep)
    clock: Any = trainer._slots[1].env.unwrapped
    clock.time = 0  # the second environment's episode ends later than the first one's
    fresh = []
    for _ in range(20):
        fresh.append([slot.obs is None for slot in trainer._slots])
        trainer.train_step()
    for (means, _), (_, before), begun in zip(seen[1:], seen, fresh[1:], strict=False):
        for env, new in enumerate(begun):
            wanted = torch.zeros_like(means[:, env]) if new else torch.cat([before[1:, env], torch.zeros(1, 2)])
            assert torch.equal(means[:, env], wanted)
    assert {tuple(each) for each in fresh} >= {(True, False), (False, True)}


@pytest.mark.parametrize(("kind", "what"), [("reward", "reward inf"), ("obs", "an observation")])
@pytest.mark.parametrize("learning_starts", [10, 50])
def test_a_repaired_run_leaves_out_what_is_no_number_and_begins_a_new_episode(
    small_tdmpc2: BuildTrainer, kind: str, what: str, learning_starts: int
) -> None:
    kwargs = {"kind": kind, "steps": [34, 45]}
    trainer = small_tdmpc2(
        env_name="Faulty-v0", env_kwargs=kwargs, guard="repair", learning_starts=learning_starts, pretrain_updates=0
    )
    results = run_steps(trainer, 58)
    assert list_faults(results) == [
        (34, f"{what} of environment 0 in its episode 4, step 4"),
        (45, f"{what} of environment 0 in its episode 6, step 1"),
    ]
    assert np.isfinite(read_steps(trainer)).all()
    assert len(read_steps(trainer)) == 56
    windows = trainer._buffer.sample(400)
    assert all(np.isfinite(part).all() for part in windows)
    assert [episode.length for result in results for episode in result.episodes] == [10] * 5
    for result in results:
        assert all(math.isfinite(float(value)) for value in {**result.metrics, **result.vitals}.values())


@pytest.mark.parametrize("learning_starts", [40, 10])
def test_an_episode_that_begins_with_what_is_no_number_is_the_environments_fault(
    small_tdmpc2: BuildTrainer, learning_starts: int
) -> None:
    settings = {"env_name": "Faulty-v0", "env_kwargs": {"episode": 3}, "guard": "repair", "pretrain_updates": 0}
    trainer = small_tdmpc2(**settings, learning_starts=learning_starts)
    with np.errstate(invalid="ignore"):
        results = run_steps(trainer, 58)
    assert list_faults(results) == [(21, "an observation of environment 0 in its episode 3, step 1")]
    assert np.isfinite(read_steps(trainer)).all()
    assert all(np.isfinite(part).all() for part in trainer._buffer.sample(400))


@pytest.mark.parametrize("kind", ["reward", "obs"])
def test_elsewhere_what_is_no_number_is_told_and_kept(small_tdmpc2: BuildTrainer, kind: str) -> None:
    kwargs = {"kind": kind, "steps": [34]}
    trainer = small_tdmpc2(env_name="Faulty-v0", env_kwargs=kwargs, learning_starts=50)
    results = run_steps(trainer, 45)
    assert [step for step, _ in list_faults(results)] == [34]
    assert len(read_steps(trainer)) == 45
    assert not all(np.isfinite(part).all() for part in trainer._buffer.sample(400))


def test_a_learners_nan_is_not_the_environments_fault(small_tdmpc2: BuildTrainer) -> None:
    trainer = small_tdmpc2(env_name="Faulty-v0", guard="repair", mpc=False)
    run_steps(trainer, 20)
    with torch.no_grad():
        for parameter in trainer.components()["policy"].parameters():
            parameter.fill_(math.nan)
    with np.errstate(invalid="ignore"):
        assert list_faults(run_steps(trainer, 15)) == []


def test_a_treated_run_learns_slower_from_smaller_batches(
    small_tdmpc2: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_tdmpc2()
    run_steps(trainer, 20)
    sizes: list[int] = []
    update = trainer.agent.update

    def keep(batch: Any, vitals: Any = None) -> Any:
        sizes.append(batch.action.shape[1])
        return update(batch, vitals)

    monkeypatch.setattr(trainer.agent, "update", keep)
    for treatment in (Treatment(0.5, 1), Treatment(0.25, 9), Treatment()):
        trainer.treat(treatment)
        rates = [one.learning_rate for one in trainer.agent._policy_descent.optimizers]
        assert rates == [3e-4 * treatment.learning_rate_factor]
        run_steps(trainer, 2)
    assert sizes == [4, 4, 1, 1, 8, 8]


def test_batches_of_a_redrawn_run_are_others_by_its_number_alone(small_tdmpc2: BuildTrainer) -> None:
    drawn = []
    for number in (1, 1, 2, None):
        trainer = small_tdmpc2(learning_starts=50)
        run_steps(trainer, 30)
        if number is not None:
            trainer.redraw(number)
        drawn.append(trainer._buffer.sample(20).obs)
    assert np.array_equal(drawn[0], drawn[1])
    assert len({batch.tobytes() for batch in drawn}) == 3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"latent_dim": 24},
            r"the saved model's \S+ has shape \(.*\), and this run's \(.*\): model_size, another size",
        ),
        ({"num_q": 3}, r"the saved model's q\.\S+ has shape \(3, .*\), and this run's \(2, "),
        ({"env_name": "Clock-v0"}, r"the saved model's encoder\.0\.weight has shape .* the environment has changed"),
        ({"episodic": True}, r"don't have the same networks: termination_head\.\S+ is in one alone"),
        ({"horizon": 4}, "the saved buffer has windows of 4 steps, and this run's 3"),
        ({"num_envs": 2}, "the saved buffer is of 2 environments, and this run's of 1"),
        ({"max_timesteps": 9999}, r"the saved buffer's frames are \(\d+, 3\) float32, and this run's .* buffer_size"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_state_of_other_settings_is_refused_in_one_line_that_names_what_differs(
    small_tdmpc2: BuildTrainer, other: dict[str, Any], said: str
) -> None:
    saved, trainer = small_tdmpc2(**other), small_tdmpc2()
    run_steps(saved, 5)
    with pytest.raises(ValueError, match=said) as refused:
        save_and_load(saved, trainer)
    assert "\n" not in str(refused.value)


def test_a_longer_run_goes_on_from_a_shorter_one_s_state(small_tdmpc2: BuildTrainer) -> None:
    """Its buffer is larger, and as if it had been so all the time."""
    straight, short, longer = (small_tdmpc2(max_timesteps=length) for length in (300, 60, 300))
    run_steps(straight, 25)
    run_steps(short, 25)
    short._buffer.write_pref_reward(0, np.ones(9))
    straight._buffer.write_pref_reward(0, np.ones(9))
    save_and_load(short, longer)
    run_steps(straight, 90)
    run_steps(longer, 90)
    assert hash_state(longer.state_dict()) == hash_state(straight.state_dict())


def test_the_networks_of_another_run_are_taken_and_nothing_else(small_tdmpc2: BuildTrainer) -> None:
    taught, heir, fresh = (small_tdmpc2(seed=seed) for seed in (1, 2, 2))
    run_steps(taught, 20)
    heir.take_weights(copy.deepcopy(taught.state_dict()))
    ours, before = heir.state_dict(), fresh.state_dict()
    assert hash_state(ours["agent"].pop("model")) == hash_state(taught.state_dict()["agent"]["model"])
    before["agent"].pop("model")
    assert hash_state(ours) == hash_state(before)
    with pytest.raises(WeightsError, match="model is of other sizes there"):
        heir.take_weights(small_tdmpc2(latent_dim=24).state_dict())
    run_steps(heir, 20)


def test_a_run_trains_resumes_and_is_evaluated_as_users_type_it(tmp_path: Path) -> None:
    """With actions that are repeated: what is counted to the end are the agent's steps."""

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    spec = {
        "meta_data": {"exp_name": "small"},
        "constants": SMALL
        | {"env_kwargs": {"max_episode_steps": 40}, "action_repeat": 2, "device": "cpu"}
        | {"log_freq": 5, "eval_freq": 0, "num_final_eval": 3},
        "variables": {"seed": [1]},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    run(str(ROOT / "train.py"), "-e", "spec.yaml")
    (folder,) = (tmp_path / "logs" / "small").glob("*__*")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counted = [row for row in rows if "rollout/env_frames" in row]
    assert all(row["rollout/env_frames"] == 2 * row["rollout/agent_steps"] for row in counted)
    assert counted[-1]["rollout/agent_steps"] == SMALL["max_timesteps"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["env_steps"], summary["updates"], summary["resume"]) == (60, 3 + 50, "exact")
    run(str(ROOT / "play.py"), "evaluate", str(folder), "--episodes", "3", "--json", "own.json")
    own = json.loads((tmp_path / "own.json").read_text())
    assert [row["return"] for row in own["episodes"]] == summary["final_eval"]["returns"]
