"""`python -m analysis.attention`: where a policy looks in its windows of frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd

from analysis.attending import (
    Attended,
    Estimate,
    average_by_age,
    average_episodes,
    follow_episodes,
    list_attended,
    measure_change,
)
from analysis.attention_figure import draw_attention, draw_windows
from analysis.inside import Findings, build_parser, run_analysis
from analysis.tables import Cell, Table, show_number
from analysis.traces import Trace

NAME = "attention"
_DECIMALS = 3


def analyse(trace: Trace) -> Findings:
    """Give where a policy looked.

    Raises:
        TraceError: no episode fills a window.
    """
    episodes = list_attended(trace)
    by_age = average_by_age(episodes)
    ages = follow_episodes([episode.ages for episode in episodes])
    frames = follow_episodes([episode.frames for episode in episodes])
    png, pdf = draw_attention(by_age, ages, frames, trace.name)
    pictures = {f"{NAME}.png": png, f"{NAME}.pdf": pdf}
    sentences = describe(trace, episodes)
    if trace.header["slides"]:
        pictures[f"{NAME}_windows.png"] = draw_windows(trace, trace.name)
    else:
        sentences = (
            *sentences,
            "No windows are drawn: they don't move by a frame each step, and a trace has newest ones.",
        )
    tables = (tabulate_heads(episodes), tabulate_ages(by_age))
    return Findings(NAME, f"Attention of {trace.name}", sentences, tables, pictures)


def describe(trace: Trace, episodes: Sequence[Attended]) -> tuple[str, ...]:
    """Say what was looked at."""
    steps = sum(len(episode.weights) for episode in episodes)
    heads, window = trace.attention.shape[1:]
    short = len(trace.lengths) - len(episodes)
    left_out = f"; {short} episodes are shorter than a window" if short else ""
    return (
        f"{len(episodes)} episodes, {steps:,} steps, {heads} heads over {window} frames. Age 0 is the newest frame.",
        f"The first {window - 1} steps of an episode are left out: their windows have the first frame more than once"
        f"{left_out}.",
        "Means are over steps, then over episodes; in brackets the 95 % interval over episodes (percentile bootstrap).",
        f"Without any preference each frame has {1 / window:.{_DECIMALS}f}, and a head takes {window} frames.",
    )


def tabulate_heads(episodes: Sequence[Attended]) -> Table:
    """Give a row for each head: how many frames it takes, how old they are, and how much that changes."""
    changes = measure_change(episodes)
    rows, plain = [], []
    for head, change in enumerate(changes):
        frames = average_episodes([episode.frames[:, head].mean() for episode in episodes])
        age = average_episodes([episode.ages[:, head].mean() for episode in episodes])
        rows.append((Cell(str(head)), _show(frames), _show(age), Cell(show_number(change, _DECIMALS))))
        plain.append((head, *_list_numbers(frames), *_list_numbers(age), change))
    columns = ["head", *_name_columns("frames"), *_name_columns("age"), "moves"]
    notes = (
        "Frames taken: exp of the entropy of the weights, 1 for a single frame. Moves: the part of the weights that is "
        "elsewhere than on average, 0 where a head looks the same way whatever it sees.",
    )
    heads = ("Head", "Frames taken", "Mean age", "Moves")
    return Table("heads", "What each head takes", heads, tuple(rows), pd.DataFrame(plain, columns=columns), notes)


def tabulate_ages(by_age: Sequence[Sequence[Estimate]]) -> Table:
    """Give a row for each age: the mean weight in each head."""
    rows, plain = [], []
    for age in range(len(by_age[0])):
        rows.append((Cell(str(age)), *(_show(head[age]) for head in by_age)))
        plain += [(age, number, *_list_numbers(head[age])) for number, head in enumerate(by_age)]
    frame = pd.DataFrame(plain, columns=["age", "head", *_name_columns("weight")])
    heads = tuple(f"Head {number}" for number in range(len(by_age)))
    return Table("ages", "Mean weight by age", ("Age", *heads), tuple(rows), frame)


def _show(estimate: Estimate) -> Cell:
    mean = show_number(estimate.mean, _DECIMALS)
    if not estimate.interval.exists:
        return Cell(mean)
    low, high = (show_number(end, _DECIMALS) for end in (estimate.interval.low, estimate.interval.high))
    return Cell(f"{mean} [{low}, {high}]")


def _list_numbers(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.mean, estimate.interval.low, estimate.interval.high


def _name_columns(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write where a policy looks, and print it. Gives the exit code; see `run_analysis`."""
    parser = build_parser(NAME, "Where a policy looks in its windows of frames, by head and by age.")
    return run_analysis(parser.parse_args(arguments), analyse)


if __name__ == "__main__":
    sys.exit(main())
