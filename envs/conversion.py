"""What the readers of other people's data sets have in common: checked arrays, bounds, episodes with a last frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.episodes import EpisodeError, Floats, Header, RecordedEpisode

SLACK = 1e-6
"""Actions this far beyond -1 and 1 are still within: they were rounded on their way into the file."""


def take_floats(where: str, name: str, array: NDArray[Any]) -> Floats:
    """Give numbers as float32; what is too large for it becomes infinite, which is refused later with its row.

    Raises:
        EpisodeError: these are no real numbers.
    """
    if array.dtype.kind not in "fiub":
        raise EpisodeError(f"{where}: {name} hold {array.dtype}, not numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def take_actions(where: str, name: str, array: NDArray[Any]) -> Floats:
    """Give continuous actions as float32.

    Raises:
        EpisodeError: they are discrete, or no numbers at all.
    """
    if array.dtype.kind in "iub":
        raise EpisodeError(f"{where}: {name} are whole numbers ({array.dtype}): discrete actions can't be used here")
    return take_floats(where, name, array)


def check_rows(where: str, arrays: Mapping[str, NDArray[Any]], dims: Mapping[str, int]) -> None:
    """See that arrays have their numbers of axes and equally many rows.

    Raises:
        EpisodeError: with the array that doesn't, and the shapes of all.
    """
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    for name, array in arrays.items():
        if array.ndim != dims[name]:
            raise EpisodeError(f"{where}: {name} must have {dims[name]} axes, rows first; there are {shapes}")
    if len({len(array) for array in arrays.values()}) != 1:
        raise EpisodeError(f"{where}: the numbers of rows differ: {shapes}; the file was cut short, or is another kind")


def find_bounds(where: str, actions: Floats) -> tuple[Floats, Floats]:
    """Give -1 and 1 as bounds of actions, (rows, num_agents, action_dim), whose file tells none.

    Raises:
        EpisodeError: some are outside, so that the bounds must be others, which nothing here knows.
    """
    largest = float(np.abs(actions[np.isfinite(actions)]).max(initial=0.0))
    if largest > 1 + SLACK:
        raise EpisodeError(
            f"{where}: the format doesn't tell the bounds of actions, and they reach {largest:g}, so they can't be "
            "-1 and 1; divide the actions by their bounds in the file, or record episodes with `python play.py record`"
        )
    high = np.ones(actions.shape[1:], dtype=np.float32)
    return -high, high


def build_header(low: Floats, high: Floats, facts: Mapping[str, Any], env_name: str = "") -> Header:
    """Give the header of episodes that others recorded: nobody here knows who acted."""
    return Header(env_name, {}, low, high, {"kind": "unknown"} | dict(facts))


def end_without_next(observations: Floats, actions: Floats, rewards: Floats) -> RecordedEpisode | None:
    """Give an episode whose file has no observation after its last action: the last step is left out.

    What ended it went with that step, so the episode counts as cut off. None where nothing is left.
    """
    if len(actions) < 2:
        return None
    return RecordedEpisode(observations, actions[:-1], rewards[:-1], terminated=False)
