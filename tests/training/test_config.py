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


def test_evaluations_may_change_arguments_of_the_environment_each_as_a_whole() -> None:
    kwargs = {"env_kwargs": {"g": 9.8, "layout": {"size": 3}}, "eval_env_kwargs": {"layout": {"held_out": True}}}
    config = TrainerConfig.from_settings(BASE | kwargs)
    assert config.evaluation_kwargs == {"g": 9.8, "layout": {"held_out": True}}
    assert config.env_kwargs == {"g": 9.8, "layout": {"size": 3}}
    dotted = TrainerConfig.from_settings(
        BASE | {"env_kwargs": kwargs["env_kwargs"], "eval_env_kwargs.layout.held_out": True}
    )
    assert dotted.run_id() == config.run_id()


def test_what_evaluations_change_is_part_of_the_id_only_where_it_is_set_and_something_is_evaluated() -> None:
    never = {"eval_freq": 0, "num_final_eval": 0}
    changes = {"eval_env_kwargs": {"g": 1.0}}
    plain, changed = (TrainerConfig.from_settings(BASE | more) for more in ({}, changes))
    assert plain.run_id() == TrainerConfig.from_settings(BASE | {"eval_env_kwargs": {}}).run_id() != changed.run_id()
    assert changed.inactive_keys() == {}
    silent = TrainerConfig.from_settings(BASE | never | changes)
    assert silent.inactive_keys() == {"eval_env_kwargs": "eval_freq and num_final_eval are 0"}
    assert silent.run_id() == TrainerConfig.from_settings(BASE | never).run_id()
    assert silent.shape_settings()["eval_env_kwargs"] == {}
    assert changed.shape_settings()["eval_env_kwargs"] == {"g": 1.0}
