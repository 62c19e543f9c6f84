"""`--verify-resume`: one combination trained straight, and killed and resumed, compared to the last digit."""

from __future__ import annotations

import sys
import threading
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiment.checks import check_environments
from experiment.devices import Device, count_cores
from experiment.files import CONFIG_HEADING, dump_settings, read_json
from experiment.killing import Kill, kill_training
from experiment.parents import name_by_folder
from experiment.plan import BuildConfig, Plan, plan_runs
from experiment.preflight import PreflightError
from experiment.progress import open_view
from experiment.provenance import CodeHasher
from experiment.run import Run
from experiment.sameness import COMPARED, Comparison, compare_runs, describe_state_differences
from experiment.schedule import RESUMES_AFTER_KILL, count_threads
from experiment.scratch import ScratchFolder, Training, make_scratch, say_untrained
from experiment.spec import ExperimentSpec
from experiment.sweep import choose_jobs, find_code_roots

SAME, DIFFERENT, NOT_CHECKED = 0, 1, 2
MOMENTS = (0.25, 0.65)
"""Parts of the run after which it is killed: no more often than a launcher goes on with a run that is."""
assert len(MOMENTS) <= RESUMES_AFTER_KILL
SHORTEST = 8
"""Fewer steps leave no room for a checkpoint, a step after it, and steps that resume."""
NAMES = ("straight", "killed")


class NotCheckableError(ValueError):
    """Settings of which no two trainings could be compared. The message says why, and what could be."""


@dataclass(frozen=True)
class Check:
    """Two trainings of the same settings, in one scratch folder.

    Attributes:
        straight: the run to be left alone.
        killed: the one to be killed and resumed.
        training: of both.
        total: `max_timesteps`.
        plain: whether to say plain lines.
    """

    straight: Run
    killed: Run
    training: Training
    total: int
    plain: bool

    def train_straight(self) -> int:
        """Train the one that is left alone, and give the exit code of its launch."""
        return self._train(self.straight)

    def train_and_kill(self, steps: int) -> tuple[int, list[Kill]]:
        """Train the other one, of which the first is known to take so many steps."""
        over = threading.Event()
        moments = [part * steps for part in MOMENTS]
        with ThreadPoolExecutor(1) as pool:
            kills = pool.submit(kill_training, self.killed, moments, over)
            try:
                code = self._train(self.killed)
            finally:
                over.set()
        return code, kills.result()

    def _train(self, run: Run) -> int:
        view = open_view(self.plain, {run.id: self.total})
        try:
            return self.training.train(run, view).exit_code
        finally:
            view.close()


def verify_resume(
    spec: ExperimentSpec, args: Namespace, build_config: BuildConfig, devices: Sequence[Device], remark: str | None
) -> int:
    """Check that the first combination asked for ends in the same bits when it is killed and resumed.

    Gives 0 where it does, 1 where it doesn't or can't be trained, 2 where that couldn't be found out.

    Raises:
        SpecError: the spec, or its environment, is wrong; nothing was started.
    """
    try:
        plan = plan_runs(spec, args.log_root, build_config, args.only)
        settings, notes = choose_settings(spec, plan)
        total = check_environments(spec, replace(plan, runs=plan.runs[:1]), devices).totals[plan.runs[0].id]
    except (NotCheckableError, PreflightError) as error:
        print(error, file=sys.stderr)
        return NOT_CHECKED
    run, code = plan.runs[0], CodeHasher(find_code_roots(spec))
    jobs = min(choose_jobs(spec, args, devices), len(plan.runs))
    training = Training(
        config_text=dump_settings(settings, CONFIG_HEADING),
        script=Path(spec.meta.script_file),
        device=devices[0],
        threads=count_threads(count_cores(), jobs),
        find_code_version=code.hash,
    )
    with make_scratch("verify") as scratch:
        place = scratch.path / spec.meta.exp_name
        straight, killed = (Run.create_path(place / name, run.label, run.id) for name in NAMES)
        for note in filter(None, (remark, *notes)):
            print(f"note: {note}")
        print(f"{run.label} ({run.id}) on {devices[0].name}, straight and then killed {len(MOMENTS)} times, in {place}")
        return carry_out(Check(straight, killed, training, total, args.plain), scratch)


