"""What the DDPG trainer does step by step, and that it learns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from rl.ddpg import count_parameters
from rl.ddpg_config import DDPGConfig
from rl.off_policy import OffPolicyTrainer
from training.protocol import Episode, StepResult, Trainer

BuildTrainer = Any


def run_steps(trainer: OffPolicyTrainer, number: int) -> list[StepResult]:
    return [trainer.train_step() for _ in range(number)]


def test_it_is_a_trainer(small_trainer: BuildTrainer) -> None:
    trainer: Trainer = small_trainer()
    assert set(trainer.components()) == {"actor", "critic"}
    assert trainer.train_step().env_steps == 1


def test_random_steps_come_first_and_updates_begin_after_them(small_trainer: BuildTrainer) -> None:
    results = run_steps(small_trainer(learning_starts=40, batch_size=32), 60)
    assert [result.updates for result in results] == [0] * 40 + [1] * 20
    assert all(not result.metrics for result in results[:40])
    assert set(results[40].metrics) == {"train/critic_loss", "train/actor_loss", "train/q_mean", "train/target_std"}


def test_updates_wait_for_a_full_batch(small_trainer: BuildTrainer) -> None:
    results = run_steps(small_trainer(learning_starts=0, batch_size=32), 40)
    assert [result.updates for result in results] == [0] * 31 + [1] * 9


def test_several_updates_a_step_give_their_mean(small_trainer: BuildTrainer) -> None:
    several, single = (small_trainer(updates_per_step=number, learning_starts=50) for number in (3, 1))
    result = run_steps(several, 51)[-1]
    run_steps(single, 50)
    single._take_env_steps()
    losses = [single.agent.update(single._buffer.sample(32))["train/critic_loss"] for _ in range(3)]
    assert result.updates == 3
    torch.testing.assert_close(result.metrics["train/critic_loss"], torch.stack(losses).mean())


def test_first_actions_are_uniform_over_the_whole_range(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(learning_starts=1_000)
    run_steps(trainer, 1_000)
    actions = trainer._buffer._rows[:1_000, 3]
    assert actions.min() < -0.99
    assert actions.max() > 0.99
    assert np.histogram(actions, bins=4, range=(-1, 1))[0].min() > 200


def test_the_environment_gets_its_own_units_and_the_buffer_normalised_ones(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Clock-v0", noise_std=2.0)
    run_steps(trainer, 80)
    given = np.array(trainer._slots[0].env.unwrapped.actions)
    stored = trainer._buffer._rows[:80, 10:12]
    np.testing.assert_allclose(given, [2.0, 0.625] + np.array([4.0, 0.125]) * stored, rtol=1e-5)
    assert np.abs(stored).max() == 1  # such noise reaches the bounds and is clipped there
    assert (given >= [-2.0, 0.5]).all()
    assert (given <= [6.0, 0.75]).all()


@pytest.mark.parametrize("terminate", [True, False])
def test_only_a_task_that_ended_is_stored_as_terminated(small_trainer: BuildTrainer, terminate: bool) -> None:
    trainer = small_trainer(env_name="Clock-v0", env_kwargs={"terminate": terminate})
    results = run_steps(trainer, 25)
    terminated = trainer._buffer._rows[:25, 13]
    assert np.flatnonzero(terminated).tolist() == ([9, 19] if terminate else [])
    episodes = [episode for result in results for episode in result.episodes]
    assert episodes == [Episode(10.0, 10, truncated=not terminate)] * 2


def test_an_episode_that_task_and_clock_end_at_once_was_ended_by_the_task(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Clock-v0", env_kwargs={"both": True})
    episodes = [episode for result in run_steps(trainer, 10) for episode in result.episodes]
    assert episodes == [Episode(10.0, 10, truncated=False)]
    assert np.flatnonzero(trainer._buffer._rows[:10, 13]).tolist() == [9]


def test_one_seed_starts_the_run_and_each_episode_starts_elsewhere(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Clock-v0")
    run_steps(trainer, 60)
    core: Any = trainer._slots[0].env.unwrapped
    assert core.seeds[0] is not None
    assert core.seeds[1:] == [None] * 5
    assert len(set(core.starts)) == 6


@pytest.mark.parametrize("seed", range(8))
def test_environments_are_reset_with_seeds_that_old_generators_take(small_trainer: BuildTrainer, seed: int) -> None:
    trainer = small_trainer(env_name="Clock-v0", env_kwargs={"hidden": True}, seed=seed)
    first = trainer._slots[0].reset_seed
    run_steps(trainer, 1)
    trainer.load_state_dict(trainer.state_dict())
    for reset_seed in (first, trainer._slots[0].reset_seed):
        assert 0 <= reset_seed < 2**31
        np.random.RandomState(reset_seed)  # the generator in question


def test_the_observation_after_an_episode_is_stored_and_not_the_next_start(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Clock-v0")
    run_steps(trainer, 12)
    obs, next_obs = trainer._buffer._rows[:12, :10], trainer._buffer._rows[:12, 14:]
    assert obs[9].argmax() == next_obs[9].argmax() == 9
    assert obs[10].argmax() == 0


def test_noise_starts_anew_with_every_episode(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Clock-v0", noise_type="ou", learning_starts=0)
    run_steps(trainer, 5)
    trainer.agent._noise._noise += 1_000
    run_steps(trainer, 5)
    assert np.abs(trainer.agent._noise._noise).min() > 100
    run_steps(trainer, 1)
    assert np.abs(trainer.agent._noise._noise).max() < 1


def test_the_buffer_is_no_longer_than_the_run(small_trainer: BuildTrainer) -> None:
    assert small_trainer(max_timesteps=300).state_dict()["buffer"]["rows"].capacity == 300
    assert small_trainer(buffer_size=100).state_dict()["buffer"]["rows"].capacity == 100


def test_evaluating_changes_nothing_and_repeats_itself(small_trainer: BuildTrainer) -> None:
    evaluated, left_alone = small_trainer(), small_trainer()
    run_steps(evaluated, 60)
    run_steps(left_alone, 60)
    first = evaluated.evaluate([1, 2])
    assert first == evaluated.evaluate([1, 2])
    assert first.lengths == (200, 200)
    last = [float(run_steps(trainer, 20)[-1].metrics["train/critic_loss"]) for trainer in (evaluated, left_alone)]
    assert last[0] == last[1]


def test_a_seed_repeats_itself_and_another_differs(small_trainer: BuildTrainer) -> None:
    losses = [
        [float(result.metrics["train/critic_loss"]) for result in run_steps(small_trainer(seed=seed), 80)[40:]]
        for seed in (7, 7, 8)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def draw_streams(trainer: OffPolicyTrainer) -> dict[str, bytes]:
    """Give the first draws of every source of randomness that a run's seed decides."""
    trainer._take_env_steps()
    return {
        "actor": torch.cat([p.detach().ravel() for p in trainer.agent.actor.parameters()]).numpy().tobytes(),
        "critic": torch.cat([p.detach().ravel() for p in trainer.agent.critic.parameters()]).numpy().tobytes(),
        "start": trainer._buffer._rows[0, :3].tobytes(),
        "warmup": trainer._warmup.random(4).tobytes(),
        "noise": np.stack([trainer.agent._noise.sample() for _ in range(4)]).tobytes(),
        "replay": trainer._buffer._generator.random(4).tobytes(),
    }


