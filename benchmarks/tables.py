"""Tables, printed as they come about."""

from __future__ import annotations


def print_row(*cells: object) -> None:
    """Print one row of a Markdown table at once, as the next takes a while."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