def choose_settings(spec: ExperimentSpec, plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """Give the settings to train the plan's first run with, and notes on what isn't as the spec has it.

    None of what is changed is part of a run's identity.

    Raises:
        NotCheckableError: two trainings of them can't be compared.
    """
    if not spec.meta.runs_trainer:
        script = spec.meta.script_path
        raise NotCheckableError(f"--verify-resume: how {script} resumes is its own affair; only train.py is checked")
    settings = plan.check_again(plan.runs[0].id).resolved()
    settings |= name_by_folder(plan.runs[0], settings)
    changes, notes = choose_cadence(settings)
    if not settings["continue_training"]:
        notes.append("continue_training is false; it is true for this check")
    if len(plan.runs) > 1:
        notes.append(f"the first of {len(plan.runs):,} runs is checked; --only chooses another")
    # The buffer is a part of the state too, and is compared at the end.
    return settings | changes | {"continue_training": True, "keep_replay": True}, notes


def choose_cadence(settings: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Give a `save_freq` and a `log_freq` that leave moments to be killed at, where these settings don't.

    Raises:
        NotCheckableError: the run is too short for any, or ends by time.
    """
    total = settings["max_timesteps"]
    if settings["wall_budget_s"] is not None:
        raise NotCheckableError(
            "--verify-resume: wall_budget_s ends a run by time, so no two trainings are of the same length; "
            "-o wall_budget_s=null -o max_timesteps=... checks one that ends by steps"
        )
    if total < SHORTEST:
        raise NotCheckableError(f"--verify-resume: max_timesteps ({total}) leaves no room to be killed in")
    changes: dict[str, int] = {}
    notes: list[str] = []
    save = max(1, total // 10) if settings["save_freq"] is None else settings["save_freq"]
    if not 1 < save <= total // 2:
        why = "every step is a checkpoint" if save == 1 else "no checkpoint leaves half of the run to resume"
        save = changes["save_freq"] = max(2, total // 10)
        notes.append(f"with this save_freq {why}; it is {save} for this check")
    log = max(1, total // 100) if settings["log_freq"] is None else settings["log_freq"]
    if not 0 < log <= save // 2:
        log = changes["log_freq"] = max(1, save // 4)
        notes.append(f"with this log_freq there are too few metric rows to compare; it is {log} for this check")
    return changes, notes


def carry_out(check: Check, scratch: ScratchFolder) -> int:
    """Train both runs, compare them, say what came of it, and give the exit code."""
    code = check.train_straight()
    if code:
        return say_untrained("straight", check.straight, code, scratch)
    steps = (read_json(check.straight.summary_path) or {})["steps"]
    code, kills = check.train_and_kill(steps)
    for number, kill in enumerate(kills, 1):
        print(f"killed by SIGKILL, time {number}: {kill}")
    if code:
        return say_untrained("killed", check.killed, code, scratch)
    if not kills:
        print(
            f"NOT CHECKED: the run's {steps:,} steps were over before it could be killed after its first checkpoint; "
            "take more steps, as by -o max_timesteps=...",
            file=sys.stderr,
        )
        return NOT_CHECKED
    comparison = compare_runs(check.straight, check.killed, NAMES)
    print(f"compared: {COMPARED}; {comparison.rows:,} rows are the same from the first on")
    if not comparison.differences:
        print(f"THE SAME: killed and resumed {len(kills)} times, this run ends in the bits of one that is left alone.")
        return SAME
    scratch.keep()
    say_difference(check, comparison, kills)
    print(f"kept: {scratch.path}")
    return DIFFERENT


def say_difference(check: Check, comparison: Comparison, kills: Sequence[Kill]) -> None:
    """Say what is different about the resumed run, where it begins, and what the states at the end say."""
    print("DIFFERENT: a run that was killed and resumed does not end as one that is left alone.")
    for difference in comparison.differences:
        print(f"  {difference}")
    if comparison.step is not None:
        print(f"  {explain_step(comparison.step, kills)}")
    for line in describe_state_differences(check.straight, check.killed):
        print(f"  {line}")
    summary = read_json(check.killed.summary_path) or {}
    if summary.get("resume") == "episode":
        print(f"  each resume begins a new episode, since the environment can't be saved: {summary['resume_reason']}")
    starts = [run.read_start(n) for run in (check.straight, check.killed) for n in range(1, run.last_attempt() + 1)]
    versions = sorted({str(start["code_version"]) for start in starts})
    if len(versions) > 1:
        print(f"  the code was changed while this went on ({', '.join(versions)}): check it once more")


def explain_step(step: int, kills: Sequence[Kill]) -> str:
    """Say what the step of the first row that differs says of the cause."""
    resumes = [kill.checkpoint for kill in kills if kill.checkpoint < step]
    if not resumes:
        return (
            f"it was not resumed before step {step:,}: these settings don't give the same twice even if left alone "
            "(does something follow the clock, or a generator that is not seeded?)"
        )
    return (
        f"it was last resumed from step {resumes[-1]:,}: look for what the trainer changes while it trains and "
        "state_dict does not give, or load_state_dict does not take over"
    )