def test_each_source_of_randomness_follows_the_seed(small_trainer: BuildTrainer) -> None:
    one, same, other = (draw_streams(small_trainer(seed=seed)) for seed in (7, 7, 8))
    assert one == same
    assert [name for name in one if one[name] == other[name]] == []
    assert one["warmup"] != one["replay"]


def test_building_and_stepping_draw_nothing_global(small_trainer: BuildTrainer) -> None:
    before = torch.get_rng_state()
    run_steps(small_trainer(), 60)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("hidden_dims", [[64, 64], [400, 300], [8]])
def test_parameter_counts_are_the_closed_form(small_trainer: BuildTrainer, hidden_dims: list[int]) -> None:
    settings = {"algorithm_name": "ddpg", "env_name": "HalfCheetah-v5", "hidden_dims": hidden_dims}
    counts = count_parameters(DDPGConfig.from_settings(settings))

    def count(sizes: list[int]) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))

    assert counts == {"actor": count([17, *hidden_dims, 6]), "critic": count([23, *hidden_dims, 1])}
    components = small_trainer(env_name="HalfCheetah-v5", hidden_dims=hidden_dims).components()
    assert counts == {name: sum(p.numel() for p in network.parameters()) for name, network in components.items()}


def test_the_pendulum_critic_has_the_published_count() -> None:
    settings = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "hidden_dims": [64, 64]}
    assert count_parameters(DDPGConfig.from_settings(settings)) == {"actor": 4_481, "critic": 4_545}


@pytest.mark.parametrize("terminate", [False, True])
def test_a_constant_reward_gives_the_value_that_arithmetic_does(small_trainer: BuildTrainer, terminate: bool) -> None:
    """Cut by the clock, a reward of 1 a step is worth 1 / (1 - discount); ended by the task, what is left of it."""
    trainer = small_trainer(
        env_name="Clock-v0",
        env_kwargs={"terminate": terminate},
        hidden_dims=[32, 32],
        batch_size=64,
        discount=0.9,
        tau=0.05,
        learning_rate=3e-3,
        learning_starts=200,
        max_timesteps=4_000,
    )
    run_steps(trainer, 2_500)
    times = torch.eye(10)
    with torch.no_grad():
        values = trainer.agent.critic(times, trainer.agent.actor(times)).squeeze(1)
    left = 10 - torch.arange(10) if terminate else torch.full((10,), torch.inf)
    torch.testing.assert_close(values, 10 * (1 - 0.9**left), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("noise_type", ["gaussian", "ou"])
def test_a_simple_task_is_learned_in_a_few_hundred_steps(small_trainer: BuildTrainer, noise_type: str) -> None:
    trainer = small_trainer(
        env_name="Mirror-v0",
        noise_type=noise_type,
        noise_std=0.1,
        learning_rate=3e-3,
        discount=0.5,
        tau=0.05,
        hidden_dims=[32, 32],
        batch_size=64,
        learning_starts=100,
    )
    assert np.mean(trainer.evaluate(range(5)).returns) < 60
    run_steps(trainer, 700)
    assert np.mean(trainer.evaluate(range(5)).returns) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 200, 300])
def test_the_pendulum_is_learned_in_ten_thousand_steps(small_trainer: BuildTrainer, seed: int) -> None:
    trainer = small_trainer(
        hidden_dims=[64, 64],
        batch_size=128,
        discount=0.98,
        learning_starts=1_000,
        max_timesteps=10_000,
        seed=seed,
    )
    run_steps(trainer, 10_000)
    assert np.mean(trainer.evaluate(range(20)).returns) >= -200
