"""A critic that sees what the simulator knows, and an actor that doesn't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import play
from envs.drone.depth_nav import DepthNavEnv
from envs.drone.privileged import PRIVILEGED_DIM
from experiment.problems import SettingsError
from rl.vmamba_td3.agent import Batch
from rl.vmamba_td3.stream import FrameFeatures
from rl.vmamba_td3.trainer import VMambaTD3Trainer
from tests.rl.vmamba_td3.conftest import SMALL
from train import build_config

Build = Callable[..., VMambaTD3Trainer]
ROOT = Path(__file__).parents[3]
ASYMMETRIC: dict[str, Any] = {"asymmetric_critic": True}


def learn(build: Build, **settings: Any) -> VMambaTD3Trainer:
    trainer = build(**ASYMMETRIC, **settings)
    for _ in range(12):
        trainer.train_step()
    assert trainer._updates > 3
    return trainer


def draw_batch(trainer: VMambaTD3Trainer) -> Batch:
    return trainer.agent.load_batch(trainer.buffer.sample_windows(4))


def test_it_is_off_by_default() -> None:
    assert build_config({"algorithm_name": "vmamba_td3"}).resolved()["asymmetric_critic"] is False


def test_the_critic_has_no_images_and_the_actor_all_that_it_had(small_vmamba: Build) -> None:
    trainer = small_vmamba(**ASYMMETRIC)
    actor = {"actor_visual_encoder", "actor_state_encoder", "actor_mamba", "actor"}
    assert set(trainer.components()) == actor | {"critic_state_encoder", "critic"}
    assert set(small_vmamba().components()) - actor == {
        "critic_visual_encoder",
        "critic_state_encoder",
        "critic_mamba",
        "critic",
    }


def test_the_actor_does_not_read_what_is_privileged(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba, exploration="gaussian", noise_std=0.0)
    seen, _ = trainer._slots[0].env.reset(seed=3)
    changed = seen | {"privileged": -seen["privileged"] + 0.3}
    without = {key: seen[key] for key in ("base", "depth")}
    one = trainer.begin_acting()(seen)
    assert np.array_equal(one, trainer.begin_acting()(changed))
    assert np.array_equal(one, trainer.begin_acting()(without))
    assert np.array_equal(trainer.act(seen, FrameFeatures()), trainer.act(without, FrameFeatures()))
    assert np.array_equal(trainer._choose_actions([seen]), trainer._choose_actions([changed]))
    nearer = seen | {"base": seen["base"] * 0.5}
    assert not np.array_equal(one, trainer.begin_acting()(nearer))


def test_the_critic_reads_it_and_the_newest_state_and_nothing_else(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba)
    batch = draw_batch(trainer)

    def value(**changes: Any) -> torch.Tensor:
        changed = replace(batch, **changes)
        return trainer.agent.value(changed.base, changed.depth, changed.privileged, changed.action)

    before = value()
    older, newest = batch.base.clone(), batch.base.clone()
    older[:, 0] += 0.5
    newest[:, -1] += 0.5
    assert (value(privileged=batch.privileged + 0.5) != before).all()
    assert (value(base=newest) != before).all()
    assert torch.equal(value(base=older), before)
    assert torch.equal(value(depth=1 - batch.depth), before)


def test_targets_are_of_the_next_moment(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba, policy_noise=0.0)
    batch = draw_batch(trainer)
    batch = replace(batch, terminated=torch.zeros_like(batch.terminated))

    def find(**changes: Any) -> torch.Tensor:
        return trainer.agent._find_target(replace(batch, **changes))[0]

    before = find()
    assert torch.equal(find(privileged=batch.privileged + 0.5, base=batch.base + 0.5), before)
    assert (find(next_privileged=batch.next_privileged + 0.5) != before).all()


def test_each_batch_has_what_was_known_at_its_moments(small_vmamba: Build) -> None:
    trainer = small_vmamba(**ASYMMETRIC)
    known = []
    for _ in range(8):
        trainer._observe(0)
        known.append(trainer._slots[0].obs["privileged"])  # type: ignore[index]
        trainer.train_step()
    batch = trainer.buffer.sample_windows(100)
    assert batch.privileged.shape == (100, PRIVILEGED_DIM)
    rows = {row.tobytes() for row in known}
    assert {row.tobytes() for row in batch.privileged} == rows
    following = {before.tobytes(): after.tobytes() for before, after in pairwise(known)}
    for before, after in zip(batch.privileged, batch.next_privileged, strict=True):
        assert following.get(before.tobytes(), after.tobytes()) == after.tobytes()


def test_the_actors_stream_learns_from_the_critics_values_through_the_action(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba)
    agent = trainer.agent
    batch = draw_batch(trainer)
    stream = [parameter.clone() for parameter in agent.networks["actor_stream"].parameters()]
    critic = [*agent.networks["critic"].parameters(), *agent.networks["critic_stream"].parameters()]
    before = [parameter.clone() for parameter in critic]
    agent._actor_descent.descend(agent._find_actor_loss(batch, torch.zeros(4, 8), None), {}, None)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(stream, agent.networks["actor_stream"].parameters(), strict=True)
    )
    assert all(torch.equal(one, other) for one, other in zip(before, critic, strict=True))


def test_streams_learn_at_their_rate_and_the_critics_layers_at_its_own(small_vmamba: Build) -> None:
    trainer = small_vmamba(**ASYMMETRIC, encoder_lr=1e-5)
    rates = {
        name: optimizer.learning_rate
        for descent in (trainer.agent._critic_descent, trainer.agent._actor_descent)
        for name, optimizer in zip(descent._names, descent.optimizers, strict=True)
    }
    assert (rates["critic_state_encoder"], rates["critic"]) == (1e-3, 1e-3)
    assert (rates["actor_state_encoder"], rates["actor_visual_encoder"], rates["actor"]) == (1e-5, 1e-5, 5e-4)


def test_values_of_whole_episodes_are_held_against_what_came(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba, env_kwargs=SMALL["env_kwargs"] | {"max_episode_steps": 5})
    episodes = [episode for _ in range(10) for episode in trainer.train_step().episodes]
    assert len(episodes) == 2
    for episode in episodes:
        assert episode.truncated
        assert episode.predicted_return is not None


def test_evaluations_go_without_it(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba, eval_env_kwargs={"layouts": "held_out", "max_episode_steps": 6})
    env = trainer._make_evaluation_env()
    assert set(env.observation_space.spaces) == {"base", "depth"}  # type: ignore[attr-defined]
    env.close()
    assert len(trainer.evaluate([1, 2]).returns) == 2


class AlwaysTells(DepthNavEnv):
    """An environment of somebody else's: it tells what it knows whether or not that is asked for."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, seq_len=2, privileged=True)


