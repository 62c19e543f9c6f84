"""Data sets by name or path, whatever their format: reference sets, made on first use, and files of all formats."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.d4rl import is_d4rl, read_d4rl
from envs.episodes import EpisodeError, Episodes, open_episodes
from envs.madiff import is_madiff, read_madiff
from envs.minari import MAIN_FILE, METADATA_FILE, find_minari, is_minari, read_minari
from envs.recipes import RECIPES, find_set_path
from experiment.problems import suggest

MINARI = "minari:"
Say = Callable[[str], None]


def load_dataset(dataset: str, say: Say) -> Episodes:
    """Open a data set, checked; a reference set that isn't there is made first, which may take minutes.

    Args:
        dataset: the name of a reference set; `minari:<id>`; or a path: a file of ours, of D4RL's or Minari's, a folder
            of Minari's or of MADiff's arrays. A name wins over a path: write `./pendulum-noisy` for a folder.
        say: told what is being made, how long that takes and how far it is, and what a reader leaves out.

    Raises:
        EpisodeError: it isn't there, can't be read, or can't be made. The message says what to do.
    """
    if dataset in RECIPES:
        path = find_set_path(dataset)
        if not path.exists():
            _make(dataset, say)
        return open_episodes(path)
    return _read(find_dataset(dataset), say)


@dataclass(frozen=True)
class DatasetFacts:
    """What can be said of a data set without making it.

    Attributes:
        env_name: where its episodes come from; empty where nothing says it.
        episodes: checked; None where they are still to be made.
    """

    env_name: str
    episodes: Episodes | None


def describe_dataset(dataset: str) -> DatasetFacts:
    """Say what is known of a data set before a run uses it; nothing is made, recorded or written for this.

    Raises:
        EpisodeError: it isn't there, or can't be used.
    """
    if dataset in RECIPES and not find_set_path(dataset).exists():
        return DatasetFacts(RECIPES[dataset].env_name, None)
    episodes = load_dataset(dataset, lambda line: None)
    return DatasetFacts(episodes.header.env_name, episodes)


def find_dataset(dataset: str) -> Path:
    """Give the file or folder that a data set is in, or for a reference set will be in. Reads and makes nothing.

    Raises:
        EpisodeError: there is none; the message has the names there are.
    """
    if dataset in RECIPES:
        return find_set_path(dataset)
    if dataset.startswith(MINARI):
        return find_minari(dataset.removeprefix(MINARI))
    path = Path(dataset).expanduser()
    if path.exists():
        return path
    names = ", ".join(RECIPES)
    raise EpisodeError(
        f"{dataset!r} is neither a reference set nor a file{suggest(dataset, RECIPES)}; reference sets: "
        f"{names}; else the path of a .h5 or .hdf5 file or of a folder, or minari:<id>; "
        "`python play.py record` records episodes"
    )


def _read(path: Path, say: Say) -> Episodes:
    if path.is_dir():
        for main in (path / "data" / MAIN_FILE, path / MAIN_FILE):
            if main.exists():
                return _read_hdf5(main, say)
        if is_madiff(path):
            return read_madiff(path, say)
        for metadata in (path / "data" / METADATA_FILE, path / METADATA_FILE):
            if metadata.exists():
                raise EpisodeError(f"{metadata.parent}: no {MAIN_FILE}: only Minari's HDF5 layout can be read")
        raise EpisodeError(
            f"{path}: a folder without a data set: neither Minari's (data/{MAIN_FILE}) nor MADiff's arrays "
            "(obs.npy, ..., or seed_*_data/obs_0.npy, ...)"
        )
    return _read_hdf5(path, say)


def _read_hdf5(path: Path, say: Say) -> Episodes:
    """Read an HDF5 file in whichever format it is."""
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        raise EpisodeError(f"{path}: not an HDF5 file, or cut short at its beginning; data sets are .h5 or .hdf5 files")
    try:
        with h5py.File(path, "r") as file:
            if "format" not in file.attrs:
                return _read_foreign(path, file, say)
    except EpisodeError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise EpisodeError(
            f"{path}: can't be read ({type(error).__name__}: {error}); it may be cut short: fetch or record it again"
        ) from error
    return open_episodes(path)


def _read_foreign(path: Path, file: Any, say: Say) -> Episodes:
    if is_minari(file):
        return read_minari(path, file)
    if is_d4rl(file):
        return read_d4rl(path, file, say)
    raise EpisodeError(
        f"{path}: neither ours, D4RL's (observations, actions, rewards, terminals, timeouts) nor Minari's "
        f"(episode_0, ...); it has: {', '.join(sorted(file)) or 'nothing'}"
    )


def _make(name: str, say: Say) -> None:
    """Make a reference set by `play.py make`, which may load what this layer must not, and pass its words on.

    Raises:
        EpisodeError: it didn't come to its end; the message has its last line.
    """
    script = Path(__file__).resolve().parents[1] / "play.py"
    say(f"{find_set_path(name)} isn't there; it takes {RECIPES[name].takes} to make")
    command = [sys.executable, "-u", str(script), "make", name]
    inherited = {key: value for key, value in os.environ.items() if key not in _OF_THIS_RUN}
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=inherited
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.rstrip()
            say(last)
    if process.returncode != 0:
        raise EpisodeError(
            f"{name} couldn't be made: `python play.py make {name}` ended with exit code {process.returncode}: {last}; "
            "the same command goes on where it stopped"
        )


_OF_THIS_RUN = ("GRIDPILOT_RUN_DIR", "GRIDPILOT_LOCK_FD", "GRIDPILOT_ATTEMPT")
"""What a runner tells the process of one run, which a training of another one must not take for its own."""
