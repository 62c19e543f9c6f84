"""Straight equals resumed, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from rl.buffers import ReplayBuffer
from rl.noise import GaussianNoise, OrnsteinUhlenbeckNoise
from rl.noise_scale import NoiseScale
from rl.normalizers import ObsNormalizer, RewardNormalizer, RunningMoments
from rl.off_policy import OffPolicyTrainer
from training.rowlog import RowLog

BuildTrainer = Any
MIDWAY, END = 137, 290
ALGORITHMS = ("ddpg", "td3", "sac")


def run_steps(trainer: OffPolicyTrainer, number: int) -> None:
    for _ in range(number):
        trainer.train_step()


def list_leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Give every number, text and array of a state by its path, tensors and row logs as arrays."""
    if isinstance(state, dict):
        return {name: leaf for key, part in state.items() for name, leaf in list_leaves(part, f"{path}/{key}").items()}
    if isinstance(state, list | tuple):
        parts = enumerate(state)
        return {name: leaf for key, part in parts for name, leaf in list_leaves(part, f"{path}/{key}").items()}
    if isinstance(state, RowLog):
        return {f"{path}/rows": state.rows[: state.total].copy(), f"{path}/total": state.total}
    return {path: state.detach().numpy().copy() if isinstance(state, torch.Tensor) else state}


def assert_same_state(one: OffPolicyTrainer, other: OffPolicyTrainer) -> None:
    left, right = list_leaves(one.state_dict()), list_leaves(other.state_dict())
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        if isinstance(leaf, np.ndarray):
            assert leaf.tobytes() == right[path].tobytes(), path
        else:
            assert leaf == right[path], path


