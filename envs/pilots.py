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

PILOTS: dict[str, tuple[tuple[str, ...], BeginSteering]] = {}
"""Pilots by name, each with the ids of the environments that it can steer in. No name is a controller's too."""
