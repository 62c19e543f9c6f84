"""`play.py evaluate`: what a policy comes to on the report seeds."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.files import now_text, write_atomically
from experiment.provenance import hash_code
from playing.endings import OK
from playing.policies import check_actor
from playing.sharing import Actor, Request, share_evaluation

if TYPE_CHECKING:
    from analysis.statistics import Interval
    from training.protocol import Evaluation


def evaluate(args: Namespace, parser: ArgumentParser) -> int:
    """Evaluate a policy on the report seeds: a run's as its own final evaluation does, or an untrained one's."""
    for name in ("episodes", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: give 1 or more")
    check_actor(args, parser)
    from envs.record import read_env_kwargs

    request = Request(
        run=None if args.run is None else str(args.run),
        checkpoint=args.checkpoint,
        device=args.device,
        policy=args.policy,
        env=args.env,
        env_kwargs=read_env_kwargs(args.env_kwargs),
        imports=args.imports,
    )
    from training.evaluation import MAX_SEEDS, report_seeds

    if args.episodes > MAX_SEEDS:
        parser.error(f"--episodes: there are {MAX_SEEDS:,} report seeds")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    actor, evaluation = share_evaluation(request, report_seeds(args.episodes), args.workers)
    written = write_out(actor, evaluation)
    print("\n".join(describe(actor, written["summary"])))
    if args.json is not None:
        write_atomically(args.json, [json.dumps(written, indent=1, allow_nan=False).encode() + b"\n"])
    return OK


def write_out(actor: Actor, evaluation: Evaluation) -> dict[str, Any]:
    """Give an evaluation with who acted and where, as JSON: its means, and a row for each episode."""
    from training.evaluation import write_out_evaluation
    from training.protocol import References

    references = None if actor.references is None else References(**actor.references)
    summary = write_out_evaluation(evaluation, references)
    measures = summary.pop("measures", {})
    columns = {"seed": summary.pop("seeds"), "return": summary.pop("returns"), "length": summary.pop("lengths")}
    columns |= measures
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    summary = {"episodes": len(rows), "mean_length": sum(evaluation.lengths) / len(rows)} | summary
    if "success_rate" in summary:
        interval = find_success_interval(evaluation)
        summary["success_interval"] = [interval.low, interval.high]
    return {
        "policy": dict(actor.facts),
        "name": actor.name,
        "env_name": actor.env_name,
        "env_kwargs": dict(actor.env_kwargs),
        "seeds": "report",
        "code_version": hash_code([Path(__file__).resolve().parents[1]]),
        "made": now_text(),
        "summary": summary,
        "episodes": rows,
    }


def find_success_interval(evaluation: Evaluation) -> Interval:
    """Give the 95 % interval of the success rate."""
    from analysis.statistics import wilson_interval
    from training.measures import IS_SUCCESS

    successes = evaluation.measures[IS_SUCCESS]
    return wilson_interval(int(sum(successes)), len(successes))


def describe(actor: Actor, summary: Mapping[str, Any]) -> list[str]:
    """Give the lines that are printed of an evaluation."""
    where = f"{actor.env_name} {json.dumps(dict(actor.env_kwargs))}" if actor.env_kwargs else actor.env_name
    lines = [
        f"{actor.name}, {where}",
        f"{summary['episodes']} episodes on the report seeds: mean return {float(summary['mean']):.1f} +/- "
        f"{float(summary['std']):.1f}, mean length {summary['mean_length']:.1f}",
    ]
    if "success_rate" in summary:
        low, high = summary["success_interval"]
        rate = f"success rate {100 * summary['success_rate']:.1f} %"
        lines.append(f"{rate}, {100 * low:.1f} to {100 * high:.1f} % (Wilson's 95 % interval)")
    others = [f"{name} {float(summary[name]):.4g}" for name in list_means() if name in summary]
    if others:
        lines.append(f"means: {', '.join(others)}")
    if "normalized_score" in summary:
        lines.append(f"normalised score {float(summary['normalized_score']):.1f}")
    return lines


def list_means() -> list[str]:
    """Give the names of measures' means but for the success rate."""
    from training.measures import IS_SUCCESS, MEASURES

    return [mean for name, mean in MEASURES.items() if name != IS_SUCCESS]
