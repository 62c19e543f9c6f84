"""The one event loop of a sweep: start, watch, retry, stop. What a run did is what its exit code and its files say."""

from __future__ import annotations

import os
import selectors
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from experiment.devices import Device
from experiment.engines.local import Handle, LocalEngine, last_lines
from experiment.engines.warm import StartUnknownError
from experiment.files import append_event
from experiment.outcomes import (
    Request,
    RunOutcome,
    SweepResult,
    find_checkpoint_step,
    is_settled,
    read_ending,
    read_stop_request,
)
from experiment.packed import PackedPlaces
from experiment.places import FixedPlaces, Places
from experiment.progress import Tally, View, read_progress
from experiment.run import Run, RunStatus, State, claim_run
from experiment.schedule import (
    Ending,
    Verdict,
    count_retries,
    decide_after,
    is_hopeless,
)

TICK_S = 1.0
SIGNAL_EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SHOWN_LINES = 5


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
    controls: dict[int, Handle] = field(default_factory=dict)
    elsewhere: dict[str, Run] = field(default_factory=dict)
    outcomes: dict[str, RunOutcome] = field(default_factory=dict)
    seen_attempts: dict[str, int] = field(default_factory=dict)
    first_attempts: dict[str, int] = field(default_factory=dict)
    signals_heard: int = 0
    finished: list[Ending] = field(default_factory=list)
    finished_on: set[str] = field(default_factory=set)
    signals: list[int] = field(default_factory=list)
    stop_code: int | None = None

    def __post_init__(self) -> None:
        self.places = open_places(self.devices, self.request)
        self.selector = selectors.DefaultSelector()

    def run(self) -> SweepResult:
        """Run everything that is to be run, and give what became of it."""
        self._sort_runs()
        with self._catching_signals() as wakeup, self.engine:
            self.selector.register(wakeup, selectors.EVENT_READ)
            self._look_at_code()
            while True:
                self._look_elsewhere()
                self._fill_places()
                if not self.handles and (self.stop_code is not None or self._is_all_settled()):
                    break
                self._look_at_code()
                self.view.update(list(self.handles.values()), self._tally())
                for key, _ in self.selector.select(TICK_S):
                    self._attend(key.fd, wakeup)
                for remark in self.places.look(list(self.handles.values())):
                    self.view.say(remark)
                self._strike()
                self._hear_stop_request()
                self.request.beat()
        return SweepResult([self.outcomes[run.id] for run in self.runs if run.id in self.outcomes], self._exit_code())

    def _sort_runs(self) -> None:
        """Find out what is to be done: nothing is started that is done, or failed before and would fail again."""
        for run in self.runs:
            status = run.status()
            self.seen_attempts[run.id] = self.first_attempts[run.id] = status.attempt
            if status.state is State.RUNNING:
                self.elsewhere[run.id] = run
            elif run.id in self.request.rerun or not is_settled(run, status, self.request):
                self.waiting.append(run)
            else:
                self._settle(RunOutcome(run, status.state, read_ending(run, status), fresh=False))

    def _look_at_code(self) -> None:
        """While runs wait, see whether the code was edited; stop cleanly where its new version can't be kept."""
        try:
            if self.waiting and self.stop_code is None:
                self.engine.look_at_code(self.handles.values())
        except OSError as error:
            self.view.say(f"{error.filename}: {error.strerror}: stopping; the same command goes on.")
            self._stop(1)

    def _is_all_settled(self) -> bool:
        """Look once more at what failed elsewhere: another runner may be trying it again, or have done so."""
        for outcome in [outcome for outcome in self.outcomes.values() if outcome.elsewhere]:
            status = outcome.run.status()
            if outcome.state is State.FAILED and status.state is not State.FAILED:
                del self.outcomes[outcome.run.id]
                self.elsewhere[outcome.run.id] = outcome.run
        self._look_elsewhere()
        return not (self.waiting or self.elsewhere)

    def _fill_places(self) -> None:
        while self.stop_code is None and not self.signals and (choice := self.places.choose(self.waiting)) is not None:
            self.waiting.remove(choice.run)
            try:
                run, lock = claim_run(choice.run)
            except OSError as error:
                self._give_up(choice.run, error)
                return
            if lock is None:
                self.elsewhere[run.id] = run
                continue
            if self._was_run_meanwhile(run):
                os.close(lock)
                continue
            try:
                handle = self._start(run, lock, self.devices[choice.device])
            except StartUnknownError as error:
                self._note("start unknown", run, message=str(error))
                self.elsewhere[run.id] = run
                continue
            except OSError as error:
                self._give_up(run, error)
                return
            self.places.begin(choice, handle)
            self.handles[handle.pidfd] = self.controls[handle.control] = handle
            for descriptor in (handle.pidfd, handle.control):
                self.selector.register(descriptor, selectors.EVENT_READ)
            how = {"placed": choice.remark} if choice.remark else {}
            self._note("started", run, attempt=handle.attempt, device=handle.device.name, warm=handle.is_warm, **how)
            for remark in self.engine.take_remarks():
                self.view.say(remark)
            again = f", attempt {handle.attempt}" if handle.attempt > 1 else ""
            remark = f", {choice.remark}" if choice.remark else ""
            self.view.say(f"started {run.label}  ({run.id} on {handle.device.name}{again}{remark})")

    def _give_up(self, run: Run, error: OSError) -> None:
        """Stop the sweep cleanly because nothing can be written any more; what is written stays."""
        self.view.say(f"{run.folder} can't be written ({error.strerror or error}): stopping; the same command goes on.")
        self.waiting.appendleft(run)
        self._stop(1)

    def _was_run_meanwhile(self, run: Run) -> bool:
        """Look again, now that the lock is ours: another runner may have finished it since we looked."""
        status = run.rest_status()
        unseen = status.attempt != self.seen_attempts[run.id]
        self.seen_attempts[run.id] = status.attempt
        # What is to run again was DONE before; once we have started it, DONE is what we wanted.
        is_new = status.attempt != self.first_attempts[run.id]
        is_over = status.state is State.DONE and (is_new or run.id not in self.request.rerun)
        if is_over or (status.state is State.FAILED and unseen and not self._has_retries(run, status)):
            self._settle(RunOutcome(run, status.state, read_ending(run, status), elsewhere=True))
            return True
        return False

    def _has_retries(self, run: Run, status: RunStatus) -> bool:
        """Tell whether a run that failed, here or with another runner, may be tried again in this launch."""
        ending = read_ending(run, status)
        if ending is None or ending.reason == "config":
            return False
        return self._count_left(run, ending) > 0

    def _count_left(self, run: Run, ending: Ending) -> int:
        """Give how often a run may be tried again, its last attempt having failed; failures anywhere count."""
        granted = count_retries(ending, self.request.retries, self.request.resumes)
        return granted + 1 - run.count_failures(self.first_attempts[run.id])

    def _start(self, run: Run, lock: int, device: Device) -> Handle:
        try:
            if run.is_done():
                run.archive(self.seen_attempts[run.id])
            work = self.request.work(run, device)
        except BaseException:
            os.close(lock)
            raise
        handle = self.engine.start(run, lock, work, device)
        self.seen_attempts[run.id] = handle.attempt
        return handle

    def _strike(self) -> None:
        """With `--chaos`, kill some of what takes part, and write down what."""
        if self.request.chaos is None or self.stop_code is not None:
            return
        for part in self.request.chaos.strike(list(self.handles.values()), self.engine.server_pid):
            whose = part.run or self.runs[0]
            self._note("chaos", whose, killed=part.kind, pid=part.pid)
            self.view.say(f"chaos: killed the {part.kind}{f' of {part.run.label}' if part.run else ''}")

    def _note(self, event: str, run: Run, **details: object) -> None:
        """Write down a decision; where that fails, nothing more is started."""
        try:
            append_event(run.events_path, event, run.id, **details)
        except OSError as error:
            if self.stop_code is None:
                self.view.say(
                    f"{run.events_path} can't be written ({error.strerror}): stopping; the same command goes on."
                )
                self._stop(1)

    def _attend(self, descriptor: int, wakeup: int) -> None:
        if descriptor == wakeup:
            os.read(wakeup, 64)
            while self.signals:
                self._hear_signal(self.signals.pop(0))
            return
        if descriptor in self.controls:
            handle = self._forget_control(descriptor)
            if handle.has_ended_well():
                self.places.vacate(handle)
        elif descriptor in self.handles:
            self.selector.unregister(descriptor)
            handle = self.handles.pop(descriptor)
            if handle.control in self.controls:
                self._forget_control(handle.control)
            self._conclude(handle, handle.collect())

    def _forget_control(self, descriptor: int) -> Handle:
        self.selector.unregister(descriptor)
        return self.controls.pop(descriptor)

    def _conclude(self, handle: Handle, ending: Ending) -> None:
        """Decide what the end of an attempt means, and give its place to the next run."""
        run = handle.run
        if ending.reason == "lost":
            self.engine.clear_orphans(self.handles.values())
        left = self._count_left(run, ending)
        had_company = self.places.had_company(handle, ending)
        verdict = decide_after(ending, left, self.stop_code is not None, handle.can_move, had_company)
        if verdict is Verdict.MOVE:
            self._retire_device(handle, ending)
        measured = self.places.end(handle, ending)
        self._note("ended", run, attempt=handle.attempt, reason=ending.reason, verdict=verdict.value, **measured)
        if verdict is Verdict.DONE:
            self._settle(RunOutcome(run, State.DONE, ending))
            self.view.say(f"done    {run.label}{_say_return(run)}")
        elif verdict is Verdict.STOPPED:
            self._settle(RunOutcome(run, State.STOPPED, ending))
            self.view.say(f"stopped {run.label} at step {find_checkpoint_step(run):,}")
        elif verdict is Verdict.RETRY:
            # As long as nothing has worked retries come first: what can't work shows after few runs, not after all.
            works = any(finished.reason == "ok" for finished in self.finished)
            (self.waiting.append if works else self.waiting.appendleft)(run)
            self.view.say(f"failed  {run.label} ({ending.reason}): {ending.message}; trying again, {left - 1} left")
        elif verdict is Verdict.ALONE:
            self.places.isolate(run, ending)
            self.waiting.append(run)
            self.view.say(f"failed  {run.label} (oom): {ending.message}; once more alone, when there is room for that")
        elif verdict is Verdict.FAILED:
            self._settle(RunOutcome(run, State.FAILED, ending))
            self._say_failure(handle, ending)
        if verdict in (Verdict.DONE, Verdict.FAILED):
            self.finished.append(ending)
            self.finished_on.add(handle.device.name)
            self._break_circuit()

    def _retire_device(self, handle: Handle, ending: Ending) -> None:
        """Stop using a device that is gone, and let its run move on to another one."""
        self.view.say(f"device {handle.device.name} is gone: {ending.message}")
        if self.places.retire(handle):
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
        is_left = bool(self.waiting or self.handles)
        if self.stop_code is None and is_left and is_hopeless(self.finished, len(self.runs)):
            count, message = len(self.finished), self.finished[0].message
            # One device that is broken fails its runs faster than the others finish theirs.
            lonely = len(self.devices) > 1 and len(self.finished_on) == 1
            where = f", all on device {min(self.finished_on)}: leave it out by -g if it is broken" if lonely else ""
            self.view.say(f"The first {count} runs all failed alike ({message}){where}; stopping.")
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
            failed = status.state is State.FAILED and not self._has_retries(run, status)
            if status.state is State.DONE or failed:
                self._settle(RunOutcome(run, status.state, read_ending(run, status), elsewhere=True))
                self.view.say(f"{status.state.lower():7} {run.label}  (by another runner)")
            else:
                self.seen_attempts[run.id] = status.attempt
                self.waiting.append(run)

    def _hear_signal(self, number: int) -> None:
        self.signals_heard += 1
        if self.signals_heard == 1:
            self.view.say("Stopping: runs write a checkpoint and end. Once more to kill them.")
            self._stop(SIGNAL_EXITS[signal.Signals(number)] if self.stop_code is None else self.stop_code)
            return
        for handle in self.handles.values():
            handle.kill()

    def _stop(self, code: int) -> None:
        self.stop_code = code
        for handle in self.handles.values():
            handle.ask_to_stop()

    def _hear_stop_request(self) -> None:
        if self.stop_code is None and read_stop_request(self.request.stop_path) != self.request.stop_seen:
            self.view.say("Asked to stop: runs write a checkpoint and end.")
            self._stop(75)

    @contextmanager
    def _catching_signals(self) -> Iterator[int]:
        """Turn signals into bytes to be read, so that one select sees everything. Gives the end to read from."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # What is ignored stays so: `nohup` means it.
        heard = [number for number in SIGNAL_EXITS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, lambda got, _: self.signals.append(got)) for number in heard}
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
            running=len(self.handles),
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


def open_places(devices: Sequence[Device], request: Request) -> Places:
    """Give the places that were asked for: a fixed number, or as many as fit."""
    if request.packing is None:
        return FixedPlaces(len(devices), request.jobs)
    return PackedPlaces(devices, request.packing)


def _say_return(run: Run) -> str:
    last = read_progress(run).episode_return
    return "" if last is None else f"  return {last:,.1f}"
