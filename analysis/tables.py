"""What a table is, and how its numbers are written; `returns`, `costs`, `endings` and `settings` fill tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

DASH = "–"  # noqa: RUF001  an en dash stands for "no number" in every table


@dataclass(frozen=True)
class Cell:
    """One cell as shown. `code` is set as typed; `runs` are ids, which long lists fold away."""

    text: str
    strong: bool = False
    code: bool = False
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table for people, and the same with full precision for programs.

    Attributes:
        name: stem of its CSV file.
        notes: sentences that belong under it.
        frame: what the CSV file holds.
        folded: True for one that is long and rarely needed; the page shows it on demand.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    folded: bool = False


def to_csv(table: Table) -> bytes:
    """Give the table's CSV file: full precision, Unix line ends, `nan` and `inf` where a value isn't finite."""
    text: str = table.frame.to_csv(index=False, lineterminator="\n")
    return text.encode()


def list_runs(ids: Iterable[str]) -> Cell:
    """Give the cell that names the runs behind a row."""
    runs = tuple(ids)
    return Cell(" ".join(runs), runs=runs)


def choose_decimals(values: Iterable[float | None]) -> int:
    """Give the decimals with which the largest of the values has four digits, from 0 to 4."""
    finite = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    if not finite:
        return 1
    return min(4, max(0, 3 - math.floor(math.log10(max(finite)))))


def show_number(value: float | None, decimals: int) -> str:
    """Write a number; a dash for none, `nan`, `inf` or `-inf` as they are."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return str(float(value))
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def show_count(value: object) -> str:
    """Write a whole number with thousands set apart; a dash for none."""
    return DASH if pd.isna(value) else f"{int(value):,}"  # type: ignore[call-overload]


def show_bytes(value: object) -> str:
    """Write a size in MiB; a dash for none."""
    return DASH if pd.isna(value) else f"{int(value) / 2**20:,.1f}"  # type: ignore[call-overload]


def show_seconds(value: float) -> str:
    """Write a time as `42.0 s`, `12 min 05 s` or `3 h 07 min`; a dash for none."""
    if math.isnan(value):
        return DASH
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def render_text(table: Table, leave_out: Sequence[str] = (), most: int | None = None) -> str:
    """Give a table as aligned plain text, for a terminal; bold cells have an asterisk.

    Args:
        table: any.
        leave_out: columns that are not shown.
        most: so many rows are shown, and how many more there are; None for all.
    """
    kept = [index for index, column in enumerate(table.columns) if column not in leave_out]
    lines = [[table.columns[index] for index in kept]]
    lines += [[("*" if row[index].strong else "") + row[index].text for index in kept] for row in table.rows[:most]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(kept))]
    rows = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    left = 0 if most is None else len(table.rows) - most
    return "\n".join([*rows, f"... and {left} more rows"] if left > 0 else rows)
