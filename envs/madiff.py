"""Reading the `.npy` folders that MADiff trains on, in both of their layouts, with an axis of agents.

Layouts: https://github.com/zbzhu99/madiff (Zhu et al. 2023, arXiv:2305.17330). Neither has a frame after an episode's
last action, so the last step of each episode is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.conversion import build_header, check_rows, end_without_next, find_bounds, take_actions, take_floats
from envs.episodes import EpisodeError, Episodes, Floats, gather_episodes

PARTICLE_STEPS = 25
"""Length of an episode of the particle environments, whose files mark no ends: `dones` are 0 throughout."""

JOINT_FILES = {"obs": 3, "actions": 3, "rewards": 2, "path_lengths": 1}
"""Files of the layout with all agents in one array, with their numbers of axes."""


def is_madiff(folder: Path) -> bool:
    """Tell whether a folder holds arrays in one of MADiff's layouts."""
    return (folder / "obs.npy").exists() or (folder / "obs_0.npy").exists() or bool(_list_seeds(folder))


def read_madiff(folder: Path, say: Callable[[str], None]) -> Episodes:
    """Read a folder: arrays of all agents (`obs.npy`, ...), of each (`obs_0.npy`, ...), or `seed_*_data` of the latter.

    Args:
        folder: with the arrays, or with folders of them.
        say: told what was left out.

    Raises:
        EpisodeError: a file is missing or can't be read, shapes don't fit together, actions have unknown bounds.
    """
    where = str(folder)
    if (folder / "obs.npy").exists():
        pieces, layout = _read_joint(folder), "madiff"
    else:
        seeds = [folder] if (folder / "obs_0.npy").exists() else _list_seeds(folder)
        pieces, layout = [piece for seed in seeds for piece in _read_particles(seed)], "madiff-mpe"
    recorded = [episode for piece in pieces if (episode := end_without_next(*piece)) is not None]
    if not recorded:
        raise EpisodeError(f"{where}: there are no episodes of two steps or more")
    say(f"{where} has no frames after last actions: the last step of each of its {len(pieces):,} episodes is left out")
    if len({episode.actions.shape[1:] for episode in recorded}) != 1:
        raise EpisodeError(f"{where}: its folders have different numbers of agents or of actions")
    bounds = find_bounds(where, np.concatenate([episode.actions for episode in recorded]))
    return gather_episodes(build_header(*bounds, {"format": layout}), recorded, folder)


def _list_seeds(folder: Path) -> list[Path]:
    return sorted(seed for seed in folder.glob("seed_*_data") if (seed / "obs_0.npy").exists())


def _load(path: Path) -> NDArray[Any]:
    """Read one array, without running anything that might be in its file."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise EpisodeError(f"{path}: there is no such file, and the others of its folder need it") from None
    except (OSError, ValueError, EOFError) as error:
        raise EpisodeError(f"{path}: can't be read ({type(error).__name__}: {error})") from error
    if not isinstance(array, np.ndarray):
        raise EpisodeError(f"{path}: an archive of arrays, not one array")
    return array


def _read_joint(folder: Path) -> list[tuple[Floats, Floats, Floats]]:
    """Read the layout of obs.npy, actions.npy, rewards.npy and path_lengths.npy: (rows, agents, ...)."""
    where = str(folder)
    arrays = {name: _load(folder / f"{name}.npy") for name in JOINT_FILES}
    lengths = arrays.pop("path_lengths").reshape(-1)
    rewards = arrays["rewards"]
    if rewards.ndim == 3 and rewards.shape[2] == 1:
        rewards = rewards[:, :, 0]
    if rewards.ndim == 1:
        rewards = rewards[:, None]
    arrays["rewards"] = rewards
    check_rows(where, arrays, JOINT_FILES)
    if lengths.dtype.kind not in "iu" or (len(lengths) and lengths.min() < 1):
        raise EpisodeError(f"{where}: path_lengths must be whole numbers above 0")
    if lengths.sum() != len(rewards):
        raise EpisodeError(
            f"{where}: path_lengths add up to {int(lengths.sum()):,} steps, and obs.npy has {len(rewards):,}: "
            "a file was cut short"
        )
    num_agents = arrays["obs"].shape[1]
    if arrays["actions"].shape[1] != num_agents or rewards.shape[1] not in (1, num_agents):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise EpisodeError(f"{where}: the second axis counts agents, and differs: {shapes}")
    observations = take_floats(where, "obs", arrays["obs"])
    actions = take_actions(where, "actions", arrays["actions"])
    shared = np.repeat(take_floats(where, "rewards", rewards), num_agents // rewards.shape[1], axis=1)
    ends = np.cumsum(lengths).tolist()
    return _cut(observations, actions, shared, ends)


def _read_particles(folder: Path) -> list[tuple[Floats, Floats, Floats]]:
    """Read the layout of obs_0.npy, acs_0.npy, rews_0.npy, dones_0.npy, obs_1.npy, ...: (rows, ...) for each agent."""
    where = str(folder)
    agents = range(sum(1 for _ in folder.glob("obs_*.npy")))
    observations = _stack(where, "obs", [_load(folder / f"obs_{agent}.npy") for agent in agents], 2)
    actions = _stack(where, "acs", [_load(folder / f"acs_{agent}.npy") for agent in agents], 2)
    rewards = _stack(where, "rews", [_load(folder / f"rews_{agent}.npy").squeeze() for agent in agents], 1)
    dones = _stack(where, "dones", [_load(folder / f"dones_{agent}.npy").squeeze() for agent in agents], 1)
    arrays = {"obs": observations, "acs": actions, "rews": rewards, "dones": dones}
    check_rows(where, arrays, {"obs": 3, "acs": 3, "rews": 2, "dones": 2})
    ends, first = [], 0
    over = np.asarray(dones.astype(bool).all(1))
    for row in range(len(over)):
        if over[row] or row + 1 - first == PARTICLE_STEPS or row + 1 == len(over):
            first = row + 1
            ends.append(first)
    floats = take_floats(where, "obs", observations), take_actions(where, "acs", actions)
    return _cut(*floats, take_floats(where, "rews", rewards), ends)


def _stack(where: str, name: str, arrays: list[NDArray[Any]], dims: int) -> NDArray[Any]:
    """Put the agents' arrays side by side, (rows, agents, ...)."""
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or arrays[0].ndim != dims:
        told = ", ".join(f"{name}_{agent}.npy {array.shape}" for agent, array in enumerate(arrays))
        raise EpisodeError(
            f"{where}: all agents need arrays of one shape with {dims} axes, rows first; there are {told}"
        )
    return np.stack(arrays, axis=1)


def _cut(
    observations: Floats, actions: Floats, rewards: Floats, ends: list[int]
) -> list[tuple[Floats, Floats, Floats]]:
    return [(observations[first:end], actions[first:end], rewards[first:end]) for first, end in pairwise([0, *ends])]
