"""Settings of every trainer that can't hold together."""

from __future__ import annotations

import pytest

from experiment.problems import SettingsError
from training.config import TrainerConfig

BASE = {"algorithm_name": "any", "env_name": "any"}


def test_the_guard_watches_runs_without_rows_too() -> None:
    config = TrainerConfig.from_settings(BASE | {"guard": "stop", "log_freq": 0, "eval_freq": 0})
    assert config.guard_limits == {}


def test_limits_in_the_scale_of_a_task_are_handed_on_where_they_are_set() -> None:
    config = TrainerConfig.from_settings(BASE | {"guard_max_critic_loss": 1e4, "guard_min_episode_length": 50.0})
    assert config.guard_limits == {"critic_loss": 1e4, "episode_length": 50.0}
    with pytest.raises(SettingsError, match="guard_max_actor_loss must be > 0"):
        TrainerConfig.from_settings(BASE | {"guard_max_actor_loss": 0.0})
