"""What environments of one kind have in common: attributes of their classes and modules, which no snapshot holds."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from envs.plain_values import Encoder, SnapshotError


def read_shared_state(layers: Iterable[object]) -> dict[str, str]:
    """Give, by their full names, texts of all plain attributes of the layers' classes and of the modules of these.

    Two texts are equal exactly where the values are. What isn't plain data (objects, iterators, functions) is left out.
    """
    texts = {}
    for space_name, space in _list_namespaces(layers).items():
        for name, value in space.items():
            text = None if name.startswith("__") else _write_down(value)
            if text is not None:
                texts[f"{space_name}.{name}"] = text
    return texts


def find_changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Name the attributes that differ, came or went between two readings."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _list_namespaces(layers: Iterable[object]) -> dict[str, dict[str, Any]]:
    """Give the attributes of each class that the layers derive from, and of its module, Python's own left out."""
    spaces: dict[str, dict[str, Any]] = {}
    for kind in (kind for layer in layers for kind in type(layer).__mro__):
        module = kind.__module__
        if module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
            continue
        spaces[f"{module}.{kind.__qualname__}"] = dict(vars(kind))
        if module in sys.modules:
            spaces[module] = dict(vars(sys.modules[module]))
    return spaces


def _write_down(value: object) -> str | None:
    """Give a text that only equal values have; None where a value isn't plain data."""
    if isinstance(value, dict):
        value = dict(value)  # a defaultdict or a Counter differs by its items alone
    elif isinstance(value, set | frozenset):
        value = sorted(map(repr, value))
    try:
        return json.dumps(Encoder().encode(value, ""), default=_hash_array)
    except SnapshotError:
        return None


def _hash_array(array: np.ndarray[Any, Any]) -> list[str]:
    return [str(array.dtype), str(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
