"""What policies do outside training: record episodes, evaluate, look into data sets, make reference sets.

python play.py record --env Pendulum-v1 --policy random --episodes 100
python play.py record --policy scripted:pendulum_energy --noise 0.3 -o noisy.h5
python play.py record --policy logs/<exp_name>/<run folder> --steps 10000
python play.py evaluate logs/<exp_name>/<run folder>
python play.py samples logs/<exp_name>/<run folder of vae_diffusion_rl>
python play.py info noisy.h5
python play.py make pendulum-noisy    (`list` lists what can be made)
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envs.datasets import find_dataset, load_dataset
from envs.describe import describe_episodes
from envs.episodes import EpisodeError, Episodes, write_episodes
from envs.recipes import BEST, RECIPES, Amount, Recipe, data_folder, find_set_path
from experiment.files import write_atomically
from experiment.problems import Fault, Problem, SettingsError, SpecError, suggest
from train import choose_device, find_trainer, import_trainers, load_single_run

if TYPE_CHECKING:
    from envs.record import Policy
    from experiment.run import Run
    from training.checkpoint import Checkpoint
    from training.config import TrainerConfig
    from training.protocol import Trainer

OK, ERROR, USAGE, DEVICE, INTERRUPTED = 0, 1, 2, 3, 130
DEFAULT_EPISODES = 100
REFERENCE_EPISODES = 50


class DeviceMissingError(ValueError):
    """A device that was asked for and isn't there."""


class RunError(ValueError):
    """A run that can't be taken up, or a training that didn't come to its end."""


@dataclass(frozen=True)
class Restored:
    """A run's trainer as it was at a checkpoint."""

    run: Run
    config: TrainerConfig
    trainer: Trainer
    checkpoint: Checkpoint


def restore_run(folder: Path, which: str, device_name: str, stack: ExitStack) -> Restored:
    """Build the trainer of a run folder and give it a checkpoint's state; the stack closes it.

    Raises:
        SpecError: it isn't a run folder, or its settings are no good any more.
        SettingsError: its modules or its environment aren't there.
        DeviceMissingError: the device isn't there.
        RunError: there is no such checkpoint, or it can't be used.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise SpecError([Problem(f"{folder} is not a run folder: it has no config.yaml")])
    config, run = load_single_run(path, [], folder.absolute().parent, None)
    import_trainers(config.imports)
    if faults := config.find_environment_faults():
        raise SettingsError(faults)
    device = choose_device(device_name, "auto")
    if device is None:
        raise DeviceMissingError(f"--device {device_name}: torch sees no such device")
    from training.manifest import CheckpointError
    from training.restore import restore_trainer

    build = find_trainer(config.model_dump()).build_trainer
    try:
        trainer, checkpoint = restore_trainer(run, which, lambda: build(config, device))
    except CheckpointError as error:
        raise RunError(str(error)) from error
    stack.enter_context(closing(trainer))
    return Restored(run, config, trainer, checkpoint)


def build_trained_policy(restored: Restored) -> Policy:
    """Give the policy of a restored run, without noise.

    Raises:
        SettingsError: its trainer has none that can act on its own.
    """
    from envs.record import Policy
    from training.protocol import ActsInEnvironment
    from training.resources import hash_state

    run, config, trainer, checkpoint = restored.run, restored.config, restored.trainer, restored.checkpoint
    if not isinstance(trainer, ActsInEnvironment):
        message = f"the trainer {config.algorithm_name!r} has no policy that acts on its own (no begin_acting)"
        raise SettingsError([Fault(("policy",), message)])
    facts = {
        "kind": "trained",
        "run": run.id,
        "folder": run.folder.name,
        "algorithm_name": config.algorithm_name,
        "config_sha256": hashlib.sha256(run.config_path.read_bytes()).hexdigest(),
        "checkpoint": checkpoint.path.stem,
        "step": checkpoint.step,
        # Of the networks alone: a checkpoint also holds how long training took.
        "weights_sha256": hash_state({name: dict(net.state_dict()) for name, net in trainer.components().items()}),
    }
    return Policy(config.env_name, config.env_kwargs, facts, lambda space, generator: trainer.begin_acting())


def open_policy(args: Namespace, stack: ExitStack) -> Policy:
    """Give the policy that `--policy` names, in the environment that it or `--env` names.

    Raises:
        SettingsError: there is no such policy, or it doesn't go with the environment.
    """
    from envs.record import build_untrained_policy, read_env_kwargs

    kwargs = read_env_kwargs(args.env_kwargs)
    if (policy := build_untrained_policy(args.policy, args.env, kwargs)) is not None:
        return policy
    folder = Path(args.policy)
    if not folder.is_dir():
        known = suggest(args.policy, ["random", "scripted:pendulum_energy"])
        message = f"--policy {args.policy!r} is neither 'random', 'scripted:<name>' nor the folder of a run{known}"
        raise SettingsError([Fault(("policy",), message)])
    restored = restore_run(folder, args.checkpoint, args.device, stack)
    if kwargs or args.env not in (None, restored.config.env_name):
        message = f"{folder} was trained in {restored.config.env_name}, and brings its environment with its arguments"
        raise SettingsError([Fault(("env",), f"{message}; leave out --env and --env-kwargs")])
    from training.seeding import seed_everything

    seed_everything(args.seed)
    return build_trained_policy(restored)


def record(args: Namespace, parser: ArgumentParser) -> int:
    """Record episodes into a file."""
    for name in ("episodes", "steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name}: give 1 or more")
    if not 0 <= args.noise < float("inf"):
        parser.error("--noise: give 0 or more")
    if args.seed < 0:
        parser.error("--seed: give 0 or more")
    if args.out is not None and args.out.exists() and not args.overwrite:
        parser.error(f"{args.out} is there already; give another -o, or --overwrite")
    from envs.record import record_policy

    import_trainers(args.imports)
    episodes = DEFAULT_EPISODES if args.episodes is None and args.steps is None else args.episodes
    with ExitStack() as stack:
        policy = open_policy(args, stack)
        out = args.out or choose_file(args.policy, policy.env_name)
        if out.exists() and not args.overwrite:
            parser.error(f"{out} is there already; give another with -o, or --overwrite")
        recorded = record_policy(policy, Amount(episodes, args.steps), args.noise, args.seed, print)
    write_episodes(out, recorded)
    print("\n".join(describe_episodes(out, recorded)))
    return OK


def choose_file(policy: str, env_name: str) -> Path:
    """Give the file that episodes go to unless one is named: `data/<environment>-<policy>.h5`."""
    acted = policy.partition(":")[2] or Path(policy).absolute().name
    return data_folder() / f"{env_name}-{acted}.h5".replace("/", "-")


def evaluate(args: Namespace, parser: ArgumentParser) -> int:
    """Evaluate a run's policy on the report seeds, as its own final evaluation does."""
    if args.episodes < 1:
        parser.error("--episodes: give 1 or more")
    with ExitStack() as stack:
        restored = restore_run(args.run, args.checkpoint, args.device, stack)
        from training.evaluation import report_seeds, summarise_evaluation
        from training.seeding import seed_everything

        seed_everything(restored.config.seed)
        evaluation = restored.trainer.evaluate(report_seeds(args.episodes), lambda: False)
        numbers = summarise_evaluation(evaluation, restored.trainer.references)
        print(f"{restored.run.folder.name}, {restored.checkpoint.path.stem}, {restored.config.env_name}")
        print(
            f"{args.episodes} episodes on the report seeds: mean return {numbers['eval/mean_reward']:.1f} +/- "
            f"{numbers['eval/std_reward']:.1f}, mean length {numbers['eval/mean_ep_length']:.1f}"
        )
        if "eval/normalized_score" in numbers:
            print(f"normalised score {numbers['eval/normalized_score']:.1f}")
    return OK


