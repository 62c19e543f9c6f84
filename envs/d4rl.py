"""Reading D4RL's HDF5 files: flat arrays of steps, one after the other, with flags where episodes end.

Layout: https://github.com/Farama-Foundation/D4RL (Fu et al. 2020, arXiv:2004.07219).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.conversion import build_header, check_rows, end_without_next, find_bounds, take_actions, take_floats
from envs.episodes import EpisodeError, Episodes, RecordedEpisode, gather_episodes

REQUIRED = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}
"""Arrays that a file has, with their numbers of axes."""


def is_d4rl(file: Any) -> bool:
    """Tell whether an open HDF5 file looks like one of D4RL's."""
    return "observations" in file and "terminals" in file


def read_d4rl(path: Path, file: Any, say: Callable[[str], None]) -> Episodes:
    """Read an open file of D4RL's.

    Episodes end at `terminals` (the task did) and at `timeouts` (its clock did), and the last where the file does.
    Their last frames are `next_observations`; where there are none, each episode's last step is left out.

    Args:
        path: of the file, for messages.
        file: the open `h5py.File`.
        say: told what was left out.

    Raises:
        EpisodeError: an array is missing or of another shape, actions have unknown bounds, or steps aren't in order.
    """
    where = str(path)
    if missing := [name for name in REQUIRED if name not in file]:
        raise EpisodeError(f"{where}: D4RL's {', '.join(missing)} missing; there are: {', '.join(sorted(file))}")
    arrays = {name: np.asarray(file[name]) for name in REQUIRED}
    if arrays["rewards"].ndim == 2 and arrays["rewards"].shape[1] == 1:
        arrays["rewards"] = arrays["rewards"][:, 0]
    check_rows(where, arrays, REQUIRED)
    observations = take_floats(where, "observations", arrays["observations"])[:, None]
    actions = take_actions(where, "actions", arrays["actions"])[:, None]
    rewards = take_floats(where, "rewards", arrays["rewards"])[:, None]
    terminals, timeouts = arrays["terminals"].astype(bool), arrays["timeouts"].astype(bool)
    header = build_header(*find_bounds(where, actions), {"format": "d4rl"})
    ends = _find_ends(terminals | timeouts)
    frames = None
    if "next_observations" in file:
        frames = take_floats(where, "next_observations", np.asarray(file["next_observations"]))[:, None]
        _check_order(where, observations, frames, ends)
    recorded = []
    for first, end in ends:
        rows = slice(first, end)
        if frames is not None:
            seen = np.concatenate([observations[rows], frames[end - 1 : end]])
            recorded.append(RecordedEpisode(seen, actions[rows], rewards[rows], bool(terminals[end - 1])))
        elif (episode := end_without_next(observations[rows], actions[rows], rewards[rows])) is not None:
            recorded.append(episode)
    if frames is None:
        say(f"{where} has no next_observations: the last step of each of its {len(ends):,} episodes is left out")
    return gather_episodes(header, recorded, path)


def _find_ends(over: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Give each episode's first row and the row after its last."""
    ends = (np.flatnonzero(over) + 1).tolist()
    if len(over) and (not ends or ends[-1] != len(over)):
        ends.append(len(over))
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def _check_order(where: str, observations: NDArray[Any], frames: NDArray[Any], ends: list[tuple[int, int]]) -> None:
    """See that within an episode each step begins where the one before it ended."""
    if frames.shape != observations.shape:
        raise EpisodeError(
            f"{where}: next_observations {frames.shape[::2]} and observations {observations.shape[::2]} differ in shape"
        )
    # What isn't finite is refused later, with its row.
    odd = ~(np.isfinite(frames[:-1]) & np.isfinite(observations[1:]))
    same = (np.isclose(frames[:-1], observations[1:], rtol=1e-4, atol=1e-4) | odd).all((1, 2))
    same[[end - 1 for _, end in ends if end < len(observations)]] = True
    if not same.all():
        row = int(np.argmin(same))
        raise EpisodeError(
            f"{where}: row {row + 1} doesn't begin where row {row} ended, and no flag says that an episode ends there: "
            "the steps aren't in the order in which they were taken, or `timeouts` are missing"
        )
