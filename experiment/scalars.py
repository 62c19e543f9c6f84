"""Scalars of the YAML 1.2 core schema, and how values are compared and shown."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_FIRST = frozenset("~nNtTfF-+.0123456789")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?[0-9]{1,3}(?:_[0-9]{3})+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
_TAG = "tag:yaml.org,2002:"
_SHOWN = 60
_MAX_DIGITS = 1000


def read_scalar(text: str) -> Any:
    """Give the value of a plain scalar: null, a truth value, a number, or the text itself.

    Numbers are those of YAML 1.2 (`1e-4`, `0o17`, `0x1f`), and whole ones in groups of three (`1_000_000`). `on`,
    `yes`, dates and `12:30:45` stay text.

    Raises:
        ValueError: a whole number of more than 1,000 digits.
    """
    if not text or text == "~":
        return None
    if text[0] not in _FIRST:
        return text
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text in _NULL:
        return None
    return _read_number(text)


def _read_number(text: str) -> int | float | str:
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"a whole number of {len(text)} digits; no setting needs more than {_MAX_DIGITS}")
        return int(text.replace("_", ""), 0 if text[:2] in ("0o", "0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITY.fullmatch(text):
        return -math.inf if match[1] == "-" else math.inf
    return math.nan if text in _NAN else text


def read_tagged(text: str, tag: str) -> Any:
    """Give the value of a scalar that names its own type (`!!float 1`).

    Raises:
        ValueError: the text is not of that type.
        KeyError: the tag is not one of the core schema's.
    """
    kind = tag.removeprefix(_TAG)
    if tag == "!" or kind == "str":
        return text
    wanted: type = {"int": int, "float": float, "bool": bool, "null": type(None)}[kind]
    value = read_scalar(text)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{text!r} is not of the type {show_tag(tag)}")
    return value


def show_tag(tag: str) -> str:
    """Write a tag as its user did."""
    return f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag


def as_key(value: Any) -> Hashable:
    """Give something that is equal for values that mean the same: 1 and 1.0 are, True and 1 or '1' and 1 are not."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float) and math.isnan(value):
        return ("nan",)
    if isinstance(value, list):
        return ("list", *(as_key(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, as_key(item)) for key, item in value.items()))
    return ("number", value) if isinstance(value, int | float) else value


def show_value(value: Any) -> str:
    """Write a value as a spec would, on one line, cut where it is long."""
    text = _write_flow(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _write_flow(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, list):
        return f"[{', '.join(_write_flow(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_write_flow(item)}' for key, item in value.items())}}}"
    return repr(value)
