"""Pilots: who steers by more than observations, as a bound on what can be done or as a baseline.

A controller (`controllers.py`) sees what a policy sees. A pilot is begun anew in each episode, after its reset, and may
look into the environment: at the map that it flies over, say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.make import Env

Steer: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""Gives the action, of shape (action_dim,) and in [-1, 1], that answers an episode's next observation."""

BeginSteering: TypeAlias = Callable[[Env, np.random.Generator], Steer]
"""Begins an episode in an environment that was just reset; draws come from the generator alone.

What the pilot knows beyond observations it reads from `env.unwrapped`, which it leaves as it is.
"""

NAVIGATION = ("DepthNav-v0", "DepthNavState-v0", "AirSimEnv-v42")


def begin_straight_line(env: Env, generator: np.random.Generator) -> Steer:
    """Turn to the goal and fly straight there, whatever is in the way: `envs.drone.pilots.fly_straight`."""
    from envs.drone.pilots import fly_straight

    return fly_straight


def begin_privileged(env: Env, generator: np.random.Generator) -> Steer:
    """See the map and follow a way around everything: `envs.drone.pilots.PrivilegedPilot`."""
    from envs.drone.pilots import open_privileged

    return open_privileged(env)


PILOTS: dict[str, tuple[tuple[str, ...], BeginSteering]] = {
    "straight_line": (NAVIGATION, begin_straight_line),
    "privileged": (NAVIGATION, begin_privileged),
}
"""Pilots by name, each with the ids of the environments that it can steer in. No name is a controller's too."""
