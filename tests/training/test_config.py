"""Settings of every trainer that can't hold together."""

from __future__ import annotations

from typing import Any

import pytest

from experiment.problems import SettingsError
from training.config import TrainerConfig

BASE = {"algorithm_name": "any", "env_name": "any"}


def test_a_guard_that_would_have_no_rows_to_look_at_is_refused() -> None:
    with pytest.raises(SettingsError, match="guard is stop, but log_freq and eval_freq are 0") as caught:
        TrainerConfig.from_settings(BASE | {"guard": "stop", "log_freq": 0, "eval_freq": 0})
    (fault,) = caught.value.faults
    assert fault.keys == ("guard", "log_freq", "eval_freq")


@pytest.mark.parametrize(
    "settings",
    [
        {"guard": "warn", "log_freq": 0, "eval_freq": 0},
        {"guard": "stop", "log_freq": 0},
        {"guard": "stop", "eval_freq": 0},
        {"guard": "stop", "log_freq": 0, "eval_freq": 10},
        {"guard": "stop", "log_freq": 10, "eval_freq": 0},
    ],
)
def test_a_guard_with_rows_of_one_kind_is_taken(settings: dict[str, Any]) -> None:
    assert TrainerConfig.from_settings(BASE | settings).guard == settings["guard"]
