"""Numbers that an environment reports of a whole episode, beside its return: under which names, and their means.

An environment reports them in the `info` of the episode's last step, in every episode or in none. Imports no torch.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

IS_SUCCESS = "is_success"

MEASURES: Mapping[str, str] = {
    IS_SUCCESS: "success_rate",
    "collision": "collision",
    "tracking_error": "tracking_error",
    "path_length": "path_length",
    "distance": "distance",
}
"""What an `info` calls a measure, and what its mean over episodes is called: `eval/success_rate` as in
stable-baselines3, `eval/<name>` else."""


class MeasureError(ValueError):
    """A measure that an environment reports in some episodes only, or that isn't a number."""


def read_measures(info: Mapping[str, Any]) -> dict[str, float]:
    """Give the measures in the `info` of an episode's last step.

    Raises:
        MeasureError: one isn't a number, or `is_success` neither true nor false.
    """
    measures = {name: info[name] for name in MEASURES if name in info}
    for name, value in measures.items():
        if not isinstance(value, numbers.Real | np.bool_):
            raise MeasureError(f"info[{name!r}] of an episode's last step must be one number, got {value!r}")
        if name == IS_SUCCESS and value not in (0, 1):
            raise MeasureError(f"info[{name!r}] of an episode's last step must be true or false, got {value!r}")
    return {name: float(value) for name, value in measures.items()}


def gather_measures(seeds: Sequence[int], episodes: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Give each measure's numbers, one per episode, from each episode's measures.

    Args:
        seeds: of the episodes, for messages.
        episodes: what `read_measures` gave of each.

    Raises:
        MeasureError: a measure is missing in some episodes.
    """
    names = [name for name in MEASURES if any(name in measures for measures in episodes)]
    for name in names:
        missing = [seed for seed, measures in zip(seeds, episodes, strict=True) if name not in measures]
        if missing:
            raise MeasureError(
                f"info[{name!r}] is missing in the last step of {len(missing)} of {len(episodes)} episodes, first with "
                f"seed {missing[0]}; an environment must report it in the last step of every episode, or of none"
            )
    return {name: tuple(measures[name] for measures in episodes) for name in names}


def average_measures(measures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Give the means over episodes, under the names that means have: `success_rate`, `collision`, ..."""
    return {MEASURES[name]: float(np.mean(values)) for name, values in measures.items()}
