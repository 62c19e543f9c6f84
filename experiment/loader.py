"""YAML text to plain data, with the line and column of every key and value.

Built on libyaml's events rather than on PyYAML's constructors: those read YAML 1.1 (`1e-4` is text there, `on` is
true), take the last of two equal keys in silence and can build objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from experiment.problems import Problem, SpecError, suggest
from experiment.scalars import read_scalar, read_tagged, show_tag
from experiment.syntax import explain_syntax

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_UNFOLDED = 100_000
"""Values that aliases may add to a document; more is an accident or an attack."""

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLLECTION_TAGS = {yaml.MappingStartEvent: "tag:yaml.org,2002:map", yaml.SequenceStartEvent: "tag:yaml.org,2002:seq"}

DataPath = tuple[str | int, ...]
"""The keys and list indices that lead from the top of a document to a value."""


class Mark(NamedTuple):
    """A place in a file. Lines and columns count from 1; line 0 is for text that has none, as on the command line."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, message: str) -> Problem:
        """Say that something is wrong here."""
        return Problem(message, self.file, self.line or None, self.column or None)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Marks:
    """Where things stand: the keys of mappings and all values (the root is at `()`), each by its path.

    What an alias brought in has the place where it is written.
    """

    keys: dict[DataPath, Mark] = field(default_factory=dict)
    values: dict[DataPath, Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A YAML document as plain data: mappings with text keys, lists, text, numbers, truth values and None."""

    data: Any
    marks: Marks


def load_yaml(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        SpecError: it is not there, too large, not UTF-8, or not one document of plain YAML; with every problem that
            one pass can find.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError([Problem(f"there is no such file{_hint_for_file(path)}", name)]) from None
    except IsADirectoryError:
        raise SpecError([Problem("this is a folder; give a YAML file", name)]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError([Problem(f"can't be read: {reason}", name)]) from None
    _check_size(len(content), name)
    try:
        return parse_yaml(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 text; save the file as UTF-8"
        raise SpecError([_mark_end(before, name).problem(message)]) from None


def parse_yaml(text: str, name: str) -> Document:
    """Read a YAML document from text; `name` stands for the file in problems.

    Raises:
        SpecError: as `load_yaml` does.
    """
    _check_size(len(text.encode("utf-8", "surrogatepass")), name)
    if match := _UNPRINTABLE.search(text):
        message = f"the character U+{ord(match[0]):04X} can't stand in YAML; remove it"
        raise SpecError([_mark_end(text[: match.start()], name).problem(message)])
    composer = _Composer(text, name)
    root = composer.compose()
    if composer.problems or root is None:
        problems = sorted(composer.problems, key=lambda problem: (problem.line or 0, problem.column or 0))
        raise SpecError(problems or [Mark(name, 1, 1).problem("the file is empty")])
    marks = Marks()
    return Document(_unfold(root, (), name, marks), marks)


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise SpecError([Problem(f"larger than {MAX_BYTES // 1_000_000} MB; a spec holds settings, not data", name)])


def _hint_for_file(path: Path) -> str:
    try:
        near = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except (OSError, ValueError):
        return ""
    twins = [name for name in near if Path(name).stem == path.stem]
    return f"; did you mean {twins[0]!r}?" if twins else suggest(path.name, near)


def _mark_end(text: str, name: str) -> Mark:
    """Give the place just after the text."""
    lines = f"{text}|".splitlines()
    return Mark(name, len(lines), len(lines[-1]))


@dataclass(slots=True)
class _Entry:
    key: str
    line: int
    column: int
    node: _Node


@dataclass(slots=True)
class _Node:
    """A value before its aliases are unfolded: a scalar's value, or a list of nodes or of entries."""

    value: Any
    line: int
    column: int
    kind: type = yaml.ScalarEvent
    size: int = 1
    height: int = 0
    is_open: bool = False

    def add(self, node: _Node) -> None:
        self.size += node.size
        self.height = max(self.height, node.height + 1)


class _StopReadingError(Exception):
    """The rest of the text can't be read; what is wrong has been noted."""


class _Composer:
    """Turns libyaml's events into nodes, and collects what is wrong on the way."""

    def __init__(self, text: str, name: str) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._name = name
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, _Node] = {}
        self._unfolded = 0

    def compose(self) -> _Node | None:
        """Give the document's root; None where there is no document or it can't be read to its end."""
        root = None
        try:
            for event in self._events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        self._stop(event, "a second document begins here; a spec is one document")
                    root = self._read_node(next(self._events), 0)
        except yaml.MarkedYAMLError as error:
            line, column, message = explain_syntax(error, self._text)
            self.problems.append(Mark(self._name, line, column).problem(message))
        except _StopReadingError:
            pass
        return root

    def _note(self, event: Any, message: str) -> None:
        mark = Mark(self._name, event.start_mark.line + 1, event.start_mark.column + 1)
        self.problems.append(mark.problem(message))

    def _stop(self, event: Any, message: str) -> NoReturn:
        self._note(event, message)
        raise _StopReadingError

    def _read_node(self, event: Any, depth: int) -> _Node:
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self._follow_alias(event, depth)
        mark = event.start_mark
        if kind is yaml.ScalarEvent:
            node = _Node(self._read_value(event), mark.line + 1, mark.column + 1)
            if event.anchor is not None:
                self._anchors[event.anchor] = node
            return node
        if depth >= MAX_DEPTH:
            self._stop(event, f"nested more than {MAX_DEPTH} deep; nothing in a spec needs that")
        if event.tag not in (None, "!", _COLLECTION_TAGS[kind]):
            self._refuse_tag(event)
        node = _Node([], mark.line + 1, mark.column + 1, kind, is_open=True)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        if kind is yaml.MappingStartEvent:
            self._read_mapping(node, depth + 1)
        else:
            self._read_sequence(node, depth + 1)
        node.is_open = False
        return node

    def _follow_alias(self, event: Any, depth: int) -> _Node:
        node = self._anchors.get(event.anchor)
        nothing = _Node(None, event.start_mark.line + 1, event.start_mark.column + 1)
        if node is None:
            self._note(event, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
            return nothing
        if node.is_open:
            self._note(event, f"the alias *{event.anchor} stands inside what it names, so it would never end")
            return nothing
        if depth + node.height > MAX_DEPTH:
            self._stop(event, f"the alias *{event.anchor} nests values more than {MAX_DEPTH} deep")
        self._unfold_more(event, node.size, f"the alias *{event.anchor}")
        return node

    def _unfold_more(self, event: Any, size: int, what: str) -> None:
        self._unfolded += size
        if self._unfolded > MAX_UNFOLDED:
            self._stop(event, f"{what} makes the aliases unfold to more than {MAX_UNFOLDED} values")

    def _read_value(self, event: Any) -> Any:
        try:
            if event.tag is not None and event.tag != "!":
                return read_tagged(event.value, event.tag)
            return read_scalar(event.value) if event.implicit[0] and event.tag is None else event.value
        except KeyError:
            self._refuse_tag(event)
        except ValueError as error:
            self._note(event, str(error))
        return None

    def _refuse_tag(self, event: Any) -> None:
        self._note(
            event, f"the tag {show_tag(event.tag)} is not allowed: a spec holds plain values and builds no objects"
        )

    def _read_sequence(self, node: _Node, depth: int) -> None:
        for event in self._events:
            if type(event) is yaml.SequenceEndEvent:
                return
            child = self._read_node(event, depth)
            node.add(child)
            node.value.append(child)

    def _read_mapping(self, node: _Node, depth: int) -> None:
        own: dict[str, _Entry] = {}
        merges: list[tuple[int, _Entry]] = []
        first_merge: _Entry | None = None
        for event in self._events:
            if type(event) is yaml.MappingEndEvent:
                break
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
            key = self._read_key(event, depth)
            child = self._read_node(next(self._events), depth)
            entry = _Entry(key or "", event.start_mark.line + 1, event.start_mark.column + 1, child)
            first = first_merge if is_merge else own.get(entry.key)
            if key is None:
                continue
            if first is not None:
                what = (
                    "a second '<<'; merge several with a list, <<: [*a, *b]" if is_merge else f"duplicate key {key!r}"
                )
                self._note(event, f"{what} (first on line {first.line})")
            elif is_merge:
                first_merge = entry
                merges += [(len(own), merged) for merged in self._read_merged(event, child)]
            else:
                own[key] = entry
        node.value = _join_entries(list(own.values()), merges) if merges else list(own.values())
        for entry in node.value:
            node.add(entry.node)

    def _read_key(self, event: Any, depth: int) -> str | None:
        """Give a key; None, with a problem noted, where it is not text."""
        node = self._read_node(event, depth)
        if isinstance(node.value, str) and node.kind is yaml.ScalarEvent:
            return node.value
        if node.kind is not yaml.ScalarEvent:
            self._note(event, "a key has to be text, this is a list or a mapping")
        elif isinstance(event, yaml.ScalarEvent) and event.tag is None:
            shown = f"the key {event.value} is not text" if event.value else "there is no key before this ':'"
            self._note(event, f"{shown}; put it in quotes if it is meant" if event.value else shown)
        return None

    def _read_merged(self, event: Any, node: _Node) -> list[_Entry]:
        """Give the entries that a `<<` brings in; of two mappings that hold a key the first wins."""
        sources = node.value if node.kind is yaml.SequenceStartEvent else [node]
        merged: dict[str, _Entry] = {}
        for source in sources:
            if source.kind is not yaml.MappingStartEvent:
                self._note(event, "'<<' takes a mapping, or a list of mappings")
                return []
            self._unfold_more(event, source.size, "'<<'")
            for entry in source.value:
                merged.setdefault(entry.key, entry)
        return list(merged.values())


def _join_entries(own: list[_Entry], merges: list[tuple[int, _Entry]]) -> list[_Entry]:
    """Put merged entries where the `<<` stood, without those that the mapping sets itself."""
    names = {entry.key for entry in own}
    position = merges[0][0]
    return own[:position] + [entry for _, entry in merges if entry.key not in names] + own[position:]


def _unfold(node: _Node, path: DataPath, name: str, marks: Marks) -> Any:
    """Give a node's plain data, a copy of its own at each alias, and note where everything stands."""
    marks.values[path] = Mark(name, node.line, node.column)
    if node.kind is yaml.ScalarEvent:
        return node.value
    if node.kind is yaml.SequenceStartEvent:
        return [_unfold(child, (*path, index), name, marks) for index, child in enumerate(node.value)]
    data = {}
    for entry in node.value:
        place = (*path, entry.key)
        marks.keys[place] = Mark(name, entry.line, entry.column)
        data[entry.key] = _unfold(entry.node, place, name, marks)
    return data
