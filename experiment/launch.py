"""The one event loop of a sweep: start, watch, retry, stop. What a run did is what its exit code and its files say."""

from __future__ import annotations

import os
import selectors
import signal
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from experiment.devices import Device
from experiment.engines.local import Handle, LocalEngine, Work, describe_ending, last_lines
from experiment.files import append_event
from experiment.progress import Tally, View, read_progress
from experiment.run import Run, RunStatus, State
from experiment.schedule import Ending, Slot, Verdict, count_retries, decide_after, is_hopeless, make_slots

TICK_S = 1.0
SIGNAL_EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SHOWN_LINES = 5


@dataclass(frozen=True)
class RunOutcome:
    """What became of one run in this launch. `fresh` is False where it was so before we came."""

    run: Run
    state: State
    ending: Ending | None = None
    fresh: bool = True


@dataclass(frozen=True)
class SweepResult:
    """What became of all runs, and the exit code that says it."""

    outcomes: Sequence[RunOutcome]
    exit_code: int


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        work: gives what to start for a run on a device; called just before the run starts.
        jobs: how many runs at a time.
        retries: how many times a run that fails is tried again.
        rerun: ids of DONE or FAILED runs that are to run again.
        code_version: a FAILED run is tried again without being asked for when this has changed since.
        stop_path: a file whose change asks every runner of the experiment to stop.
        rerun_command: gives a command to paste that runs just one run again.
    """

    work: Callable[[Run, Device], Work]
    jobs: int
    retries: int
    rerun: Collection[str]
    code_version: str
    stop_path: Path
    rerun_command: Callable[[Run], str]


@dataclass
class Launcher:
    """One launch of a sweep. `launch_runs` is the way in."""

    runs: Sequence[Run]
    engine: LocalEngine
    devices: Sequence[Device]
    request: Request
    view: View
    waiting: deque[Run] = field(default_factory=deque)
    handles: dict[int, Handle] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    elsewhere: dict[str, Run] = field(default_factory=dict)
    outcomes: dict[str, RunOutcome] = field(default_factory=dict)
    seen_attempts: dict[str, int] = field(default_factory=dict)
    retried: Counter[str] = field(default_factory=Counter)
    finished: list[Ending] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    stop_code: int | None = None

    def __post_init__(self) -> None:
        self.free = make_slots(len(self.devices), self.request.jobs)
        self.selector = selectors.DefaultSelector()
        self.stop_request = self._read_stop_request()

    def run(self) -> SweepResult:
        """Run everything that is to be run, and give what became of it."""
        self._sort_runs()
        with self._catching_signals() as wakeup:
            self.selector.register(wakeup, selectors.EVENT_READ)
            while True:
                self._look_elsewhere()
                self._fill_slots()
                if not self.handles and (self.stop_code is not None or not (self.waiting or self.elsewhere)):
                    break
                self.view.update(list(self.handles.values()), self._tally())
                for key, _ in self.selector.select(TICK_S):
                    self._attend(key.fd, wakeup)
                self._hear_stop_request()
        return SweepResult([self.outcomes[run.id] for run in self.runs if run.id in self.outcomes], self._exit_code())

    def _sort_runs(self) -> None:
        """Find out what is to be done: nothing is started that is done, or failed before and would fail again."""
        for run in self.runs:
            status = run.status()
            self.seen_attempts[run.id] = status.attempt
            if status.state is State.RUNNING:
                self.elsewhere[run.id] = run
            elif run.id in self.request.rerun or not self._is_settled(run, status):
                self.waiting.append(run)
            else:
                self._settle(RunOutcome(run, status.state, _read_ending(run, status), fresh=False))

    def _is_settled(self, run: Run, status: RunStatus) -> bool:
        if status.state is State.FAILED:
            code_changed = run.read_start(status.attempt).get("code_version") != self.request.code_version
            return not (self.request.retries or code_changed)
        return status.state is State.DONE

    def _fill_slots(self) -> None:
        while self.free and self.waiting and self.stop_code is None:
            run = self.waiting.popleft()
            try:
                lock = self.engine.claim(run)
            except OSError as error:
                self._give_up(run, error)
                return
            if lock is None:
                self.elsewhere[run.id] = run
                continue
            if self._was_run_meanwhile(run):
                os.close(lock)
                continue
            slot = self.free.pop(0)
            try:
                handle = self._start(run, lock, self.devices[slot.device])
            except OSError as error:
                self._give_up(run, error)
                return
            self.handles[handle.pidfd], self.slots[handle.pidfd] = handle, slot
            self.selector.register(handle.pidfd, selectors.EVENT_READ)

    def _give_up(self, run: Run, error: OSError) -> None:
        """Stop the sweep cleanly because nothing can be written any more; what is written stays."""
        self.view.say(f"{run.folder} can't be written ({error.strerror or error}): stopping; the same command goes on.")
        self.waiting.appendleft(run)
        self._stop(1)

    def _was_run_meanwhile(self, run: Run) -> bool:
        """Look again, now that the lock is ours: another runner may have finished it since we looked."""
        status = run.rest_status()
        if status.attempt == self.seen_attempts[run.id]:
            return False
        self.seen_attempts[run.id] = status.attempt
        if status.state in (State.DONE, State.FAILED):
            self._settle(RunOutcome(run, status.state, _read_ending(run, status)))
            return True
        return False

    def _start(self, run: Run, lock: int, device: Device) -> Handle:
        if run.exit_path.exists():
            run.archive(self.seen_attempts[run.id])
        handle = self.engine.start(run, lock, self.request.work(run, device), device)
        self.seen_attempts[run.id] = handle.attempt
        append_event(run.events_path, "started", run.id, attempt=handle.attempt, device=device.name)
        again = f", attempt {handle.attempt}" if handle.attempt > 1 else ""
        self.view.say(f"started {run.label}  ({run.id} on {device.name}{again})")
        return handle

    def _attend(self, descriptor: int, wakeup: int) -> None:
        if descriptor == wakeup:
            os.read(wakeup, 64)
            while self.signals:
                self._hear_signal(self.signals.pop(0))
            return
        self.selector.unregister(descriptor)
        handle, slot = self.handles.pop(descriptor), self.slots.pop(descriptor)
        ending = handle.collect()
        self._conclude(handle, slot, ending)

    def _conclude(self, handle: Handle, slot: Slot, ending: Ending) -> None:
        """Decide what the end of an attempt means, and give its place to the next run."""
        run = handle.run
        left = count_retries(ending, self.request.retries) - self.retried[run.id]
        verdict = decide_after(ending, left, self.stop_code is not None)
        append_event(
            run.events_path, "ended", run.id, attempt=handle.attempt, reason=ending.reason, verdict=verdict.value
        )
        if verdict is Verdict.MOVE:
            self._retire_device(slot, handle, ending)
        else:
            self.free.append(slot)
        if verdict is Verdict.DONE:
            self._settle(RunOutcome(run, State.DONE, ending))
            self.view.say(f"done    {run.label}{_say_return(run)}")
        elif verdict is Verdict.STOPPED:
            self._settle(RunOutcome(run, State.STOPPED, ending))
            self.view.say(f"stopped {run.label} at step {find_checkpoint_step(run):,}")
        elif verdict is Verdict.RETRY:
            self.retried[run.id] += 1
            self.waiting.append(run)
            self.view.say(f"failed  {run.label} ({ending.reason}): {ending.message}; trying again, {left - 1} left")
        elif verdict is Verdict.FAILED:
            self._settle(RunOutcome(run, State.FAILED, ending))
            self._say_failure(handle, ending)
        if verdict in (Verdict.DONE, Verdict.FAILED):
            self.finished.append(ending)
            self._break_circuit()

    def _retire_device(self, slot: Slot, handle: Handle, ending: Ending) -> None:
        """Stop using a device that is gone, and let its run move on to another one."""
        self.free = [place for place in self.free if place.device != slot.device]
        self.view.say(f"device {handle.device.name} is gone: {ending.message}")
        others = any(place.device != slot.device for place in (*self.free, *self.slots.values()))
        if others:
            self.waiting.appendleft(handle.run)
            return
        self._settle(RunOutcome(handle.run, State.FAILED, ending))
        self.stop_code = 3

    def _say_failure(self, handle: Handle, ending: Ending) -> None:
        run = handle.run
        log = run.console_path(handle.attempt)
        self.view.say(f"FAILED  {run.label} ({ending.reason}): {ending.message}")
        for line in list(last_lines(log, SHOWN_LINES + 1))[:-1]:
            self.view.say(f"        | {line}")
        self.view.say(f"        log: {log}")
        self.view.say(f"        again: {self.request.rerun_command(run)}")

    def _break_circuit(self) -> None:
        if self.stop_code is None and is_hopeless(self.finished, len(self.runs)):
            ending = self.finished[0]
            self.view.say(f"The first {len(self.finished)} runs all failed alike ({ending.message}); stopping.")
            self._stop(4)

    def _settle(self, outcome: RunOutcome) -> None:
        self.outcomes[outcome.run.id] = outcome

    def _look_elsewhere(self) -> None:
        """See what became of the runs that another runner has; what it left unfinished becomes ours to run."""
        for run in list(self.elsewhere.values()):
            status = run.status()
            if status.state is State.RUNNING:
                continue
            del self.elsewhere[run.id]
            if status.state in (State.DONE, State.FAILED):
                self._settle(RunOutcome(run, status.state, _read_ending(run, status)))
                self.view.say(f"{status.state.lower():7} {run.label}  (by another runner)")
            else:
                self.seen_attempts[run.id] = status.attempt
                self.waiting.append(run)

    def _hear_signal(self, number: int) -> None:
        if self.stop_code is None:
            self.view.say("Stopping: runs write a checkpoint and end. Once more to kill them.")
            self._stop(SIGNAL_EXITS[signal.Signals(number)])
        else:
            for handle in self.handles.values():
                handle.kill()

    def _stop(self, code: int) -> None:
        self.stop_code = code
        for handle in self.handles.values():
            handle.ask_to_stop()

    def _read_stop_request(self) -> bytes | None:
        try:
            return self.request.stop_path.read_bytes()
        except OSError:
            return None

    def _hear_stop_request(self) -> None:
        if self.stop_code is None and self._read_stop_request() != self.stop_request:
            self.view.say("Asked to stop: runs write a checkpoint and end.")
            self._stop(75)

    @contextmanager
    def _catching_signals(self) -> Iterator[int]:
        """Turn signals into bytes to be read, so that one select sees everything. Gives the end to read from."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, lambda got, _: self.signals.append(got)) for number in SIGNAL_EXITS}
        old_wakeup = signal.set_wakeup_fd(writer)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _tally(self) -> Tally:
        states = Counter(outcome.state for outcome in self.outcomes.values())
        return Tally(
            done=states[State.DONE],
            failed=states[State.FAILED],
            stopped=states[State.STOPPED],
            waiting=len(self.waiting),
            elsewhere=len(self.elsewhere),
        )

    def _exit_code(self) -> int:
        states = Counter(outcome.state for outcome in self.outcomes.values())
        unfinished = len(self.runs) - states[State.DONE] - states[State.FAILED]
        if self.stop_code is not None and (unfinished or self.stop_code in (3, 4)):
            return self.stop_code
        if unfinished:
            return 75
        return 1 if states[State.FAILED] else 0


def launch_runs(
    runs: Sequence[Run], engine: LocalEngine, devices: Sequence[Device], request: Request, view: View
) -> SweepResult:
    """Run all runs that aren't finished, sharing them with any other runner of the same experiment.

    Returns when every run is done or has failed, here or there, or when a stop was asked for and the runs in progress
    have written their checkpoints. The first SIGINT, SIGTERM or SIGHUP asks for that; the next kills.
    """
    return Launcher(runs, engine, devices, request, view).run()


def find_checkpoint_step(run: Run) -> int:
    """Give the step of a run's newest checkpoint, 0 without one."""
    steps = [int(path.stem.removeprefix("step_")) for path in run.checkpoints_dir.glob("step_*.pt")]
    return max(steps, default=0)


def _read_ending(run: Run, status: RunStatus) -> Ending | None:
    ending = run.read_exit(status.attempt)
    if ending is None:
        return None
    return describe_ending(ending, run.console_path(status.attempt))


def _say_return(run: Run) -> str:
    last = read_progress(run).episode_return
    return "" if last is None else f"  return {last:,.1f}"
