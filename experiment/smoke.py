"""`--smoke`: each kind of run in short, through the launcher and the trainer, before hours are spent on the whole."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.devices import Device, count_cores
from experiment.engines.local import Handle, Limits, LocalEngine, Work, build_command, last_lines
from experiment.faults import FaultList
from experiment.files import CONFIG_HEADING, dump_settings, read_json
from experiment.history import show_duration
from experiment.identity import CheckedConfig
from experiment.launch import SIGNAL_EXITS, launch_runs
from experiment.outcomes import Request, RunOutcome, SweepResult
from experiment.plan import BuildConfig, Planned, check_combinations
from experiment.preflight import Answer, Footprint, PreflightError, ask_preflight, shape_key
from experiment.progress import Tally, View, open_view
from experiment.run import Run, State
from experiment.schedule import count_threads
from experiment.scratch import ScratchFolder, make_scratch
from experiment.spec import ExperimentSpec
from experiment.sweep import choose_jobs

OK, FAILED, BAD_SPEC = 0, 1, 2
STOP_FLAG = "--stop-after-save"
SHOWN_LINES = 10


@dataclass(frozen=True)
class Trial:
    """One kind of run, cut short.

    Attributes:
        planned: the first combination of its kind.
        config: that one, shortened.
        alike: combinations of the kind.
        run: the short one.
    """

    planned: Planned
    config: CheckedConfig
    alike: int
    run: Run


@dataclass(frozen=True)
class Verdict:
    """What became of a trial: `fault` says what went wrong, None where all went well."""

    trial: Trial
    fault: str | None
    log: Path | None
    seconds: float
    memory: Footprint | None


class Muted:
    """A view that shows what runs now, where that can be shown in place, and no line that stays."""

    def __init__(self, view: View) -> None:
        self._view = view

    def say(self, text: str) -> None:
        """Show nothing: what it comes to is said when it is over."""

    def update(self, handles: Sequence[Handle], tally: Tally) -> None:
        """Show what runs now."""
        self._view.update(handles, tally)

    def close(self) -> None:
        """End what is shown."""
        self._view.close()


class Interrupted(Exception):  # noqa: N818  nothing went wrong
    """The runs were asked to stop; `code` is what the program ends with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Bench:
    """What trials are run with: in `scratch`, so many at a time, each for no longer than `timeout_s`."""

    spec: ExperimentSpec
    devices: Sequence[Device]
    jobs: int
    scratch: Path
    timeout_s: float | None
    plain: bool

    def run_twice(self, trials: Sequence[Trial]) -> dict[str, list[RunOutcome]]:
        """Launch all trials until their first checkpoint, and those that came to it again to their end.

        Raises:
            Interrupted: somebody asked for an end; all have ended.
        """
        first = self._launch(trials, stops=True)
        reached = {outcome.run.id for outcome in first.outcomes if outcome.state is State.STOPPED}
        second = self._launch([trial for trial in trials if trial.run.id in reached], stops=False)
        outcomes: dict[str, list[RunOutcome]] = {trial.run.id: [] for trial in trials}
        for outcome in (*first.outcomes, *second.outcomes):
            outcomes[outcome.run.id].append(outcome)
        return outcomes

    def _launch(self, trials: Sequence[Trial], *, stops: bool) -> SweepResult:
        configs = {trial.run.id: trial.config for trial in trials}

        def make_work(run: Run, device: Device) -> Work:
            command = build_command(self.spec.meta.script_file, run.config_path, device, False)
            words = (*command, STOP_FLAG) if stops else command
            return Work(dump_settings(configs[run.id].resolved(), CONFIG_HEADING), words, False)

        request = Request(
            work=make_work,
            jobs=min(self.jobs, len(trials)),
            retries=0,
            rerun=(),
            code_version="smoke",
            stop_path=self.scratch / "stop.json",
            stop_seen=None,
            rerun_command=lambda run: "",
        )
        # As many threads as each of the whole runs will have.
        limits = Limits(threads=count_threads(count_cores(), self.jobs), timeout_s=self.timeout_s)
        totals = {run_id: int(config.resolved()["max_timesteps"]) for run_id, config in configs.items()}
        view = Muted(open_view(self.plain, totals))
        try:
            result = launch_runs(
                [trial.run for trial in trials], LocalEngine(limits, lambda: "smoke"), self.devices, request, view
            )
        finally:
            view.close()
        if result.exit_code in SIGNAL_EXITS.values():
            raise Interrupted(result.exit_code)
        return result


def try_shortened(spec: ExperimentSpec, args: Namespace, build_config: BuildConfig, devices: Sequence[Device]) -> int:
    """Run each kind of run briefly: learn, save, stop there, go on in another process, evaluate, sum up.

    Gives the exit code. What was written is deleted where all went well, else kept and named.

    Raises:
        SpecError: with every problem of all combinations; nothing was started.
        OSError: there is no room for temporary files.
    """
    if not spec.meta.runs_trainer:
        message = f"--smoke: {spec.meta.script_path} is not ours, and nobody here knows how to cut it short"
        print(message, file=sys.stderr)
        return BAD_SPEC
    jobs = choose_jobs(spec, args, devices)
    try:
        with make_scratch("smoke") as scratch:
            trials = list_trials(spec, args, build_config, scratch.path / spec.meta.exp_name)
            answers = predict(spec, trials, devices)
            kinds = "1 kind of run" if len(trials) == 1 else f"{len(trials)} kinds of run"
            places = ", ".join(device.name for device in devices)
            print(f"{kinds}, {min(jobs, len(trials))} at a time on {places}", flush=True)
            outcomes = Bench(spec, devices, jobs, scratch.path, args.timeout, args.plain).run_twice(trials)
            return sum_up([judge(trial, outcomes[trial.run.id]) for trial in trials], answers, scratch)
    except PreflightError as error:
        print(error, file=sys.stderr)
        return BAD_SPEC
    except Interrupted as interruption:
        print("Stopped; what the short runs wrote is deleted.", file=sys.stderr)
        return interruption.code


