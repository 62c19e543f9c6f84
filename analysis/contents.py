"""What a report says, before it is a page, a Markdown file or a terminal's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.arms import FIRST, ArmResult, Comparison, compare_arms
from analysis.checks import find_warnings
from analysis.costs import describe_resumes, tabulate_memory, tabulate_parameters, tabulate_time
from analysis.endings import tabulate_endings, tabulate_stale
from analysis.extremes import MANY_ARMS
from analysis.figures import Picture, draw_figures
from analysis.guard_table import tabulate_guard
from analysis.load import ExperimentData, is_counted, is_done
from analysis.random_variables import draw_random, tabulate_random
from analysis.returns import (
    EVALUATION_MEAN,
    RUNS,
    TRAINING_MEAN,
    choose_return_decimals,
    tabulate_returns,
    tabulate_runs,
)
from analysis.returns_map import draw_maps
from analysis.settings import tabulate_defaults, tabulate_environment, tabulate_settings, tabulate_versions
from analysis.tables import Table, render_text, show_number
from experiment.run import safe_label

_NAMED_RIVALS = 6
SHOWN_ARMS = 20
"""Of more arms than `MANY_ARMS`, a terminal gets the best of them."""
SHOWN_WARNINGS = 20
"""So many are shown at once, on a terminal and at the top of the page, where the others fold away."""


@dataclass(frozen=True)
class Section:
    """A headline with sentences, tables and figures under it."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Report:
    """A whole report. `answer` is its first sentence, `facts` are pairs of a name and a value."""

    name: str
    description: str
    answer: str
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]

    def render_text(self) -> str:
        """Give the answer, the warnings and the first table of returns for a terminal."""
        is_long = len(self.tables[0].rows) > MANY_ARMS
        most = SHOWN_ARMS if is_long else None
        table = render_text(self.tables[0], leave_out=(EVALUATION_MEAN, TRAINING_MEAN, RUNS), most=most)
        warnings = "".join(f"warning: {warning}\n" for warning in self.warnings[:SHOWN_WARNINGS])
        if len(self.warnings) > SHOWN_WARNINGS:
            warnings += f"{len(self.warnings) - SHOWN_WARNINGS} more warnings are in the report\n"
        return f"{self.answer}\n\n{table}\n" + (f"\n{warnings}" if warnings else "")


def compose_report(data: ExperimentData) -> Report:
    """Give everything that the report of an experiment says."""
    comparisons = compare_arms(data)
    pictures, left_out = draw_figures(data, comparisons)
    pictures = [*draw_maps(comparisons[0]), *pictures]
    returns = [tabulate_returns(comparison) for comparison in comparisons]
    sections = [
        Section("Returns", tables=tuple(returns)),
        Section(
            "Random variables",
            tables=_keep_filled(tabulate_random(comparisons[0], data.random)),
            pictures=tuple(draw_random(comparisons[0], data.random)),
        ),
        Section("Figures", tuple(left_out), pictures=tuple(pictures)),
        Section("Unfinished runs", tables=_keep_filled(tabulate_endings(data), tabulate_stale(data))),
        Section("Guard", tables=_keep_filled(tabulate_guard(data))),
        Section(
            "Cost",
            tuple(describe_resumes(data)),
            _keep_filled(
                tabulate_parameters(data, comparisons[0]),
                tabulate_memory(comparisons[0]),
                tabulate_time(comparisons[0]),
            ),
        ),
        Section(
            "Settings and origin",
            tables=_keep_filled(
                tabulate_settings(data),
                tabulate_defaults(data),
                tabulate_versions(data),
                tabulate_environment(data),
                tabulate_runs(data),
            ),
        ),
    ]
    filled = [section for section in sections if section.sentences or section.tables or section.pictures]
    return Report(
        name=data.name,
        description=data.description,
        answer=answer_in_short(data, comparisons[0]),
        warnings=tuple(find_warnings(data, comparisons[0])),
        facts=_list_facts(data),
        sections=tuple(_name_files(filled)),
    )


def _keep_filled(*tables: Table) -> tuple[Table, ...]:
    return tuple(table for table in tables if table.rows)


def answer_in_short(data: ExperimentData, comparison: Comparison) -> str:
    """Say in a few sentences how many runs finished and count, which arm is best, and how sure that is.

    The comparison is the first one, of full combinations: it averages over seeds alone.
    """
    assert comparison.name == FIRST
    runs = data.unique_runs
    done = int(is_done(runs).sum())
    count = f"{done} of {len(runs)} {'run' if len(runs) == 1 else 'runs'} finished."
    counted = int(is_counted(runs).sum())
    if counted < done:
        count += f" {done - counted} of them {'was' if done - counted == 1 else 'were'} repaired and left out."
    if not counted:
        return f"{count} There are no returns to report."
    tasks = dict.fromkeys(result.arm.task for result in comparison.results)
    groups = [[result for result in comparison.results if result.arm.task == task] for task in tasks]
    return " ".join([count, *(_name_best(comparison, group) for group in groups)])


def _name_best(comparison: Comparison, results: Sequence[ArmResult]) -> str:
    ranked = [result for result in results if not result.problem]
    if not ranked:
        where = ", ".join(results[0].arm.task)
        return f"No arm{' on ' + where if where else ''} can be ranked: none has all of its runs finished and measured."
    best = next((result for result in ranked if result.is_best), ranked[0])
    decimals = choose_return_decimals(comparison)
    interval = (
        f", 95 % interval [{show_number(best.interval.low, decimals)}, {show_number(best.interval.high, decimals)}]"
    )
    seeds = "one seed" if best.finished == 1 else f"{best.finished} seeds"
    lead = "Best: " if best.is_best else ""
    sentence = (
        f"{lead}{comparison.describe(best.arm)}, IQM of the final evaluation returns {show_number(best.iqm, decimals)}"
        f"{interval if best.interval.exists else ''} over {seeds}."
    )
    rivals = [comparison.describe(result.arm) for result in ranked if result.verdict.startswith("not distinguishable")]
    if not rivals:
        return sentence
    named = "; ".join(rivals[:_NAMED_RIVALS])
    more = f" and {len(rivals) - _NAMED_RIVALS} more" if len(rivals) > _NAMED_RIVALS else ""
    return f"{sentence} Not distinguishable from it: {named}{more}."


def _list_facts(data: ExperimentData) -> tuple[tuple[str, str], ...]:
    runs = data.unique_runs

    def join(column: str) -> str:
        return ", ".join(dict.fromkeys(runs[column].dropna())) or "not recorded"

    started = runs["started"].dropna()
    newest = "no run was started" if started.empty else str(max(started))
    shared = len(data.runs) - len(runs)
    return (
        *((("Combinations", f"{len(data.runs)}, {len(runs)} distinct runs"),) if shared else ()),
        ("Newest run started", newest),
        ("Code version", join("code_version")),
        ("Device", join("used_device")),
    )


def _name_files(sections: Sequence[Section]) -> list[Section]:
    """Give each table and figure a file name of its own that any file system takes."""
    taken: set[str] = set()

    def claim(name: str, suffix: str) -> str:
        stem = safe_label(name)
        choices = (stem if number == 1 else f"{stem}_{number}" for number in range(1, len(taken) + 2))
        free = next(choice for choice in choices if f"{choice.lower()}{suffix}" not in taken)
        taken.add(f"{free.lower()}{suffix}")
        return free

    return [
        replace(
            section,
            tables=tuple(replace(table, name=claim(table.name, ".csv")) for table in section.tables),
            pictures=tuple(replace(picture, name=claim(picture.name, ".png")) for picture in section.pictures),
        )
        for section in sections
    ]
