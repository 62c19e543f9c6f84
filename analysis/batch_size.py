"""The report of a batch-size ladder: `python -m analysis.batch_size logs/<exp_name>` says which batch size to take."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.arms import FIRST, Comparison
from analysis.checks import warn_of_repaired
from analysis.endings import show_path
from analysis.figures import Picture
from analysis.ladder_advice import recommend
from analysis.ladder_claims import judge_claims
from analysis.ladder_figure import draw_ladder
from analysis.ladder_peak import GemmPeak, find_peak
from analysis.ladder_rungs import Ladder, build_ladder
from analysis.ladder_tables import (
    NAME,
    RUNS,
    tabulate_claimed,
    tabulate_costs,
    tabulate_judgements,
    tabulate_returns,
)
from analysis.load import ExperimentData, ExperimentError, load_runs, read_plan
from analysis.markdown import escape, render_table
from analysis.report import LOCK_PATIENCE_S, ReportBusyError, add_include_repaired, hold_lock
from analysis.returns import warn_of_few_seeds
from analysis.tables import Table, render_text, to_csv
from experiment.files import write_atomically


@dataclass(frozen=True)
class LadderReport:
    """What is said of a ladder, before it is files or a terminal's text."""

    name: str
    advice: str
    warnings: tuple[str, ...]
    returns: Table
    costs: Table
    claimed: Table
    judgements: Table
    picture: Picture | None

    def render_text(self) -> str:
        """Give recommendation, warnings and all tables for a terminal."""
        lines = [self.advice, *(f"warning: {warning}" for warning in self.warnings)]
        for table in (self.returns, self.costs, self.claimed, self.judgements):
            lines += ["", table.title, render_text(table, leave_out=(RUNS,)), *table.notes]
        return "\n".join(lines) + "\n"

    def render_markdown(self) -> str:
        """Give the text of `batch_size.md`."""
        lines = [f"# Batch sizes of {escape(self.name)}", "", f"**{escape(self.advice)}**", ""]
        if self.warnings:
            lines += [*(f"- Warning: {escape(warning)}" for warning in self.warnings), ""]
        if self.picture is not None:
            lines += [f"![{escape(self.picture.title)}]({NAME}.png)", ""]
            lines += [line for note in self.picture.notes for line in (escape(note), "")]
        for table in (self.returns, self.costs, self.claimed, self.judgements):
            lines += [f"## {escape(table.title)}", "", render_table(table), ""]
            lines += [line for note in table.notes for line in (escape(note), "")]
        return "\n".join(lines).rstrip("\n") + "\n"


@dataclass(frozen=True)
class LadderPaths:
    """Where the report of a ladder is, and what it says. `picture` is None where no run has finished."""

    markdown: Path
    table: Path
    picture: Path | None
    text: str


def compose_ladder_report(data: ExperimentData, peak: GemmPeak, threshold: float | None = None) -> LadderReport:
    """Give everything that the report of a ladder says; see `analysis.ladder_rungs.build_ladder` for the threshold."""
    ladder = build_ladder(data, threshold)
    advice = recommend(ladder)
    return LadderReport(
        name=data.name,
        advice=advice.text,
        warnings=tuple(find_warnings(ladder)),
        returns=tabulate_returns(ladder, advice),
        costs=tabulate_costs(ladder, advice, peak),
        claimed=tabulate_claimed(ladder),
        judgements=tabulate_judgements(judge_claims(ladder, advice)),
        picture=draw_ladder(ladder),
    )


def find_warnings(ladder: Ladder) -> list[str]:
    """Say what makes the recommendation less sure than it looks."""
    results = tuple(rung.result for rung in ladder.rungs)
    comparison = Comparison(FIRST, "", ladder.task_keys, ladder.keys, results)
    warnings = [*warn_of_repaired(ladder.data, comparison), *warn_of_few_seeds(comparison)]
    runs = [run for rung in ladder.rungs for run in rung.counted]
    for name, values in (
        ("hosts", {run.host for run in runs}),
        ("devices", {run.device for run in runs}),
        ("numbers of threads", {run.threads for run in runs}),
    ):
        if len(values) > 1:
            shown = ", ".join(sorted(str(value) for value in values))
            warnings.append(f"The runs were made on different {name} ({shown}): their wall times hardly compare.")
    return [*warnings, *ladder.data.warnings]


def write_ladder_report(
    experiment_dir: Path | str,
    threshold: float | None = None,
    measure_peak: bool = True,
    patience_s: float = LOCK_PATIENCE_S,
    include_repaired: bool = False,
) -> LadderPaths:
    """Write `batch_size.md`, `.csv` and `.png` into the `report/` of an experiment, whatever state its runs are in.

    Each file is replaced in one piece. A picture of before is removed where there is nothing to draw any more.

    Args:
        experiment_dir: `logs/<exp_name>`.
        threshold: return whose first reaching is timed.
        measure_peak: whether to measure this machine's GEMM peak, which takes a second.
        patience_s: how long to wait for another writer.
        include_repaired: whether runs that the training-health guard repaired may enter statistics.

    Raises:
        ExperimentError: the folder is not an experiment; nothing is written.
        ReportBusyError: another writer didn't finish in time.
        OSError: the folder can't be written.
    """
    folder = Path(experiment_dir)
    read_plan(folder)
    target = folder / "report"
    target.mkdir(exist_ok=True)
    with hold_lock(target / ".lock", patience_s):
        data = load_runs(folder, include_repaired)
        report = compose_ladder_report(data, find_peak(data.environment, measure_peak), threshold)
        markdown, table, picture = (target / f"{NAME}{suffix}" for suffix in (".md", ".csv", ".png"))
        write_atomically(table, [to_csv(report.costs)])
        if report.picture is None:
            picture.unlink(missing_ok=True)
        else:
            write_atomically(picture, [report.picture.png])
        write_atomically(markdown, [report.render_markdown().encode()])
    return LadderPaths(markdown, table, picture if report.picture else None, report.render_text())


def _read_threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a return has to be a finite number, got {text!r}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a ladder and print it. Gives the exit code: 0, 1 not written, 2 not an experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.batch_size", description="Report which batch size to take, from an experiment's runs."
    )
    parser.add_argument("experiment", type=Path, help="its folder, logs/<exp_name>")
    parser.add_argument(
        "--threshold",
        type=_read_threshold,
        help="return whose first reaching is timed; default: 90 %% of the way from the worst first evaluation to the "
        "best final IQM",
    )
    parser.add_argument("--no-peak", action="store_true", help="do not measure this machine's GEMM peak")
    add_include_repaired(parser)
    chosen = parser.parse_args(arguments)
    try:
        paths = write_ladder_report(
            chosen.experiment,
            chosen.threshold,
            measure_peak=not chosen.no_peak,
            include_repaired=chosen.include_repaired,
        )
    except ExperimentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (ReportBusyError, OSError) as error:
        sys.stderr.write(f"The batch sizes of {chosen.experiment} were not reported: {error}\n")
        return 1
    sys.stdout.write(f"{paths.text}\nReport: {show_path(paths.markdown)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
