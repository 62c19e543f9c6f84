"""What the reference pilots reach on held-out layouts: the anchors that learned policies are read against."""

from __future__ import annotations

import numpy as np
import pytest

from envs.make import make_env
from envs.pilots import PILOTS
from training.evaluation import report_seeds

FLIGHTS = 200


def count_successes(pilot: str, density: str) -> int:
    env = make_env("DepthNavState-v0", {"density": density, "layouts": "held_out"})
    generator = np.random.default_rng(0)
    successes = 0
    for seed in report_seeds(FLIGHTS):
        obs, info = env.reset(seed=seed)
        assert info["layout_seed"] >= 2**31
        steer = PILOTS[pilot][1](env, generator)
        over = False
        while not over:
            obs, _, terminated, truncated, info = env.step(steer(obs))
            over = terminated or truncated
        successes += info["is_success"]
    env.close()
    return successes


@pytest.mark.slow
@pytest.mark.parametrize(("density", "least"), [("easy", 0.95), ("medium", 0.90), ("hard", 0.80)])
def test_the_pilot_with_the_map_gets_through(density: str, least: float) -> None:
    assert count_successes("privileged", density) >= least * FLIGHTS


@pytest.mark.slow
@pytest.mark.parametrize(("density", "most"), [("easy", 0.50), ("medium", 0.25), ("hard", 0.10)])
def test_flying_straight_seldom_gets_through(density: str, most: float) -> None:
    assert 0 < count_successes("straight_line", density) <= most * FLIGHTS
