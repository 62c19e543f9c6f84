"""The settings that the off-policy trainers share: what contradicts what, and what is refused before training."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.memory import MemoryRoom
from experiment.problems import SettingsError
from rl.off_policy_config import OffPolicyConfig
from train import build_config

ALGORITHMS = ["ddpg", "td3", "sac"]


def make_config(**settings: Any) -> OffPolicyConfig:
    config = build_config({"algorithm_name": "ddpg", "env_name": "Pendulum-v1"} | settings)
    assert isinstance(config, OffPolicyConfig)
    return config


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"batch_size": 200, "buffer_size": 100}, "batch_size", "buffer_size"),
        ({"batch_size": 200, "max_timesteps": 150, "learning_starts": 10}, "batch_size", "max_timesteps"),
        ({"num_envs": 200, "buffer_size": 100, "batch_size": 10}, "num_envs", "buffer_size"),
        ({"delta_scale_max": -0.5, "base_controller": "pendulum_energy"}, "delta_scale_max", "> 0"),
        ({"delta_scale_max": 0, "base_controller": "pendulum_energy"}, "delta_scale_max", "> 0"),
        ({"delta_scale_max": 0.5}, "delta_scale_max", "set base_controller"),
        ({"base_controller": "pendulum_energy"}, "base_controller", "set delta_scale_max"),
        ({"base_controller": "pid", "delta_scale_max": 0.5}, "base_controller", "pendulum_energy"),
        ({"n_step": 0}, "n_step", ">= 1"),
        ({"num_envs": 0}, "num_envs", ">= 1"),
        ({"normalize_obs": "yes"}, "normalize_obs", "true or false"),
        ({"schedule": "fixed"}, "schedule", "fixed_samples"),
        ({"schedule": "fixed_wall"}, "schedule", "set wall_budget_s"),
        ({"schedule": "fixed_wall", "wall_budget_s": 0}, "wall_budget_s", "> 0"),
        ({"lr_rule": "log"}, "lr_rule", "sqrt"),
        ({"reference_batch_size": 0}, "reference_batch_size", "> 0"),
    ],
)
def test_bad_settings_are_refused(algorithm: str, settings: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        make_config(algorithm_name=algorithm, **settings)
    assert [fault.keys[0] for fault in error.value.faults] == [key]
    assert words in error.value.faults[0].message


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"max_timesteps": 199, "batch_size": 100, "reference_batch_size": 1}, 1),
        ({"max_timesteps": 198, "batch_size": 100, "reference_batch_size": 1}, 0),
        ({"max_timesteps": 120, "learning_starts": 80, "batch_size": 64, "reference_batch_size": 1}, 0),
        ({"max_timesteps": 144, "learning_starts": 80, "batch_size": 64, "reference_batch_size": 1}, 1),
        ({"max_timesteps": 44, "num_envs": 3, "batch_size": 31, "reference_batch_size": 2}, 0),
        ({"max_timesteps": 46, "num_envs": 3, "batch_size": 31, "reference_batch_size": 2}, 1),
        ({"max_timesteps": 35, "batch_size": 30, "updates_per_step": 5, "reference_batch_size": 1}, 1),
        ({"max_timesteps": 34, "batch_size": 30, "updates_per_step": 5, "reference_batch_size": 1}, 0),
    ],
)
def test_fixed_samples_without_one_full_batch_is_refused(
    small_trainer: Any, settings: dict[str, Any], updates: int
) -> None:
    """What is refused is what would train nothing, to the step."""
    settings = {"schedule": "fixed_samples", "learning_starts": 5} | settings
    if updates == 0:
        with pytest.raises(SettingsError, match=r"one batch is .* nothing would be trained"):
            make_config(**settings)
        return
    trainer = small_trainer(**settings)
    steps = -(-settings["max_timesteps"] // settings.get("num_envs", 1))
    assert sum(trainer.train_step().updates for _ in range(steps)) == updates


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("env_name", "words"),
    [("CartPole-v1", "continuous"), ("Unbounded-v0", "without bounds"), ("Pendulum-v0", "Pendulum-v1")],
)
def test_environments_that_it_cannot_use_are_faults(algorithm: str, env_name: str, words: str) -> None:
    (fault,) = make_config(algorithm_name=algorithm, env_name=env_name).find_environment_faults()
    assert fault.keys[0] == "env_name"
    assert words in fault.message


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_evaluations_change_is_checked_too_through_the_settings_that_a_launch_checks(algorithm: str) -> None:
    config = make_config(algorithm_name=algorithm, eval_env_kwargs={"gravity": 1.0})
    (fault,) = build_config(config.shape_settings()).find_environment_faults()
    assert fault.keys[0] == "eval_env_kwargs.gravity"
    never = make_config(algorithm_name=algorithm, eval_env_kwargs={"gravity": 1.0}, eval_freq=0, num_final_eval=0)
    assert never.find_environment_faults() == []


def test_a_controller_of_another_environment_is_a_fault() -> None:
    settings = {"base_controller": "pendulum_energy", "delta_scale_max": 0.5}
    assert make_config(**settings).find_environment_faults() == []
    (fault,) = make_config(**settings, env_name="HalfCheetah-v5").find_environment_faults()
    assert fault.keys[0] == "base_controller"
    assert "controls Pendulum-v1, and env_name is HalfCheetah-v5" in fault.message


@pytest.mark.parametrize(("free", "fits"), [(999 * 36, False), (1_000 * 36, True)])
def test_a_buffer_that_does_not_fit_into_memory_is_refused_with_the_numbers(free: int, fits: bool) -> None:
    """A transition of Pendulum-v1 is twice 3 observed numbers, 1 action, reward and terminated: 36 bytes."""
    room = MemoryRoom(free)
    faults = make_config(buffer_size=1_000, max_timesteps=5_000).find_memory_faults(room)
    assert faults == make_config(buffer_size=5_000, max_timesteps=1_000, learning_starts=9).find_memory_faults(room)
    assert ["1,000 transitions" in fault.message for fault in faults] == [not fits]
    if fits:  # the rows do, and the program beside them doesn't
        return
    assert [fault.keys[0] for fault in faults] == ["buffer_size"]
    for fault in faults:
        assert "1,000 transitions of 36 bytes" in fault.message
        assert "at most 999 transitions fit" in fault.message


def test_a_buffer_of_terabytes_is_refused_through_the_settings_that_a_launch_checks() -> None:
    """A launch checks each distinct footprint alone, so the buffer's size has to be part of it."""
    huge = {"buffer_size": 10**13, "max_timesteps": 10**13}
    (fault,) = build_config(make_config(**huge).footprint_settings()).find_memory_faults(MemoryRoom(2**40))
    assert fault.keys[0] == "buffer_size"
    assert "GiB of memory are free" in fault.message


