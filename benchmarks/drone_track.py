"""How good `DroneTrack-v0`'s base controller is: its gains from a grid, and what others reach on the same episodes.

    python -m benchmarks.drone_track           the shipped gains and others, on the report seeds
    python -m benchmarks.drone_track --tune    looks for the gains anew, on selection seeds, for some ten minutes

Every number is a mean distance to the reference in metres. Gains are chosen on seeds that no result is reported on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.tables import print_row
from envs.drone.pid import PID, Gains, control_drone_track
from envs.make import make_env
from experiment.provenance import describe_machine
from training.evaluation import evaluate_policy, report_seeds, selection_seeds
from training.protocol import Evaluation

ENV_NAME = "DroneTrack-v0"
GRID = {
    "position": (4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0),
    "integral": (0.0, 1.0, 2.0, 3.0, 5.0),
    "velocity": (3.0, 4.0, 5.0, 6.0),
    "attitude": (9.0, 12.0, 15.0, 18.0, 21.0),
}
STEPS = 500
COARSE_EPISODES, FINE_EPISODES, KEPT = 6, 30, 20
REPORTED = 50


def fly(gains: Gains, seeds: Sequence[int], env_kwargs: dict[str, Any]) -> Evaluation:
    """Run one episode per seed."""
    act = partial(control_drone_track, gains=gains)
    return evaluate_policy(partial(make_env, ENV_NAME, env_kwargs), act, seeds, lambda: False)


def judge(gains: Gains, episodes: int) -> float:
    """Give the mean tracking error on selection seeds; infinity where an episode was lost."""
    evaluation = fly(gains, selection_seeds(episodes), {})
    kept = min(evaluation.lengths) == STEPS
    return float(np.mean(evaluation.measures["tracking_error"])) if kept else float("inf")


def tune(feed_forward: float) -> list[tuple[float, Gains]]:
    """Give the best gains of the grid, the very best first: all on few episodes, what is good there on more."""
    every = [
        Gains(position, integral, velocity, attitude, feed_forward)
        for position, integral, velocity, attitude in itertools.product(*GRID.values())
    ]
    coarse = sorted(((judge(gains, COARSE_EPISODES), gains) for gains in every), key=lambda pair: pair[0])
    fine = [(judge(gains, FINE_EPISODES), gains) for _, gains in coarse[:KEPT]]
    return sorted(fine, key=lambda pair: pair[0])


def print_tuning() -> None:
    """Print the best of the grid, without and with the reference's acceleration."""
    for feed_forward in (0.0, 1.0):
        print(f"\nbest gains with feed_forward {feed_forward:g}, {FINE_EPISODES} episodes on selection seeds")
        print_row("position", "integral", "velocity", "attitude", "error, m")
        for error, gains in tune(feed_forward)[:5]:
            print_row(*(f"{value:g}" for value in astuple(gains)[:4]), f"{error:.4f}")


def print_comparison() -> None:
    """Print what controllers reach on the report seeds, under the usual conditions and without wind."""
    controllers = {
        "drone_track_pid": PID,
        "the same, half the gains of position and velocity": replace(
            PID, position=PID.position / 2, velocity=PID.velocity / 2
        ),
        "drone_track_pid and the reference's acceleration": replace(PID, feed_forward=1.0),
    }
    print(f"\n{REPORTED} episodes on the report seeds")
    print_row("controller", "error, m", "in calm air", "lost")
    for name, gains in controllers.items():
        evaluations = [
            fly(gains, report_seeds(REPORTED), kwargs) for kwargs in ({}, {"wind_speed": 0, "gust_speed": 0})
        ]
        errors = [float(np.mean(evaluation.measures["tracking_error"])) for evaluation in evaluations]
        lost = sum(length < STEPS for length in evaluations[0].lengths)
        print_row(name, *(f"{error:.4f}" for error in errors), str(lost))


def measure_speed(steps: int = 5_000) -> float:
    """Give the environment's steps per CPU second, with random actions and their resets."""
    env = make_env(ENV_NAME, {})
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [0.2 * env.action_space.sample() for _ in range(steps)]
    start = time.process_time()
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    seconds = time.process_time() - start
    env.close()
    return steps / seconds


def main(words: Sequence[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drone_track", description=__doc__)
    parser.add_argument("--tune", action="store_true", help="look for the gains anew")
    arguments = parser.parse_args(words)
    print(describe_machine([])["cpu"])
    print(f"{measure_speed():,.0f} steps per CPU second")
    if arguments.tune:
        print_tuning()
    print_comparison()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
