"""Runs cut to a few updates: what stays, and which of them are of one kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiment.plan import check_combinations
from experiment.spec import load_spec
from train import build_config
from training.config import TrainerConfig

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "exp_specs").rglob("*.yaml"))
DDPG = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1"}


def make_config(**settings: Any) -> TrainerConfig:
    return build_config(DDPG | settings)


def list_configs(path: Path) -> list[TrainerConfig]:
    """One config of each kind in a spec."""
    kinds: dict[str, TrainerConfig] = {}
    for planned in check_combinations(load_spec(path), build_config):
        assert isinstance(planned.config, TrainerConfig)
        kinds.setdefault(json.dumps(planned.config.kind_settings(), sort_keys=True), planned.config)
    return list(kinds.values())


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_can_be_cut_short_and_keeps_what_decides_networks_batches_and_ways(path: Path) -> None:
    for config in list_configs(path):
        short = config.shortened()
        kept = ("batch_size", "num_envs", "env_name", "env_kwargs", "eval_env_kwargs", "guard")
        assert [getattr(short, key) for key in kept] == [getattr(config, key) for key in kept]
        assert short.max_timesteps <= 2 * config.batch_size + 50 * config.num_envs
        assert 0 < short.save_every < short.max_timesteps
        assert short.eval_every == (short.max_timesteps if config.eval_every else 0)
        assert (short.num_eval, short.num_final_eval) == (1, min(1, config.num_final_eval))
        sizes = {"buffer_size", "max_timesteps", "rl_tuned_steps"}
        mine, theirs = config.shape_settings(), short.shape_settings()
        assert [key for key in mine if mine[key] != theirs[key] and key not in sizes] == []


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_footprint_is_a_config_of_its_own_with_the_same_footprint_and_shape(path: Path) -> None:
    for config in list_configs(path):
        footprint = config.footprint_settings()
        again = build_config(footprint)
        assert again.footprint_settings() == footprint
        assert again.shape_settings() == config.shape_settings()
        assert again.batch_size == config.batch_size


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"learning_rate": 0.5}, {"max_timesteps": 2_000_000}, {"eval_freq": 77}, {"tau": 0.5}]
)
def test_runs_that_differ_in_numbers_alone_are_of_one_kind(change: dict[str, Any]) -> None:
    plain = make_config(max_timesteps=3_000_000)
    assert make_config(**({"max_timesteps": 3_000_000} | change)).kind_settings() == plain.kind_settings()


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 7},
        {"normalize_obs": True},
        {"noise_std": 0.0},
        {"max_grad_norm": 1.0},
        {"guard": "repair"},
        {"hidden_dims": [8]},
        {"num_envs": 2},
        {"n_step": 3},
        {"algorithm_name": "td3"},
    ],
)
def test_runs_that_go_another_way_are_of_another_kind(change: dict[str, Any]) -> None:
    assert make_config(**change).kind_settings() != make_config().kind_settings()


def test_speed_is_a_matter_of_all_settings_but_the_seed_the_end_and_what_is_switched_off() -> None:
    plain = make_config().speed_settings()
    for change in ({"seed": 3}, {"max_timesteps": 5_000}, {"ou_theta": 0.5}, {"log_freq": 1}, {"device": "cpu"}):
        assert make_config(**change).speed_settings() == plain
    for change in ({"batch_size": 8}, {"num_envs": 2}, {"normalize_obs": True}):
        assert make_config(**change).speed_settings() != plain


def test_equal_samples_wait_as_many_steps_for_each_update_as_a_batch_takes() -> None:
    config = make_config(schedule="fixed_samples", batch_size=1024, num_envs=2, max_timesteps=50_000)
    short = config.shortened()
    # 2 environments owe 512 samples a step, so that every second step brings an update.
    assert (short.save_freq, short.max_timesteps) == (1024 + 2, 1024 + 2 + 4)


def test_a_policy_that_learns_in_every_fifth_update_is_waited_for() -> None:
    config = build_config(DDPG | {"algorithm_name": "td3", "policy_delay": 5})
    assert config.shortened().max_timesteps == config.batch_size + 4


def test_seconds_that_a_run_is_given_are_enough_for_a_short_one_on_any_machine() -> None:
    config = make_config(schedule="fixed_wall", wall_budget_s=0.01)
    assert config.shortened().wall_limit_s == 3600.0