@pytest.mark.parametrize(
    "settings",
    [
        {"max_timesteps": 300, "learning_starts": 200, "batch_size": 250},
        {"base_controller": "pendulum_energy", "delta_scale_max": 0.3, "n_step": 5, "num_envs": 4},
    ],
)
def test_the_shape_is_a_config_of_its_own_and_the_same_for_the_same_sizes(settings: dict[str, Any]) -> None:
    shape = make_config(**settings).shape_settings()
    assert build_config(shape).shape_settings() == shape
    other = {"learning_rate": 0.1, "batch_size": 7, "seed": 5, "num_envs": 2}
    assert make_config(**(settings | other)).shape_settings() == shape
    assert make_config(**(settings | {"buffer_size": 290})).shape_settings() != shape


def test_keys_left_at_their_defaults_leave_the_id_alone() -> None:
    new = {"n_step": 1, "normalize_obs": False, "normalize_reward": False, "base_controller": None, "num_envs": 1}
    assert make_config(**new, delta_scale_max=None).run_id() == make_config().run_id()
    changed = [{"n_step": 2}, {"normalize_obs": True}, {"normalize_reward": True}, {"num_envs": 2}]
    assert len({make_config(**settings).run_id() for settings in [{}, *changed]}) == 5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("settings", "inactive"),
    [
        ({"wall_budget_s": 5.0}, {"wall_budget_s": "schedule is not fixed_wall"}),
        ({"wall_budget_s": 5.0, "schedule": "fixed_wall"}, {}),
        ({"reference_batch_size": 64}, {"reference_batch_size": "not fixed_samples, and lr_rule is fixed"}),
        ({"reference_batch_size": 64, "schedule": "fixed_samples"}, {}),
        ({"reference_batch_size": 64, "lr_rule": "sqrt"}, {}),
        (
            {"reference_batch_size": 64, "wall_budget_s": 5.0, "schedule": "fixed_wall"},
            {"reference_batch_size": "not fixed_samples, and lr_rule is fixed"},
        ),
    ],
)
def test_keys_of_another_schedule_are_switched_off_and_leave_the_id_alone(
    algorithm: str, settings: dict[str, Any], inactive: dict[str, str]
) -> None:
    config = make_config(algorithm_name=algorithm, **settings)
    told = config.inactive_keys()
    assert told.keys() == inactive.keys()
    assert all(words in told[key] for key, words in inactive.items())
    without = {key: value for key, value in settings.items() if key not in inactive}
    assert make_config(algorithm_name=algorithm, **without).run_id() == config.run_id()
    used = [key for key in settings if key not in inactive]
    assert (config.run_id() == make_config(algorithm_name=algorithm).run_id()) == (not used)


