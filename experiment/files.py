"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_EVENT_BYTES = 4096
"""An append up to this size lands as one piece, also with several writers."""

CONFIG_HEADING = "Every setting of this run. `python train.py -e` on this file goes on with it."


def write_atomically(path: Path, chunks: Iterable[bytes], *, durable: bool = True) -> None:
    """Write a whole file or leave the old one as it was, also when the machine loses power.

    With `durable=False` that is so as far as processes can see, and for the disk once somebody has seen to it.

    Raises:
        OSError: the disk is full or the folder can't be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def find_temporaries(folder: Path) -> list[Path]:
    """Give what `write_atomically` has in progress in a folder, or left there when it was killed."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if _TEMPORARY.fullmatch(name)]


def name_target(temporary: Path) -> str:
    """Give the name that a file in progress was to get."""
    match = _TEMPORARY.fullmatch(temporary.name)
    assert match is not None, temporary
    return match[1]


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write one JSON object atomically."""
    write_atomically(path, [json.dumps(value, allow_nan=False).encode() + b"\n"], durable=durable)


def to_json_number(value: float) -> float | str:
    """Give a number as JSON can hold it: what isn't finite becomes `"nan"`, `"inf"` or `"-inf"`."""
    return value if math.isfinite(value) else str(float(value))


def read_json(path: Path) -> dict[str, Any] | None:
    """Read one JSON object; None where the file is not there or is not one."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_event(path: Path, event: str, run: str | None = None, **details: Any) -> None:
    """Append one decision to `events.jsonl` in a single write; long texts among the details are cut to fit."""
    row = {"time": now_text(), "event": event, "run": run} | details
    line = json.dumps(row).encode() + b"\n"
    if len(line) > MAX_EVENT_BYTES:
        row = {key: value[:200] if isinstance(value, str) else value for key, value in row.items()}
        line = json.dumps(row).encode()[: MAX_EVENT_BYTES - 1] + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read `events.jsonl`, the oldest first; none where there is no file. A line that was cut to fit is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [row for row in _parse_rows(lines) if isinstance(row.get("event"), str) and isinstance(row.get("time"), str)]


def read_newest_rows(path: Path, tail_bytes: int) -> Iterator[dict[str, Any]]:
    """Give the rows at the end of a file of JSON lines, the newest first, each parsed when it is asked for.

    None where there is no file; a row that is being written, or that begins before the last `tail_bytes`, is passed
    over.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            lines = file.read().splitlines()
    except OSError:
        return
    yield from _parse_rows(reversed(lines))


def _parse_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def now_text() -> str:
    """Give the time in UTC as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def dump_settings(settings: Mapping[str, Any], heading: str) -> str:
    """Write settings as YAML, a key a line under a heading.

    It reads back as the very same values by YAML 1.2 and by YAML 1.1, which other people's scripts have: no text can be
    taken for a number, and no number for a text (`1e-05` would be; `1.0e-05` isn't).
    """
    lines = [f"# {heading}", *(f"{_write_value(key)}: {_write_value(value)}" for key, value in settings.items())]
    return "\n".join(lines) + "\n"


def _write_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_write_value(key)}: {_write_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_write_value, value)) + "]"
    if isinstance(value, float):
        mantissa, e, exponent = json.dumps(value, allow_nan=False).partition("e")
        return mantissa + ("" if "." in mantissa or not e else ".0") + e + exponent
    if isinstance(value, str):
        if _PLAIN_KEY.fullmatch(value) and value not in _NOT_PLAIN:
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)
    return json.dumps(value)


_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_NOT_PLAIN = {
    word
    for text in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    for word in (text, text.title(), text.upper())
}
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
