"""`why ID`: why a run is in its state, the facts that this follows from, and the command that goes on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.engines.local import describe_ending, last_line, last_lines
from experiment.files import read_events, read_json
from experiment.locks import is_locked, list_holders
from experiment.outcomes import is_left_failed
from experiment.parents import Parent, open_parent, read_settings
from experiment.problems import SpecError
from experiment.progress import describe, read_progress
from experiment.provenance import hash_code
from experiment.run import Run, RunStatus, State
from experiment.runners import list_runners
from experiment.schedule import DEVICE_GONE
from experiment.stored import find_newest_whole, list_stored
from experiment.views import list_lines, read_plan

SHOWN_LINES = 12
SHOWN_ATTEMPTS = 8
REASONS = {
    "ok": "done",
    "requeue": "asked to stop",
    "oom": "out of memory",
    "timeout": "it took longer than --timeout allows",
    "config": "its settings were refused",
    "health": "the training-health guard ended it",
}
LEFT = {
    0: "with every run settled",
    1: "with failed runs",
    3: "because a device was not there",
    4: "because its first runs all failed alike",
    75: "with work left, because it was asked to stop",
    129: "because of SIGHUP",
    130: "because of Ctrl-C",
    143: "because of SIGTERM",
}


@dataclass(frozen=True)
class Case:
    """All that is known about one run, read once.

    Attributes:
        run: where it is or will be.
        status: now.
        settings: as its plan gives them; None where no plan has it any more.
        events: of its experiment, the oldest first.
        start: what was known when its last attempt started.
        ending: how that ended; None where it runs, or didn't live to say.
    """

    run: Run
    status: RunStatus
    settings: Mapping[str, Any] | None
    events: Sequence[Mapping[str, Any]]
    start: Mapping[str, Any]
    ending: Mapping[str, Any] | None

    @classmethod
    def read(cls, run: Run) -> Case:
        """Look at a run.

        Raises:
            ViewError: the plan of its experiment is cut short.
        """
        status = run.status()
        row = next(read_plan(run.experiment_dir, run.id), None)
        return cls(
            run,
            status,
            None if row is None else row["settings"],
            read_events(run.events_path),
            run.read_start(status.attempt),
            run.read_exit(status.attempt),
        )

    def last_event(self, name: str, since: str = "") -> Mapping[str, Any] | None:
        """Give the newest event of a name that is not older than a time."""
        named = (event for event in reversed(self.events) if event["event"] == name and event["time"] >= since)
        return next(named, None)

    def was_launched(self) -> bool:
        """Tell whether a runner started its last attempt, or would start its first."""
        launches = [event for event in self.events if event["event"] == "started" and event["run"] == self.run.id]
        if self.status.attempt == 0 or not self.start:
            return True
        return any(event.get("attempt") == self.status.attempt for event in launches)

    def was_alone(self) -> bool:
        """Tell whether its last attempt was started alone, an earlier one having run out of memory."""
        mine = [event for event in self.events if event["event"] == "started" and event["run"] == self.run.id]
        return bool(mine) and mine[-1].get("placed") == "alone"

    def command(self) -> str:
        """Give the command that goes on with it, ready to paste."""
        launched = self.last_event("launched")
        if self.was_launched() and launched is not None and isinstance(launched.get("command"), str):
            return str(launched["command"])
        if self.start and not self.was_launched():
            return shlex.join(self.start["command"])
        return f"python run_experiment.py -e {self.run.experiment_dir / 'spec.yaml'}"

    def rerun_command(self) -> str:
        """Give the command that runs it again although it is done, or has failed."""
        if self.was_launched():
            return f"{self.command()} --rerun {self.run.id}"
        return f"{self.command()} --continue_training false" if self.status.state is State.DONE else self.command()

    def find_parent(self) -> Parent | None:
        """Give the run that it begins from: as it was started last, else as it is planned."""
        return open_parent(self.run, read_settings(self.run) or self.settings or {})

    def point_of_resume(self) -> str:
        """Say from where it would go on."""
        newest = find_newest_whole(self.run.checkpoints_dir)
        if newest is not None:
            return f"from step {newest.step:,} (newest valid checkpoint)"
        if any(not stored.is_unfinished() for stored in list_stored(self.run.checkpoints_dir, "step")):
            return "from none of its checkpoints, which are broken: it will say so and fail"
        if (parent := self.find_parent()) is None:
            return "from the start (it has no checkpoint)"
        if not parent.run.folder.is_dir():
            return f"from nothing: it has no checkpoint, and run {parent.run.id}, which it begins from, is gone"
        return f"from where run {parent.run.id} is (it has no checkpoint of its own)"


def print_why(run: Run) -> None:
    """Print why a run is in its state.

    Raises:
        ViewError: the plan of its experiment is cut short.
    """
    case = Case.read(run)
    sentences, command = EXPLAIN[case.status.state](case)
    print(f"{run.label} ({run.id})")
    print(f"{case.status.state}: {' '.join(sentences)}")
    if command:
        print(f"  {command}")
    for name, fact in list_facts(case):
        print(f"{name:<12}{fact}")
    if case.status.state in (State.FAILED, State.LOST):
        print_console(case)


def explain_pending(case: Case) -> tuple[list[str], str]:
    """Say why a run was never started."""
    sentences = ["never started."]
    running = [line for line in list_lines(case.run.experiment_dir) if line.status.state is State.RUNNING]
    left = case.last_event("left")
    launched = case.last_event("launched")
    if case.settings is None:
        sentences.append("No plan has it any more, so no launch would start it.")
        return sentences, ""
    if runners := list_runners(case.run.experiment_dir):
        names = ", ".join(map(str, runners))
        sentences.append(f"At work in its folder: {names}. It waits for its turn, unless --only leaves it out.")
        sentences.append("If it does, this starts it:")
    elif running:
        count = len(running)
        sentences.append(f"{count} run{'s' * (count > 1)} of its experiment {'is' if count == 1 else 'are'} going on:")
        sentences.append("it waits for its turn. If no runner is left with them, this starts it:")
    elif left is not None and launched is not None and left["time"] >= launched["time"]:
        sentences.append(f"{_say_left(left)}; this starts it:")
    elif launched is not None:
        sentences.append(f"The runner that was launched at {launched['time']} never said why it left: it was killed,")
        sentences.append("or is about to begin. This starts it:")
    else:
        sentences.append("This starts it:")
    return sentences, case.command()


def explain_running(case: Case) -> tuple[list[str], str]:
    """Say who runs a run, and how far it is."""
    if case.ending is not None or not case.start:
        return ["somebody holds its lock and has not started an attempt yet, or is about to let go of it."], ""
    holders = ", ".join(map(str, list_holders(case.run.lock_path))) or "of another user or machine"
    start = case.start
    sentence = f"pid {holders} on {start['host']}, device {start['device']}, since {start['started']}"
    return [f"{sentence} (attempt {case.status.attempt}).", _say_last_row(case.run)], ""


def explain_stopped(case: Case) -> tuple[list[str], str]:
    """Say who stopped a run, and from where it goes on."""
    assert case.ending is not None
    began = str(case.start.get("started", ""))
    asked, left = case.last_event("stop requested", began), case.last_event("left", began)
    code = case.ending["returncode"]
    how = "wrote a checkpoint and ended" if code == 75 else f"did not end in time by itself and was ended with {code}"
    sentences = [f"its last attempt ({case.status.attempt}) was asked to stop, {how}{_say_wall(case.ending)}."]
    if asked is not None:
        sentences.append(f"`run_experiment.py stop` asked for it at {asked['time']}.")
    elif left is not None:
        sentences.append(f"{_say_left(left)}.")
    elif case.was_launched():
        sentences.append("Its runner did not live to say why.")
    return [*sentences, f"The same command resumes it {case.point_of_resume()}:"], case.command()


def explain_lost(case: Case) -> tuple[list[str], str]:
    """Say what is missing, and from where the run goes on."""
    attempt = case.status.attempt
    again = f"The same command resumes it {case.point_of_resume()}:"
    if case.ending is not None:
        first = f"attempt {attempt} was done, and its results were put aside for a new one that nobody has started."
        return [first, again], case.command()
    killed = "its supervisor was killed" if case.was_launched() else "its process was killed"
    first = f"attempt {attempt} has no exit.json and nobody holds its lock: {killed}, or the machine went down."
    return [first, again], case.command()


def explain_failed(case: Case) -> tuple[list[str], str]:
    """Say how the last attempt ended, and whether the same command would try again."""
    run, ending = case.run, case.ending
    assert ending is not None
    end = describe_ending(ending, run.console_path(case.status.attempt))
    meaning = REASONS.get(ending["reason"], end.message)
    how = f"ended with {ending['returncode']}{_say_wall(ending)}"
    sentences = [f"its last attempt ({case.status.attempt}) {how}: {meaning}."]
    if ending["reason"] == "oom" and case.was_alone():
        sentences.append("It had run out of memory beside others before, and then did so alone.")
    failures = run.count_failures(0)
    if failures > 1:
        sentences.append(f"It has failed {failures} times.")
    if not case.was_launched():
        return [*sentences, f"The same command tries it again {case.point_of_resume()}:"], case.command()
    return _explain_next(case, sentences)


def _explain_next(case: Case, sentences: Sequence[str]) -> tuple[list[str], str]:
    """Say whether a launch would try a failed run again, given the code that is here now."""
    version = _find_code_version(case)
    if version is None:
        note = "Whether the code has changed since can't be told from this folder; this runs it again:"
        return [*sentences, note], case.rerun_command()
    if is_left_failed(case.run, case.status, version):
        note = "Nothing has changed since, so the same command leaves it as it is; this runs it again"
        return [*sentences, f"{note}, {case.point_of_resume()}:"], case.rerun_command()
    why = "The code has changed since"
    if case.start.get("code_version") == version:
        assert case.ending is not None
        gone = case.ending["returncode"] == DEVICE_GONE
        why = "Its device was gone, which says nothing against it" if gone else "It was killed from outside"
    return [*sentences, f"{why}: the same command tries it again {case.point_of_resume()}:"], case.command()


def explain_done(case: Case) -> tuple[list[str], str]:
    """Say what a finished run came to."""
    summary = read_json(case.run.summary_path) or {}
    final = summary.get("final_eval") or {}
    times = f"{case.status.attempt} attempt{'s' * (case.status.attempt != 1)}"
    sentences = [f"it finished at {_read_time(case.run.exit_path)}, after {times}."]
    if isinstance(final.get("mean"), int | float):
        sentences.append(f"Its last policy's mean return is {final['mean']:,.1f}.")
    return [*sentences, "Nothing starts it again unless asked, as by this:"], case.rerun_command()


EXPLAIN = {
    State.PENDING: explain_pending,
    State.RUNNING: explain_running,
    State.STOPPED: explain_stopped,
    State.LOST: explain_lost,
    State.FAILED: explain_failed,
    State.DONE: explain_done,
}


def list_facts(case: Case) -> list[tuple[str, str]]:
    """Give what the explanation follows from, each fact with its name."""
    run, attempt = case.run, case.status.attempt
    planned = run.experiment_dir / "plan.jsonl"
    facts = [("plan", f"{planned}" if case.settings is not None else f"not in {planned} any more; kept")]
    facts += _list_parent(case)
    if attempt == 0:
        return facts
    first = max(1, attempt - SHOWN_ATTEMPTS + 1)
    endings = [_say_ending(number, run.read_exit(number)) for number in range(first, attempt + 1)]
    facts.append(("attempts", ("... " if first > 1 else "") + "; ".join(endings)))
    facts.append(("lock", "held" if is_locked(run.lock_path) else "free"))
    if start := case.start:
        facts.append(("started", f"{start['started']} on {start['host']}, device {start['device']}"))
        facts.append(("code", f"{run.experiment_dir / 'code' / start['code_version']}"))
    total = (case.settings or {}).get("max_timesteps")
    step, speed, episode_return, _ = describe(read_progress(run), total)
    facts.append(("progress", f"step {step}, {speed} steps/s, return {episode_return}"))
    facts.append(("folder", str(run.folder)))
    console = run.console_path(attempt)
    facts.append(("console", str(console) if console.exists() else "the terminal it was started from"))
    return facts


def _list_parent(case: Case) -> list[tuple[str, str]]:
    """Say which run it begins from, and where that one was when it did."""
    parent = case.find_parent()
    if parent is None:
        return []
    began = read_json(case.run.parent_path)
    when = (
        f", at its step {began['step']:,}" if began is not None and began["id"] == parent.run.id else ", not yet begun"
    )
    what = "all its state" if parent.continues else "its networks alone"
    gone = "" if parent.run.folder.is_dir() else "; it is gone"
    return [("from", f"run {parent.run.id}{when}, with {what}: {parent.run.folder}{gone}")]


def print_console(case: Case) -> None:
    """Print the end of what the last attempt wrote."""
    lines = last_lines(case.run.console_path(case.status.attempt), SHOWN_LINES)
    if lines:
        print("it wrote last:")
    for line in lines:
        print(f"  | {line}")


def _say_ending(attempt: int, ending: Mapping[str, Any] | None) -> str:
    if ending is None:
        return f"{attempt} without an ending"
    return f"{attempt} {ending['reason']} ({ending['returncode']}){_say_wall(ending)}"


def _say_wall(ending: Mapping[str, Any]) -> str:
    return f" after {ending['wall_s']:,.0f} s" if isinstance(ending.get("wall_s"), int | float) else ""


def _say_left(left: Mapping[str, Any]) -> str:
    code = left.get("exit_code")
    meaning = LEFT.get(code, "") if isinstance(code, int) else ""
    return f"Its runner left at {left['time']} with {code}" + (f", {meaning}" if meaning else "")


def _say_last_row(run: Run) -> str:
    try:
        age = max(0.0, time.time() - run.metrics_path.stat().st_mtime)
        row = last_line(run.metrics_path)
    except FileNotFoundError:
        return "It has written no metrics yet."
    return f"Its last row of metrics is {age:,.0f} s old: {row}"


def _find_code_version(case: Case) -> str | None:
    """Give the version of the code that a launch from here would run; None where its spec can't be read from here."""
    from experiment.spec import load_spec
    from experiment.sweep import find_code_roots

    try:
        spec = load_spec(case.run.experiment_dir / "spec.yaml")
    except SpecError:
        return None
    return hash_code(find_code_roots(spec))


def _read_time(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(path.stat().st_mtime))
