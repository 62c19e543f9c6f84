"""`play.py share`: a process of `play.py evaluate`. Opens who acts, then evaluates block after block.

JSON lines in, JSON lines out; what libraries print goes to the error stream.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from playing.endings import INTERRUPTED, OK, find_code
from playing.policies import describe_policy, open_untrained, restore_run
from playing.sharing import Actor, Request

Evaluate = Callable[[Sequence[int]], Mapping[str, Any]]
"""Gives an `Evaluation`'s parts for some seeds, as plain JSON."""


def share(args: Namespace, parser: ArgumentParser) -> int:
    """Answer a `Request`, and then each line of seeds, until there are no more or who asks is gone."""
    from training.protocol import EvaluationStopped

    answers, parent = sys.stdout, os.getppid()

    def answer(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps({"answer": content}) + "\n")
        answers.flush()

    with redirect_stdout(sys.stderr), ExitStack() as stack:
        try:
            request = Request(**json.loads(sys.stdin.readline()))
            actor, evaluate = open_actor(request, stack, lambda: os.getppid() != parent)
            answer(asdict(actor))
            for line in sys.stdin:
                answer(evaluate(json.loads(line)["seeds"]))
        except EvaluationStopped:
            return INTERRUPTED
        except Exception as error:
            code = find_code(error, args.command)
            if code is None:
                raise
            answer({"failed": str(error), "code": code})
    return OK


def open_actor(request: Request, stack: ExitStack, should_stop: Callable[[], bool]) -> tuple[Actor, Evaluate]:
    """Give who acts, and how it is evaluated; the stack closes it.

    Args:
        request: who, and where.
        stack: closes the trainer of a run.
        should_stop: asked before each step of an environment.

    Raises:
        SpecError, SettingsError, DeviceMissingError, RunError: it can't be opened.
    """
    from training.seeding import derive_seed, seed_everything

    if request.run is None:
        return _open_untrained(request, should_stop)
    changes = request.env_kwargs
    restored = restore_run(Path(request.run), request.checkpoint, request.device, stack, changes)
    config, trainer = restored.config, restored.trainer

    def evaluate(seeds: Sequence[int]) -> dict[str, Any]:
        # For trainers that draw from the global generators: a block's draws follow from its seeds.
        seed_everything(derive_seed(config.seed, f"evaluation/{seeds[0]}"))
        return asdict(trainer.evaluate(seeds, should_stop))

    references = None if trainer.references is None else asdict(trainer.references)
    name = f"{restored.run.folder.name}, {restored.checkpoint.path.stem}"
    return Actor(name, describe_policy(restored), config.env_name, config.evaluation_kwargs, references), evaluate


def _open_untrained(request: Request, should_stop: Callable[[], bool]) -> tuple[Actor, Evaluate]:
    from envs.make import make_env
    from training.evaluation import evaluate_begun
    from training.seeding import spawn_generator

    assert request.policy is not None
    policy = open_untrained(request.policy, request.env, request.env_kwargs, request.imports)

    def evaluate(seeds: Sequence[int]) -> dict[str, Any]:
        generators = iter([spawn_generator(seed, "acting") for seed in seeds])
        return asdict(
            evaluate_begun(
                lambda: make_env(policy.env_name, policy.env_kwargs),
                lambda env: policy.begin(env, next(generators)),
                seeds,
                should_stop,
            )
        )

    return Actor(request.policy, policy.facts, policy.env_name, policy.env_kwargs, None), evaluate
