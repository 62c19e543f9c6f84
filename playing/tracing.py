"""`play.py trace`: what a policy's networks do while it acts, kept for analysis/ to look into."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.files import now_text, to_json_number
from experiment.problems import Fault, SettingsError
from experiment.provenance import hash_code
from playing.endings import OK
from playing.policies import Restored, describe_policy, restore_run

if TYPE_CHECKING:
    from analysis.traces import Trace
    from envs.make import Env

Look = Callable[[Any], Mapping[str, Any]]
"""From an observation to an action, and what led to it: `training.protocol.ShowsAttention`."""


def trace(args: Namespace, parser: ArgumentParser) -> int:
    """Let a run's policy act on report seeds, and keep what its networks did."""
    from training.evaluation import MAX_SEEDS

    if not 1 <= args.episodes <= MAX_SEEDS:
        parser.error(f"--episodes: give 1 to {MAX_SEEDS:,}")
    if args.out is not None and args.out.suffix != ".npz":
        parser.error(f"--out {args.out}: the file is an .npz")
    with ExitStack() as stack:
        from envs.record import read_env_kwargs
        from training.evaluation import report_seeds

        kwargs = read_env_kwargs(args.env_kwargs)
        restored = restore_run(args.run, args.checkpoint, args.device, stack, kwargs)
        out: Path = args.out or restored.run.trace_path
        if out.exists() and not args.overwrite:
            parser.error(f"{out} is there already; give another with -o, or --overwrite")
        traced = trace_run(restored, report_seeds(args.episodes))
    from analysis.traces import write_trace

    write_trace(out, traced)
    print(describe(traced))
    print(f"trace: {out} ({out.stat().st_size:,} bytes)")
    return OK


def trace_run(restored: Restored, seeds: Sequence[int]) -> Trace:
    """Let the policy of a run act once for each seed, where it is evaluated, as an evaluation of the seeds does.

    Raises:
        SettingsError: its trainer has no attention to look at.
    """
    import numpy as np

    from analysis.traces import Trace
    from envs.make import make_env
    from training.protocol import ShowsAttention
    from training.seeding import undisturbed_generators

    config, trainer = restored.config, restored.trainer
    if not isinstance(trainer, ShowsAttention):
        why = "it attends to no window of frames (its trainer has no begin_tracing)"
        raise SettingsError([Fault(("run",), f"the policy of {config.algorithm_name} can't be looked into: {why}")])
    rows: list[Mapping[str, Any]] = []
    episodes, slides = [], True
    with undisturbed_generators():
        env = make_env(config.env_name, config.evaluation_kwargs)
        try:
            names = name_base(env)
            for seed in seeds:
                steps, facts, slid = trace_episode(env, trainer.begin_tracing(), seed)
                rows += steps
                episodes.append(facts)
                slides = slides and slid
        finally:
            env.close()
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    header = describe_header(restored) | {"base_names": names, "slides": slides, "episodes": episodes}
    return Trace(header, **arrays)


def trace_episode(env: Env, look: Look, seed: int) -> tuple[list[Mapping[str, Any]], dict[str, Any], bool]:
    """Run one episode.

    Gives a row for each step, the episode's facts as plain JSON, and whether each window was the one before it, moved
    on by a frame, the first having one frame only.
    """
    import numpy as np

    from analysis.traces import LEVELS
    from training.measures import read_measures

    obs, info = env.reset(seed=seed)
    rows: list[Mapping[str, Any]] = []
    slid, over, terminated, total = bool((obs["depth"] == obs["depth"][-1]).all()), False, False, 0.0
    while not over:
        row = look(obs)
        before = np.array(obs["depth"])
        obs, reward, terminated, truncated, info = env.step(row["action"])
        depth = np.rint(row["depth"] * LEVELS).astype(np.uint8)
        rows.append({**row, "depth": depth, "reward": np.float64(reward)})
        slid = slid and np.array_equal(before[1:], obs["depth"][:-1])
        over, total = terminated or truncated, total + float(reward)
    facts = {"seed": seed, "return": to_json_number(total), "length": len(rows), "terminated": bool(terminated)}
    measures = {name: to_json_number(value) for name, value in read_measures(info).items()}
    return rows, facts | measures, slid


def name_base(env: Env) -> list[str]:
    """Give the names of a state's numbers: those of navigation tasks are known."""
    from envs.drone.depth_nav import NavigationEnv
    from envs.drone.flight import BASE_NAMES

    if isinstance(env.unwrapped, NavigationEnv):
        return list(BASE_NAMES)
    return [f"base[{number}]" for number in range(env.observation_space["base"].shape[-1])]  # type: ignore[index]


def describe_header(restored: Restored) -> dict[str, Any]:
    """Say whose trace it is, and where it acted, as plain JSON."""
    return {
        "policy": describe_policy(restored),
        "name": f"{restored.run.folder.name}, {restored.checkpoint.path.stem}",
        "env_name": restored.config.env_name,
        "env_kwargs": restored.config.evaluation_kwargs,
        "seeds": "report",
        "code_version": hash_code([Path(__file__).resolve().parents[1]]),
        "made": now_text(),
    }


def describe(traced: Trace) -> str:
    """Give the lines that are printed of a trace."""
    import numpy as np

    header = traced.header
    where = f"{traced.name} {json.dumps(header['env_kwargs'])}" if header["env_kwargs"] else traced.name
    mean = float(np.mean([float(episode["return"]) for episode in header["episodes"]]))
    count, steps = len(traced.lengths), sum(traced.lengths)
    heads, window = traced.attention.shape[1:]
    return f"{where}\n{count} episodes, {steps:,} steps, mean return {mean:.1f}; {heads} heads over {window} frames"
