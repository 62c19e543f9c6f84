"""Where the states of two runs differ: the last checkpoint of each, leaf by leaf.

python -m training.differences FOLDER FOLDER      the `checkpoints/` of two runs; a JSON object a line
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.checkpoint import Checkpoint, load_checkpoint, load_newest
from training.manifest import CheckpointError, read_manifest
from training.resources import hash_state
from training.rowlog import RowLog
from training.state import path_text, walk_leaves

COMPARED = ("trainer", "generators")
"""Parts of a checkpoint that training follows from; the session's have clocks in them, and its rows are compared."""
MAX_TEXT = 60


@dataclass(frozen=True)
class Difference:
    """A leaf that isn't the same in two states, by its path, and how it differs."""

    path: str
    text: str


def load_pair(first: Path, second: Path) -> tuple[Checkpoint, Checkpoint, bool]:
    """Read the newest checkpoint of two `checkpoints/`, and tell whether their replay data are there too.

    Without the replay data of one of them, those of both are left out.

    Raises:
        CheckpointError: one of them has no checkpoint that can be used.
    """
    newest = [_load_bare(folder) for folder in (first, second)]
    whole = not any(read_manifest(checkpoint.path).replay_dropped for checkpoint in newest)
    if not whole:
        return newest[0], newest[1], False
    return load_checkpoint(newest[0].path), load_checkpoint(newest[1].path), True


def _load_bare(folder: Path) -> Checkpoint:
    checkpoint = load_newest(folder, with_replay=False)
    if checkpoint is None:
        raise CheckpointError(f"{folder}: no checkpoint was ever finished")
    return checkpoint


def list_state_differences(first: object, second: object) -> Iterator[Difference]:
    """Give each leaf that differs between two states in type, shape or a single bit; those of the second alone last."""
    leaves = [{path_text(path): leaf for path, leaf in walk_leaves(state)} for state in (first, second)]
    for path in leaves[0] | leaves[1]:
        if path not in leaves[1]:
            yield Difference(path, "only in the first")
        elif path not in leaves[0]:
            yield Difference(path, "only in the second")
        elif hash_state(leaves[0][path]) != hash_state(leaves[1][path]):
            yield Difference(path, describe(leaves[0][path], leaves[1][path]))


def describe(first: object, second: object) -> str:
    """Say how two leaves differ: of arrays, in how many numbers, and the first of them."""
    if isinstance(first, RowLog) and isinstance(second, RowLog):
        if first.total != second.total:
            return f"{first.total:,} rows and {second.total:,} rows were ever added"
        return f"of {first.total:,} rows, {_describe_arrays(first.rows, second.rows)}"
    arrays = [_as_array(leaf) for leaf in (first, second)]
    if arrays[0] is not None and arrays[1] is not None:
        return _describe_arrays(arrays[0], arrays[1])
    return f"{_show(first)} and {_show(second)}"


def _as_array(leaf: object) -> NDArray[Any] | None:
    if isinstance(leaf, torch.Tensor):
        plain = leaf.detach().cpu()
        # NumPy has no bfloat16; every number of it is one of float32 too.
        return plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy()
    return leaf if isinstance(leaf, np.ndarray) else None


def _describe_arrays(first: NDArray[Any], second: NDArray[Any]) -> str:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return f"{first.dtype} {first.shape} and {second.dtype} {second.shape}"
    # By bits: a NaN is the same as itself, and 0.0 is not -0.0.
    unlike = _bits(first) != _bits(second)
    places = np.argwhere(unlike.reshape((*first.shape, -1)).any(axis=-1))
    if not len(places):
        return f"{first.dtype} {first.shape}, kept in another type"
    at = tuple(int(index) for index in places[0])
    where = f" [{', '.join(map(str, at))}]" if at else ""
    return f"{len(places):,} of {first.size:,} numbers, the first{where}: {first[at]!s} and {second[at]!s}"


def _bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _show(leaf: object) -> str:
    text = repr(leaf)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def main(words: Sequence[str]) -> int:
    """Print the differences: first one object about both, then one for each leaf that differs."""
    try:
        first, second, with_replay = load_pair(Path(words[0]), Path(words[1]))
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    leaves = sum(1 for part in COMPARED for _ in walk_leaves(first.state[part]))
    print(json.dumps({"steps": [first.step, second.step], "leaves": leaves, "with_replay": with_replay}))
    for part in COMPARED:
        for difference in list_state_differences({part: first.state[part]}, {part: second.state[part]}):
            print(json.dumps(vars(difference)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
