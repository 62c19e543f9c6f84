"""A report as Markdown: tables that can be pasted as they stand, figures by their relative path."""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.contents import Report, Section
from analysis.tables import Cell, Table

MAX_IDS = 12
"""So many run ids are written out in a cell; the rest are in the CSV file."""

_SPECIAL = re.compile(r"[\\`*\[\]<>|#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BLANKS = re.compile(r"[\r\n\t]+")


def render_markdown(report: Report) -> str:
    """Give the text of `report.md`."""
    lines = [f"# {escape(report.name)}", ""]
    if report.description:
        lines += [escape(report.description), ""]
    lines += [f"**{escape(report.answer)}**", ""]
    if report.warnings:
        lines += [*(f"- Warning: {escape(warning)}" for warning in report.warnings), ""]
    lines += [*(f"- {name}: {escape(value)}" for name, value in report.facts), ""]
    for section in report.sections:
        lines += _render_section(section)
    return "\n".join(lines).rstrip("\n") + "\n"


def _render_section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    for sentence in section.sentences:
        yield from (escape(sentence), "")
    for table in section.tables:
        yield from (f"### {escape(table.title)}", "", render_table(table), "")
        for note in table.notes:
            yield from (f"{escape(note)}", "")
    for picture in section.pictures:
        yield from (f"### {escape(picture.title)}", "", f"![{escape(picture.title)}]({picture.name}.png)", "")
        for note in (*picture.notes, f"Runs: {_join_ids(picture.runs, None)}"):
            yield from (escape(note), "")


def render_table(table: Table) -> str:
    """Give one table in GitHub's Markdown."""
    lines = [_join(escape(column) for column in table.columns), _join("---" for _ in table.columns)]
    lines += [_join(_render_cell(cell, table) for cell in row) for row in table.rows]
    return "\n".join(lines)


def _join(texts: Iterator[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _render_cell(cell: Cell, table: Table) -> str:
    if cell.runs:
        return _join_ids(cell.runs, table.name)
    if cell.code and not set(cell.text) & set("`|\n\r"):
        return f"`{cell.text}`"
    text = escape(cell.text)
    return f"**{text}**" if cell.strong and text else text


def _join_ids(ids: tuple[str, ...], name: str | None) -> str:
    shown = " ".join(ids[:MAX_IDS])
    place = f"{name}.csv" if name else "runs.csv"
    return shown if len(ids) <= MAX_IDS else f"{shown} and {len(ids) - MAX_IDS} more in {place}"


def escape(text: str) -> str:
    """Write a text so that Markdown shows it as it is, in one line."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", _BLANKS.sub(" ", text))
