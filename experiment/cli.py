"""What `run_experiment.py` does, from its command line to its exit code. Heavy parts are imported on use."""

from __future__ import annotations

import errno
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.arguments import build_parser
from experiment.problems import SpecError
from experiment.streams import silence_stdout

if TYPE_CHECKING:
    from experiment.detach import Background
    from experiment.devices import ListGpus
    from experiment.plan import BuildConfig
    from experiment.spec import ExperimentSpec

BAD_USAGE, NO_DEVICE, FAILED = 2, 3, 1
READ_BY = {
    "status": {"view", "target", "spec", "overrides", "log_root", "json"},
    "logs": {"view", "target", "spec", "overrides", "log_root"},
    "why": {"view", "target", "spec", "overrides", "log_root"},
    "reproduce": {"view", "target", "spec", "overrides", "log_root", "gpus", "plain", "with_current_code"},
    "--verify-resume": {"spec", "overrides", "log_root", "gpus", "jobs", "only", "plain", "verify_resume"},
    "gc": {"view", "target", "spec", "overrides", "log_root", "yes"},
    "stop": {"view", "target", "spec", "overrides", "log_root"},
}


def main(words: Sequence[str], build_config: BuildConfig, list_gpus: ListGpus | None = None) -> int:
    """Run the command line and give the exit code.

    Args:
        words: without the program's name.
        build_config: checks the settings of one run; how this package learns of trainers.
        list_gpus: gives the machine's GPUs; by default asks NVML.
    """
    open_missing_streams()
    parser = build_parser()
    args = parser.parse_intermixed_args(words)
    refuse_unread_flags(args, parser)
    try:
        if args.view == "reproduce":
            return reproduce(args, parser, build_config, list_gpus)
        return look(args, parser) if args.view else run_spec(args, parser, build_config, list_gpus)
    except BrokenPipeError:
        # Whoever read what was printed has read enough.
        silence_stdout()
        return 0
    except SpecError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    except OSError as error:
        print(f"{error.filename or args.log_root}: {error.strerror or error}", file=sys.stderr)
        return FAILED if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) else BAD_USAGE
    except ModuleNotFoundError as error:
        print(f"{sys.executable} has no {error.name}: make install, then . .venv/bin/activate", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("Stopped before anything was started.", file=sys.stderr)
        return 130


def open_missing_streams() -> None:
    """Give a program that was started without stdout or stderr (`>&-`) something to write to."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  stays open as long as the program runs
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def refuse_unread_flags(args: Namespace, parser: ArgumentParser) -> None:
    """End with a usage error where a flag was given that what was asked for doesn't read."""
    asked = args.view or ("--verify-resume" if args.verify_resume else "")
    read = READ_BY.get(asked)
    if read is None:
        return
    for name, value in vars(args).items():
        if name not in read and value != parser.get_default(name):
            flag = next(action.option_strings[0] for action in parser._actions if action.dest == name)
            parser.error(f"{asked} doesn't read {flag}")


def look(args: Namespace, parser: ArgumentParser) -> int:
    """Show, clean or stop an experiment that was launched before."""
    from experiment.views import ViewError

    try:
        if args.view in ("logs", "why"):
            look_at_run(args, parser)
            return 0
        if args.target:
            parser.error(f"{args.view}: give the experiment by -e")
        if args.view == "gc":
            from experiment.garbage import collect_garbage

            collect_garbage(list_experiments(args), delete=args.yes)
            return 0
        return look_at_experiment(args, parser)
    except ViewError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE


def look_at_run(args: Namespace, parser: ArgumentParser) -> None:
    """Show what one run wrote, or why it is in its state."""
    from experiment.views import find_run, print_logs

    if not args.target:
        parser.error(f"{args.view}: give a run's id; status lists them")
    run = find_run(args.target, list_experiments(args))
    if args.view == "logs":
        print_logs(run)
        return
    from experiment.why import print_why

    print_why(run)


def reproduce(args: Namespace, parser: ArgumentParser, build_config: BuildConfig, list_gpus: ListGpus | None) -> int:
    """Train a finished run once more and compare."""
    from experiment import devices
    from experiment.reproduce import reproduce_run
    from experiment.views import ViewError, find_run

    if not args.target:
        parser.error("reproduce: give a run's id; status lists them")
    try:
        run = find_run(args.target, list_experiments(args))
        return reproduce_run(run, args, build_config, (list_gpus or devices.list_gpus)())
    except ViewError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    except devices.DeviceError as error:
        print(error, file=sys.stderr)
        return NO_DEVICE


def look_at_experiment(args: Namespace, parser: ArgumentParser) -> int:
    """Show how far an experiment is, or stop it."""
    from experiment.views import print_status, request_stop

    if not args.spec:
        parser.error(f"{args.view}: give -e SPEC or -e logs/<exp_name>")
    experiment_dir = find_experiment(args)
    if args.view == "stop":
        return 1 if request_stop(experiment_dir) else 0
    print_status(experiment_dir, args.json)
    return 0


def find_experiment(args: Namespace) -> Path:
    """Give the experiment's folder that `-e` means: the folder itself, or that of a spec."""
    from experiment.spec import load_spec

    if args.spec.is_dir():
        return Path(args.spec)
    return Path(args.log_root / load_spec(args.spec, args.overrides).meta.exp_name)


def list_experiments(args: Namespace) -> list[Path]:
    """Give the folders in which a run may be: that of `-e`, or all below the log root."""
    if args.spec:
        return [find_experiment(args)]
    return sorted(path.parent for path in args.log_root.glob("*/plan.jsonl"))


def run_spec(args: Namespace, parser: ArgumentParser, build_config: BuildConfig, list_gpus: ListGpus | None) -> int:
    """Check the spec, then show what would be run, or run it."""
    from experiment.spec import load_spec

    if not args.spec:
        parser.error("give a spec: -e exp_specs/quickstart.yaml")
    if args.retry < 0:
        parser.error("--retry: give 0 or more")
    if args.json and not args.dry_run:
        parser.error("--json goes with -n or status")
    if args.yes:
        parser.error("--yes goes with gc")
    if args.with_current_code:
        parser.error("--with-current-code goes with reproduce")
    if args.detach and args.dry_run:
        parser.error("--detach goes with a launch, and -n starts nothing")
    if args.jobs and args.jobs_per_gpu:
        parser.error("-j is for all devices together and --jobs-per-gpu for each: give one of them")
    if args.chaos and (args.dry_run or args.verify_resume):
        parser.error("--chaos goes with a launch; --verify-resume kills by itself")
    if args.smoke:
        refuse_beside_smoke(args, parser)
    spec = load_spec(args.spec, args.overrides)
    if args.detach:
        from experiment.detach import run_in_background

        return run_in_background(lambda background: launch(spec, args, parser, build_config, list_gpus, background))
    return launch(spec, args, parser, build_config, list_gpus)


def refuse_beside_smoke(args: Namespace, parser: ArgumentParser) -> None:
    """End with a usage error where a flag was given that means nothing beside `--smoke`."""
    beside = {
        "-n": args.dry_run,
        "--rerun": args.rerun,
        "--retry": args.retry,
        "--detach": args.detach,
        "--verify-resume": args.verify_resume,
        "--chaos": args.chaos,
    }
    for flag, is_given in beside.items():
        if is_given:
            parser.error(f"--smoke and {flag} are two things: give one of them")


def launch(
    spec: ExperimentSpec,
    args: Namespace,
    parser: ArgumentParser,
    build_config: BuildConfig,
    list_gpus: ListGpus | None,
    background: Background | None = None,
) -> int:
    """Choose the devices and show or run a spec."""
    from experiment import devices

    gpus = (list_gpus or devices.list_gpus)()
    try:
        chosen, remark = devices.choose_devices(args.gpus, gpus)
    except devices.DeviceError as error:
        print(error, file=sys.stderr)
        if not args.dry_run:
            return NO_DEVICE
        chosen, remark = [], None
    except ValueError as error:
        parser.error(str(error))
    if args.dry_run:
        from experiment.dry_run import show_plan

        return show_plan(spec, args, build_config, chosen)
    if args.verify_resume:
        from experiment.verify import verify_resume

        return verify_resume(spec, args, build_config, chosen, remark)
    if args.jobs_per_gpu and chosen[0].gpu is None:
        parser.error(
            "--jobs-per-gpu: this runs on the CPU; -j N says how many runs go at a time there, -j auto finds out"
        )
    if args.smoke:
        from experiment.smoke import try_shortened

        return try_shortened(spec, args, build_config, chosen)
    from experiment.sweep import run_sweep

    try:
        return run_sweep(spec, args, build_config, gpus, chosen, remark, background)
    except devices.DeviceError as error:
        print(f"{error}; -j auto needs that, --jobs-per-gpu N doesn't", file=sys.stderr)
        return NO_DEVICE
