"""A report as one HTML file that needs nothing else: figures inside, no scripts, for small and dark screens too."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape

from analysis.contents import SHOWN_WARNINGS, Report, Section
from analysis.figures import Picture
from analysis.tables import Cell, Table

FOLDED_IDS = 1
"""So many run ids are written out in a cell; longer lists fold away."""

LONG_CODE = 40
"""Paths and commands from this length on get a wide column."""

_CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #5c6370; --paper: #ffffff; --line: #d9dce1; --head: #f3f4f6;
  --best: #e8f2fb; --warn: #fff4d6; --warn-line: #d9a400; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --dim: #9aa2ad; --paper: #16181c; --line: #363b43;
  --head: #22262c; --best: #1b3246; --warn: #3a3015; --warn-line: #b88a00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 50rem; overflow-wrap: anywhere; }
.answer { font-size: 1.06rem; font-weight: 600; }
.note, figcaption { color: var(--dim); font-size: .87rem; margin: .3rem 0; }
.warnings { background: var(--warn); border-left: 4px solid var(--warn-line); margin: 1rem 0; padding: .5rem 1rem; }
.warnings ul { margin: .2rem 0; padding-left: 1.1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem; border-bottom: 1px solid var(--line); }
th { background: var(--head); font-weight: 600; min-width: 4.5rem; }
td { min-width: 3rem; max-width: 30rem; overflow-wrap: break-word; }
td.number { white-space: nowrap; }
td.long { min-width: 17rem; }
tr.best td { background: var(--best); }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
figure { margin: 0; }
.figures { display: grid; gap: 1.4rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
img { display: block; width: 100%; max-width: 36rem; height: auto; background: #fff; border-radius: 4px; }
summary { cursor: pointer; white-space: nowrap; }
code.id { white-space: nowrap; }
"""


def render_page(report: Report) -> str:
    """Give the text of `report.html`."""
    return "\n".join(_render_lines(report)) + "\n"


def _render_lines(report: Report) -> Iterator[str]:
    yield from (
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{escape(report.name)}</title>",
        f"<style>{_CSS}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(report.name)}</h1>",
    )
    if report.description:
        yield f"<p>{escape(report.description)}</p>"
    yield f'<p class="answer">{escape(report.answer)}</p>'
    if report.warnings:
        yield f'<div class="warnings" role="note"><strong>Warnings</strong>{_render_warnings(report.warnings)}</div>'
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    yield f"<dl>{pairs}</dl>"
    for section in report.sections:
        yield from _render_section(section)
    yield from ("</body>", "</html>")


def _render_warnings(warnings: Sequence[str]) -> str:
    shown, rest = (
        "".join(f"<li>{escape(warning)}</li>" for warning in part)
        for part in (warnings[:SHOWN_WARNINGS], warnings[SHOWN_WARNINGS:])
    )
    if not rest:
        return f"<ul>{shown}</ul>"
    count = len(warnings) - SHOWN_WARNINGS
    return f"<ul>{shown}</ul><details><summary>{count} more</summary><ul>{rest}</ul></details>"


def _render_section(section: Section) -> Iterator[str]:
    yield f"<section><h2>{escape(section.title)}</h2>"
    for sentence in section.sentences:
        yield f"<p>{escape(sentence)}</p>"
    for table in section.tables:
        yield from _render_table(table)
    if section.pictures:
        yield '<div class="figures">'
        for picture in section.pictures:
            yield _render_picture(picture)
        yield "</div>"
    yield "</section>"


def _render_table(table: Table) -> Iterator[str]:
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    if table.folded:
        yield f"<details><summary>{escape(table.title)} ({len(table.rows)})</summary>"
    else:
        yield f"<h3>{escape(table.title)}</h3>"
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
    for row in table.rows:
        style = ' class="best"' if any(cell.strong for cell in row) else ""
        yield f"<tr{style}>{''.join(_render_cell(cell) for cell in row)}</tr>"
    yield "</tbody></table></div>"
    for note in (*table.notes, f"In full: {table.name}.csv"):
        yield f'<p class="note">{escape(note)}</p>'
    if table.folded:
        yield "</details>"


def _render_cell(cell: Cell) -> str:
    if cell.runs:
        return f"<td>{_render_ids(cell.runs)}</td>"
    text = escape(cell.text)
    if cell.code:
        text = f"<code>{text}</code>"
    if cell.strong:
        text = f"<strong>{text}</strong>"
    if cell.code and len(cell.text) > LONG_CODE:
        return f'<td class="long">{text}</td>'
    style = ' class="number"' if len(cell.text) < 32 and any(sign.isdigit() for sign in cell.text) else ""
    return f"<td{style}>{text}</td>"


def _render_ids(ids: tuple[str, ...]) -> str:
    listed = " ".join(f'<code class="id">{escape(run_id)}</code>' for run_id in ids)
    if len(ids) <= FOLDED_IDS:
        return listed
    return f"<details><summary>{len(ids)} runs</summary>{listed}</details>"


def _render_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    notes = "".join(f"<p>{escape(note)}</p>" for note in picture.notes)
    return (
        f'<figure><h3>{escape(picture.title)}</h3><img alt="{escape(picture.title)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{notes}'
        f"<div>{_render_ids(picture.runs)}</div></figcaption></figure>"
    )
