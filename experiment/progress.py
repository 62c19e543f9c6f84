"""What a sweep shows while it runs: a live table on a terminal, a line per change elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

from experiment.engines.local import Handle
from experiment.files import read_newest_rows
from experiment.run import Run
from experiment.streams import silence_stdout

if TYPE_CHECKING:
    from rich.table import Table

TAIL_BYTES = 16384
RETURN_NAMES = ("eval/mean_reward", "rollout/ep_rew_mean")
MAX_ROWS = 30


@dataclass(frozen=True)
class Progress:
    """How far a run is, read from the end of its metrics; None for what isn't known yet."""

    step: int = 0
    speed: float | None = None
    episode_return: float | None = None


def read_progress(run: Run) -> Progress:
    """Give a run's progress from the last rows of its `metrics.jsonl`; a row being written is passed over."""
    step, speed, episode_return = None, None, None
    for numbers in _read_backwards(run):
        if step is None:
            step = int(max(numbers.get("env_step", 0), numbers.get("step", 0)))
        if speed is None:
            speed = numbers.get("time/fps")
        if episode_return is None:
            episode_return = next((numbers[name] for name in RETURN_NAMES if name in numbers), None)
        if speed is not None and episode_return is not None:
            break  # Older rows have no say: of a thousand runs they would be most of the work.
    return Progress(step or 0, speed, episode_return)


def _read_backwards(run: Run) -> Iterator[dict[str, float]]:
    """Give the numbers of the last rows of a run's metrics, the newest row first."""
    for row in read_newest_rows(run.metrics_path, TAIL_BYTES):
        # Only numbers: a script that isn't ours may write anything here, and ours write "nan" as text.
        yield {name: value for name, value in row.items() if type(value) in (int, float)}


@dataclass(frozen=True)
class Tally:
    """How many runs are in which state, as the runner sees them."""

    done: int
    running: int
    failed: int
    waiting: int
    elsewhere: int
    stopped: int

    def __str__(self) -> str:
        parts = [f"{self.done} done", f"{self.running} running"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.stopped} stopped"] if self.stopped else []
        parts += [f"{self.elsewhere} run by another runner"] if self.elsewhere else []
        return ", ".join([*parts, f"{self.waiting} to run"])


class View(Protocol):
    """Where the runner says things."""

    def say(self, text: str) -> None:
        """Show a line that stays."""
        ...

    def update(self, handles: Sequence[Handle], tally: Tally) -> None:
        """Show what runs now, where that can be shown in place."""
        ...

    def close(self) -> None:
        """End what is shown in place."""
        ...


class PlainView:
    """A line per change. A terminal or pipe that has gone away silences it and harms nothing else."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream: IO[str] | None = stream

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if self._stream is None:
            return
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:
            silence_stdout()
            self._stream = None

    def update(self, handles: Sequence[Handle], tally: Tally) -> None:
        """Show nothing: there is no place that could be written over."""

    def close(self) -> None:
        """Nothing is shown in place."""


class LiveView:
    """One table, written over in place, with the lines that stay above it."""

    def __init__(self, totals: dict[str, int]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._totals = totals
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._live.start()
        self._silent = False

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._guard(lambda: self._console.print(text, markup=False, highlight=False, soft_wrap=True))

    def update(self, handles: Sequence[Handle], tally: Tally) -> None:
        """Show each running run: step, speed, latest return, time left."""
        self._guard(lambda: self._live.update(self._build_table(handles, tally)))

    def close(self) -> None:
        """Take the table away; the lines stay."""
        self._guard(self._live.stop)

    def _guard(self, show: Callable[[], object]) -> None:
        if self._silent:
            return
        try:
            show()
        except OSError:
            silence_stdout()
            self._silent = True

    def _build_table(self, handles: Sequence[Handle], tally: Tally) -> Table:
        from rich.table import Table

        table = Table(title=str(tally), title_justify="left", box=None, pad_edge=False)
        for heading in ("run", "on", "step", "steps/s", "return", "left"):
            table.add_column(heading, justify="left" if heading in ("run", "on") else "right", no_wrap=heading != "run")
        for handle in handles[:MAX_ROWS]:
            progress = read_progress(handle.run)
            total = self._totals.get(handle.run.id)
            table.add_row(handle.run.label, handle.device.name, *describe(progress, total))
        return table


def describe(progress: Progress, total: int | None) -> tuple[str, str, str, str]:
    """Give step, speed, return and time left as texts, a dash for what isn't known."""
    step = f"{progress.step:,}" + (f"/{total:,}" if total else "")
    speed = "-" if progress.speed is None else f"{progress.speed:,.0f}"
    episode_return = "-" if progress.episode_return is None else f"{progress.episode_return:,.1f}"
    if not total or not progress.speed:
        return step, speed, episode_return, "-"
    seconds = max(0, total - progress.step) / progress.speed
    return step, speed, episode_return, time.strftime("%H:%M:%S", time.gmtime(min(seconds, 359_999)))


def open_view(plain: bool, totals: dict[str, int]) -> View:
    """Give the live table where there is a terminal, plain lines elsewhere."""
    if plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView(sys.stdout)
    return LiveView(totals)
