"""What can be wrong with a spec or with settings, said so that it can be repaired."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One thing that a user can fix, and where it stands.

    `line` and `column` count from 1; without a `file` only the message is shown.
    """

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.message}" if place else self.message


class SpecError(ValueError):
    """A spec that can't be run. Carries every problem found, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with settings, before it is known where they were written.

    `keys` are dotted; the first is the one to point at, at itself or at its value as `about` says. `message` names keys
    and values itself: `learning_rate must be > 0, got -0.001`.
    """

    keys: tuple[str, ...]
    message: str
    about: Literal["key", "value"] = "value"


class SettingsError(ValueError):
    """Settings that no trainer can take, with every fault found in them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(fault.message for fault in faults))
        self.faults = tuple(faults)


def suggest(word: str, known: Iterable[str]) -> str:
    """Give `; did you mean 'x'?` for the likeliest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
