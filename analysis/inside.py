"""What the analyses of a policy's networks share: the trace that they are given or ask for, and what they write."""

from __future__ import annotations

import argparse
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.markdown import escape, render_table
from analysis.tables import Table, render_text, to_csv
from analysis.traces import Trace, TraceError, read_trace
from experiment.files import write_atomically
from experiment.run import Run

PLAY = Path(__file__).resolve().parents[1] / "play.py"


class NotTracedError(Exception):
    """A run that `play.py trace` could keep nothing of; it has said why. `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"play.py trace ended with {code}")
        self.code = code


@dataclass(frozen=True)
class Findings:
    """What an analysis comes to.

    Attributes:
        name: stem of its files.
        title: of its page.
        sentences: what can be said in words.
        tables: with the most important first.
        pictures: content by name of the file.
    """

    name: str
    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: Mapping[str, bytes]


def build_parser(module: str, description: str) -> ArgumentParser:
    """Give the parser of an analysis."""
    parser = argparse.ArgumentParser(prog=f"python -m analysis.{module}", description=description, allow_abbrev=False)
    parser.add_argument("target", type=Path, metavar="RUN|FILE", help="a run folder, or what `play.py trace` wrote")
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="where files go (default: beside the trace)")
    parser.add_argument("--checkpoint", default="newest", help="of a run folder: newest (default), best, or a name")
    parser.add_argument("--episodes", type=int, default=10, help="of a run folder: how many (default: 10)")
    parser.add_argument("--device", default="cpu", help="of a run folder: where its policy computes (default: cpu)")
    return parser


def find_trace(args: Namespace) -> Path:
    """Give the file that was named; for a run folder, that of its policy at work, traced by a process of its own.

    Raises:
        NotTracedError: the process failed, and has said why.
    """
    target: Path = args.target
    if not target.is_dir():
        return target
    try:
        path = Run.open(target.absolute()).trace_path
    except ValueError as error:
        raise TraceError(str(error)) from error
    words = ["--checkpoint", args.checkpoint, "--episodes", str(args.episodes), "--device", args.device]
    # This process loads no torch; that one may use a device and gives it back.
    command = [sys.executable, str(PLAY), "trace", str(target), *words, "-o", str(path), "--overwrite"]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise NotTracedError(code if code > 0 else 1)
    return path


def run_analysis(args: Namespace, analyse: Callable[[Trace], Findings]) -> int:
    """Find a trace, analyse it, write and print what it comes to. Gives the exit code: 0, 1 not written, 2 no trace."""
    try:
        path = find_trace(args)
        findings = analyse(read_trace(path))
    except NotTracedError as error:
        return error.code
    except TraceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error.filename or args.target}: {error.strerror or error}\n")
        return 2
    folder = args.out or path.parent
    try:
        page = write_findings(folder, findings)
    except OSError as error:
        sys.stderr.write(f"{error.filename or folder}: {error.strerror or error}\n")
        return 1
    text = "\n\n".join(["\n".join(findings.sentences), *(render_text(table) for table in findings.tables)])
    sys.stdout.write(f"{findings.title}\n\n{text}\n\nPage: {page}\n")
    return 0


def write_findings(folder: Path, findings: Findings) -> Path:
    """Write tables and pictures, and the page that shows them, each file in one piece; give the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in findings.pictures.items():
        write_atomically(folder / name, [content])
    for table in findings.tables:
        write_atomically(folder / f"{findings.name}_{table.name}.csv", [to_csv(table)])
    page = folder / f"{findings.name}.md"
    write_atomically(page, ["\n".join(render_page(findings)).encode()])
    return page


def render_page(findings: Findings) -> Sequence[str]:
    """Give the lines of a page in Markdown."""
    lines = [f"# {escape(findings.title)}", ""]
    for sentence in findings.sentences:
        lines += [escape(sentence), ""]
    for table in findings.tables:
        lines += [f"## {escape(table.title)}", "", render_table(table), ""]
        for note in table.notes:
            lines += [escape(note), ""]
    for name in findings.pictures:
        if name.endswith(".png"):
            lines += [f"![{escape(name.removesuffix('.png'))}]({name})", ""]
    return lines
