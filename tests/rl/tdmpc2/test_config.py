"""The settings: what contradicts what, what `model_size` stands for, and what follows from a clock or an action."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.problems import SettingsError
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.sizes import MODEL_SIZES
from rl.tdmpc2.spaces import Spaces, plan_sizes
from train import build_config

NEEDED: dict[str, Any] = {"algorithm_name": "tdmpc2", "env_name": "Pendulum-v1"}
NAMES = ("enc_dim", "mlp_dim", "latent_dim", "num_enc_layers", "num_q")


def make_config(**changes: Any) -> TDMPC2Config:
    config = build_config(NEEDED | changes)
    assert isinstance(config, TDMPC2Config)
    return config


def read_sizes(config: TDMPC2Config) -> dict[str, int]:
    values = config.model_dump()
    return {name: values[name] for name in NAMES}


@pytest.mark.parametrize(
    ("changes", "keys", "words"),
    [
        ({"vmin": 3.0, "vmax": 3.0}, ("vmin", "vmax"), "vmin (3.0) >= vmax (3.0): nothing lies between them"),
        ({"log_std_min": 2.5}, ("log_std_min", "log_std_max"), "log_std_min (2.5) >= log_std_max (2.0)"),
        ({"min_std": 2.5}, ("min_std", "max_std"), "min_std (2.5) > max_std (2.0): no deviation lies between them"),
        ({"discount_min": 0.999}, ("discount_min", "discount_max"), "discount_min (0.999) > discount_max (0.995)"),
        ({"num_elites": 513}, ("num_elites", "num_samples"), "num_elites (513) > num_samples (512)"),
        ({"num_pi_trajs": 600}, ("num_pi_trajs", "num_samples"), "num_pi_trajs (600) > num_samples (512)"),
        ({"batch_size": 600_000}, ("batch_size", "max_timesteps"), "batch_size (600000) > max_timesteps (500000)"),
        ({"latent_dim": 500}, ("simnorm_dim", "latent_dim"), "simnorm_dim (8) does not divide latent_dim (500)"),
        (
            {"num_envs": 4, "buffer_size": 15, "batch_size": 4},
            ("buffer_size", "horizon"),
            "buffer_size (15) holds no window of horizon (3) steps for each of num_envs (4)",
        ),
        (
            {"value_uncertainty_weight": 0.5, "mpc": False},
            ("value_uncertainty_weight", "mpc"),
            "value_uncertainty_weight (0.5) weighs plans, and mpc is false",
        ),
        ({"learning_starts": 500_000}, ("learning_starts", "max_timesteps"), "nothing would be trained"),
        ({"batch_size": 512, "buffer_size": 511}, ("batch_size", "buffer_size"), "no batch would ever be full"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_keys_and_values(
    changes: dict[str, Any], keys: tuple[str, str], words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        make_config(**changes)
    (fault,) = error.value.faults
    assert fault.keys == keys
    assert words in fault.message


@pytest.mark.parametrize(
    "changes",
    [
        {"num_elites": 512, "num_pi_trajs": 512},
        {"num_pi_trajs": 0},
        {"min_std": 2.0},
        {"discount_min": 0.995},
        {"num_envs": 4, "buffer_size": 16, "batch_size": 16},
        {"value_uncertainty_weight": 0.5},
        {"latent_dim": 8, "simnorm_dim": 8},
    ],
)
def test_settings_at_the_edge_are_taken(changes: dict[str, Any]) -> None:
    assert make_config(**changes).find_contradictions() == []


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        make_config(num_elites=600, vmin=11.0, latent_dim=12)
    assert {fault.keys[0] for fault in error.value.faults} == {"num_elites", "vmin", "simnorm_dim"}


@pytest.mark.parametrize("size", [2, 0, -5, 317.5, "5", None, [5]])
def test_a_size_that_does_not_exist_is_refused_with_those_that_do(size: Any) -> None:
    with pytest.raises(SettingsError) as error:
        make_config(model_size=size)
    (fault,) = error.value.faults
    assert fault.keys == ("model_size",)
    assert fault.message.startswith("model_size must be one of 1, 5, 19, 48 or 317, got ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_q": 1}, "num_q must be >= 2, got 1"),
        ({"num_bins": 1}, "num_bins must be >= 2, got 1"),
        ({"horizon": 0}, "horizon must be >= 1, got 0"),
        ({"action_repeat": 0}, "action_repeat must be >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be < 1, got 1.0"),
        ({"discount": 1.5}, "discount must be <= 1, got 1.5"),
        ({"rho": 0.0}, "rho must be > 0, got 0.0"),
        ({"latent_dim": 0}, "latent_dim must be > 0, got 0"),
        ({"mpc": "yes"}, "mpc must be true or false, got the text 'yes'"),
        ({"gamma": 0.9}, "unknown key 'gamma'; did you mean 'discount'?"),
        ({"num_sample": 9}, "unknown key 'num_sample'; did you mean 'num_samples'?"),
        ({"plan_horizon": 9}, "unknown key 'plan_horizon'"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        make_config(**changes)
    (fault,) = error.value.faults
    assert words in fault.message


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_a_model_size_stands_for_its_sizes(size: int) -> None:
    assert read_sizes(make_config(model_size=size)) == MODEL_SIZES[size]


def test_without_a_model_size_it_is_the_second() -> None:
    assert make_config().model_size == 5
    assert read_sizes(make_config()) == MODEL_SIZES[5]
    assert make_config() == make_config(model_size=5)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(MODEL_SIZES)), st.sets(st.sampled_from(NAMES)), st.integers(2, 6))
def test_single_sizes_are_taken_before_what_the_model_size_stands_for(size: int, own: set[str], number: int) -> None:
    written = dict.fromkeys(own, 8 * number)
    assert read_sizes(make_config(model_size=size, **written)) == {**MODEL_SIZES[size], **written}


def test_the_same_sizes_are_the_same_run_however_they_are_written() -> None:
    assert make_config(model_size=5).run_id() == make_config().run_id()
    assert make_config(**MODEL_SIZES[5]).run_id() == make_config().run_id()
    for size, sizes in MODEL_SIZES.items():
        assert make_config(model_size=size, **sizes).run_id() == make_config(model_size=size).run_id()
    assert make_config(model_size=1, mlp_dim=512).run_id() != make_config(model_size=1).run_id()
    ids = {make_config(model_size=size).run_id() for size in MODEL_SIZES}
    assert len(ids) == len(MODEL_SIZES)


def test_a_config_that_was_written_down_is_read_as_the_same_run() -> None:
    for changes in ({}, {"model_size": 1}, {"model_size": 19, "latent_dim": 64, "discount": 0.9, "mpc": False}):
        config = make_config(**changes)
        again = TDMPC2Config.from_settings(config.resolved())
        assert again == config
        assert again.run_id() == config.run_id()


@pytest.mark.parametrize(
    ("length", "discount"),
    [
        (1_000, 0.995),
        (10_000, 0.995),
        (500, 0.99),
        (250, 0.98),
        (200, 0.975),
        (100, 0.95),
        (50, 0.95),
        (3, 0.95),
        (None, 0.995),
    ],
)
def test_a_longer_episode_has_a_longer_discount_within_bounds(length: int | None, discount: float) -> None:
    assert make_config().find_discount(length) == pytest.approx(discount, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 100_000), st.floats(0.5, 100), st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_discount_is_the_closed_form(length: int, denom: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = make_config(discount_denom=denom, discount_min=low, discount_max=high).find_discount(length)
    assert found == pytest.approx(sorted((low, 1 - denom / length, high))[1], abs=1e-12)


def test_a_discount_that_is_set_is_taken_whatever_the_clock() -> None:
    config = make_config(discount=0.5)
    assert {config.find_discount(length) for length in (None, 1, 1_000)} == {0.5}


def test_a_plan_has_two_rounds_more_from_twenty_numbers_of_an_action_on() -> None:
    assert [make_config().find_iterations(dim) for dim in (1, 19, 20, 61)] == [6, 6, 8, 8]
    assert [make_config(iterations=3).find_iterations(dim) for dim in (1, 61)] == [3, 3]


def test_pretraining_has_as_many_updates_as_there_were_steps_unless_it_is_set() -> None:
    assert make_config().num_pretrain == make_config().learning_starts == 5_000
    assert make_config(learning_starts=70).num_pretrain == 70
    assert make_config(learning_starts=70, pretrain_updates=0).num_pretrain == 0
    assert make_config(learning_starts=70, pretrain_updates=9).num_pretrain == 9


@pytest.mark.parametrize(
    ("changes", "off"),
    [
        ({"num_samples": 900, "mpc": False}, {"num_samples": "mpc is false"}),
        ({"iterations": 3, "num_elites": 9, "mpc": False}, dict.fromkeys(("iterations", "num_elites"), "mpc is false")),
        ({"num_pi_trajs": 3, "temperature": 0.9, "mpc": False}, None),
        ({"min_std": 0.1, "max_std": 1.0, "plan_bf16": True, "mpc": False}, None),
        ({"discount_denom": 6.0, "discount": 0.9}, {"discount_denom": "discount is set"}),
        ({"discount_min": 0.9, "discount_max": 0.99, "discount": 0.9}, None),
        ({"termination_coef": 3.0}, {"termination_coef": "episodic is false"}),
    ],
)
def test_keys_that_another_switches_off_are_named_and_leave_the_run_as_it_is(
    changes: dict[str, Any], off: dict[str, str] | None
) -> None:
    switches = {key: value for key, value in changes.items() if key in ("mpc", "discount")}
    config = make_config(**changes)
    inactive = config.inactive_keys()
    assert set(inactive) == set(changes) - set(switches)
    assert off is None or inactive == off
    assert config.run_id() == make_config(**switches).run_id()


def test_keys_that_are_not_switched_off_change_the_run() -> None:
    changes: list[dict[str, Any]] = [
        {"num_samples": 900},
        {"discount_denom": 6.0},
        {"termination_coef": 3.0, "episodic": True},
        {"episodic": True},
        {"horizon": 4, "mpc": False},
        {"mpc": False},
        {"action_repeat": 2},
        {"simnorm_dim": 4},
        {},
    ]
    configs = [make_config(**each) for each in changes]
    assert all(config.inactive_keys() == {} for config in configs)
    assert all(one.run_id() != other.run_id() for one, other in itertools.combinations(configs, 2))


def test_no_more_steps_are_kept_than_a_run_can_see() -> None:
    """An episode of one step takes the room of two, and each environment begins one more than it ends."""
    few = {"learning_starts": 10, "batch_size": 8}
    assert make_config().buffer_steps == 1_000_000
    assert make_config(buffer_size=5_000).buffer_steps == 5_000
    assert make_config(max_timesteps=100, **few).buffer_steps == 2 * 100 + 4
    assert make_config(max_timesteps=100, num_envs=3, horizon=5, **few).buffer_steps == 2 * 100 + 3 * 6
    assert make_config(max_timesteps=100, buffer_size=60, **few).buffer_steps == 60


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MODEL_SIZES)),
    st.integers(1, 64),
    st.integers(1, 9),
    st.integers(100, 10_000),
    st.integers(700, 30_000),
    st.booleans(),
)
def test_the_settings_that_decide_sizes_make_a_config_of_the_same_sizes(
    size: int, horizon: int, num_envs: int, steps: int, buffer_size: int, episodic: bool
) -> None:
    """They stand for all runs that share them where networks and buffers are only sized up."""
    config = make_config(
        model_size=size,
        horizon=horizon,
        num_envs=num_envs,
        max_timesteps=steps,
        buffer_size=buffer_size,
        episodic=episodic,
        learning_starts=20,
        batch_size=16,
    )
    shape = TDMPC2Config.from_settings(config.shape_settings())
    assert shape.buffer_steps == config.buffer_steps
    spaces = Spaces((3,), np.dtype(np.float32), 1, False, 0, (200,))
    assert plan_sizes(shape, spaces) == plan_sizes(config, spaces)
    assert shape.shape_settings() == config.shape_settings()
    assert (shape.horizon, shape.num_envs, shape.action_repeat) == (horizon, num_envs, config.action_repeat)


def test_runs_that_differ_in_what_has_no_size_share_those_settings() -> None:
    plain = make_config().shape_settings()
    assert make_config(lr=1e-4, seed=3, num_samples=64, temperature=1.0, batch_size=64).shape_settings() == plain
    assert make_config(horizon=5).shape_settings() != plain
    assert make_config(action_repeat=2).shape_settings() != plain
