"""Recorded episodes on disk: one HDF5 file, each frame stored once, hashed, and checked when it is opened.

An episode of L steps has L + 1 frames: what was observed before each action, and what was observed last. Frames of all
episodes stand one after the other, and so do steps. Everything has an axis of agents, which is 1 long for a single one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.files import sync_folder

FORMAT = 1
_ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "action_low", "action_high")

Floats = NDArray[np.float32]


class EpisodeError(ValueError):
    """A file of episodes that can't be used. The message names it, says what is wrong and what to do."""


@dataclass(frozen=True)
class Header:
    """Where episodes come from.

    Attributes:
        env_name: of gymnasium's registry; empty where nothing says it.
        env_kwargs: its arguments.
        action_low: bounds of the actions, (num_agents, action_dim), in the environment's own units.
        action_high: likewise.
        policy: what acted, as plain JSON: its kind, and for a trained one its run.
    """

    env_name: str
    env_kwargs: Mapping[str, Any]
    action_low: Floats
    action_high: Floats
    policy: Mapping[str, Any]

    def find_references(self, env_kwargs: Mapping[str, Any]) -> tuple[float, float] | None:
        """Give the mean returns of random actions and of an expert, which normalised scores refer to.

        None where they weren't measured, or in an environment with other arguments, or the expert wasn't the better.
        """
        references = self.policy.get("references")
        if references is None or dict(env_kwargs) != dict(self.env_kwargs):
            return None
        random, expert = float(references["random"]), float(references["expert"])
        return (random, expert) if random < expert else None


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode of L steps.

    Attributes:
        observations: (L + 1, num_agents, obs_dim).
        actions: (L, num_agents, action_dim), in the environment's own units.
        rewards: (L, num_agents).
        terminated: the task ended; False where the clock or the recorder did.
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    terminated: bool


