"""What YAML's scanner and parser complain of, said so that it can be repaired."""

from __future__ import annotations

import re

import yaml

_TAB = "a tab is used for indentation; YAML takes spaces only"
_FIXED = (
    (r"mapping values are not allowed", "a ':' can't stand here; check the indentation, or put the text in quotes"),
    (r"could not find expected ':'", "a key without ': ' after it; write 'key: value'"),
    (r"found undefined tag handle", "tags ('!...') are not allowed: a spec holds plain values and builds no objects"),
    (r"found unknown escape character", "this escape is not known; use single quotes, or write \\\\ for a backslash"),
    (r"found incompatible YAML document", "only YAML 1.x is read; remove the %YAML line"),
    (r"block sequence entries are not allowed", "a '- ' can't stand here; begin the list on a line of its own"),
    (r"expected (the )?node content", "a value is missing here"),
    (r"<?document start>?", "the document has ended above, with '...'; remove that line"),
)
_INDENT = "the indentation fits no line above; entries of one mapping or list begin in the same column"


def explain_syntax(error: yaml.MarkedYAMLError, text: str) -> tuple[int, int, str]:
    """Give line and column, from 1, and a plain sentence for an error of YAML's scanner or parser."""
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    here = lines[line] if line < len(lines) else ""
    blank = here[: len(here) - len(here.lstrip())]
    if "tab character" in problem or ("cannot start any token" in problem and "\t" in blank[: column + 1]):
        return line + 1, blank.find("\t") + 1, _TAB
    opened = error.context_mark
    if opened and ("flow sequence" in context or "flow mapping" in context):
        what, ends = ("list", "',' or ']'") if "sequence" in context else ("mapping", "',' or '}'")
        return (
            opened.line + 1,
            opened.column + 1,
            f"this {what} is not closed: {ends} is missing before line {line + 1}",
        )
    if opened and "end of stream" in problem and "scalar" in context:
        return opened.line + 1, opened.column + 1, "this quote is never closed"
    if "mapping values" in problem and (unfinished := _find_unfinished_key(lines, line)):
        return *unfinished, "a key without ': ' after it; write 'key: value'"
    if "cannot start any token" in problem:
        return line + 1, column + 1, f"text can't begin with {here[column : column + 1]!r}; put it in quotes"
    if "block" in context and here[column : column + 1] in ("]", "}"):
        return line + 1, column + 1, f"this {here[column]!r} closes nothing"
    if here[column : column + 1] == ":" and "mapping values" not in problem:
        return line + 1, column + 1, "there is no key before this ':'"
    for pattern, message in _FIXED:
        if re.search(pattern, problem):
            # A missing ':' is noticed on the line after; the key itself is where to look.
            place = opened if opened and "':'" in pattern else mark
            return (place.line + 1, place.column + 1, message) if place else (1, 1, message)
    if "block collection" in context or "block mapping" in context:
        return line + 1, column + 1, _INDENT
    return line + 1, column + 1, f"this is not YAML: {problem}"


def _find_unfinished_key(lines: list[str], line: int) -> tuple[int, int] | None:
    """Give the place of the line above where that one is the culprit: a key that lacks its ': '."""
    above = lines[line - 1].partition(" #")[0].rstrip() if line > 0 else ""
    text = above.lstrip()
    if not text or ": " in above or above.endswith(":") or text[0] in "#-?[]{}\"'":
        return None
    return line, len(above) - len(text) + 1
