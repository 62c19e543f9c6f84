"""`reproduce ID`: a finished run trained again by the code that made it, and compared to the last digit."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.devices import CPU, Device, DeviceError, Gpu, choose_devices
from experiment.files import CONFIG_HEADING, dump_settings, read_json
from experiment.loader import load_yaml
from experiment.metadata import OUR_TRAINER, TRAINING_SCRIPT
from experiment.parents import ParentError, name_by_folder, open_parent
from experiment.plan import BuildConfig
from experiment.problems import SettingsError
from experiment.progress import open_view
from experiment.provenance import describe_machine, hash_code, read_machine
from experiment.rebuild import RebuildError, cut, list_changed_files, rebuild_code
from experiment.run import Run
from experiment.sameness import COMPARED, compare_runs, describe_state_differences, find_difference
from experiment.scratch import ScratchFolder, Training, make_scratch, say_untrained
from experiment.views import ViewError

SAME, DIFFERENT = 0, 1
NAMES = ("stored", "reproduced")
SHOWN_PACKAGES = 8
MACHINE = ("host", "platform", "cpu", "cores", "python")


@dataclass(frozen=True)
class Subject:
    """A finished run that is to be reproduced.

    Attributes:
        run: where it is.
        summary: its `summary.json`.
        starts: the `start.json` of each attempt.
        settings: its `config.yaml`.
        script: the `train.py` that trained it, as it was named then.
    """

    run: Run
    summary: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    script: Path

    @property
    def version(self) -> str:
        """The version of the code that made its last results."""
        return str(self.summary["code_version"])

    @property
    def stored_code(self) -> Path:
        """Where that code is stored."""
        return self.run.experiment_dir / "code" / self.version

    @classmethod
    def read(cls, run: Run) -> Subject:
        """Read what is known of a run.

        Raises:
            ViewError: it is one that can't be reproduced; the message says why.
        """
        summary = read_json(run.summary_path)
        starts = [run.read_start(number) for number in range(1, run.last_attempt() + 1)]
        if not run.is_done() or not starts[-1:]:
            raise ViewError(f"{run.label} ({run.id}) is {run.status()}: only a finished run can be reproduced")
        script = Path(starts[-1]["command"][1])
        if summary is None or "state_hash" not in summary or script.name != TRAINING_SCRIPT:
            raise ViewError(
                f"{run.label} ({run.id}) was made by {script}: what such a script depends on, and which of its files "
                f"have to be the same, only it knows; runs of {TRAINING_SCRIPT} can be reproduced"
            )
        document = load_yaml(run.config_path)
        settings = document.data if isinstance(document.data, dict) else {}
        if settings.get("wall_budget_s") is not None:
            raise ViewError(f"{run.label} ({run.id}) ended by time (wall_budget_s): no two runs take the same steps")
        return cls(run, summary, starts, settings, script)

    def list_remarks(self) -> list[str]:
        """Say what about its making is to be known before it is reproduced."""
        remarks = []
        versions = [str(start.get("code_version")) for start in self.starts]
        if len(set(versions)) > 1:
            made = ", ".join(f"{number} by {version}" for number, version in enumerate(versions, 1))
            remarks.append(f"its attempts were of different code ({made}); that of its results is run, {self.version}")
        if self.summary.get("resume") == "episode" and len(self.starts) > 1:
            remarks.append(f"its {len(self.starts)} attempts began new episodes each, which one in one go does not")
        return remarks

    def find_other_beginning(self) -> str | None:
        """Say why it can't begin where it began; None where it can, or began as new."""
        parent, began = open_parent(self.run, self.settings), read_json(self.run.parent_path)
        if parent is None or began is None:
            return None
        try:
            newest = parent.newest
        except ParentError as error:
            return str(error)
        if newest.manifest is not None and newest.manifest["sha256"] == began["sha256"]:
            return parent.explain_lost_replay() if parent.continues and parent.has_lost_replay() else None
        return (
            f"run {parent.run.id} ({parent.run.label}), from which it began at step {began['step']:,}, is by now "
            f"another: its newest checkpoint is of step {newest.step:,}"
        )

    def choose_device(self, wanted: str, gpus: Sequence[Gpu]) -> Device:
        """Give a device of the kind that it was trained on.

        Raises:
            DeviceError: there is none, or it isn't the one that is asked for.
        """
        if not str(self.summary["device"]).startswith("cuda"):
            return CPU
        try:
            device = choose_devices(wanted, gpus)[0][0]
        except ValueError as error:
            raise DeviceError(str(error)) from None
        if device.gpu is None:
            raise DeviceError(
                f"{self.run.label} ({self.run.id}) was trained on {self.summary['device']}, and a CPU's sums differ in "
                "their last digits: it can be reproduced where there is a CUDA device"
            )
        return device