@dataclass(frozen=True)
class Episodes:
    """Episodes of one file, its large arrays mapped into memory and not read before they are used.

    Attributes:
        path: the file; None for episodes that were never in one.
        header: where they come from.
        sha256: of the content.
        observations: (steps + episodes, num_agents, obs_dim), float32.
        actions: (steps, num_agents, action_dim), float32, in the environment's own units.
        rewards: (steps, num_agents), float32.
        lengths: (episodes,): steps of each, at least 1.
        terminated: (episodes,): False where the clock ended it.
    """

    path: Path | None
    header: Header
    sha256: str
    observations: Floats
    actions: Floats
    rewards: Floats
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return len(self.actions)

    @property
    def is_mapped(self) -> bool:
        """Whether its observations, most of it, are read from the file as they are used."""
        return isinstance(self.observations, np.memmap)

    @property
    def num_agents(self) -> int:
        """Agents that act at a time."""
        return int(self.observations.shape[1])

    @property
    def obs_dim(self) -> int:
        """Length of what one agent observes."""
        return int(self.observations.shape[2])

    @property
    def action_dim(self) -> int:
        """Length of what one agent does."""
        return int(self.actions.shape[2])

    @property
    def first_steps(self) -> NDArray[np.int64]:
        """The row of each episode's first step, (episodes,); that of its first frame is as many rows later as it is
        episodes into the file."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)[:-1]])

    def episode(self, number: int) -> RecordedEpisode:
        """Give one episode, as views."""
        first, length = int(self.first_steps[number]), int(self.lengths[number])
        return RecordedEpisode(
            observations=self.observations[first + number : first + number + length + 1],
            actions=self.actions[first : first + length],
            rewards=self.rewards[first : first + length],
            terminated=bool(self.terminated[number]),
        )

    def returns(self) -> NDArray[np.float64]:
        """Give the sum of rewards of each episode, averaged over agents, (episodes,)."""
        sums: NDArray[np.float64] = np.add.reduceat(self.rewards.mean(1, dtype=np.float64), self.first_steps)
        return sums


def gather_episodes(header: Header, episodes: Sequence[RecordedEpisode], path: Path | None = None) -> Episodes:
    """Put episodes one after the other, in memory, and check them.

    Raises:
        EpisodeError: there are none, or they don't fit together; see `check_episodes`.
    """
    where = str(path or "recorded episodes")
    if not episodes:
        raise EpisodeError(f"{where}: there are no episodes")
    try:
        arrays = {
            "observations": np.concatenate([episode.observations for episode in episodes], dtype=np.float32),
            "actions": np.concatenate([episode.actions for episode in episodes], dtype=np.float32),
            "rewards": np.concatenate([episode.rewards for episode in episodes], dtype=np.float32),
        }
    except ValueError as error:
        raise EpisodeError(f"{where}: episodes have different shapes: {error}") from error
    lengths = np.array([len(episode.actions) for episode in episodes], dtype=np.int64)
    terminated = np.array([episode.terminated for episode in episodes], dtype=np.bool_)
    gathered = Episodes(path, header, "", **arrays, lengths=lengths, terminated=terminated)
    check_episodes(gathered)
    return Episodes(path, header, hash_episodes(gathered), **arrays, lengths=lengths, terminated=terminated)


def check_episodes(episodes: Episodes) -> None:
    """Look at shapes, lengths, ranges and finiteness.

    Raises:
        EpisodeError: with the first thing that is wrong, and where.
    """
    where = str(episodes.path or "recorded episodes")
    steps, count = int(episodes.lengths.sum()), len(episodes.lengths)
    if not count or episodes.lengths.min() < 1:
        raise EpisodeError(f"{where}: there are no episodes, or one without a step")
    for name, rows, dims in (("observations", steps + count, 3), ("actions", steps, 3), ("rewards", steps, 2)):
        array = getattr(episodes, name)
        if array.ndim != dims or len(array) != rows or array.shape[1] != episodes.observations.shape[1]:
            raise EpisodeError(
                f"{where}: {name} have the shape {array.shape}; {count} episodes with {steps} steps need {rows} rows, "
                f"and {dims} axes of which the second counts agents: the file was cut short, or its lengths are wrong"
            )
    for name in ("observations", "actions", "rewards"):
        array = getattr(episodes, name)
        finite = np.isfinite(array).reshape(len(array), -1).all(1)
        if not finite.all():
            raise EpisodeError(f"{where}: {name}, row {int(np.argmin(finite))}: a number that isn't finite")
    low, high = episodes.header.action_low, episodes.header.action_high
    if low.shape != episodes.actions.shape[1:] or high.shape != low.shape or not (low < high).all():
        raise EpisodeError(f"{where}: bounds of shape {low.shape} don't fit actions of shape {episodes.actions.shape}")
    slack = 1e-4 * (high - low)
    outside = ((episodes.actions < low - slack) | (episodes.actions > high + slack)).any((1, 2))
    if outside.any():
        raise EpisodeError(f"{where}: actions, row {int(np.argmax(outside))}: outside their bounds {low} to {high}")
    _check_references(where, episodes.header.policy)


def _check_references(where: str, policy: Mapping[str, Any]) -> None:
    references = policy.get("references")
    if references is None:
        return
    numbers = [references.get(name) for name in ("random", "expert")] if isinstance(references, Mapping) else []
    if not numbers or not all(isinstance(number, int | float) and np.isfinite(number) for number in numbers):
        raise EpisodeError(
            f"{where}: references in its header are {references!r}; they have to be the mean returns of `random` and "
            "`expert`, or left out"
        )


def hash_episodes(episodes: Episodes) -> str:
    """Give the SHA-256 of header and arrays."""
    digest = hashlib.sha256(_describe(episodes.header).encode())
    for name, array in _list_arrays(episodes).items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_episodes(path: Path, episodes: Episodes) -> None:
    """Write a file of episodes, whole or not at all.

    Raises:
        OSError: the disk is full or can't be written.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["header"] = _describe(episodes.header)
            file.attrs["sha256"] = hash_episodes(episodes)
            for name, array in _list_arrays(episodes).items():
                file.create_dataset(name, data=array)
            file.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def open_episodes(path: Path) -> Episodes:
    """Open a file that `write_episodes` wrote, check it, and map its large arrays into memory.

    Raises:
        EpisodeError: it isn't there, isn't such a file, was changed or cut short, or holds what `check_episodes`
            refuses.
    """
    import h5py

    if not path.exists():
        raise EpisodeError(f"{path}: there is no such file; record one with `python play.py record`")
    try:
        with h5py.File(path, "r") as file:
            if "format" not in file.attrs or int(file.attrs["format"]) != FORMAT:
                raise EpisodeError(f"{path}: not a file of episodes of format {FORMAT}")
            facts = json.loads(str(file.attrs["header"]))
            saved = str(file.attrs["sha256"])
            arrays = {name: _map_array(path, file[name]) for name in _ARRAYS}
    except (OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(f"{path}: can't be read ({type(error).__name__}: {error}); record it again") from error
    low, high = (np.array(arrays.pop(name), dtype=np.float32) for name in ("action_low", "action_high"))
    header = Header(facts["env_name"], facts["env_kwargs"], low, high, facts["policy"])
    episodes = Episodes(path, header, saved, **arrays)
    check_episodes(episodes)
    if hash_episodes(episodes) != saved:
        raise EpisodeError(f"{path}: its content changed after it was written (the SHA-256 differs); record it again")
    return episodes


def _describe(header: Header) -> str:
    facts = {"env_name": header.env_name, "env_kwargs": dict(header.env_kwargs), "policy": dict(header.policy)}
    return json.dumps(facts, sort_keys=True)


def _list_arrays(episodes: Episodes) -> dict[str, NDArray[Any]]:
    bounds = {"action_low": episodes.header.action_low, "action_high": episodes.header.action_high}
    return {name: bounds[name] if name in bounds else getattr(episodes, name) for name in _ARRAYS}


def _map_array(path: Path, dataset: Any) -> NDArray[Any]:
    """Give an array that reads its pages from the file as they are used; small and compressed ones are read."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.size < 2**16:
        return np.asarray(dataset[...])
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
