import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.files import MAX_EVENT_BYTES, append_event, dump_settings, read_json, write_atomically
from experiment.loader import parse_yaml

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner), max_leaves=8
)


def is_writable(text: str) -> bool:
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def clean(value: Any) -> bool:
    if isinstance(value, str):
        return is_writable(value)
    if isinstance(value, list):
        return all(map(clean, value))
    return not isinstance(value, dict) or all(is_writable(key) and clean(inner) for key, inner in value.items())


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), VALUES.filter(clean), min_size=1, max_size=5))
def test_settings_read_back_as_they_were_by_our_rules_and_by_those_of_others(settings: dict[str, Any]) -> None:
    text = dump_settings(settings, "heading")
    for read in (parse_yaml(text, "config.yaml").data, yaml.safe_load(text)):
        assert json.dumps(read) == json.dumps(settings)


@pytest.mark.parametrize(
    "value", [1e-5, 1e16, 1e-4, 3.0, 1.5e-300, "1e-5", "on", "~", "0x1f", "1_000", "a: b", "\x85", "#"]
)
def test_what_is_easily_misread_is_written_so_that_it_is_not(value: object) -> None:
    text = dump_settings({"key": value}, "heading")
    assert yaml.safe_load(text) == {"key": value}
    assert parse_yaml(text, "config.yaml").data == {"key": value}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, [b"old"])

    def broken() -> Any:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, broken())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_an_event_is_one_line_that_lands_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, "ended", "abc", message="x" * 10_000)
    append_event(path, "ended", "abc", message="short")
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(len(line) <= MAX_EVENT_BYTES for line in lines)
    assert [json.loads(line)["event"] for line in lines] == ["ended", "ended"]


def test_what_is_no_json_object_reads_as_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "missing.json") is None
    for text in ("", "{", "[1]", "nonsense"):
        (tmp_path / "x.json").write_text(text)
        assert read_json(tmp_path / "x.json") is None
