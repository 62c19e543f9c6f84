"""The settings of DDPG: which contradict each other, and which are switched off by others."""

from __future__ import annotations

from typing import Any

import pytest

from experiment.problems import SettingsError
from rl.ddpg_config import DDPGConfig


def make_config(**settings: Any) -> DDPGConfig:
    return DDPGConfig.from_settings({"algorithm_name": "ddpg", "env_name": "Pendulum-v1"} | settings)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"learning_starts": 500, "max_timesteps": 500}, ("learning_starts", "max_timesteps")),
        ({"batch_size": 200, "buffer_size": 100}, ("batch_size", "buffer_size")),
        ({"batch_size": 200, "max_timesteps": 150, "learning_starts": 10}, ("batch_size", "max_timesteps")),
        ({"num_envs": 200, "buffer_size": 100, "batch_size": 10}, ("num_envs", "buffer_size")),
    ],
)
def test_settings_that_would_train_nothing_are_refused(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as error:
        make_config(**settings)
    assert keys in [fault.keys for fault in error.value.faults]


@pytest.mark.parametrize(
    ("settings", "inactive"),
    [
        ({"learning_rate": 1e-3}, set()),
        ({"learning_rate": 1e-3, "actor_learning_rate": 1e-4}, set()),
        ({"learning_rate": 1e-3, "actor_learning_rate": 1e-4, "critic_learning_rate": 1e-3}, {"learning_rate"}),
        ({"ou_theta": 0.2}, {"ou_theta"}),
        ({"ou_theta": 0.2, "noise_type": "ou"}, set()),
        ({"noise_std": 0.0, "noise_type": "ou", "ou_theta": 0.2}, {"noise_type", "ou_theta"}),
    ],
)
def test_switched_off_keys_are_named_and_leave_the_identity_alone(settings: dict[str, Any], inactive: set[str]) -> None:
    config = make_config(**settings)
    assert set(config.inactive_keys()) == inactive
    without = {key: value for key, value in settings.items() if key not in inactive}
    assert make_config(**without).run_id() == config.run_id()


def test_environments_that_ddpg_cannot_use_are_faults() -> None:
    assert make_config().find_environment_faults() == []
    (fault,) = make_config(env_name="CartPole-v1").find_environment_faults()
    assert fault.keys == ("env_name",)
    assert "continuous" in fault.message
