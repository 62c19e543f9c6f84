"""`play.py record`: a policy's episodes in a file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path

from envs.describe import describe_episodes
from envs.episodes import write_episodes
from envs.recipes import Amount, data_folder
from playing.endings import OK
from playing.policies import open_policy
from train import import_trainers

DEFAULT_EPISODES = 100


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