@dataclass(frozen=True)
class Code:
    """The code to reproduce a run by: its `train.py`, its version, and the id that it gives the stored settings."""

    script: Path
    version: str
    run_id: str


def reproduce_run(run: Run, args: Namespace, build_config: BuildConfig, gpus: Sequence[Gpu]) -> int:
    """Train a finished run again in a scratch folder, and say whether it came to the same.

    Gives 0 where it did, 1 where it didn't or couldn't be trained.

    Raises:
        ViewError: the run, or its code, is not to be had.
        DeviceError: it was trained on a device of which there is none here.
        SpecError: its `config.yaml` can't be read.
    """
    subject = Subject.read(run)
    if other := subject.find_other_beginning():
        raise ViewError(f"{run.label} ({run.id}) can't be reproduced, since it can't begin where it began: {other}")
    device = subject.choose_device(args.gpus, gpus)
    if device.gpu is None and args.gpus not in ("all", device.name):
        print(f"note: -g {args.gpus} is not followed: it was trained on the CPU, and is again")
    for remark in subject.list_remarks():
        print(f"note: {remark}")
    with make_scratch("reproduce") as scratch, ExitStack() as stack:
        try:
            if args.with_current_code:
                code = take_current_code(subject, scratch, build_config)
            else:
                code = take_stored_code(subject, scratch, stack)
        except RebuildError as error:
            raise ViewError(
                f"{subject.stored_code} can't be rebuilt: {error}\n"
                "--with-current-code trains it by the code that is here, and says what differs"
            ) from None
        again = Run.create_path(scratch.path / "logs" / run.experiment_dir.name, run.label, code.run_id)
        threads = int(subject.summary["threads"])
        on = f"{device.name}, {threads} thread{'s' * (threads > 1)}"
        print(f"{run.label} ({run.id}) on {on}, code {code.version}, in {scratch.path}")
        text = run.config_path.read_text(encoding="utf-8")
        if moved := name_by_folder(run, subject.settings):
            text = dump_settings({**subject.settings, **moved}, CONFIG_HEADING)
        training = Training(text, code.script, device, threads, lambda: code.version)
        view = open_view(args.plain, {again.id: int(subject.settings["max_timesteps"])})
        try:
            exit_code = training.train(again, view).exit_code
        finally:
            view.close()
        if exit_code:
            return say_untrained("reproduced", again, exit_code, scratch)
        return judge(subject, again, scratch, gpus)


def take_stored_code(subject: Subject, scratch: ScratchFolder, stack: ExitStack) -> Code:
    """Rebuild the code that made a run, and say which files are others today.

    Where it can't be rebuilt and the code that is here is of the same version, that is it.

    Raises:
        RebuildError: it can't be rebuilt, and what is here is another.
    """
    run, version = subject.run, subject.version
    try:
        root = stack.enter_context(rebuild_code(subject.stored_code, version, scratch.path / "code"))
        script = root / find_script(subject)
    except RebuildError as error:
        if version not in list_current_versions(subject):
            raise
        print(f"note: {error}; but the code that is here is of that version")
        return Code(find_current_script(subject), version, run.id)
    say_changed_files(root)
    return Code(script, version, run.id)


def find_script(subject: Subject) -> Path:
    """Give the path of a run's `train.py` in the folder of its launch.

    Raises:
        RebuildError: it is outside.
    """
    here = Path.cwd()
    script = subject.script
    if script.is_absolute():
        if not script.is_relative_to(here):
            raise RebuildError(f"{script} is not in this folder, of whose code alone the version was stored")
        script = script.relative_to(here)
    return script


