"""What the off-policy trainers share: several environments, n-step returns, normalisation, residual control."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from envs.controllers import control_pendulum_energy
from envs.make import make_env
from rl.off_policy import OffPolicyTrainer, find_sizes
from rl.residual import ActionMap
from training.protocol import Episode, StepResult

BuildTrainer = Any
ALGORITHMS = ["ddpg", "td3", "sac"]
RESIDUAL = {"base_controller": "pendulum_energy", "delta_scale_max": 0.4}


def run_steps(trainer: OffPolicyTrainer, number: int) -> list[StepResult]:
    return [trainer.train_step() for _ in range(number)]


def record_given(trainer: OffPolicyTrainer) -> dict[str, list[Any]]:
    """Give lists that the agent's acting and learning will be written into, as the trainer asks for it."""
    agent, given = trainer.agent, {"obs": list[Any](), "batches": list[Any]()}
    explore, update = agent.explore, agent.update

    def record_obs(obs: Any) -> Any:
        given["obs"].append(obs.copy())
        return explore(obs)

    def record_batch(batch: Any, vitals: Any = None) -> Any:
        given["batches"].append(batch)
        return update(batch, vitals)

    vars(agent).update(explore=record_obs, update=record_batch)
    return given


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_count_for_each_step_of_each_environment(small_trainer: BuildTrainer, algorithm: str) -> None:
    trainer = small_trainer(algorithm_name=algorithm, num_envs=3, updates_per_step=2, learning_starts=41)
    results = run_steps(trainer, 20)
    assert [result.env_steps for result in results] == [3] * 20
    assert [result.updates for result in results] == [0] * 13 + [6] * 7


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(32, [1, 1, 1, 1]), (64, [0, 1, 0, 1]), (48, [0, 1, 1, 0]), (16, [2, 2, 2, 2]), (12, [2, 3, 3, 2])],
)
def test_fixed_samples_learns_from_as_many_samples_whatever_the_batch(
    small_trainer: BuildTrainer, batch: int, expected: list[int]
) -> None:
    trainer = small_trainer(batch_size=batch, schedule="fixed_samples", reference_batch_size=32, learning_starts=64)
    given = record_given(trainer)
    assert [result.updates for result in run_steps(trainer, 68)] == [0] * 64 + expected
    assert [len(drawn.obs) for drawn in given["batches"]] == [batch] * sum(expected)


