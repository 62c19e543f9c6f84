"""What a data set holds, in lines for people."""

from __future__ import annotations

import json
from pathlib import Path

from envs.episodes import Episodes


def describe_episodes(path: Path, episodes: Episodes) -> list[str]:
    """Give a fact a line: where it is, where it comes from, how much there is, how good it is."""
    returns, lengths, header = episodes.returns(), episodes.lengths, episodes.header
    kwargs = f" {json.dumps(dict(header.env_kwargs))}" if header.env_kwargs else ""
    low, high = header.action_low.tolist(), header.action_high.tolist()
    facts = {
        "file": path,
        "environment": (header.env_name or "unknown") + kwargs,
        "episodes": f"{len(episodes):,}, {int(episodes.terminated.sum()):,} of them ended by their task",
        "steps": f"{episodes.num_steps:,}; an episode has {lengths.min():,} to {lengths.max():,}",
        "returns": f"mean {returns.mean():.1f}, deviation {returns.std():.1f}, "
        f"{returns.min():.1f} to {returns.max():.1f}",
        "shapes": f"{episodes.num_agents} agent(s), {episodes.obs_dim} observed, {episodes.action_dim} done",
        "actions": f"from {low} to {high}",
        "acted": json.dumps(dict(header.policy), sort_keys=True),
        "SHA-256": episodes.sha256,
    }
    return [f"{name + ':':<13}{text}" for name, text in facts.items()]
