"""What policies do outside training: record episodes, evaluate, look into data sets, make reference sets.

python play.py record --env Pendulum-v1 --policy random --episodes 100
python play.py record --policy scripted:pendulum_energy --noise 0.3 -o noisy.h5
python play.py record --policy logs/<exp_name>/<run folder> --steps 10000
python play.py evaluate logs/<exp_name>/<run folder>
python play.py export logs/<exp_name>/<run folder> --format onnx -o policy.onnx
python play.py render logs/<exp_name>/<run folder> -o flights.png --strips depth.png --video flights.gif
python play.py trace logs/<exp_name>/<run folder of vmamba_td3>
python play.py samples logs/<exp_name>/<run folder of vae_diffusion_rl>
python play.py info noisy.h5
python play.py make pendulum-noisy    (`list` lists what can be made)
"""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from playing.data_sets import list_sets, make, show_info
from playing.endings import ERROR, INTERRUPTED, find_code
from playing.evaluating import evaluate
from playing.exporting import NEEDED, export
from playing.recording import DEFAULT_EPISODES, record
from playing.rendering import render
from playing.samples import show_samples
from playing.share import share
from playing.tracing import trace

Commands: TypeAlias = "argparse._SubParsersAction[ArgumentParser]"


def build_parser() -> ArgumentParser:
    """Give the parser of the command line."""
    parser = ArgumentParser(prog="play.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    trained, actor = _build_trained(), _build_actor()
    _add_record(commands, trained)
    _add_evaluate(commands, trained, actor)
    _add_export(commands, trained)
    _add_render(commands, trained, actor)
    _add_samples(commands, trained)
    _add_trace(commands, trained)
    _add_data_sets(commands)
    return parser


def _build_trained() -> ArgumentParser:
    """Give what commands have in common that open a run."""
    trained = ArgumentParser(add_help=False, allow_abbrev=False)
    trained.add_argument("--checkpoint", default="newest", help="newest (default), best, or a name like step_00010000")
    trained.add_argument("--device", default="cpu", help="where a trained policy computes: cpu (default), cuda, cuda:1")
    return trained


def _build_actor() -> ArgumentParser:
    """Give what commands have in common that take a run or an untrained policy."""
    actor = ArgumentParser(add_help=False, allow_abbrev=False)
    actor.add_argument("run", type=Path, nargs="?", help="the folder of a run, unless --policy is given")
    actor.add_argument("--policy", help="random or scripted:<name>, in the place of a run")
    actor.add_argument("--env", help="where --policy acts, unless it brings its environment")
    told = "arguments of the environment; for a run, what is changed about those that it is evaluated with"
    actor.add_argument("--env-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help=told)
    told = "modules that register environments; a run has its own"
    actor.add_argument("--imports", nargs="+", default=[], metavar="MODULE", help=told)
    return actor


def _add_record(commands: Commands, trained: ArgumentParser) -> None:
    told = "record episodes into an HDF5 file"
    recorder = commands.add_parser("record", help=told, description=told, parents=[trained], allow_abbrev=False)
    recorder.add_argument("--env", help="an id of gymnasium's registry; a run and a controller bring theirs")
    recorder.add_argument(
        "--env-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the environment"
    )
    recorder.add_argument("--policy", required=True, help="random, scripted:<name>, or the folder of a run")
    recorder.add_argument(
        "--episodes", type=int, help=f"how many (default: {DEFAULT_EPISODES}, unless --steps is given)"
    )
    recorder.add_argument("--steps", type=int, help="stop after so many steps, in mid-episode if need be")
    recorder.add_argument("--noise", type=float, default=0.0, help="deviation of noise on actions, in normalised units")
    recorder.add_argument("--seed", type=int, default=0, help="of starts, noise, and what the policy draws")
    recorder.add_argument("-o", "--out", type=Path, help="the file (default: data/<environment>-<policy>.h5)")
    recorder.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    recorder.add_argument(
        "--imports", nargs="+", default=[], metavar="MODULE", help="modules that register environments"
    )
    recorder.set_defaults(run_command=record)


def _add_evaluate(commands: Commands, trained: ArgumentParser, actor: ArgumentParser) -> None:
    told = "evaluate a policy on the report seeds"
    evaluator = commands.add_parser(
        "evaluate", help=told, description=told, parents=[trained, actor], allow_abbrev=False
    )
    evaluator.add_argument("--episodes", type=int, default=50, help="how many (default: 50)")
    evaluator.add_argument("--workers", type=int, default=1, help="processes that share them (default: 1)")
    evaluator.add_argument("--json", type=Path, help="write each episode's numbers, with who acted and where")
    evaluator.set_defaults(run_command=evaluate)
    # Not listed: `evaluate` starts it.
    commands.add_parser("share", allow_abbrev=False).set_defaults(run_command=share)


def _add_export(commands: Commands, trained: ArgumentParser) -> None:
    told = "write a run's policy into a file that acts without this project"
    exporter = commands.add_parser("export", help=told, description=told, parents=[trained], allow_abbrev=False)
    exporter.add_argument("run", type=Path, help="the folder of a run")
    exporter.add_argument("--format", choices=NEEDED, required=True, help="TorchScript, or ONNX (gridpilot[onnx])")
    exporter.add_argument("-o", "--out", type=Path, required=True, help="the file; what it is goes to <file>.json")
    exporter.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    exporter.set_defaults(run_command=export)


def _add_render(commands: Commands, trained: ArgumentParser, actor: ArgumentParser) -> None:
    told = "draw what a policy does in a navigation task"
    renderer = commands.add_parser("render", help=told, description=told, parents=[trained, actor], allow_abbrev=False)
    renderer.add_argument("-o", "--out", type=Path, help="maps with the paths flown, a .png")
    renderer.add_argument("--strips", type=Path, help="what the camera saw, a .png")
    renderer.add_argument("--video", type=Path, help="maps and camera as a film: .gif, or .mp4 (gridpilot[video])")
    renderer.add_argument("--episodes", type=int, default=6, help="how many report seeds (default: 6)")
    renderer.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="these in the place of report seeds")
    renderer.set_defaults(run_command=render)


def _add_samples(commands: Commands, trained: ArgumentParser) -> None:
    told = "hold what a diffusion policy draws against the data it learned from"
    sampler = commands.add_parser("samples", help=told, description=told, parents=[trained], allow_abbrev=False)
    sampler.add_argument("run", type=Path, help="the folder of a run of vae_diffusion_rl")
    sampler.add_argument(
        "-o", "--out", type=Path, help="the picture, a .png (default: samples.png in the run's folder)"
    )
    sampler.add_argument("--windows", type=int, default=2048, help="histories of the data set (default: 2048)")
    sampler.set_defaults(run_command=show_samples)


def _add_trace(commands: Commands, trained: ArgumentParser) -> None:
    told = "keep what a policy's networks do while it acts: attention, features, values"
    tracer = commands.add_parser("trace", help=told, description=told, parents=[trained], allow_abbrev=False)
    tracer.add_argument("run", type=Path, help="the folder of a run of vmamba_td3")
    tracer.add_argument(
        "-o", "--out", type=Path, help="the file, an .npz (default: inside/trace.npz in the run's folder)"
    )
    tracer.add_argument("--episodes", type=int, default=10, help="how many report seeds (default: 10)")
    told = "what is changed about the arguments of the environment that the run is evaluated with"
    tracer.add_argument("--env-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help=told)
    tracer.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    tracer.set_defaults(run_command=trace)


def _add_data_sets(commands: Commands) -> None:
    told = "say what is in a data set"
    info = commands.add_parser("info", help=told, description=told, allow_abbrev=False)
    info.add_argument("dataset", help="as the setting `dataset`: a name, a path, or minari:<id>")
    info.set_defaults(run_command=show_info)

    told = "list the reference sets"
    commands.add_parser("list", help=told, description=told).set_defaults(run_command=list_sets)

    told = "make a reference set"
    maker = commands.add_parser("make", help=told, description=told, allow_abbrev=False)
    maker.add_argument("name", help="one that `list` lists")
    maker.set_defaults(run_command=make)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.run_command(args, parser)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        print(f"{error.filename or args.command}: {error.strerror or error}", file=sys.stderr)
        return ERROR
    except Exception as error:
        told = find_code(error, args.command)
        if told is None:
            raise
        print(error, file=sys.stderr)
        return told
    return code


if __name__ == "__main__":
    sys.exit(main())
