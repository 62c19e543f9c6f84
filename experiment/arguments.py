"""The command line of `run_experiment.py`. Light on purpose: `--help` answers before anything heavy is imported."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

DESCRIPTION = """\
Run an experiment: one spec in, a grid of resumable runs out, a report at the end.

  python run_experiment.py -e exp_specs/quickstart.yaml -g 0        run it, or go on with it
  python run_experiment.py -e exp_specs/quickstart.yaml -n          show what would be run, and what it would take
  python run_experiment.py -e exp_specs/quickstart.yaml --smoke     try each kind of run for seconds
  python run_experiment.py -e exp_specs/quickstart.yaml --detach    the same in the background; the terminal may go
  python run_experiment.py status -e exp_specs/quickstart.yaml      from another terminal: how far it is
  python run_experiment.py logs ID                                  what a run wrote
  python run_experiment.py why ID                                   why a run is in its state, and what goes on with it
  python run_experiment.py reproduce ID                             train a finished run again, by the code that made it
  python run_experiment.py gc -e exp_specs/quickstart.yaml          what may go, and what that frees; --yes deletes it
  python run_experiment.py stop -e exp_specs/quickstart.yaml        let all its runs checkpoint and stop
"""

EXIT_CODES = """\
exit codes: 0 all done; 1 finished with failed runs; 2 bad spec or usage, nothing started; 3 a device is not there;
4 the first five finished runs all failed alike; 75 stopped with work left; 130, 143, 129 stopped by Ctrl-C, SIGTERM,
SIGHUP
"""

AUTO = "auto"
"""`-j auto`: as many runs at a time as fit."""
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_duration(text: str) -> float:
    """Give the seconds of `90`, `30s`, `10m`, `6h` or `1.5d`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 30s, 10m, 6h or 1.5d")
    return float(match[1]) * UNITS[match[2]]


def read_probability(text: str) -> float:
    """Give a probability in (0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability between 0 and 1")
    return value


def read_count(text: str) -> int:
    """Give a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def read_jobs(text: str) -> int | str:
    """Give a number of runs at a time, or `auto`."""
    if text != AUTO and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1, nor {AUTO}")
    return text if text == AUTO else int(text)


def build_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="run_experiment.py",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    views = ("status", "logs", "why", "reproduce", "gc", "stop")
    parser.add_argument("view", nargs="?", choices=views, help="look at an experiment, or after it, instead")
    parser.add_argument("target", nargs="?", help="for logs, why, reproduce: a run's id, or the beginning of it")
    parser.add_argument(
        "-e", dest="spec", type=Path, metavar="SPEC", help="the spec (a view also takes logs/<exp_name>)"
    )
    parser.add_argument("-g", dest="gpus", metavar="GPUS", default="all", help="0, or 0,1, or all (default), or cpu")
    parser.add_argument(
        "-j", dest="jobs", type=read_jobs, metavar="N|auto", help="runs at a time; auto measures how many fit"
    )
    parser.add_argument("--jobs-per-gpu", type=read_count, metavar="N", help="runs at a time on each GPU")
    parser.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="over the spec")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="just these combinations")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show the runs, their ids, sizes and status")
    parser.add_argument(
        "--smoke", action="store_true", help="train, stop, resume and evaluate each kind of run briefly"
    )
    parser.add_argument("--json", action="store_true", help="with -n or status: a JSON object a line")
    parser.add_argument("--yes", action="store_true", help="with gc: delete what it lists")
    parser.add_argument("--no-count", action="store_true", help="with -n: don't count parameters (starts no process)")
    parser.add_argument(
        "--rerun", metavar="failed|all|ID", help="run these again, also if they are done or have failed"
    )
    parser.add_argument("--retry", type=int, default=0, metavar="N", help="try a run that fails up to N times more")
    parser.add_argument(
        "--timeout", type=read_duration, metavar="6h", help="longest time for one run, then it checkpoints"
    )
    parser.add_argument(
        "--verify-resume", action="store_true", help="train one combination straight, and killed and resumed: the same?"
    )
    parser.add_argument(
        "--with-current-code", action="store_true", help="with reproduce: by the code here, not by that which made it"
    )
    parser.add_argument("--log-root", type=Path, default=Path("logs"), metavar="DIR", help="default: logs")
    parser.add_argument("--detach", action="store_true", help="go on in the background, lines in <exp>/runner.log")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table")
    parser.add_argument(
        "--no-warm", action="store_true", help="start each run as a process that imports everything, rather than fork"
    )
    parser.add_argument(
        "--chaos",
        type=read_probability,
        metavar="P",
        help="kill each training, supervisor and the fork server with this probability in each second: nothing is lost",
    )
    parser.add_argument("--no-report", action="store_true", help="leave the report to python -m analysis.report")
    return parser