class TellsPictures(DepthNavEnv):
    """Tells what nobody can read."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, seq_len=2)
        depth = gym.spaces.Box(0, 1, (4, 4), np.float32)
        self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "privileged": depth})  # type: ignore[attr-defined]


@pytest.fixture
def others() -> Iterator[None]:
    entries: dict[str, Any] = {"AlwaysTells-v0": AlwaysTells, "TellsPictures-v0": TellsPictures}
    for name, entry in entries.items():
        gym.register(name, entry, max_episode_steps=20)
    yield
    for name in entries:
        del gym.registry[name]


@pytest.mark.usefixtures("others")
def test_an_environment_that_always_tells_it_does_too(small_vmamba: Build) -> None:
    trainer = learn(small_vmamba, env_name="AlwaysTells-v0")
    assert not trainer.config.find_environment_faults()
    assert len(trainer.evaluate([1]).returns) == 1


def list_faults(settings: dict[str, Any]) -> str:
    try:
        return "\n".join(fault.message for fault in build_config(settings).find_environment_faults())
    except SettingsError as error:
        return str(error)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"encoder_sharing": "shared"}, "asymmetric_critic with encoder_sharing: shared: the critic sees no images"),
        ({"env_kwargs": {"privileged": False}}, "env_kwargs.privileged is false, and asymmetric_critic reads it"),
        ({"env_name": "Pendulum-v1", "env_kwargs": {}}, "this trainer needs a Dict of base"),
        ({"env_name": "TellsPictures-v0"}, "asymmetric_critic needs `privileged` (numbers,) beside them"),
        ({"eval_env_kwargs": {"privileged": True}}, "both must be the same"),
        (
            {"asymmetric_critic": False, "env_kwargs": {"height": 8, "width": 8, "privileged": True}},
            "nothing reads `privileged` unless asymmetric_critic is true",
        ),
        (
            {"asymmetric_critic": False, "env_name": "AlwaysTells-v0"},
            "nothing reads `privileged` unless asymmetric_critic is true",
        ),
    ],
)
def test_what_can_not_be_is_refused_with_the_reason(settings: dict[str, Any], wanted: str) -> None:
    assert wanted in list_faults(SMALL | ASYMMETRIC | settings)


def test_what_can_be_is_not_refused() -> None:
    assert not list_faults(SMALL | ASYMMETRIC)
    assert not list_faults(SMALL | ASYMMETRIC | {"env_name": "AirSimEnv-v42", "eval_env_kwargs": {"density": "hard"}})
    told = {"height": 8, "width": 8, "privileged": True}
    assert not list_faults(SMALL | ASYMMETRIC | {"env_kwargs": told})


def test_a_run_is_trained_and_evaluated_by_the_commands(tmp_path: Path) -> None:
    short = {"eval_freq": 0, "num_final_eval": 1, "device": "cpu", "max_timesteps": 12}
    kwargs = {"env_kwargs": SMALL["env_kwargs"] | {"max_episode_steps": 5}}
    (tmp_path / "settings.yaml").write_text(json.dumps(SMALL | ASYMMETRIC | short | kwargs))
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-e", "settings.yaml", "--exp-name", "small"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (run,) = (tmp_path / "logs" / "small").glob("*__*")
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["parameters"]) >= {"critic_state_encoder", "actor_visual_encoder"}
    out = tmp_path / "flights.json"
    assert play.main(["evaluate", str(run), "--episodes", "1", "--json", str(out)]) == 0
    (episode,) = json.loads(out.read_text())["episodes"]
    assert [episode["return"]] == summary["final_eval"]["returns"]
