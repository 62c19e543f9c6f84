"""What makes two runs the same run: a short hash of the settings that can change results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, Self

ID_LENGTH = 16
CONTINUES, TAKES_WEIGHTS = "init_from", "init_weights_from"
PARENT_KEYS = (CONTINUES, TAKES_WEIGHTS)
"""Settings that name the run which another one begins from: with all its state, or with its networks alone."""


class CheckedConfig(Protocol):
    """What the runner asks of a config that `build_config` has checked."""

    def run_id(self) -> str:
        """Give the run's identity, `ID_LENGTH` hexadecimal digits."""
        ...

    def identity_settings(self) -> dict[str, Any]:
        """Give the active settings that can change results and differ from their defaults, in normal form."""
        ...

    def resolved(self) -> dict[str, Any]:
        """Give every setting with its value, flat, in plain YAML types: what `config.yaml` holds."""
        ...

    def inactive_keys(self) -> dict[str, str]:
        """Give the keys that were set and that another key switches off, each with the reason."""
        ...

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks (and which environment they need)."""
        ...

    def footprint_settings(self) -> dict[str, Any]:
        """Give the settings that decide how much memory a run takes, those of its shape among them."""
        ...

    def speed_settings(self) -> dict[str, Any]:
        """Give the settings that may decide how long a step takes."""
        ...

    def kind_settings(self) -> dict[str, Any]:
        """Give what decides the way through the code; runs that are alike in it break alike."""
        ...

    def shortened(self) -> Self:
        """Give the same run cut to a few updates."""
        ...


def name_parent(value: str) -> str:
    """Give the id in what names a parent: that which a run folder's path ends in; an id is itself."""
    return value.rpartition("__")[2]


def hash_identity(trainer: str, version: int, settings: Mapping[str, Any]) -> str:
    """Give the id of a run: 64 bits of BLAKE2b over canonical JSON, as 16 hexadecimal digits.

    Args:
        trainer: name in the table of trainers, or `script:<path>` for a foreign script.
        version: the config's `config_version`; raised when the same settings begin to mean something else.
        settings: the active ones that differ from their defaults, in normal form (typed values, floats as floats).
    """
    text = json.dumps([trainer, version, settings], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=ID_LENGTH // 2).hexdigest()
