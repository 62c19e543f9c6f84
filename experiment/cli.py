"""What `run_experiment.py` does, from its command line to its exit code. Heavy parts are imported on use."""

from __future__ import annotations

import errno
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.arguments import build_parser
from experiment.problems import SpecError

if TYPE_CHECKING:
    from experiment.devices import ListGpus
    from experiment.plan import BuildConfig

BAD_USAGE, NO_DEVICE, FAILED = 2, 3, 1


def main(words: Sequence[str], build_config: BuildConfig, list_gpus: ListGpus | None = None) -> int:
    """Run the command line and give the exit code.

    Args:
        words: without the program's name.
        build_config: checks the settings of one run; how this package learns of trainers.
        list_gpus: gives the machine's GPUs; by default asks NVML.
    """
    parser = build_parser()
    args = parser.parse_args(words)
    try:
        return look(args, parser) if args.view else run_spec(args, parser, build_config, list_gpus)
    except SpecError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    except OSError as error:
        print(f"{error.filename or args.log_root}: {error.strerror or error}", file=sys.stderr)
        return FAILED if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) else BAD_USAGE
    except KeyboardInterrupt:
        print("Stopped before anything was started.", file=sys.stderr)
        return 130


def look(args: Namespace, parser: ArgumentParser) -> int:
    """Show or stop an experiment that was launched before."""
    from experiment.views import ViewError, find_run, print_logs, print_status, request_stop

    try:
        if args.view == "logs":
            if not args.target:
                parser.error("logs: give a run's id; status lists them")
            print_logs(find_run(args.target, list_experiments(args)))
            return 0
        if args.target:
            parser.error(f"{args.view}: give the experiment by -e")
        if not args.spec:
            parser.error(f"{args.view}: give -e SPEC or -e logs/<exp_name>")
        experiment_dir = find_experiment(args)
        if args.view == "stop":
            return 1 if request_stop(experiment_dir) else 0
        print_status(experiment_dir, args.json)
    except ViewError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
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
    from experiment import devices
    from experiment.spec import load_spec

    if not args.spec:
        parser.error("give a spec: -e exp_specs/quickstart.yaml")
    if args.retry < 0:
        parser.error("--retry: give 0 or more")
    if args.json and not args.dry_run:
        parser.error("--json goes with -n or status")
    spec = load_spec(args.spec, args.overrides)
    if args.dry_run:
        from experiment.dry_run import show_plan

        return show_plan(spec, args, build_config)
    gpus = (list_gpus or devices.list_gpus)()
    try:
        chosen, remark = devices.choose_devices(args.gpus, gpus)
    except devices.DeviceError as error:
        print(error, file=sys.stderr)
        return NO_DEVICE
    except ValueError as error:
        parser.error(str(error))
    from experiment.sweep import run_sweep

    return run_sweep(spec, args, build_config, gpus, chosen, remark)