def test_a_budget_that_is_switched_off_ends_nothing() -> None:
    assert make_config(wall_budget_s=5.0).wall_limit_s is None
    assert make_config(wall_budget_s=5.0, schedule="fixed_wall").wall_limit_s == 5.0


@pytest.mark.parametrize(("rule", "factor"), [("fixed", 1.0), ("sqrt", 4.0), ("linear", 16.0)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_rule_scales_the_rates_of_all_optimizers(
    small_trainer: Any, algorithm: str, rule: str, factor: float
) -> None:
    """Own rates as well as the common one; at the reference itself nothing changes."""
    rates = {"learning_rate": 1e-5, "critic_learning_rate": 3e-5}
    for batch, expected in ((512, factor), (32, 1.0)):
        given = rates | {"batch_size": batch, "reference_batch_size": 32, "lr_rule": rule}
        agent = small_trainer(algorithm_name=algorithm, **given).agent
        assert agent.actor_optimizer.learning_rate == expected * 1e-5
        assert agent.critic_optimizer.learning_rate == expected * 3e-5
        if algorithm == "sac":
            assert agent.temperature_optimizer.learning_rate == expected * 1e-5
    if algorithm == "sac":
        config = make_config(algorithm_name="sac", temperature_learning_rate=1.0, lr_rule=rule, batch_size=4096)
        assert vars(type(config))["temperature_rate"].fget(config) == factor


@settings(deadline=None)
@given(
    batch=st.integers(1, 9_000),
    reference=st.integers(1, 9_000),
    updates=st.integers(1, 20),
    envs=st.integers(1, 50),
    steps=st.integers(0, 300),
)
def test_the_updates_of_fixed_samples_are_the_exact_number_rounded_down(
    batch: int, reference: int, updates: int, envs: int, steps: int
) -> None:
    settings: dict[str, Any] = {"batch_size": batch, "reference_batch_size": reference, "updates_per_step": updates}
    config = make_config(schedule="fixed_samples", num_envs=envs, **settings)
    total, owed = 0, 0
    for step in range(1, steps + 1):
        due, owed = config.count_due_updates(owed)
        total += due
        assert total == Fraction(step * envs * updates * reference, batch).__floor__()
        assert 0 <= owed < batch


def test_the_ring_of_a_run_forgets_nothing_that_it_has_room_for() -> None:
    config = make_config(max_timesteps=400, learning_starts=9, num_envs=3)
    assert config.buffer_rows == 402, "the last step is one of all three environments"
    assert make_config(max_timesteps=400, learning_starts=9, num_envs=3, buffer_size=300).buffer_rows == 300
