"""Reading Minari's data sets, HDF5 layout, with no need of the package: an HDF5 group an episode, metadata beside it.

Layout: https://minari.farama.org (`<root>/<id>/data/main_data.hdf5` and `metadata.json`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.conversion import check_rows, find_bounds, take_actions, take_floats
from envs.episodes import EpisodeError, Episodes, Floats, Header, RecordedEpisode, gather_episodes
from experiment.problems import suggest

MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
ROOT_VARIABLE = "MINARI_DATASETS_PATH"


def find_root() -> Path:
    """Give the folder of Minari's data sets, as Minari finds it."""
    return Path(os.environ.get(ROOT_VARIABLE) or Path.home() / ".minari" / "datasets")


def find_minari(dataset_id: str) -> Path:
    """Give the main file of a data set that Minari has downloaded or made.

    Raises:
        EpisodeError: it isn't there; the message lists what is.
    """
    root = find_root()
    path = root / dataset_id / "data" / MAIN_FILE
    if path.is_file():
        return path
    if (path.parent / METADATA_FILE).is_file():
        raise EpisodeError(f"{path.parent}: no {MAIN_FILE}: only Minari's HDF5 layout can be read")
    there = sorted(str(found.parents[1].relative_to(root)) for found in root.rglob(MAIN_FILE)) if root.is_dir() else []
    raise EpisodeError(
        f"minari:{dataset_id}: there is no {path}{suggest(dataset_id, there)}; data sets in {root}: "
        f"{', '.join(there) or 'none'}. `minari download {dataset_id}` fetches it; {ROOT_VARIABLE} names another folder"
    )


def is_minari(file: Any) -> bool:
    """Tell whether an open HDF5 file looks like one of Minari's."""
    return any(name.startswith("episode_") for name in file)


def read_minari(path: Path, file: Any) -> Episodes:
    """Read the open main file of a data set.

    Raises:
        EpisodeError: spaces that aren't flat boxes, arrays that don't fit together, metadata that can't be read.
    """
    where = str(path)
    metadata = _read_metadata(path.parent / METADATA_FILE)
    names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
    for name, key in (("observation_space", "observations"), ("action_space", "actions")):
        _check_space(where, key, metadata.get(name))
    recorded = [_read_episode(f"{where}: {name}", file[name]) for name in names]
    if not recorded:
        raise EpisodeError(f"{where}: there are no episodes")
    env_name, env_kwargs = _read_env_spec(metadata)
    facts = {"kind": "unknown", "format": "minari"} | {
        key: str(metadata[key]) for key in ("dataset_id", "algorithm_name") if metadata.get(key)
    }
    low, high = _find_bounds(where, metadata.get("action_space"), recorded)
    return gather_episodes(Header(env_name, env_kwargs, low, high, facts), recorded, path)


def _read_metadata(path: Path) -> dict[str, Any]:
    """Give the metadata with the spaces in it as mappings; empty where there is no such file."""
    try:
        metadata = json.loads(path.read_bytes())
        for key in ("observation_space", "action_space", "env_spec"):
            if isinstance(metadata.get(key), str):
                metadata[key] = json.loads(metadata[key])
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise EpisodeError(f"{path}: not the metadata of a Minari data set ({error})") from error
    return dict(metadata)


def _read_env_spec(metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    spec = metadata.get("env_spec") or {}
    return str(spec.get("id", "")), dict(spec.get("kwargs") or {})


def _check_space(where: str, key: str, space: Mapping[str, Any] | None) -> None:
    if space is not None and (space.get("type") != "Box" or len(space.get("shape", ())) != 1):
        shape = f" of shape {space['shape']}" if "shape" in space else ""
        raise EpisodeError(
            f"{where}: {key} are a {space.get('type')}{shape}; only flat vectors (a 1-D Box) can be read"
        )


def _read_episode(where: str, group: Any) -> RecordedEpisode:
    arrays = {}
    for name in ("observations", "actions", "rewards", "terminations"):
        if name not in group or not hasattr(group[name], "shape"):
            raise EpisodeError(f"{where}: {name} are no array; only Box spaces can be read")
        arrays[name] = np.asarray(group[name])
    observations, terminations = arrays.pop("observations"), arrays["terminations"].astype(bool)
    check_rows(where, arrays, {"actions": 2, "rewards": 1, "terminations": 1})
    steps = len(terminations)
    if observations.ndim != 2 or len(observations) != steps + 1:
        raise EpisodeError(
            f"{where}: observations have the shape {observations.shape}; {steps} steps need {steps + 1} flat ones"
        )
    if terminations[:-1].any():
        raise EpisodeError(f"{where}: it goes on after its task ended, in step {int(np.argmax(terminations))}")
    return RecordedEpisode(
        take_floats(where, "observations", observations)[:, None],
        take_actions(where, "actions", arrays["actions"])[:, None],
        take_floats(where, "rewards", arrays["rewards"])[:, None],
        bool(terminations[-1:].any()),
    )


def _find_bounds(where: str, space: Mapping[str, Any] | None, recorded: list[RecordedEpisode]) -> tuple[Floats, Floats]:
    """Give the bounds of the action space; where it tells none, -1 and 1 if all actions are within."""
    if space is not None:
        low, high = (np.array(space.get(key), dtype=np.float32)[None] for key in ("low", "high"))
        if np.isfinite(low).all() and np.isfinite(high).all():
            return low, high
    if len({episode.actions.shape[1:] for episode in recorded}) != 1:
        raise EpisodeError(f"{where}: episodes have different shapes")
    return find_bounds(where, np.concatenate([episode.actions for episode in recorded]))
