"""The report of an experiment: `python -m analysis.report logs/<exp_name>` writes it below the experiment's folder."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from analysis.checks import INCLUDE_REPAIRED
from analysis.contents import Report, compose_report
from analysis.endings import show_path
from analysis.load import ExperimentError, load_runs, read_plan
from analysis.markdown import render_markdown
from analysis.page import render_page
from analysis.tables import to_csv
from experiment.files import read_json, write_atomically
from experiment.locks import acquire_lock

MANIFEST = ".files.json"
LOCK_PATIENCE_S = 120.0
_LOOK_AGAIN_S = 0.1


class ReportBusyError(RuntimeError):
    """Another process has been writing the same report for too long."""


@dataclass(frozen=True)
class ReportPaths:
    """Where a report is, and what it says in short.

    `text` is for a terminal: the answer, the first table of returns, the warnings.
    """

    folder: Path
    html: Path
    markdown: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    text: str


def write_report(
    experiment_dir: Path | str, patience_s: float = LOCK_PATIENCE_S, include_repaired: bool = False
) -> ReportPaths:
    """Write `report/` of an experiment anew, whatever state its runs are in.

    The same files give the same bytes. Each file is replaced in one piece; a lock keeps two writers apart, and the
    later one reads the runs again after the earlier has finished.

    Args:
        experiment_dir: `logs/<exp_name>`.
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
        report = compose_report(load_runs(folder, include_repaired))
        files = render_files(report)
        _replace_files(target, files)
    return ReportPaths(
        folder=target,
        html=target / "report.html",
        markdown=target / "report.md",
        tables=tuple(target / name for name in files if name.endswith(".csv")),
        figures=tuple(target / name for name in files if name.endswith(".png")),
        text=report.render_text(),
    )


def render_files(report: Report) -> dict[str, bytes]:
    """Give the contents of every file of a report by name, the pages last."""
    files = {f"{table.name}.csv": to_csv(table) for table in report.tables}
    files |= {f"{picture.name}.png": picture.png for picture in report.pictures}
    return files | {"report.md": render_markdown(report).encode(), "report.html": render_page(report).encode()}


def _replace_files(target: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, and remove those that only an earlier report wrote. Files of others are left alone."""
    earlier = (read_json(target / MANIFEST) or {}).get("files", [])
    for name in sorted({str(name) for name in earlier} - set(files)):
        if Path(name).name == name:
            (target / name).unlink(missing_ok=True)
    write_atomically(target / MANIFEST, [json.dumps({"files": sorted({*files})}, indent=0).encode()])
    for name, content in files.items():
        write_atomically(target / name, [content])


@contextmanager
def hold_lock(path: Path, patience_s: float) -> Iterator[None]:
    """Hold a lock file's lock, so that two reports of one experiment never mix.

    Raises:
        ReportBusyError: somebody else held it for longer than `patience_s` seconds.
    """
    end = time.monotonic() + patience_s
    while (descriptor := acquire_lock(path)) is None:
        if time.monotonic() >= end:
            raise ReportBusyError(
                f"{path} is held by another process that writes this report; try again when it is done"
            )
        time.sleep(_LOOK_AGAIN_S)
    try:
        yield
    finally:
        os.close(descriptor)


def add_include_repaired(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flag with which repaired runs enter statistics."""
    parser.add_argument(
        INCLUDE_REPAIRED,
        action="store_true",
        help="let runs that the training-health guard repaired enter the statistics; they are left out otherwise",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report and print what it says in short. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="Write the report of an experiment.")
    parser.add_argument("experiment", type=Path, help="its folder, logs/<exp_name>")
    add_include_repaired(parser)
    chosen = parser.parse_args(arguments)
    try:
        paths = write_report(chosen.experiment, include_repaired=chosen.include_repaired)
    except ExperimentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (ReportBusyError, OSError) as error:
        sys.stderr.write(f"The report of {chosen.experiment} was not written: {error}\n")
        return 1
    sys.stdout.write(f"{paths.text}\nReport: {show_path(paths.html)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
