"""`play.py evaluate`: what a policy comes to on the report seeds."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from playing.endings import OK
from playing.policies import restore_run


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
