"""The manifest beside each checkpoint: what makes it valid, and facts about the run at that moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiment.files import write_json
from experiment.stored import seal_manifest
from training.segments import StoredLog

FORMAT = 1
"""Raised when older code can't read what newer code writes."""


class CheckpointError(ValueError):
    """A checkpoint that can't be used. The message names the file, the reason, and what to do."""


class InvalidCheckpointError(ValueError):
    """Why one checkpoint isn't valid, so that another is tried; `unfinished` where its save was cut off."""

    def __init__(self, reason: str, unfinished: bool = False) -> None:
        super().__init__(reason)
        self.unfinished = unfinished


@dataclass(frozen=True)
class Manifest:
    """What is known about a checkpoint without opening it.

    Attributes:
        step: finished training steps.
        sha256: of the `.pt` file, which has so many `bytes`.
        replay: where the rows of each `RowLog` are, by its path in the state.
        replay_dropped: True where those rows were deleted or never written.
        facts: plain JSON values about the run.
    """

    step: int
    sha256: str
    bytes: int
    replay: Mapping[str, StoredLog]
    replay_dropped: bool
    facts: Mapping[str, Any]


def manifest_path(path: Path) -> Path:
    """Give the path of a checkpoint's manifest."""
    return path.with_suffix(".json")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the checkpoint at `path` atomically, with a hash over itself."""
    replay = {key: asdict(log) for key, log in manifest.replay.items()}
    content = {"format": FORMAT, **vars(manifest), "replay": replay, "facts": dict(manifest.facts)}
    write_json(manifest_path(path), {**content, "seal": seal_manifest(content)})


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint at `path`.

    Raises:
        InvalidCheckpointError: there is none, or it isn't what was written.
        CheckpointError: it is of a newer format.
    """
    file = manifest_path(path)
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise InvalidCheckpointError(f"it has no manifest {file.name}: its save was cut off", unfinished=True) from None
    try:
        content = json.loads(text)
        seal, sealed = content.pop("seal"), seal_manifest(content)
        newer = content.pop("format") > FORMAT
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InvalidCheckpointError(f"its manifest {file.name} is no manifest") from None
    if seal != sealed:
        raise InvalidCheckpointError(f"its manifest {file.name} changed after it was written")
    if newer:
        raise CheckpointError(f"{path} is of a newer format than this Gridpilot reads ({FORMAT}): use a newer one")
    try:
        replay = {key: StoredLog.from_json(value) for key, value in content.pop("replay").items()}
        return Manifest(replay=replay, **content)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InvalidCheckpointError(f"its manifest {file.name} lacks something or has too much") from None
