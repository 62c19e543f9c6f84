"""Straight equals resumed, to the bit, for the trainers that learn from data sets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from envs.episodes import Episodes
from experiment.problems import SettingsError
from rl.offline.offline import OfflineTrainer
from training.adam import Adam
from training.state import pack_state
from training.weights import WeightsError

ALGORITHMS = ("bc", "td3_bc", "iql")
BuildOffline = Callable[..., OfflineTrainer]
DrawEpisodes = Callable[..., Episodes]


def run_steps(trainer: OfflineTrainer, number: int) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in trainer.train_step().metrics.items()} for _ in range(number)]


def list_leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Give every number, text and array of a state by its path, tensors as bytes."""
    if isinstance(state, dict | list | tuple):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, part in parts for name, leaf in list_leaves(part, f"{path}/{key}").items()}
    return {path: state.detach().numpy().tobytes() if isinstance(state, torch.Tensor) else state}


@pytest.mark.parametrize("stop", [0, 1, 36, 51])
@pytest.mark.parametrize("guard", ["warn", "repair"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_straight_equals_resumed(small_offline: BuildOffline, algorithm: str, guard: str, stop: int) -> None:
    """Also from before the first step, and from within TD3+BC's delay; with the gates, over their first median."""
    settings = {"algorithm_name": algorithm, "guard": guard}
    straight, resumed = small_offline(**settings), small_offline(**settings)
    run_steps(straight, stop)
    state = copy.deepcopy(straight.state_dict())
    rows = run_steps(straight, 90 - stop)
    resumed.load_state_dict(state)
    assert run_steps(resumed, 90 - stop) == rows
    assert list_leaves(resumed.state_dict()) == list_leaves(straight.state_dict())
    assert straight.evaluate([5]) == resumed.evaluate([5])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_loading_wipes_out_all_that_another_life_left(small_offline: BuildOffline, algorithm: str) -> None:
    one, other = (small_offline(algorithm_name=algorithm, seed=seed) for seed in (1, 2))
    run_steps(one, 20)
    run_steps(other, 33)
    before, different = list_leaves(one.state_dict()), list_leaves(other.state_dict())
    assert before.keys() == different.keys()
    same = {path for path in before if before[path] == different[path]}
    assert same == {path for path in before if path.endswith(("/gate", "/dataset_sha256", "/bit_generator"))} | {
        path for path in before if path in ("/generator/has_uint32", "/generator/uinteger") and path in same
    }
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert list_leaves(other.state_dict()) == before
    assert run_steps(one, 20) == run_steps(other, 20)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_evaluating_changes_nothing(small_offline: BuildOffline, algorithm: str) -> None:
    one, other = (small_offline(algorithm_name=algorithm) for _ in range(2))
    assert other.evaluate([3]) == other.evaluate([3])
    assert run_steps(one, 10) == run_steps(other, 10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_attribute_is_in_the_state_or_declared_transient(small_offline: BuildOffline, algorithm: str) -> None:
    trainer = small_offline(algorithm_name=algorithm)
    run_steps(trainer, 6)
    optimizers = [part for part in vars(trainer.agent).values() if isinstance(part, Adam)]
    stateful: list[Any] = [trainer, trainer.agent, *optimizers]
    for thing in stateful:
        names = {name.lstrip("_") for name in vars(thing)} - {name.lstrip("_") for name in thing.TRANSIENT}
        assert names == set(thing.state_dict()), type(thing)
        assert set(thing.TRANSIENT) <= set(vars(thing)), "a transient attribute that isn't there"
    assert pack_state(trainer.state_dict())["updates"] == 6


def test_going_on_with_another_content_of_the_data_set_is_refused(
    small_offline: BuildOffline, store: Callable[[Episodes], str], draw_episodes: DrawEpisodes
) -> None:
    state = small_offline(draw_episodes([9, 9])).state_dict()
    other = small_offline(draw_episodes([9, 9], seed=1))
    with pytest.raises(SettingsError, match=r"is no longer what the run has learned from.*continue_training: false"):
        other.load_state_dict(state)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seeds_give_other_networks_and_other_batches(small_offline: BuildOffline, algorithm: str) -> None:
    rows = [run_steps(small_offline(algorithm_name=algorithm, seed=seed), 3)[-1] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_networks_of_another_run_are_taken_and_nothing_else(small_offline: BuildOffline, algorithm: str) -> None:
    taught, heir, fresh = (small_offline(algorithm_name=algorithm, seed=seed) for seed in (1, 2, 2))
    run_steps(taught, 20)
    heir.take_weights(copy.deepcopy(taught.state_dict()))
    ours, theirs, before = (list_leaves(trainer.state_dict()) for trainer in (heir, taught, fresh))
    networks = tuple(f"/agent/{name}/" for name in heir.agent.networks())
    assert networks[0] == "/agent/actor/"
    assert all(ours[path] == (theirs if path.startswith(networks) else before)[path] for path in ours)
    with pytest.raises(WeightsError, match="actor is of other sizes there"):
        heir.take_weights(small_offline(algorithm_name=algorithm, hidden_dims=[8, 16]).state_dict())