SETTINGS: list[dict[str, Any]] = [
    {"env_name": "Pendulum-v1", "noise_type": "ou", "noise_std": 0.2},
    {"env_name": "Pendulum-v1", "buffer_size": 100, "updates_per_step": 2, "max_grad_norm": 0.5},
    {"env_name": "HalfCheetah-v5", "noise_type": "ou"},
    {"env_name": "Hopper-v5"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_straight_equals_resumed(small_trainer: BuildTrainer, settings: dict[str, Any]) -> None:
    straight, resumed = small_trainer(**settings), small_trainer(**settings)
    run_steps(straight, MIDWAY)
    state = copy.deepcopy(straight.state_dict())
    run_steps(straight, END - MIDWAY)
    resumed.load_state_dict(state)
    run_steps(resumed, END - MIDWAY)
    assert_same_state(straight, resumed)
    assert straight.evaluate([5]) == resumed.evaluate([5])


EVERYTHING: dict[str, Any] = {
    "num_envs": 3,
    "n_step": 3,
    "normalize_obs": True,
    "normalize_reward": True,
    "max_grad_norm": 0.5,
    "buffer_size": 200,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "settings",
    [
        {"env_name": "Dice-v0"},
        {"env_name": "Pendulum-v1", "base_controller": "pendulum_energy", "delta_scale_max": 0.3},
        {"env_name": "Hopper-v5"},
    ],
    ids=["dice", "pendulum", "hopper"],
)
def test_straight_equals_resumed_with_everything_switched_on(
    small_trainer: BuildTrainer, algorithm: str, settings: dict[str, Any]
) -> None:
    """With 3 updates a step, a delay of 2 leaves every other step in the midst of it."""
    noise = {} if algorithm == "sac" else {"noise_type": "ou", "noise_std": 0.2}
    everything = {"algorithm_name": algorithm} | EVERYTHING | noise | settings
    straight, resumed = small_trainer(**everything), small_trainer(**everything)
    run_steps(straight, 53)
    state = copy.deepcopy(straight.state_dict())
    run_steps(straight, 50)
    resumed.load_state_dict(state)
    run_steps(resumed, 50)
    assert_same_state(straight, resumed)
    assert straight.evaluate([5]) == resumed.evaluate([5])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("batch", [23, 50])
@pytest.mark.parametrize("stop", [52, 53, 54])
def test_straight_equals_resumed_in_the_midst_of_a_fraction(
    small_trainer: BuildTrainer, algorithm: str, batch: int, stop: int
) -> None:
    """An update is owed 3 / 5 or 30 / 23 of itself a step: 10 reference samples for each of 3 environments."""
    settings = {"algorithm_name": algorithm, "num_envs": 3, "batch_size": batch, "reference_batch_size": 10}
    settings |= {"schedule": "fixed_samples", "learning_starts": 60, "buffer_size": 200}
    straight, resumed = small_trainer(**settings), small_trainer(**settings)
    run_steps(straight, stop)
    state = copy.deepcopy(straight.state_dict())
    given = [straight.train_step().updates for _ in range(100 - stop)]
    resumed.load_state_dict(state)
    assert [resumed.train_step().updates for _ in range(100 - stop)] == given
    assert_same_state(straight, resumed)
    assert state["samples_owed"] == (stop - 20) * 30 % batch
    assert set(given) == ({0, 1} if batch == 50 else {1, 2})


def test_resuming_by_episode_begins_anew_in_every_environment(small_trainer: BuildTrainer) -> None:
    settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden": True}, "num_envs": 3, "normalize_reward": True}
    trainer, resumed = small_trainer(**settings), small_trainer(**settings)
    run_steps(trainer, 15)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    run_steps(resumed, 1)
    starts = [slot.env.unwrapped.start for each in (trainer, resumed) for slot in each._slots]
    assert len(set(starts)) == 6
    assert resumed.state_dict()["reward_normalizer"]["returns"].tolist() == [1.0] * 3
    assert [slot["episode_length"] for slot in resumed.state_dict()["slots"]] == [1] * 3


@pytest.mark.parametrize("stop", [0, 1, 40, 41, 200, 201])
def test_every_kind_of_moment_can_be_resumed(small_trainer: BuildTrainer, stop: int) -> None:
    """Before the first reset, in the random steps, at the first update, at the end of an episode and after it."""
    straight, resumed = small_trainer(noise_type="ou"), small_trainer(noise_type="ou")
    run_steps(straight, stop)
    state = copy.deepcopy(straight.state_dict())
    run_steps(straight, 215 - stop)
    resumed.load_state_dict(state)
    run_steps(resumed, 215 - stop)
    assert_same_state(straight, resumed)


def test_loading_wipes_out_all_that_another_life_left(small_trainer: BuildTrainer) -> None:
    """The other trainer differs in everything that can differ; after loading, in nothing."""
    one, other = small_trainer(noise_type="ou", seed=1), small_trainer(noise_type="ou", seed=2)
    run_steps(one, MIDWAY)
    run_steps(other, 2 * MIDWAY)
    before, different = list_leaves(one.state_dict()), list_leaves(other.state_dict())
    slot = ("slots/0/env", "slots/0/obs", "slots/0/episodes_begun", "slots/0/episode_return")
    for part in ("agent", "agent/noise", "buffer", "warmup", "env_steps", *slot):
        paths = [path for path in before if path.startswith(f"/{part}")]
        assert any(not np.array_equal(before[path], different[path]) for path in paths), part
    other._slots[0].reset_seed, other._slots[0].episode_length = 5, 999
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert_same_state(one, other)
    run_steps(one, 50)
    # The seed itself is a setting, used for nothing more once the first episode has begun.
    run_steps(other, 50)
    assert_same_state(one, other)


def test_an_environment_without_a_snapshot_resumes_with_a_new_episode(small_trainer: BuildTrainer) -> None:
    settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden": True}, "noise_type": "ou"}
    trainer = small_trainer(**settings)
    assert trainer.resume_mode == "episode"
    assert "ClockEnv.hidden" in trainer.resume_reason
    run_steps(trainer, 75)
    state = copy.deepcopy(trainer.state_dict())
    assert state["slots"][0]["env"] is None
    starts = []
    for _ in range(2):
        resumed = small_trainer(**settings)
        resumed.load_state_dict(copy.deepcopy(state))
        episodes = [episode for _ in range(10) for episode in resumed.train_step().episodes]
        assert [(episode.length, episode.episode_return) for episode in episodes] == [(10, 10.0)]
        starts.append(resumed._slots[0].env.unwrapped.start)
    assert starts[0] == starts[1] != trainer._slots[0].env.unwrapped.start


def test_episodes_begun_by_resuming_start_where_no_other_did(small_trainer: BuildTrainer) -> None:
    """Each resumption has a seed of its own: by the run's seed, and by how many episodes came before."""
    starts = []
    for seed, stop in ((0, 1), (0, 11), (0, 21), (1, 1), (1, 11)):
        settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden": True}, "seed": seed}
        trainer, resumed = small_trainer(**settings), small_trainer(**settings)
        run_steps(trainer, stop)
        resumed.load_state_dict(trainer.state_dict())
        run_steps(resumed, 1)
        starts += [trainer._slots[0].env.unwrapped.starts[0]] if stop == 1 else []
        starts.append(resumed._slots[0].env.unwrapped.start)
    assert len(set(starts)) == len(starts) == 7


def test_resuming_by_episode_wipes_out_the_episode_that_another_life_was_in(small_trainer: BuildTrainer) -> None:
    settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden": True}}
    trainer, fresh, used = (small_trainer(**settings) for _ in range(3))
    run_steps(trainer, 25)
    run_steps(used, 17)
    for each in (fresh, used):
        each.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert_same_state(fresh, used)
    state = used.state_dict()["slots"][0]
    assert (state["obs"], state["episode_return"], state["episode_length"]) == (None, 0.0, 0)


def test_an_environment_that_turns_out_unsavable_resumes_by_episode(small_trainer: BuildTrainer) -> None:
    settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden_from": 40}, "noise_type": "ou"}
    trainer, left_alone, resumed = (small_trainer(**settings) for _ in range(3))
    run_steps(trainer, 39)
    assert trainer.state_dict()["slots"][0]["env"] is not None
    assert trainer.resume_mode == "exact"
    run_steps(trainer, 36)
    with pytest.warns(UserWarning, match=r"ClockEnv\.hidden is a builtins\.object") as warned:
        state = copy.deepcopy(trainer.state_dict())
    assert warned[0].filename == __file__, "the warning points at who asked for the state"
    assert state["slots"][0]["env"] is None
    assert trainer.resume_mode == "episode"
    assert "ClockEnv.hidden" in trainer.resume_reason
    run_steps(trainer, 25)
    run_steps(left_alone, 100)
    with pytest.warns(UserWarning, match="from here on a resumed run begins a new episode"):
        assert_same_state(trainer, left_alone)  # what can't be saved takes nothing from the training

    assert resumed.resume_mode == "exact"
    resumed.load_state_dict(state)
    assert resumed.resume_mode == "episode"
    assert resumed.resume_reason is not None
    episodes = [episode for _ in range(25) for episode in resumed.train_step().episodes]
    assert [(episode.length, episode.episode_return) for episode in episodes] == [(10, 10.0)] * 2
    assert resumed.state_dict()["slots"][0]["env"] is None
    assert resumed.state_dict()["env_steps"] == 100


def test_every_attribute_is_in_the_state_or_declared_transient(small_trainer: BuildTrainer) -> None:
    generator = np.random.default_rng(0)
    stateful: list[Any] = [
        GaussianNoise((1, 2), 0.1, generator),
        OrnsteinUhlenbeckNoise((1, 2), 0.1, 0.15, generator),
        RunningMoments(3),
        ObsNormalizer(3, 1),
        RewardNormalizer(2, 0.9),
        NoiseScale(),
    ]
    for algorithm in ALGORITHMS:
        trainer = small_trainer(algorithm_name=algorithm, n_step=2)
        run_steps(trainer, 60)
        stateful += [trainer, trainer.agent, trainer._buffer, trainer._slots[0], trainer.agent.actor_optimizer]
        assert set(vars(trainer._slots)) == {"_slots", *trainer._slots.TRANSIENT}
    for thing in stateful:
        names = {name.lstrip("_") for name in vars(thing)} - {name.lstrip("_") for name in thing.TRANSIENT}
        names -= {"total"} if isinstance(thing, ReplayBuffer) else set()  # it is in the RowLog
        assert names == set(thing.state_dict()), type(thing)
        assert set(thing.TRANSIENT) <= set(vars(thing)), "a transient attribute that isn't there"


def test_a_state_holds_nothing_that_a_checkpoint_must_refuse(small_trainer: BuildTrainer) -> None:
    from training.state import pack_state

    for settings in ({"noise_type": "ou"}, {"env_name": "Humanoid-v5"}):
        trainer = small_trainer(**settings)
        run_steps(trainer, 60)
        packed = pack_state(trainer.state_dict())
        assert packed["env_steps"] == 60
