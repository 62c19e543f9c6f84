"""Attribute values as plain data and back: numbers, arrays, containers and random generators, exact to the bit."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PLAIN_TYPES = (type(None), bool, int, float, str)
_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
"""The bit generators that may be named in a snapshot: a closed table, so that a snapshot is never an import path."""


class SnapshotError(ValueError):
    """An environment whose state can't be taken or put back exactly; the message names the layer and the attribute."""


class Encoder:
    """Turns values into plain data. An object met twice is written once, so that what was shared stays shared."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._met: dict[int, tuple[str, object]] = {}  # the object is held so that its id stays its own

    def encode(self, value: object, path: str) -> Any:
        """Give a value as None, bool, int, float, str, or a mapping with a `kind`; arrays in it are copies.

        Raises:
            SnapshotError: the value, or something in it, is of another kind. `path` says where.
        """
        if type(value) in _PLAIN_TYPES:
            return value
        if isinstance(value, np.generic):
            return {"kind": "scalar", "value": self._copy_array(np.asarray(value), path)}
        if type(value) is tuple:
            return {"kind": "tuple", "items": self._encode_items(value, path)}
        if id(value) in self._met:
            return {"kind": "same", "path": self._met[id(value)][0]}
        self._met[id(value)] = (path, value)
        return self._encode_object(value, path)

    def _encode_object(self, value: object, path: str) -> dict[str, Any]:
        """Encode what has an identity: arrays, containers, generators."""
        if type(value) is np.ndarray:
            self.arrays[path] = value
            fortran = value.flags.f_contiguous and not value.flags.c_contiguous
            return {"kind": "array", "value": self._copy_array(value, path), "fortran": fortran}
        if type(value) is list:
            return {"kind": "list", "items": self._encode_items(value, path)}
        if type(value) is deque:
            return {"kind": "deque", "items": self._encode_items(value, path), "maxlen": value.maxlen}
        if type(value) is dict:
            pairs = [
                [self.encode(key, f"{path}[{key!r}].key"), self.encode(item, f"{path}[{key!r}]")]
                for key, item in value.items()
            ]
            return {"kind": "dict", "items": pairs}
        if type(value) is np.random.Generator:
            state = value.bit_generator.state
            if state["bit_generator"] in _BIT_GENERATORS:
                return {"kind": "generator", "state": self.encode(state, f"{path}.state")}
        if type(value) is np.random.RandomState:
            state = value.get_state(legacy=False)
            return {"kind": "random_state", "state": self.encode(state, f"{path}.state")}
        if type(value) is random.Random:
            return {"kind": "python_random", "state": self.encode(value.getstate(), f"{path}.state")}
        raise SnapshotError(f"{path} is a {describe_type(value)}, which a snapshot can't hold")

    def _encode_items(self, items: Any, path: str) -> list[Any]:
        return [self.encode(item, f"{path}[{index}]") for index, item in enumerate(items)]

    @staticmethod
    def _copy_array(value: NDArray[Any], path: str) -> NDArray[Any]:
        if value.dtype.kind not in "biufc" or value.dtype.itemsize > 16 or not value.dtype.isnative:
            raise SnapshotError(f"{path} is an array of {value.dtype}, which a snapshot can't hold")
        return np.array(value, order="C")


class Decoder:
    """Turns what an `Encoder` gave back into values; use one for all values of a snapshot, in the same order."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def decode(self, data: Any, path: str) -> Any:
        """Give the value that was at a path; arrays in it are fresh copies."""
        if not isinstance(data, dict):
            return data
        kind = data["kind"]
        if kind == "scalar":
            return data["value"][()]
        if kind == "tuple":
            return tuple(self._decode_items(data["items"], path))
        if kind == "same":
            return self._made[data["path"]]
        if kind in ("list", "deque", "dict"):
            return self._decode_container(kind, data, path)
        value = self._decode_object(kind, data, path)
        self._made[path] = value
        return value

    def _decode_container(self, kind: str, data: dict[str, Any], path: str) -> Any:
        """Fill a container that is known by its path from the start, as it may hold itself."""
        if kind == "dict":
            mapping: dict[Any, Any] = {}
            self._made[path] = mapping
            for coded_key, coded in data["items"]:
                # A key can't be read by its own path before it is decoded, and no key is ever shared.
                key = Decoder().decode(coded_key, "")
                mapping[key] = self.decode(coded, f"{path}[{key!r}]")
            return mapping
        items: list[Any] | deque[Any] = [] if kind == "list" else deque(maxlen=data["maxlen"])
        self._made[path] = items
        items.extend(self._decode_items(data["items"], path))
        return items

    def _decode_object(self, kind: str, data: dict[str, Any], path: str) -> Any:
        if kind == "array":
            return np.array(data["value"], order="F" if data["fortran"] else "C")
        state = self.decode(data["state"], f"{path}.state")
        if kind == "generator":
            bits = _BIT_GENERATORS[state["bit_generator"]]()
            bits.state = state
            return np.random.Generator(bits)
        if kind == "random_state":
            legacy = np.random.RandomState()
            legacy.set_state(state)
            return legacy
        if kind == "python_random":
            source = random.Random()  # noqa: S311  not for secrets
            source.setstate(state)
            return source
        raise SnapshotError(f"{path} is of the unknown kind {kind!r}: the snapshot was made by a newer version")

    def _decode_items(self, items: list[Any], path: str) -> list[Any]:
        return [self.decode(item, f"{path}[{index}]") for index, item in enumerate(items)]


def describe_type(value: object) -> str:
    """Give the full name of a value's type."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
