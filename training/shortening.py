"""Runs cut to a few updates, with all that can break still in them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from experiment.identity import PARENT_KEYS

if TYPE_CHECKING:
    from training.config import TrainerConfig

Config = TypeVar("Config", bound="TrainerConfig")
UPDATES = 2
"""One before a run is stopped and one after it went on; more where something happens in every third alone."""


def count_steps_until(rows: int, num_envs: int) -> int:
    """Give the environment steps after which so many rows are there, each environment having taken as many."""
    return -(-rows // num_envs) * num_envs


def shorten_acting(config: Config, steps: int, *, updates: int = UPDATES, wait: int = 1, **changes: Any) -> Config:
    """Give a run that acts for so many steps, and then learns a few times; it saves when it has learned once.

    Args:
        config: of the whole run.
        steps: in all environments, after which a batch is there; a multiple of their number.
        updates: at least that many.
        wait: steps in every environment for each of them.
        changes: settings of the trainer's own.
    """
    first = steps + (wait - 1) * config.num_envs
    last = first + (updates - 1) * wait * config.num_envs
    return _shorten(config, save=first, last=last, **({"learning_starts": steps - 1} | changes))


def shorten_learning(config: Config, *, updates: int = UPDATES, save: int = 1, **changes: Any) -> Config:
    """Give a run of a few training steps, for a trainer whose clock counts those."""
    return _shorten(config, save=save, last=updates, **changes)


def _shorten(config: Config, *, save: int, last: int, **changes: Any) -> Config:
    settings = config.resolved() | {
        "max_timesteps": last,
        "save_freq": save,
        "log_freq": save,
        "eval_freq": last if config.eval_every else 0,
        "num_eval": 1,
        "num_final_eval": min(1, config.num_final_eval),
        "continue_training": True,
        "keep_replay": False,
        **dict.fromkeys(PARENT_KEYS),
    }
    if config.wall_budget_s is not None:  # what little there is has to be done, however slow the machine
        settings["wall_budget_s"] = max(config.wall_budget_s, 3600.0)
    return type(config).from_settings(settings | changes)


def describe_kind(config: TrainerConfig) -> dict[str, Any]:
    """Give what tells runs apart that go other ways through the code: sizes, choices, and what is 0 and what isn't."""
    off = {*config.list_switched_off(), *PARENT_KEYS, "seed", "max_timesteps"}
    ways = {
        key: _simplify(value) for key, value in config.resolved().items() if key not in off and not _is_cadence(key)
    }
    return ways | config.footprint_settings()


def _is_cadence(key: str) -> bool:
    return key.endswith("_freq") and key.split("_")[0] in ("eval", "save", "log")


def _simplify(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value > 0
