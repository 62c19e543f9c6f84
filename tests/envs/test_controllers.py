"""Base controllers: alone they do their task, and every action of theirs is one that residual control can take."""

from __future__ import annotations

from typing import get_args

import gymnasium as gym
import numpy as np
import pytest

from envs.controllers import CONTROLLERS, control_pendulum_energy
from envs.make import describe_spaces, make_env
from rl.off_policy_config import OffPolicyConfig


def test_the_energy_controller_swings_the_pendulum_up() -> None:
    env = make_env("Pendulum-v1", {})
    returns = []
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(2 * control_pendulum_energy(obs))
            total += float(reward)
            over = terminated or truncated
        assert obs[0] > 0.99, "it doesn't stand upright"
        returns.append(total)
    env.close()
    assert np.mean(returns) > -170


@pytest.mark.parametrize(("name", "env_name"), [(name, env) for name, (envs, _) in CONTROLLERS.items() for env in envs])
def test_every_action_is_one_of_its_environment_in_normalised_units(name: str, env_name: str) -> None:
    _, controller = CONTROLLERS[name]
    sizes = describe_spaces(env_name, {})
    space = gym.spaces.Box(-1, 1, (sizes.action_dim,))
    for obs in np.random.default_rng(0).normal(0, 5, (300, sizes.obs_dim)):
        action = controller(obs)
        assert space.contains(action)
        assert np.array_equal(action, controller(obs))


def test_the_names_that_settings_may_use_are_those_of_the_table() -> None:
    annotation = OffPolicyConfig.model_fields["base_controller"].annotation
    names = {name for choice in get_args(annotation) for name in get_args(choice)}
    assert names == set(CONTROLLERS)
