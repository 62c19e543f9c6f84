"""Environments that say themselves what their state is."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from envs.plain_values import SnapshotError
from envs.snapshot import equal_bits, restore_snapshot, take_snapshot


class OpaqueEnv(gym.Env[Any, Any]):
    """Holds what no snapshot understands, and says its state itself; `size` is part of its construction."""

    def __init__(self, size: int = 2) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,))
        self.action_space = gym.spaces.Box(-1, 1, (size,))
        self.opaque = object()
        self.position = np.zeros(size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.standard_normal(len(self.position))
        return self.position.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + action + self.np_random.standard_normal(len(self.position))
        return self.position.copy(), 0.0, False, False, {}

    def snapshot_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore_state(self, state: dict[str, Any]) -> None:
        if len(state["position"]) != len(self.position):
            raise ValueError(
                f"the state has {len(state['position'])} numbers, and this environment {len(self.position)}"
            )
        self.position = state["position"]


def test_an_environment_that_says_its_state_goes_on_to_the_bit() -> None:
    env, fresh = OpaqueEnv(), OpaqueEnv()
    env.reset(seed=1)
    env.action_space.seed(4)
    snapshot = take_snapshot(env)
    actions = [env.action_space.sample() for _ in range(5)]
    straight = [env.step(action)[0] for action in actions] + [env.reset()[0]]
    restore_snapshot(fresh, snapshot)
    again = [fresh.action_space.sample() for _ in range(5)]
    assert equal_bits(actions, again)
    assert equal_bits(straight, [fresh.step(action)[0] for action in again] + [fresh.reset()[0]])


def test_a_state_that_does_not_fit_is_refused_with_the_reason_of_the_environment() -> None:
    env = OpaqueEnv()
    env.reset(seed=1)
    with pytest.raises(SnapshotError, match=r"layer 0: OpaqueEnv.own: the state has 2 numbers, and .* 3"):
        restore_snapshot(OpaqueEnv(size=3), take_snapshot(env))


def test_an_older_snapshot_without_the_own_state_is_refused() -> None:
    env = OpaqueEnv()
    snapshot = take_snapshot(env)
    del snapshot["layers"][0]["attributes"]["own"]
    with pytest.raises(SnapshotError, match="did not say its own state"):
        restore_snapshot(OpaqueEnv(), snapshot)


def test_a_state_in_memory_of_the_environment_is_copied() -> None:
    env = OpaqueEnv()
    env.reset(seed=1)
    snapshot, before = take_snapshot(env), env.position.copy()
    env.position += 1
    fresh = OpaqueEnv()
    restore_snapshot(fresh, snapshot)
    assert equal_bits(fresh.position, before)


class HalfEnv(gym.Env[Any, Any]):
    """Says its state and can't take it back."""

    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.opaque = object()

    def snapshot_state(self) -> dict[str, Any]:
        return {}


def test_one_that_only_says_half_of_it_is_still_refused() -> None:
    with pytest.raises(SnapshotError, match=r"HalfEnv.opaque is a builtins.object"):
        take_snapshot(HalfEnv())
