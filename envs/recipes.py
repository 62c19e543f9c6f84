"""Reference sets of episodes: what each is made of. Names, numbers and seeds alone; `making.py` makes them.

Nothing here imports an environment: who trains on episodes needs none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA_VARIABLE = "GRIDPILOT_DATA"
"""Names the folder of reference sets in place of `data/`."""

BEST, MEDIUM = "trained:best", "trained:medium"
"""Of the recipe's training: its best policy, and the one whose mean return is nearest to half way from random to it."""


@dataclass(frozen=True)
class Amount:
    """How much is recorded: so many episodes, or so many steps, whichever comes first; None is no limit.

    The last of so many steps may cut its episode off.
    """

    episodes: int | None = None
    steps: int | None = None

    def part_done(self, episodes: int, steps: int) -> float:
        """Give how much of it is there, 1 for all."""
        parts = [done / limit for done, limit in ((episodes, self.episodes), (steps, self.steps)) if limit is not None]
        return max(parts, default=0.0)


@dataclass(frozen=True)
class Part:
    """Episodes of one policy.

    Attributes:
        policy: `random`, `scripted:<name>`, `trained:best` or `trained:medium`.
        noise: deviation of normal noise on its actions, in normalised units.
        amount: how many episodes or steps.
    """

    policy: str
    noise: float
    amount: Amount


@dataclass(frozen=True)
class Recipe:
    """How a reference set is made.

    Attributes:
        about: what it is, for people.
        env_name: where the policies act.
        parts: in the order in which their episodes stand in the file; each has a seed of its own, from `seed` on.
        takes: how long making it took, and where.
        expert: whose mean return is 100 in normalised scores; None leaves such scores out.
        training: settings of the run that `trained:` policies come from, its seed among them.
        seed: of the first part.
        sha256: of the content as it was made once. Other machines' arithmetic may give another one, so it is told and
            never asked for.
    """

    about: str
    env_name: str
    parts: tuple[Part, ...]
    takes: str
    expert: str | None = None
    training: Mapping[str, Any] | None = None
    seed: int = 0
    sha256: str | None = None


_PENDULUM = "scripted:pendulum_energy"
_TD3 = {
    "algorithm_name": "td3",
    "max_timesteps": 100_000,
    "learning_rate": 1e-3,
    "batch_size": 100,
    "hidden_dims": [400, 300],
    "discount": 0.99,
    "tau": 0.005,
    "noise_type": "gaussian",
    "noise_std": 0.1,
    "eval_freq": 5_000,
    "save_freq": 5_000,
    "keep_last": 20,
    "device": "cpu",
    "seed": 100,
}
"""TD3 as in Fujimoto et al. 2018; every evaluated policy is kept, so that the medium one can be chosen afterwards."""
_MEDIUM = (Part(MEDIUM, 0.1, Amount(steps=50_000)), Part(MEDIUM, 0.3, Amount(steps=50_000)))
_UNIFORM = (Part("random", 0.0, Amount(steps=100_000)),)
_SECONDS = "about 10 seconds (9 to 15 on a busy core of an AMD EPYC)"
_MINUTE = "half a minute (33 s on a busy core of an AMD EPYC)"

RECIPES: dict[str, Recipe] = {
    "pendulum-noisy": Recipe(
        "a controller with so much noise that it seldom stays up: half at deviation 1, half at 2",
        "Pendulum-v1",
        (Part(_PENDULUM, 1.0, Amount(episodes=256)), Part(_PENDULUM, 2.0, Amount(episodes=256))),
        _SECONDS,
        expert=_PENDULUM,
        sha256="5ecded8a86973b73b8817c7a759fe17bf35eefa70e82f45803acf7e6b0410ee6",
    ),
    "pendulum-expert": Recipe(
        "a controller without noise",
        "Pendulum-v1",
        (Part(_PENDULUM, 0.0, Amount(episodes=256)),),
        _SECONDS,
        expert=_PENDULUM,
        sha256="a489f80d58011e800227e884ad99c199b46f378f908e2cd8faa428ca9ade8085",
    ),
    "pendulum-random": Recipe(
        "uniform actions",
        "Pendulum-v1",
        _UNIFORM,
        _SECONDS,
        expert=_PENDULUM,
        sha256="6528a9a60f1b365079ffecf52f5fe85e40778204fdaa1e56f695b0e9f5284b3d",
    ),
    "hopper-medium": Recipe(
        "TD3 at half of what it reaches, with noise: half at deviation 0.1, half at 0.3",
        "Hopper-v5",
        _MEDIUM,
        "about 10 minutes on one core (625 s beside other work, AMD EPYC)",
        expert=BEST,
        training=_TD3 | {"learning_starts": 1_000},
    ),
    "halfcheetah-medium": Recipe(
        "TD3 at half of what it reaches, with noise: half at deviation 0.1, half at 0.3",
        "HalfCheetah-v5",
        _MEDIUM,
        "about 10 minutes on one core (560 s of CPU time in training and 37 s in recording, AMD EPYC)",
        expert=BEST,
        training=_TD3 | {"learning_starts": 10_000},
    ),
    "hopper-random": Recipe("uniform actions", "Hopper-v5", _UNIFORM, _MINUTE),
    "halfcheetah-random": Recipe("uniform actions", "HalfCheetah-v5", _UNIFORM, _MINUTE),
}


def data_folder() -> Path:
    """Give the folder of reference sets: `data/` of the working directory, or what `GRIDPILOT_DATA` says."""
    return Path(os.environ.get(DATA_VARIABLE) or "data")


def find_set_path(name: str) -> Path:
    """Give the file of a reference set, which may not be made yet."""
    return data_folder() / f"{name}.h5"


def find_training_folder(name: str) -> Path:
    """Give the folder in which the run that a reference set comes from is trained."""
    return data_folder() / "runs" / name
