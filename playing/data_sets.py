"""`play.py info`, `list` and `make`: what is in a data set, and reference sets."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING

from envs.datasets import find_dataset, load_dataset
from envs.describe import describe_episodes
from envs.episodes import Episodes
from envs.recipes import BEST, RECIPES, Recipe, find_set_path
from experiment.problems import suggest
from playing.endings import OK, USAGE, RunError
from playing.policies import build_trained_policy, restore_run
from train import load_single_run

if TYPE_CHECKING:
    from envs.record import Policy
    from experiment.run import Run

REFERENCE_EPISODES = 50


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
    from training.evaluation import evaluate_begun, report_seeds

    draws = np.random.default_rng(0)
    evaluation = evaluate_begun(
        lambda: make_env(policy.env_name, policy.env_kwargs),
        lambda env: policy.begin(env, draws),
        report_seeds(REFERENCE_EPISODES),
        lambda: False,
    )
    return float(np.mean(evaluation.returns))


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
