"""Making reference sets by their recipes: once, under a lock, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.episodes import Episodes, RecordedEpisode, gather_episodes, open_episodes, write_episodes
from envs.recipes import Recipe, find_set_path, find_training_folder
from envs.record import Policy, build_random_policy, describe_acting, make_header, record_episodes
from experiment.files import dump_settings, write_atomically
from experiment.locks import acquire_lock, wait_for_lock

Say = Callable[[str], None]


def make_once(name: str, recipe: Recipe, make: Callable[[], Episodes], say: Say) -> Path:
    """Make a reference set unless it is there, and give its file; another process that makes it is waited for.

    Args:
        name: of the set.
        recipe: of the set.
        make: gives its episodes.
        say: told what happens.

    Raises:
        OSError: the folder can't be written.
    """
    path = find_set_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _take_turn(path, say)
    try:
        if path.exists():
            say(f"{path} is there")
            return path
        say(f"making {name} ({recipe.about}); takes {recipe.takes}")
        started = time.monotonic()
        write_episodes(path, make())
        _tell(path, recipe, time.monotonic() - started, say)
        return path
    finally:
        os.close(lock)


def _take_turn(path: Path, say: Say) -> int:
    lock_path = path.with_name(f".{path.name}.lock")
    lock = acquire_lock(lock_path)
    if lock is not None:
        return lock
    say(f"{path} is being made by another process; waiting for it")
    return wait_for_lock(lock_path)


def _tell(path: Path, recipe: Recipe, took: float, say: Say) -> None:
    episodes = open_episodes(path)
    returns = episodes.returns()
    say(
        f"{path}: {len(episodes):,} episodes, {episodes.num_steps:,} steps, mean return {returns.mean():.1f} "
        f"(deviation {returns.std():.1f}), made in {took:.0f} s, SHA-256 {episodes.sha256}"
    )
    if recipe.sha256 is not None and recipe.sha256 != episodes.sha256:
        say(
            f"the recipe gave {recipe.sha256} elsewhere: other arithmetic, or other versions of packages; "
            "name this file's own where you report on it"
        )


def record_recipe(
    name: str,
    recipe: Recipe,
    open_policy: Callable[[str], Policy],
    measure_return: Callable[[Policy], float],
    say: Say,
) -> Episodes:
    """Record the parts of a recipe, and measure the returns that normalised scores refer to.

    Args:
        name: of the set.
        recipe: of the set.
        open_policy: gives the policy that a part names.
        measure_return: gives a policy's mean return on the report seeds, without noise.
        say: told how far it is.
    """
    recorded: list[RecordedEpisode] = []
    parts: list[dict[str, Any]] = []
    header = None
    for number, part in enumerate(recipe.parts):
        policy, seed = open_policy(part.policy), recipe.seed + number
        say(f"recording {part.policy} with noise {part.noise:g}")
        episodes = list(record_episodes(policy, part.amount, part.noise, seed, say))
        parts.append(describe_acting(policy, part.noise, seed) | {"episodes": len(episodes)})
        recorded += episodes
        header = header or make_header(policy, {})
    assert header is not None
    facts: dict[str, Any] = {"kind": "recipe", "name": name, "parts": parts}
    if recipe.expert is not None:
        facts["references"] = _measure_references(recipe, recipe.expert, open_policy, measure_return, say)
    return gather_episodes(replace(header, policy=facts), recorded)


def _measure_references(
    recipe: Recipe,
    expert: str,
    open_policy: Callable[[str], Policy],
    measure_return: Callable[[Policy], float],
    say: Say,
) -> Mapping[str, float]:
    """Give the mean returns that stand for 0 and 100 in normalised scores."""
    env_kwargs: dict[str, Any] = {}
    references = {
        "random": measure_return(build_random_policy(recipe.env_name, env_kwargs)),
        "expert": measure_return(open_policy(expert)),
    }
    say(f"references: random {references['random']:.1f}, expert {references['expert']:.1f}")
    return references


def train_recipe(name: str, recipe: Recipe, say: Say) -> tuple[Path, int]:
    """Train the run that a recipe's policies come from, or go on with it; nothing is done where it is finished.

    It has one thread, since more of them change last digits. Gives the file of its settings and an exit code of
    `train.py`, which prints what it does.

    Args:
        name: of the set.
        recipe: of the set, with a training.
        say: told which settings are trained.
    """
    assert recipe.training is not None
    folder = find_training_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.yaml"
    text = dump_settings({"env_name": recipe.env_name} | dict(recipe.training), f"The training that {name} comes from.")
    write_atomically(settings, [text.encode()])
    say(f"training {recipe.training['algorithm_name']} in {recipe.env_name} by {settings}")
    script = Path(__file__).resolve().parents[1] / "train.py"
    command = [sys.executable, "-u", str(script), "-e", str(settings)]
    command += ["--log-root", str(folder.parent), "--exp-name", name]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            return settings, process.wait()
        except KeyboardInterrupt:
            process.wait()  # it has heard the same Ctrl-C, and saves where it is
            raise
