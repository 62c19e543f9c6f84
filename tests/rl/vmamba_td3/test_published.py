"""The agent as the documents' scripts use it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from envs.make import make_env
from experiment.problems import SettingsError
from rl.vmamba_td3.published import VMambaTD3Agent, make_agent
from tests.rl.vmamba_td3.conftest import SMALL

ARGS = {key: value for key, value in SMALL.items() if key not in ("algorithm_name", "env_kwargs", "env_name")}
NETWORKS = ["visual_encoder", "state_encoder", "mamba"]


def fly(agent: VMambaTD3Agent, env: gym.Env[Any, Any], steps: int) -> list[dict[str, float] | None]:
    obs, _ = env.reset(seed=0)
    results = []
    for step in range(steps):
        action = agent.select_action(obs["base"], obs["depth"])
        following, reward, terminated, truncated, _ = env.step(action)
        agent.replay_buffer.add(
            obs["base"], obs["depth"], action, float(reward), following["base"], following["depth"], float(terminated)
        )
        results.append(agent.train(progress_ratio=step / steps))
        obs = env.reset()[0] if terminated or truncated else following
    return results


@pytest.fixture
def env() -> Any:
    made = make_env("AirSimEnv-v42", {"height": 8, "width": 8, "num_obstacles": 5, "seq_len": 2})
    yield made
    made.close()


@pytest.mark.parametrize("kind", [dict, Namespace])
def test_it_is_made_from_a_namespace_or_a_mapping_and_learns(env: Any, kind: Any) -> None:
    agent = make_agent(env, env.reset(seed=0)[0], kind(**ARGS, save_interval=100))
    results = fly(agent, env, 9)
    assert results[:3] == [None] * 3
    assert all(result is not None and set(result) == {"actor_loss", "critic_loss"} for result in results[3:])
    assert agent.total_it == 9
    assert agent.replay_buffer.size == 9


def test_every_published_name_is_there(env: Any) -> None:
    agent = make_agent(env, env.reset(seed=0)[0], ARGS)
    for owner in ("actor", "critic"):
        for ending in ("", "_target"):
            for name in NETWORKS:
                assert isinstance(vars(agent)[f"{owner}_{name}{ending}"], torch.nn.Module)
    for name in ("actor", "critic", "actor_target", "critic_target"):
        assert isinstance(vars(agent)[name], torch.nn.Module)
    agent.ou_noise.scale_sigma(1.0)  # type: ignore[attr-defined]
    assert agent.ou_noise.sigma == pytest.approx(0.01)  # type: ignore[attr-defined]


def test_two_actions_without_noise_agree_and_with_noise_differ(env: Any) -> None:
    obs, _ = env.reset(seed=0)
    agent = make_agent(env, obs, ARGS)
    one, other = (agent.select_action(obs["base"], obs["depth"], noise=False) for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, agent.select_action(obs["base"], obs["depth"]))
    assert one in env.action_space


def test_actions_are_in_the_environments_units_and_kept_in_normalised_ones(env: Any) -> None:
    obs, _ = env.reset(seed=0)
    space = gym.spaces.Box(np.array([0, -2, -0.3], np.float32), np.array([2, 2, 0.3], np.float32))
    agent = VMambaTD3Agent(10, obs["depth"].shape, space, ARGS)
    high = np.array([2, 0, 0], np.float32)
    agent.replay_buffer.add(obs["base"], obs["depth"], high, 1.0, obs["base"] + 1, obs["depth"], 0.0)
    np.testing.assert_allclose(agent.replay_buffer.sample(1)[2][0], [1, 0, 0], atol=1e-6)
    assert agent.select_action(obs["base"], obs["depth"]) in space


def test_what_is_saved_acts_the_same_and_other_sizes_are_refused(env: Any, tmp_path: Path) -> None:
    obs, _ = env.reset(seed=0)
    agent = make_agent(env, obs, ARGS)
    fly(agent, env, 8)
    path = tmp_path / "models" / "agent.pth"
    agent.save(path)
    other = make_agent(env, obs, ARGS | {"seed": 5})
    assert not np.array_equal(*(one.select_action(obs["base"], obs["depth"], noise=False) for one in (agent, other)))
    other.load(path)
    assert np.array_equal(*(one.select_action(obs["base"], obs["depth"], noise=False) for one in (agent, other)))
    assert other.total_it == 8
    larger = make_agent(env, obs, ARGS | {"hidden_dim": 16})
    with pytest.raises(
        ValueError, match=r"(?s)agent\.pth: it was saved by an agent of other sizes:.*hidden_dim=8.*hidden_dim=16"
    ):
        larger.load(path)
    torch.save({"something": 1}, path)
    with pytest.raises(ValueError, match=r"this is not what VMambaTD3Agent.save writes"):
        other.load(path)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"hiden_dim": 8}, "unknown key 'hiden_dim'; did you mean 'hidden_dim'?"),
        ({"tau": 2.0}, "tau must be <= 1"),
        ({"asymmetric_critic": True}, "asymmetric_critic: this interface is base and depth alone"),
    ],
)
def test_settings_that_are_none_are_refused(env: Any, change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_agent(env, env.reset(seed=0)[0], ARGS | change)
    assert wanted in str(caught.value)


def test_a_window_of_another_length_is_refused(env: Any) -> None:
    with pytest.raises(ValueError, match="seq_len is 3, and a window of depth"):
        make_agent(env, env.reset(seed=0)[0], ARGS | {"seq_len": 3})