def find_current_script(subject: Subject) -> Path:
    """Give the `train.py` that a launch from here would start."""
    return subject.script if subject.script.is_file() else OUR_TRAINER


def list_current_versions(subject: Subject) -> list[str]:
    """Give the versions that the code that is here has: of this folder, and with that of its `train.py` elsewhere."""
    here, there = Path.cwd(), find_current_script(subject).resolve().parent
    roots = [[here]] if there.is_relative_to(here.resolve()) else [[here], [here, there]]
    return [hash_code(these) for these in roots]


def take_current_code(subject: Subject, scratch: ScratchFolder, build_config: BuildConfig) -> Code:
    """Give the code that is here, and say what is not as it was.

    Raises:
        ViewError: it refuses the run's settings.
    """
    run, version = subject.run, list_current_versions(subject)[-1]
    print(f"note: the code that is here is run, {version}; the run was made by {subject.version}")
    try:
        with rebuild_code(subject.stored_code, subject.version, scratch.path / "code") as root:
            say_changed_files(root)
    except RebuildError as error:
        print(f"note: which files have changed since can't be told: {error}")
    try:
        run_id = build_config(subject.settings).run_id()
    except SettingsError as error:
        raise ViewError(f"{run.config_path}: today's code refuses these settings:\n{error}") from None
    if run_id != run.id:
        print(f"note: to this code these settings mean something else: it gives them the id {run_id}")
    return Code(find_current_script(subject), version, run_id)


def say_changed_files(then: Path) -> None:
    """Say which sources of this folder are not as they were."""
    changed = list_changed_files(then, Path.cwd())
    if changed:
        print("note: the code that is here is not that which made the run:")
    for line in changed:
        print(f"  {line}")


def judge(subject: Subject, again: Run, scratch: ScratchFolder, gpus: Sequence[Gpu]) -> int:
    """Compare a run with its reproduction, say what came of it, and give the exit code."""
    comparison = compare_runs(subject.run, again, NAMES)
    print(f"compared: {COMPARED}; {comparison.rows:,} rows are the same from the first on")
    around = list_surroundings(subject, again, gpus)
    around = ["around it is not as it was:", *around] if around else ["packages, Python, host and CPU are as they were"]
    if not comparison.differences:
        print("THE SAME: this run can be reproduced to the last digit.")
        print("\n".join(f"  {line}" for line in around))
        return SAME
    print("DIFFERENT: trained again, this run comes to something else.")
    for line in (*comparison.differences, *describe_state_differences(subject.run, again), *around):
        print(f"  {line}")
    scratch.keep()
    print(f"kept: {scratch.path}")
    return DIFFERENT


def list_surroundings(subject: Subject, again: Run, gpus: Sequence[Gpu]) -> list[str]:
    """Give a line for each thing around a run, beside code and settings, that is not as it was."""
    now = describe_machine(gpus)
    host = subject.starts[-1].get("host")
    then = read_machine(subject.run.experiment_dir, host)
    then = then | {"host": host or then.get("host")}
    lines = [f"  {name}: {then.get(name)} then, {now[name]} now" for name in MACHINE if then.get(name) != now[name]]
    before, after = then.get("packages", {}), now["packages"]
    changed = [
        f"  {name} {before.get(name, '(not there)')} then, {after.get(name, '(not there)')} now"
        for name in sorted(before | after, key=str.lower)
        if before.get(name) != after.get(name)
    ]
    lines += cut(changed, SHOWN_PACKAGES, "packages")
    if subject.summary["device"] != "cpu":
        names = [sorted({gpu["name"] for gpu in machine.get("gpus", [])}) for machine in (then, now)]
        lines += [f"  GPUs: {names[0]} then, {names[1]} now"] if names[0] != names[1] else []
    summary = read_json(again.summary_path) or {}
    for key in ("device", "threads", "backends"):
        if found := find_difference(subject.summary.get(key), summary.get(key), key):
            lines.append(f"  {found[0]}: {found[1]} then, {found[2]} now")
    return lines