def show_samples(args: Namespace, parser: ArgumentParser) -> int:
    """Hold what a diffusion policy draws against its data: a table, and a picture."""
    if args.windows < 2:
        parser.error("--windows: give 2 or more")
    if args.out is not None and args.out.suffix != ".png":
        parser.error(f"--out {args.out}: the picture is a .png")
    with ExitStack() as stack:
        restored = restore_run(args.run, args.checkpoint, args.device, stack)
        from analysis.samples import compare_actions, draw_comparison, tabulate_fits
        from analysis.tables import render_text
        from diffuser.samples import draw_samples
        from diffuser.utils.training import Trainer as DiffusionTrainer

        run, config, trainer = restored.run, restored.config, restored.trainer
        if not isinstance(trainer, DiffusionTrainer):
            message = f"{args.run} is a run of {config.algorithm_name}; samples are drawn by vae_diffusion_rl alone"
            raise SettingsError([Fault(("run",), message)])
        drawn = draw_samples(trainer.average, trainer.dataset, args.windows)
        which = (
            f"run {run.id}, {restored.checkpoint.path.stem}, {len(drawn.data):,} histories of {trainer.config.dataset}"
        )
    print(which)
    print(render_text(tabulate_fits(compare_actions(drawn.data, drawn.samples))))
    out = args.out or run.samples_path
    picture = draw_comparison(drawn.data, drawn.samples[0], drawn.learnt_std, drawn.sampled_std, which)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, [picture])
    print(f"picture: {out}")
    return OK


def show_info(args: Namespace, parser: ArgumentParser) -> int:
    """Say what is in a data set; makes none."""
    path = find_dataset(args.dataset)
    if args.dataset in RECIPES and not path.exists():
        print(f"{args.dataset} isn't made yet; `python play.py make {args.dataset}` makes {path}", file=sys.stderr)
        return USAGE
    print("\n".join(describe_episodes(path, load_dataset(args.dataset, print))))
    return OK


