"""Agents that begin with the networks of another run: those and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.rl.conftest import BuildTrainer
from training.protocol import TakesWeights
from training.resources import hash_state
from training.weights import WeightsError

NETWORKS = {
    "ddpg": {"actor", "critic", "target_actor", "target_critic"},
    "td3": {"actor", "critic", "target_actor", "target_critic"},
    "sac": {"actor", "critic", "target_critic"},
}


def hash_parts(state: dict[str, Any]) -> dict[str, str]:
    agent = {f"agent/{name}": part for name, part in state["agent"].items()}
    return {name: hash_state(part) for name, part in (state | agent).items() if name != "agent"}


@pytest.mark.parametrize("algorithm", sorted(NETWORKS))
def test_the_networks_are_the_other_run_s_and_everything_else_is_new(
    small_trainer: BuildTrainer, algorithm: str
) -> None:
    taught, heir, fresh = (small_trainer(algorithm_name=algorithm, seed=seed) for seed in (1, 2, 2))
    for _ in range(60):
        taught.train_step()
    state = copy.deepcopy(taught.state_dict())
    assert isinstance(heir, TakesWeights)
    heir.take_weights(state)
    theirs, ours, before = (hash_parts(found) for found in (state, heir.state_dict(), fresh.state_dict()))
    networks = {f"agent/{name}" for name in NETWORKS[algorithm]}
    assert {name for name in ours if ours[name] != before[name]} == networks
    assert all(ours[name] == theirs[name] for name in networks)
    obs = taught._slots[0].env.observation_space.sample()
    assert (heir.begin_acting()(obs) == taught.begin_acting()(obs)).all()
    for _ in range(60):
        heir.train_step()


@pytest.mark.parametrize("algorithm", sorted(NETWORKS))
def test_networks_of_other_sizes_are_refused_by_name_and_nothing_is_taken(
    small_trainer: BuildTrainer, algorithm: str
) -> None:
    taught = small_trainer(algorithm_name=algorithm, hidden_dims=[16, 8])
    heir = small_trainer(algorithm_name=algorithm)
    before = hash_state(heir.state_dict())
    with pytest.raises(WeightsError, match=r"^actor is of other sizes there: \S+ has the shape \(8, 16\) there and"):
        heir.take_weights(taught.state_dict())
    assert hash_state(heir.state_dict()) == before


def test_networks_that_are_built_otherwise_are_refused(small_trainer: BuildTrainer) -> None:
    taught, heir = small_trainer(hidden_dims=[16]), small_trainer()
    with pytest.raises(WeightsError, match=r"actor is built otherwise there: .* is in one of the two alone"):
        heir.take_weights(taught.state_dict())
    state = small_trainer().state_dict()
    del state["agent"]["target_critic"]
    with pytest.raises(WeightsError, match="it has no network target_critic"):
        heir.take_weights(state)
