"""What the training-health guard decided in each run: from its summary, or, before it has one, from the events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records import read_number, read_text
from experiment.files import read_json
from experiment.run import Run

MODES = ("warn", "stop", "repair")
_SHOWN_LINES = 5
_SHOWN_VALUE = 60
_LARGEST = 2**63 - 1
"""Of the whole numbers that a column can hold."""


@dataclass(frozen=True)
class Decision:
    """One thing that the guard saw, and what it did. `limit` and `updates` are None where nothing says them."""

    verdict: str
    metric: str
    value: float
    limit: float | None
    step: int
    updates: int | None
    action: str


@dataclass(frozen=True)
class GuardRecord:
    """What is known of one run's guard.

    Attributes:
        mode: one of `MODES`, empty before the run has a summary and in summaries that don't say it.
        repaired: True where a finished run says that its guard repaired it, or says it in a way that can't be read.
        events: from the summary; of a run whose summary has no count, its different guard lines in `events.jsonl`.
        decisions: of a finished run those in its summary, else its different lines, in the order of the file.
        warnings: what can't be read, as sentences.
    """

    mode: str = ""
    repaired: bool = False
    events: int = 0
    decisions: tuple[Decision, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class GuardLine:
    """A guard line of `events.jsonl` with its place in the file."""

    number: int
    event: Mapping[str, Any]


def read_guards(events: Path, runs: Mapping[str, Run], done: AbstractSet[str]) -> tuple[dict[str, GuardRecord], str]:
    """Give the record of each run, and what was wrong with lines that belong to none.

    Args:
        events: the experiment's `events.jsonl`, which need not be there.
        runs: by id.
        done: the ids of those that are finished, whose summaries are read.
    """
    lines, homeless = read_guard_lines(events)
    records = {
        run_id: _read_finished(run, lines.get(run_id, [])) if run_id in done else _read_lines(lines.get(run_id, []))
        for run_id, run in runs.items()
    }
    return records, f"events.jsonl has {_count('guard line', homeless, 'without a run')}" if homeless else ""


def read_guard_lines(path: Path) -> tuple[dict[str, list[GuardLine]], list[int]]:
    """Give the different guard lines of each run, and the numbers of those that name no run.

    An attempt that repeats steps after a kill repeats its lines; they differ in their time alone, and the first counts.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}, []
    found: dict[str, dict[str, GuardLine]] = {}
    homeless = []
    for number, line in enumerate(lines, start=1):
        event = _parse_guard_line(line)
        if event is None:
            continue
        run_id = event.get("run")
        if not isinstance(run_id, str):
            homeless.append(number)
            continue
        what = json.dumps({name: value for name, value in event.items() if name != "time"}, sort_keys=True)
        found.setdefault(run_id, {}).setdefault(what, GuardLine(number, event))
    return {run_id: list(different.values()) for run_id, different in found.items()}, homeless


def _parse_guard_line(line: bytes) -> dict[str, Any] | None:
    if b'"guard"' not in line:
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and event.get("event") == "guard" else None


def _read_lines(lines: Sequence[GuardLine]) -> GuardRecord:
    decisions, unreadable = _read_decisions((line.number, line.event) for line in lines)
    warning = f"events.jsonl has {_count('unreadable guard line', unreadable, 'left out')}" if unreadable else ""
    return GuardRecord(events=len(lines), decisions=decisions, warnings=(warning,) if warning else ())


def _read_finished(run: Run, lines: Sequence[GuardLine]) -> GuardRecord:
    guard = (read_json(run.summary_path) or {}).get("guard", {})
    if not isinstance(guard, dict):
        warning = f"guard is {_shorten(guard)}, not an object; the run is taken for repaired"
        return GuardRecord(repaired=True, events=len(lines), warnings=(f"summary.json: {warning}",))
    raw = guard.get("decisions", [])
    decisions, unreadable = _read_decisions(enumerate(raw, start=1)) if isinstance(raw, list) else ((), [])
    warnings = list(_find_wrong_types(guard))
    if unreadable:
        warnings.append(f"summary.json has {_count('unreadable guard decision', unreadable, 'left out')}")
    events = _read_count(guard.get("events"))
    return GuardRecord(
        mode=guard["mode"] if guard.get("mode") in MODES else "",
        repaired=guard.get("repaired", False) is not False,
        events=len(lines) if events is None else events,
        decisions=decisions,
        warnings=tuple(warnings),
    )


def _find_wrong_types(guard: Mapping[str, Any]) -> Iterator[str]:
    """Say what a summary's `guard` has and shouldn't; keys that aren't there are an older run's."""
    kinds = {
        "mode": (guard.get("mode") in MODES, f"not one of {', '.join(MODES)}; taken for unknown"),
        "verdict": (read_text(guard.get("verdict")) is not None, "not a text; left out"),
        "events": (
            _read_count(guard.get("events")) is not None,
            "not a count; its different lines in events.jsonl are",
        ),
        "repaired": (isinstance(guard.get("repaired"), bool), "neither true nor false; the run is taken for repaired"),
        "decisions": (isinstance(guard.get("decisions"), list), "not a list; left out"),
    }
    for key, (is_right, problem) in kinds.items():
        if key in guard and not is_right:
            yield f"summary.json: guard.{key} is {_shorten(guard[key])}, {problem}"


def _read_decisions(items: Iterator[tuple[int, Any]]) -> tuple[tuple[Decision, ...], list[int]]:
    """Give the decisions that can be read, and the numbers of the others."""
    decisions = []
    unreadable = []
    for number, item in items:
        decision = _read_decision(item) if isinstance(item, Mapping) else None
        if decision is None:
            unreadable.append(number)
        else:
            decisions.append(decision)
    return tuple(decisions), unreadable


def _read_decision(item: Mapping[str, Any]) -> Decision | None:
    verdict, metric, action = (read_text(item.get(name)) for name in ("verdict", "metric", "action"))
    value, limit = _read_value(item.get("value")), _read_value(item.get("limit"))
    step, updates = _read_count(item.get("step")), _read_count(item.get("updates"))
    is_odd = (limit is None and item.get("limit") is not None) or (updates is None and item.get("updates") is not None)
    if verdict is None or metric is None or action is None or value is None or step is None or is_odd:
        return None
    return Decision(verdict, metric, value, limit, step, updates, action)


def _read_value(value: object) -> float | None:
    return None if isinstance(value, bool) else read_number(value)


def _read_count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    return None


def _count(what: str, numbers: Sequence[int], fate: str) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN_LINES])
    return f"{len(numbers)} {what}(s), {fate}: {shown}"


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}..."