def test_rows_of_environments_alternate_and_each_has_starts_of_its_own(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Dice-v0", num_envs=3, learning_starts=1_000)
    results = run_steps(trainer, 200)
    rows = trainer._buffer._rows[:600]
    seeds = [slot.env.unwrapped.seeds for slot in trainer._slots]
    assert len({first for first, *_ in seeds}) == 3
    assert all(0 <= first < 2**31 and set(rest) == {None} for first, *rest in seeds)
    numbers = [set(rows[env::3, 0].tolist()) for env in range(3)]
    assert not numbers[0] & numbers[1]
    assert not numbers[0] & numbers[2]
    for env in range(3):
        own = rows[env::3]
        going_on = own[:-1, 6] > 0  # where the next observation has a time
        same = own[1:, 0] == own[:-1, 0]
        assert (own[1:, 1][same & going_on] == own[:-1, 6][same & going_on]).all()
        assert (own[1:, 1][~same] == 0).all()
    episodes = [episode for result in results for episode in result.episodes]
    assert sum(episode.length for episode in episodes) == pytest.approx(600, abs=18)
    assert {episode.truncated for episode in episodes} == {True, False}
    assert sum(not episode.truncated for episode in episodes) == rows[:, 4].sum()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_evaluations_alone_are_in_the_environment_that_they_change(small_trainer: BuildTrainer, algorithm: str) -> None:
    kwargs = {"algorithm_name": algorithm, "env_name": "Clock-v0", "env_kwargs": {"terminate": True}}
    plain, changed = small_trainer(**kwargs), small_trainer(**kwargs, eval_env_kwargs={"max_episode_steps": 4})
    results = [run_steps(trainer, 60) for trainer in (plain, changed)]
    assert results[0] == results[1]
    assert [episode.length for result in results[1] for episode in result.episodes] == [10] * 6
    assert plain.evaluate([1, 2]).returns == (10.0, 10.0)
    assert changed.evaluate([1, 2]).returns == (4.0, 4.0)


def test_the_first_environment_is_the_one_of_a_run_with_one(small_trainer: BuildTrainer) -> None:
    """The first of several starts where the only one does, so that adding environments changes none of the others."""
    starts = []
    for number in (1, 2, 3):
        trainer = small_trainer(num_envs=number, learning_starts=1_000)
        run_steps(trainer, 1)
        starts.append(trainer._buffer._rows[:number, :3])
    assert np.array_equal(starts[0][0], starts[2][0])
    assert np.array_equal(starts[1], starts[2][:2])
    assert len({row.tobytes() for row in starts[2]}) == 3


def test_episodes_of_several_environments_end_on_their_own(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Clock-v0", env_kwargs={"terminate": True}, num_envs=2)
    results = run_steps(trainer, 20)
    assert [len(result.episodes) for result in results] == [0] * 9 + [2] + [0] * 9 + [2]
    assert set(results[9].episodes) == {Episode(10.0, 10, truncated=False)}
    assert np.flatnonzero(trainer._buffer._rows[:40, 13]).tolist() == [18, 19, 38, 39]


def test_noise_is_forgotten_only_where_an_episode_begins(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(env_name="Dice-v0", noise_type="ou", num_envs=3, learning_starts=0, batch_size=500)
    fresh = 0
    for _ in range(60):
        begins = [slot.obs is None for slot in trainer._slots]
        trainer.agent._noise._noise = np.full((3, 1), 1_000, dtype=np.float32)
        run_steps(trainer, 1)
        noise = trainer.agent._noise._noise[:, 0]
        assert (np.abs(noise) < 10).tolist() == begins
        fresh += sum(begins)
    assert 0 < fresh < 180


def test_windows_of_several_environments_are_each_in_one_episode(small_trainer: BuildTrainer) -> None:
    """The reward of an episode's step is the episode's number plus the time, so that a sum tells what it is of."""
    trainer = small_trainer(
        env_name="Dice-v0", num_envs=3, n_step=4, discount=0.9, buffer_size=100, learning_starts=1_000
    )
    run_steps(trainer, 90)
    batch = trainer._buffer.sample(2_000)
    number, time = batch.obs[:, 0], batch.obs[:, 1]
    steps = batch.next_obs[:, 1] - time
    assert torch.equal(batch.next_obs[:, 0], number)
    assert set(steps.int().tolist()) == {1, 2, 3, 4}
    torch.testing.assert_close(batch.discount[:, 0], 0.9**steps)
    taken = torch.arange(4)[None, :] < steps[:, None]
    rewards = (number[:, None] + time[:, None] + torch.arange(4)) * 0.9 ** torch.arange(4)
    torch.testing.assert_close(batch.reward[:, 0], (rewards * taken).sum(1), rtol=1e-5, atol=1e-2)


def test_windows_do_not_reach_over_a_resumption_that_began_new_episodes(small_trainer: BuildTrainer) -> None:
    settings = {"env_name": "Clock-v0", "env_kwargs": {"hidden": True}, "n_step": 5, "discount": 0.5, "num_envs": 2}
    trainer, resumed = small_trainer(**settings), small_trainer(**settings)
    run_steps(trainer, 4)
    resumed.load_state_dict(trainer.state_dict())
    run_steps(resumed, 6)
    batch = resumed._buffer.sample(500)
    time, later = batch.obs.argmax(1), batch.next_obs.argmax(1)
    assert set(later[time == 3].tolist()) == {4, 6}  # cut by the resumption; cut by the newest row
    assert set(later[time == 2].tolist()) == {4, 6}
    assert (later > time).all()


@pytest.mark.parametrize("terminate", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_constant_reward_gives_the_value_that_arithmetic_does(
    small_trainer: BuildTrainer, algorithm: str, terminate: bool
) -> None:
    """Over windows and two environments, cut by the clock or ended by the task."""
    trainer = small_trainer(
        algorithm_name=algorithm,
        env_name="Clock-v0",
        env_kwargs={"terminate": terminate},
        hidden_dims=[32, 32],
        batch_size=64,
        discount=0.9,
        tau=0.05,
        learning_rate=3e-3,
        learning_starts=200,
        max_timesteps=4_000,
        n_step=3,
        num_envs=2,
        **({"temperature": 1e-6} if algorithm == "sac" else {}),
    )
    run_steps(trainer, 1_100)
    times = torch.eye(10)
    own = torch.from_numpy(trainer.agent.act(times.numpy()))
    with torch.no_grad():
        values = trainer.agent.critic(times, own)
    value = values[0] if isinstance(values, tuple) else values
    left = 10 - torch.arange(10) if terminate else torch.full((10,), torch.inf)
    torch.testing.assert_close(value.squeeze(1), 10 * (1 - 0.9**left), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mirror_is_learned_in_four_hundred_steps(small_trainer: BuildTrainer, algorithm: str) -> None:
    """The identity: of at most 100 an episode, 90 are reached. A policy that always acts 0 has 50."""
    trainer = small_trainer(
        algorithm_name=algorithm,
        env_name="Mirror-v0",
        learning_rate=3e-3,
        discount=0.5,
        tau=0.05,
        hidden_dims=[32, 32],
        batch_size=64,
        learning_starts=80,
        updates_per_step=2,
    )
    assert np.mean(trainer.evaluate(range(5)).returns) < 60
    run_steps(trainer, 400)
    assert np.mean(trainer.evaluate(range(5)).returns) >= 90


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mirror_is_learned_with_everything_switched_on(small_trainer: BuildTrainer, algorithm: str) -> None:
    trainer = small_trainer(
        algorithm_name=algorithm,
        env_name="Mirror-v0",
        learning_rate=3e-3,
        discount=0.5,
        tau=0.05,
        hidden_dims=[32, 32],
        batch_size=64,
        learning_starts=80,
        updates_per_step=2,
        num_envs=2,
        n_step=2,
        normalize_obs=True,
        normalize_reward=True,
    )
    run_steps(trainer, 350)
    assert np.mean(trainer.evaluate(range(5)).returns) >= 85


def test_data_are_stored_raw_and_normalised_where_they_are_used(small_trainer: BuildTrainer) -> None:
    settings = {"normalize_obs": True, "normalize_reward": True, "learning_starts": 50, "num_envs": 2}
    trainer = small_trainer(**settings)
    given = record_given(trainer)
    run_steps(trainer, 120)
    rows = trainer._buffer._rows[:240]
    # Angular speeds and rewards of Pendulum-v1 reach well over 1, and what was stored still does.
    assert np.abs(rows[:, 2]).max() > 3
    assert rows[:, 4].min() < -5
    # Before its last step the trainer had acted on 119 pairs of observations.
    seen = rows[:238, :3].astype(np.float64)
    wanted = (rows[238:, :3] - seen.mean(0)) / np.sqrt(seen.var(0))
    np.testing.assert_allclose(given["obs"][-1], wanted, rtol=1e-4, atol=1e-5)
    batch = given["batches"][-1]
    for part in (batch.obs, batch.next_obs):
        assert part.mean(0).abs().max() < 0.8
        assert part.abs().max() < 4
    factor = trainer._reward_normalizer.scale()
    ratio = batch.reward / factor
    stored = set(rows[:, 4].tolist())
    assert factor < 0.2
    assert all(min(abs(reward - raw) for raw in stored) < 1e-4 for reward in ratio[:, 0].tolist())


def test_evaluating_leaves_the_statistics_as_they_are_and_uses_them(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(normalize_obs=True, normalize_reward=True)
    run_steps(trainer, 60)
    before = trainer._obs_normalizer.moments.count, trainer._reward_normalizer.scale()
    seen: list[Any] = []
    act = trainer.agent.act
    vars(trainer.agent)["act"] = lambda obs: seen.append(obs.copy()) or act(obs)
    first = trainer.evaluate([1])
    assert (trainer._obs_normalizer.moments.count, trainer._reward_normalizer.scale()) == before
    env = make_env("Pendulum-v1", {})
    raw_obs, _ = env.reset(seed=1)
    env.close()
    np.testing.assert_array_equal(seen[0], trainer._obs_normalizer.apply(raw_obs[None].astype(np.float32)))
    assert trainer.evaluate([1]) == first


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_first_residual_policy_is_the_base_controller(
    small_trainer: BuildTrainer, algorithm: str, normalize: bool
) -> None:
    trainer = small_trainer(algorithm_name=algorithm, **RESIDUAL, normalize_obs=normalize, learning_starts=200)
    run_steps(trainer, 100)
    env = make_env("Pendulum-v1", {})
    returns = []
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(2 * control_pendulum_energy(obs))
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    assert trainer.evaluate(range(5)).returns == tuple(returns)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_executed_is_what_is_stored_and_valued(small_trainer: BuildTrainer, algorithm: str) -> None:
    """The base action is the last number observed, and no more than delta is ever added to it."""
    trainer = small_trainer(algorithm_name=algorithm, **RESIDUAL, learning_starts=50, learning_rate=1e-2, num_envs=2)
    given: list[Any] = []
    step = trainer._slots[1].env.step
    vars(trainer._slots[1].env)["step"] = lambda action: given.append(action) or step(action)
    run_steps(trainer, 150)
    rows = trainer._buffer._rows[:300]
    base, action, next_base = rows[:, 3], rows[:, 4], rows[:, 10]
    for obs, shown in zip(np.concatenate([rows[:, :3], rows[:, 7:10]]), np.append(base, next_base), strict=True):
        assert control_pendulum_energy(obs)[0] == shown
    assert np.abs(action - base).max() <= 0.4 + 1e-6
    assert np.abs(action - base).max() > 0.35
    np.testing.assert_allclose(np.array(given)[:, 0], 2 * action[1::2], rtol=1e-6)
    batch = trainer._sample()
    assert batch.obs.shape == (32, 4)
    assert (batch.action - batch.obs[:, 3:]).abs().max() <= 0.4 + 1e-6


def test_the_base_action_reaches_actor_and_critic_as_it_is(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer(**RESIDUAL, normalize_obs=True, learning_starts=50)
    given = record_given(trainer)
    run_steps(trainer, 120)
    rows = trainer._buffer._rows[:120]
    assert given["obs"][-1][0, 3] == rows[-1, 3]
    assert not np.isclose(given["obs"][-1][0, :3], rows[-1, :3]).any()
    batch = given["batches"][-1]
    assert set(batch.obs[:, 3].tolist()) <= set(rows[:, 3].tolist())
    assert set(batch.next_obs[:, 3].tolist()) <= set(rows[:, 10].tolist())


def test_sizes_count_the_base_action(small_trainer: BuildTrainer) -> None:
    assert find_sizes(small_trainer().config).obs_dim == 3
    trainer = small_trainer(**RESIDUAL)
    assert find_sizes(trainer.config).obs_dim == 4
    assert trainer.components()["actor"].mlp.layers[0].in_features == 4


def test_both_forms_of_a_correction_agree_and_gradients_pass_where_nothing_is_clipped() -> None:
    action_map = ActionMap(1, 0.5)
    obs = torch.tensor([[9.0, 0.9], [9.0, -0.2], [9.0, -1.0]])
    own = torch.tensor([[1.0], [-0.5], [0.4]], requires_grad=True)
    executed = action_map.execute_tensor(obs, own)
    np.testing.assert_allclose(executed.detach().numpy(), [[1.0], [-0.45], [-0.8]], rtol=1e-6)
    np.testing.assert_array_equal(action_map.execute(obs.numpy(), own.detach().numpy()), executed.detach().numpy())
    executed.sum().backward()
    assert own.grad is not None
    assert own.grad[:, 0].tolist() == [0.0, 0.5, 0.5]
    alone = ActionMap(1)
    assert alone.execute_tensor(obs, own) is own