def list_sets(args: Namespace, parser: ArgumentParser) -> int:
    """List the reference sets, and which are there."""
    for name, recipe in RECIPES.items():
        path = find_set_path(name)
        state = f"at {path}" if path.exists() else f"not made yet; takes {recipe.takes}"
        print(f"{name:<20}{recipe.env_name}: {recipe.about} ({state})")
    return OK


def make(args: Namespace, parser: ArgumentParser) -> int:
    """Make a reference set unless it is there."""
    if args.name not in RECIPES:
        there = ", ".join(RECIPES)
        parser.error(f"no reference set is called {args.name!r}{suggest(args.name, RECIPES)}; there are: {there}")
    from envs.making import make_once

    recipe = RECIPES[args.name]
    make_once(args.name, recipe, lambda: produce(args.name, recipe), print)
    return OK


def produce(name: str, recipe: Recipe) -> Episodes:
    """Train what a recipe needs, record it, and give its episodes.

    Raises:
        RunError: the training didn't come to its end.
    """
    from envs.making import record_recipe, train_recipe

    with ExitStack() as stack:
        run = None
        if recipe.training is not None:
            settings, code = train_recipe(name, recipe, print)
            if code != OK:
                message = f"the training ended with exit code {code}; `python play.py make {name}` goes on with it"
                raise RunError(message)
            run = load_single_run(settings, [], settings.parents[1], name)[1]

        from envs.record import build_untrained_policy

        def open_named(text: str) -> Policy:
            if (policy := build_untrained_policy(text, recipe.env_name, {})) is not None:
                return policy
            assert run is not None, f"the recipe of {name} asks for {text} and trains nothing"
            which = "best" if text == BEST else choose_medium(run, recipe)
            return build_trained_policy(restore_run(run.folder, which, "cpu", stack))

        return record_recipe(name, recipe, open_named, measure_return, print)


def measure_return(policy: Policy) -> float:
    """Give a policy's mean return over the report seeds, without noise."""
    import numpy as np

    from envs.make import make_env
    from envs.record import read_action_space
    from training.evaluation import evaluate_policy, report_seeds

    space, draws = read_action_space(policy), np.random.default_rng(0)
    returns = [
        evaluate_policy(
            lambda: make_env(policy.env_name, policy.env_kwargs), policy.begin(space, draws), [seed], lambda: False
        ).returns
        for seed in report_seeds(REFERENCE_EPISODES)
    ]
    return float(np.mean(returns))


def choose_medium(run: Run, recipe: Recipe) -> str:
    """Give the name of the kept checkpoint that is nearest to half way from random actions to the run's best policy.

    Raises:
        RunError: there is none.
    """
    from envs.record import build_random_policy
    from training.manifest import CheckpointError
    from training.restore import find_halfway

    floor = measure_return(build_random_policy(recipe.env_name, {}))
    try:
        name, part = find_halfway(run, floor)
    except CheckpointError as error:
        raise RunError(str(error)) from error
    print(f"{name} is {100 * part:.0f} % of the way from random actions to the best policy of its run")
    return name


def build_parser() -> ArgumentParser:
    """Give the parser of the command line."""
    parser = ArgumentParser(prog="play.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    trained = ArgumentParser(add_help=False, allow_abbrev=False)
    trained.add_argument("--checkpoint", default="newest", help="newest (default), best, or a name like step_00010000")
    trained.add_argument("--device", default="cpu", help="where a trained policy computes: cpu (default), cuda, cuda:1")

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

    told = "evaluate the policy of a run on the report seeds"
    evaluator = commands.add_parser("evaluate", help=told, description=told, parents=[trained], allow_abbrev=False)
    evaluator.add_argument("run", type=Path, help="the folder of a run")
    evaluator.add_argument("--episodes", type=int, default=50, help="how many (default: 50)")
    evaluator.set_defaults(run_command=evaluate)

    told = "hold what a diffusion policy draws against the data it learned from"
    sampler = commands.add_parser("samples", help=told, description=told, parents=[trained], allow_abbrev=False)
    sampler.add_argument("run", type=Path, help="the folder of a run of vae_diffusion_rl")
    sampler.add_argument(
        "-o", "--out", type=Path, help="the picture, a .png (default: samples.png in the run's folder)"
    )
    sampler.add_argument("--windows", type=int, default=2048, help="histories of the data set (default: 2048)")
    sampler.set_defaults(run_command=show_samples)

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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.run_command(args, parser)
    except (SpecError, SettingsError) as error:
        print(error, file=sys.stderr)
        return USAGE
    except EpisodeError as error:
        print(error, file=sys.stderr)
        return USAGE if args.command == "info" else ERROR
    except DeviceMissingError as error:
        print(error, file=sys.stderr)
        return DEVICE
    except OSError as error:
        print(f"{error.filename or args.command}: {error.strerror or error}", file=sys.stderr)
        return ERROR
    except RunError as error:
        print(error, file=sys.stderr)
        return USAGE if args.command == "samples" else ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
