"""Recorded episodes by name or path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envs.episodes import Episodes, open_episodes


@dataclass(frozen=True)
class DatasetFacts:
    """What can be said of a data set without making it.

    Attributes:
        env_name: where its episodes come from; empty where nothing says it.
        episodes: checked; None where they are still to be made.
    """

    env_name: str
    episodes: Episodes | None


def load_dataset(dataset: str, say: Callable[[str], None]) -> Episodes:
    """Open a data set and check it.

    Args:
        dataset: a path.
        say: prints a line for people.

    Raises:
        EpisodeError: it can't be used.
    """
    return open_episodes(Path(dataset))


def describe_dataset(dataset: str) -> DatasetFacts:
    """Say what is known of a data set before a run uses it; nothing is made, recorded or written for this.

    Raises:
        EpisodeError: it isn't there, or can't be used.
    """
    episodes = open_episodes(Path(dataset))
    return DatasetFacts(episodes.header.env_name, episodes)