def list_trials(spec: ExperimentSpec, args: Namespace, build_config: BuildConfig, folder: Path) -> list[Trial]:
    """Give a trial for each kind of run in the grid.

    Raises:
        SpecError: with every problem of all combinations.
    """
    firsts: dict[str, Planned] = {}
    alike: Counter[str] = Counter()
    for planned in check_combinations(spec, build_config, args.only):
        assert planned.config is not None
        key = shape_key(planned.config.kind_settings())
        firsts.setdefault(key, planned)
        alike[key] += 1
    trials: dict[str, Trial] = {}
    for key, planned in firsts.items():
        assert planned.config is not None
        config = planned.config.shortened()
        run = Run.create_path(folder, planned.label, config.run_id())
        trials.setdefault(run.id, Trial(planned, config, alike[key], run))
    return list(trials.values())


def predict(spec: ExperimentSpec, trials: Sequence[Trial], devices: Sequence[Device]) -> Mapping[str, Answer]:
    """Give what is predicted of each footprint, of short runs and of the whole ones, once all of them are known to fit.

    Raises:
        SpecError: an environment isn't there, or a run doesn't fit into memory.
        PreflightError: the check itself failed.
    """
    asked: dict[str, tuple[Trial, dict[str, Any]]] = {}
    for trial in trials:
        assert trial.planned.config is not None
        for lot in (trial.planned.config.footprint_settings(), trial.config.footprint_settings()):
            asked.setdefault(shape_key(lot), (trial, lot))
    answers = ask_preflight(spec.meta.script_file, "count", [lot for _, lot in asked.values()], devices)
    faults = FaultList(spec)
    for (trial, _), answer in zip(asked.values(), answers, strict=True):
        for fault in answer.faults:
            faults.add(trial.planned.combination, fault, trial.alike)
    faults.raise_any(sum(trial.alike for trial in trials))
    return dict(zip(asked, answers, strict=True))


def judge(trial: Trial, ends: Sequence[RunOutcome]) -> Verdict:
    """Say what became of a trial, by how its attempts ended and by its summary."""
    run = trial.run
    attempts = range(1, run.last_attempt() + 1)
    seconds = sum(float((run.read_exit(attempt) or {}).get("wall_s", 0.0)) for attempt in attempts)
    log = run.console_path(run.last_attempt()) if run.last_attempt() else None
    summary = read_json(run.summary_path)
    memory = None
    if summary is not None:
        sizes = summary["memory"]
        memory = Footprint(sizes["peak_rss_bytes"], sizes["peak_gpu_bytes"])
    fault = _find_fault(ends, summary, bool(trial.config.resolved()["num_final_eval"]))
    return Verdict(trial, fault, log, seconds, memory)


def _find_fault(ends: Sequence[RunOutcome], summary: Mapping[str, Any] | None, evaluates: bool) -> str | None:
    """Say what is missing of: stopped at a checkpoint, gone on from it, learned on both sides, evaluated, summed up."""
    if not ends:
        return "it was not tried, as the first ones all failed alike"
    ending = ends[-1].ending
    if ends[-1].state is not State.DONE:
        when = "after it went on from its checkpoint" if len(ends) > 1 else "in its first process"
        return f"{ending.reason if ending else 'no ending'} {when}: {ending.message if ending else ''}"
    if len(ends) < 2:
        return "it came to its end without having stopped at a checkpoint"
    if summary is None:
        return "it left no summary"
    if evaluates and summary["final_eval"] is None:
        return "it was not evaluated at its end"
    if summary["updates"] < 2:
        return f"its networks learned {summary['updates']} times, and twice were meant"
    return None


def sum_up(verdicts: Sequence[Verdict], answers: Mapping[str, Answer], scratch: ScratchFolder) -> int:
    """Print what became of all trials and give the exit code; where one failed, what they wrote is kept."""
    for verdict in verdicts:
        show(verdict, answers)
    failed = sum(verdict.fault is not None for verdict in verdicts)
    if failed:
        scratch.keep()
    kept = f", {failed} failed; kept: {scratch.path}" if failed else ""
    print(f"{len(verdicts) - failed} ok{kept}")
    return FAILED if failed else OK


def show(verdict: Verdict, answers: Mapping[str, Answer]) -> None:
    """Print a line for a trial, with the end of its log where it failed."""
    trial = verdict.trial
    more = f" (and {trial.alike - 1} like it)" if trial.alike > 1 else ""
    if verdict.fault is not None:
        print(f"FAILED  {trial.planned.label}{more}: {verdict.fault}")
        for line in list(last_lines(verdict.log, SHOWN_LINES)) if verdict.log else []:
            print(f"        | {line}")
        print(f"        log: {verdict.log}" if verdict.log else "        it has no log")
        return
    assert trial.planned.config is not None
    short = answers[shape_key(trial.config.footprint_settings())].memory
    whole = answers[shape_key(trial.planned.config.footprint_settings())].memory
    parts = [f"{show_duration(verdict.seconds)}", f"peak {verdict.memory}, predicted {short}; the whole run {whole}"]
    print(f"ok      {trial.planned.label}{more}: {', '.join(parts)}")
