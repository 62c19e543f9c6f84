"""Checkpoints as files: which are there, which are whole, which replay data they name.

Enough to tell what may go. What is in them only `training` knows, which writes them (`training/checkpoint.py`).
Whatever doesn't look as it writes them, a script's own files say, is taken for something that we know nothing about.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiment.files import write_json

Kind = Literal["step", "best"]
KNOWN_FORMAT = 1
"""Manifests of a newer format are not judged."""

_FILE = re.compile(r"(step|best)_(\d{8,})\.(pt|json)")


@dataclass(frozen=True)
class Stored:
    """One checkpoint, or what a killed save left of it.

    Attributes:
        path: the `.pt` file, there or not.
        manifest_path: the file beside it that makes it a checkpoint, there or not.
        step: the finished training steps.
        manifest: what that file says; None where it isn't there or isn't as it was written.
    """

    path: Path
    manifest_path: Path
    step: int
    manifest: Mapping[str, Any] | None

    def is_unfinished(self) -> bool:
        """Tell whether its save was cut off: without its manifest nothing takes it for a checkpoint."""
        return not self.manifest_path.exists()

    def segments(self) -> dict[str, str]:
        """Give the replay segments that it needs, each with its SHA-256; none where they were dropped."""
        if self.manifest is None or self.manifest["replay_dropped"]:
            return {}
        logs = self.manifest["replay"].values()
        return {segment["file"]: segment["sha256"] for log in logs for segment in log["segments"]}

    def is_whole(self) -> bool:
        """Tell whether it, and every replay segment that it needs, is what was written. Reads all of them."""
        if self.manifest is None or not _has_hash(self.path, self.manifest["sha256"]):
            return False
        return all(_has_hash(replay_dir(self.path.parent) / file, hash) for file, hash in self.segments().items())

    def note_replay_dropped(self) -> None:
        """Write into the manifest that the replay data are gone. To be called before they are."""
        assert self.manifest is not None
        content = {**self.manifest, "replay_dropped": True}
        write_json(self.manifest_path, {**content, "seal": seal_manifest(content)})


def replay_dir(checkpoints: Path) -> Path:
    """Give the folder of the replay segments that belong to checkpoints."""
    return checkpoints / "replay"


def list_stored(checkpoints: Path, kind: Kind) -> list[Stored]:
    """Give everything that is or was to be a checkpoint of a kind, newest first."""
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    steps = {match[2] for match in map(_FILE.fullmatch, names) if match is not None and match[1] == kind}
    return [_open(checkpoints, kind, step) for step in sorted(steps, key=int, reverse=True)]


def find_newest_whole(checkpoints: Path, kind: Kind = "step") -> Stored | None:
    """Give the newest checkpoint that is whole, which is the one that a run goes on from; None without one."""
    return next((stored for stored in list_stored(checkpoints, kind) if stored.is_whole()), None)


def find_saved_step(checkpoints: Path) -> int:
    """Give the step of the newest checkpoint whose save was finished, 0 without one."""
    finished = (stored.step for stored in list_stored(checkpoints, "step") if not stored.is_unfinished())
    return next(finished, 0)


def list_segments(checkpoints: Path) -> list[Path]:
    """Give the replay segments that are there."""
    return sorted(replay_dir(checkpoints).glob("*.rows"))


def list_set_aside(checkpoints: Path) -> list[Path]:
    """Give what a resume found broken and kept aside."""
    return sorted(checkpoints.glob("*.invalid"))


def seal_manifest(content: Mapping[str, Any]) -> str:
    """Give the hash by which a manifest, without it, shows that it is as it was written."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open(checkpoints: Path, kind: Kind, step: str) -> Stored:
    path = checkpoints / f"{kind}_{step}.pt"
    manifest_path = path.with_suffix(".json")
    return Stored(path, manifest_path, int(step), _read_manifest(manifest_path))


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
        if content.pop("seal") != seal_manifest(content) or content["format"] > KNOWN_FORMAT:
            return None
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return dict(content)


def _has_hash(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False
