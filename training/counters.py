"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Counters of a run.

    `clock` is what frequencies and `max_timesteps` count: a training step moves it by the environment steps that it
    took, and by one where it took none, unless it says otherwise. So it counts environment steps for a trainer that
    acts, and training steps for one that learns from data, also where it acts now and then.
    """

    step: int = 0
    env_step: int = 0
    updates: int = 0
    clock: int = 0
