"""Nested states: what may stand in a `state_dict`, walked in one order, and packed for a file that runs no code.

A state is made of dicts (text or whole numbers as keys), lists and tuples. Its leaves are tensors, NumPy arrays and
scalars, `RowLog`s, None, booleans, numbers, texts and bytes; anything else is refused by its path. What is unpacked
equals what was packed, down to dtypes and the difference between a list and a tuple; subclasses come back as their
base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.rowlog import RowLog

StatePath = tuple[str | int, ...]
"""The keys and positions that lead to a leaf."""

_KIND = "gridpilot.kind"
_PLAIN_INT_BITS = 1000  # torch's reader of plain values stops at 255 bytes
_ARRAY_KINDS = frozenset("biufc")


def path_text(path: StatePath) -> str:
    """Write a path as `trainer/buffer/rows`."""
    return "/".join(str(part) for part in path)


def walk_leaves(state: object, path: StatePath = ()) -> Iterator[tuple[StatePath, object]]:
    """Give every leaf with its path, mappings in the order of their keys; empty containers count as leaves."""
    if isinstance(state, Mapping) and state:
        for key in sort_keys(state):
            yield from walk_leaves(state[key], (*path, key))
    elif isinstance(state, list | tuple) and state:
        for position, value in enumerate(state):
            yield from walk_leaves(value, (*path, position))
    else:
        yield path, state


def sort_keys(state: Mapping[Any, object]) -> list[Any]:
    """Give the keys of a mapping in one order, whatever the order they were put in: numbers, then texts."""
    return sorted(state, key=lambda key: (type(key).__name__, key))


def find_row_logs(state: object) -> dict[str, RowLog]:
    """Give the `RowLog`s of a state by their paths.

    Raises:
        ValueError: two paths are written alike (a key holds a slash, or both `1` and `"1"` are keys).
    """
    found: dict[str, RowLog] = {}
    for path, leaf in walk_leaves(state):
        if isinstance(leaf, RowLog):
            if path_text(path) in found:
                raise ValueError(f"two RowLogs of the state have the same path {path_text(path)!r}: rename a key")
            found[path_text(path)] = leaf
    return found


def pack_state(state: object, path: StatePath = ()) -> Any:
    """Turn a state into what `torch.load(weights_only=True)` can read: tensors and plain values.

    Tensors are detached, not copied, but for small views of large storages. A `RowLog` becomes a mark without data.

    Raises:
        TypeError: a leaf or a key of another kind; the message has its path.
    """
    if isinstance(state, Mapping):
        return _pack_mapping(state, path)
    if isinstance(state, list):
        return [pack_state(value, (*path, position)) for position, value in enumerate(state)]
    if isinstance(state, tuple):
        return tuple(pack_state(value, (*path, position)) for position, value in enumerate(state))
    if isinstance(state, torch.Tensor):
        return _pack_tensor(state)
    if isinstance(state, np.ndarray | np.generic):
        return _pack_array(state, path)
    if isinstance(state, RowLog):
        return {_KIND: "rowlog"}
    return _pack_value(state, path)


def _pack_mapping(state: Mapping[Any, object], path: StatePath) -> dict[str | int, Any]:
    for key in state:
        if type(key) not in (str, int) or key == _KIND:
            raise TypeError(f"state {path_text(path)!r}: {key!r} can't be a key; use texts or whole numbers")
    return {key: pack_state(value, (*path, key)) for key, value in state.items()}


def _pack_tensor(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach()
    # torch saves whole storages: a view of a few numbers would bring the millions around them.
    return plain.clone() if plain.untyped_storage().nbytes() > plain.nbytes else plain


def _pack_array(array: NDArray[Any] | np.generic, path: StatePath) -> dict[str, Any]:
    check_dtype(array.dtype, path_text(path))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if not data.flags.writeable:
        data = data.copy()
    kind = "array" if isinstance(array, np.ndarray) else "scalar"
    return {_KIND: kind, "dtype": array.dtype.str, "shape": array.shape, "bytes": torch.from_numpy(data)}


def _pack_value(value: object, path: StatePath) -> Any:
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() < _PLAIN_INT_BITS else {_KIND: "int", "hex": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return {_KIND: "bytes", "hex": value.hex()}  # torch refuses the empty one
    raise TypeError(
        f"state {path_text(path)!r}: a {type(value).__name__} can't be saved; "
        "give tensors, NumPy arrays, RowLogs, numbers, texts, lists, tuples and dicts"
    )


def check_dtype(dtype: np.dtype[Any], place: str) -> None:
    """Refuse dtypes that are more than numbers.

    Raises:
        TypeError: objects, texts, dates or structured rows.
    """
    if dtype.kind not in _ARRAY_KINDS:
        raise TypeError(f"state {place!r}: an array of dtype {dtype} can't be saved; numbers and booleans can")


def unpack_state(packed: Any, row_log_at: Callable[[str], RowLog], path: StatePath = ()) -> Any:
    """Turn back what `pack_state` gave; `row_log_at` is asked for the `RowLog` at each path that had one."""
    if isinstance(packed, dict):
        if _KIND in packed:
            return _unpack_marked(packed, row_log_at, path)
        return {key: unpack_state(value, row_log_at, (*path, key)) for key, value in packed.items()}
    if isinstance(packed, list):
        return [unpack_state(value, row_log_at, (*path, position)) for position, value in enumerate(packed)]
    if isinstance(packed, tuple):
        return tuple(unpack_state(value, row_log_at, (*path, position)) for position, value in enumerate(packed))
    return packed


def _unpack_marked(packed: dict[str, Any], row_log_at: Callable[[str], RowLog], path: StatePath) -> Any:
    kind = packed[_KIND]
    if kind == "rowlog":
        return row_log_at(path_text(path))
    if kind == "int":
        return int(packed["hex"], 16)
    if kind == "bytes":
        return bytes.fromhex(packed["hex"])
    if kind not in ("array", "scalar"):
        raise ValueError(f"state {path_text(path)!r}: unknown kind of leaf {kind!r}")
    array = packed["bytes"].numpy().view(np.dtype(packed["dtype"])).reshape(packed["shape"])
    return array if kind == "array" else array[()]
