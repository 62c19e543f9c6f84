"""What is learned from, what is refused, what is told: the parts that the offline trainers share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs.episodes import Episodes, RecordedEpisode, gather_episodes
from experiment.problems import SettingsError
from rl.offline import offline
from rl.offline.offline import OfflineTrainer, Transitions
from train import build_config
from training.adam import Adam
from training.protocol import References, Treatment
from training.vitals import is_measured

ALGORITHMS = ("bc", "td3_bc", "iql")
BuildOffline = Callable[..., OfflineTrainer]
DrawEpisodes = Callable[..., Episodes]
Store = Callable[[Episodes], str]
CPU = torch.device("cpu")


def make_transitions(episodes: Episodes, **settings: Any) -> Transitions:
    defaults = {"reward_factor": 1.0, "normalize_obs": False, "discount": 0.9, "device": CPU}
    return Transitions(episodes, **(defaults | settings))


def test_transitions_are_those_of_the_episodes_and_never_run_over_their_ends(draw_episodes: DrawEpisodes) -> None:
    episodes = draw_episodes([4, 1, 3], obs_dim=2, action_dim=2, high=4.0)
    transitions = make_transitions(episodes, reward_factor=3.0)
    batch = transitions.gather(np.arange(len(transitions)))
    number = 0
    for index in range(3):
        episode = episodes.episode(index)
        for step in range(len(episode.actions)):
            assert batch.obs[number].tolist() == episode.observations[step, 0].tolist()
            assert batch.next_obs[number].tolist() == episode.observations[step + 1, 0].tolist()
            np.testing.assert_allclose(batch.action[number], episode.actions[step, 0] / 4, rtol=1e-6)
            assert batch.reward[number].item() == pytest.approx(3 * episode.rewards[step, 0].item(), rel=1e-6)
            last = step == len(episode.actions) - 1
            assert batch.terminated[number].item() == float(last and episode.terminated)
            number += 1
    assert number == len(transitions) == 8
    assert batch.terminated.sum() == 1  # the first and the last episode were cut by the clock or the recorder
    assert batch.discount.item() == pytest.approx(0.9)


def test_actions_fill_the_same_range_whatever_their_bounds(draw_episodes: DrawEpisodes) -> None:
    episodes = draw_episodes([3], action_dim=2)
    low, high = np.array([[-1.0, 2.0]], dtype=np.float32), np.array([[3.0, 2.5]], dtype=np.float32)
    recorded = RecordedEpisode(episodes.observations, np.stack([low, high, (low + high) / 2]), episodes.rewards, False)
    moved = gather_episodes(replace(episodes.header, action_low=low, action_high=high), [recorded])
    assert make_transitions(moved).gather(np.arange(3)).action.tolist() == [[-1, -1], [1, 1], [0, 0]]


def test_observations_are_normalised_by_the_data_sets_mean_and_deviation(draw_episodes: DrawEpisodes) -> None:
    episodes = draw_episodes([400, 1, 200])
    frames = np.concatenate([episodes.episode(number).observations[:-1, 0] for number in range(3)]).astype(np.float64)
    transitions = make_transitions(episodes, normalize_obs=True)
    batch = transitions.gather(np.arange(601))
    np.testing.assert_allclose(batch.obs, (frames - frames.mean(0)) / (frames.std(0) + 1e-3), atol=1e-5)
    assert transitions.obs_scale is not None
    raw = episodes.episode(2).observations[-1, 0]
    np.testing.assert_array_equal(transitions.obs_scale.apply(raw), batch.next_obs[-1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_environment_is_made_while_it_trains(
    small_offline: BuildOffline, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    trainer = small_offline(algorithm_name=algorithm)

    def refuse(*_: object) -> None:
        raise AssertionError("an environment was made")

    monkeypatch.setattr(offline, "make_env", refuse)
    for _ in range(4):
        result = trainer.train_step()
        assert (result.env_steps, result.updates, list(result.episodes)) == (0, 1, [])
    with pytest.raises(AssertionError, match="an environment was made"):
        trainer.evaluate([1])


METRICS = {
    "bc": {"train/actor_loss"},
    "td3_bc": {"train/critic_loss", "train/q_mean", "train/target_std", "train/actor_loss", "train/bc_loss"},
    "iql": {
        "train/critic_loss", "train/q_mean", "train/target_std", "train/actor_loss", "train/value_loss",
        "train/value_mean", "train/weight_mean", "train/weight_clipped",
    },
}  # fmt: skip
CRITIC_VITALS = {
    "error_square", "target_variance", "reward_square", "reward_max", "value_size", "next_value_size",
    "bootstrap_size", "discount",
}  # fmt: skip
NETWORKS = {"bc": {"actor"}, "td3_bc": {"actor", "critic"}, "iql": {"actor", "critic", "value"}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_metrics_and_vitals_have_the_names_in_the_docs(small_offline: BuildOffline, algorithm: str) -> None:
    trainer = small_offline(algorithm_name=algorithm)
    results = [trainer.train_step() for _ in range(30)]
    assert {name for result in results for name in result.metrics} == METRICS[algorithm]
    assert [bool(result.vitals) for result in results] == [is_measured(number) for number in range(30)]
    vitals = {name for result in results for name in result.vitals}
    expected = {f"{kind}/{name}" for kind in ("gradient", "weights") for name in NETWORKS[algorithm]}
    expected |= set() if algorithm == "bc" else CRITIC_VITALS
    assert vitals == expected | ({"stuck_share"} if algorithm == "td3_bc" else set())
    assert set(trainer.components()) == NETWORKS[algorithm]
    page = (Path(__file__).parents[3] / "docs/offline.md").read_text()
    assert [name for name in METRICS[algorithm] if f"`{name}`" not in page] == []


def count_tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_update_leaves_a_tensor_behind(small_offline: BuildOffline, algorithm: str) -> None:
    trainer = small_offline(algorithm_name=algorithm)
    counts = []
    for _ in range(3):
        for _ in range(40):
            trainer.train_step()
        counts.append(count_tensors())
    assert counts[2] <= counts[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_treatment_scales_rates_and_batches_and_redrawing_gives_other_batches(
    small_offline: BuildOffline, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    trainer = small_offline(algorithm_name=algorithm, guard="repair")
    drawn: list[NDArray[np.int64]] = []
    gather = trainer._transitions.gather
    monkeypatch.setattr(trainer._transitions, "gather", lambda numbers: (drawn.append(numbers), gather(numbers))[1])
    trainer.train_step()
    trainer.treat(Treatment(learning_rate_factor=0.25, batch_halvings=2))
    for number in (1, 2, 1):
        trainer.redraw(number)
        trainer.train_step()
    assert [len(numbers) for numbers in drawn] == [32, 8, 8, 8]
    assert drawn[1].tolist() == drawn[3].tolist() != drawn[2].tolist()
    optimizers = [part for part in vars(trainer.agent).values() if isinstance(part, Adam)]
    assert len(optimizers) == len(NETWORKS[algorithm])
    for optimizer in optimizers:
        assert optimizer.gate is not None
        assert optimizer.learning_rate == pytest.approx(0.25 * 3e-4, rel=1e-3)


def test_the_policy_that_is_judged_sees_and_acts_in_the_data_sets_units(
    small_offline: BuildOffline, monkeypatch: pytest.MonkeyPatch, draw_episodes: DrawEpisodes
) -> None:
    trainer = small_offline(draw_episodes([300]))
    seen: list[NDArray[np.float32]] = []

    def act(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(obs)
        return np.array([[0.75]], dtype=np.float32)

    monkeypatch.setattr(trainer.agent, "act", act)
    assert trainer._act(np.array([3.0, 3.0, 5.0])).tolist() == [1.5]
    np.testing.assert_allclose(seen[0], [[0, 0, 1]], atol=0.25)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_that_nothing_reads_are_switched_off_with_a_reason(algorithm: str) -> None:
    off = {"learning_starts": 5, "buffer_size": 10, "num_envs": 3, "keep_replay": True, "guard_min_episode_length": 3}
    off |= {"guard_max_critic_loss": 5.0} if algorithm == "bc" else {}
    base = {"algorithm_name": algorithm, "env_name": "Pendulum-v1", "dataset": "x.h5", "max_timesteps": 50}
    config = build_config(base | off)
    assert set(config.inactive_keys()) == set(off)
    assert all(len(reason) > 5 for reason in config.inactive_keys().values())
    assert config.run_id() == build_config(base).run_id()
    assert config.run_id() != build_config(base | {"dataset": "y.h5"}).run_id()


def test_no_smoothing_needs_no_clip() -> None:
    settings = {"algorithm_name": "td3_bc", "env_name": "Pendulum-v1", "dataset": "x.h5", "target_noise_clip": 0.3}
    assert build_config(settings).inactive_keys() == {}
    assert set(build_config(settings | {"target_noise_std": 0.0}).inactive_keys()) == {"target_noise_clip"}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"eval_freq": 1_000, "max_timesteps": 500}, "eval_freq"),
        ({"expectile": 1.0}, "expectile"),
        ({"temperature": -1.0}, "temperature"),
        ({"normalize_reward": 1}, "normalize_reward"),
        ({"dataset": ""}, "dataset"),
        ({"q_weight": 2.5}, "q_weight"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as error:
        build_config({"algorithm_name": "iql", "env_name": "Pendulum-v1", "dataset": "x.h5"} | settings)
    assert [fault.keys[0] for fault in error.value.faults] == [key]


def test_a_missing_data_set_key_is_named() -> None:
    with pytest.raises(SettingsError, match="the key 'dataset' is missing"):
        build_config({"algorithm_name": "bc", "env_name": "Pendulum-v1"})


def assert_refused(settings: dict[str, Any], key: str, *words: str) -> None:
    """Both before anything starts, and where a run is built."""
    config = build_config({"algorithm_name": "bc", "env_name": "Pendulum-v1"} | settings)
    (fault,) = config.find_environment_faults()
    assert fault.keys[0] == key
    with pytest.raises(SettingsError) as error:
        OfflineTrainer(config, CPU, lambda *_: pytest.fail("an agent was built"))  # type: ignore[type-var]
    assert [later.message for later in error.value.faults] == [fault.message]
    for word in words:
        assert word in fault.message


def test_a_data_set_of_another_environment_is_refused_with_both_names(
    store: Store, draw_episodes: DrawEpisodes
) -> None:
    dataset = store(draw_episodes([5], env_name="Hopper-v5"))
    assert_refused({"dataset": dataset}, "dataset", "recorded in Hopper-v5", "env_name is Pendulum-v1", dataset)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"obs_dim": 4}, ["observations of 4 and actions of 1", "Pendulum-v1 has 3 and 1"]),
        ({"action_dim": 2}, ["observations of 3 and actions of 2", "Pendulum-v1 has 3 and 1"]),
        ({"num_agents": 2}, ["2 agents"]),
        ({"high": 1.0}, ["actions from [-1.] to [1.]", "Pendulum-v1 from [-2.] to [2.]"]),
    ],
)
@pytest.mark.parametrize("env_name", ["Pendulum-v1", ""], ids=["named", "nameless"])
def test_a_data_set_that_does_not_fit_is_refused_with_its_sizes(
    store: Store, wrong: dict[str, Any], words: list[str], env_name: str, draw_episodes: DrawEpisodes
) -> None:
    assert_refused({"dataset": store(draw_episodes([5], env_name=env_name, **wrong))}, "dataset", *words)


def test_a_nameless_data_set_that_fits_is_taken(store: Store, draw_episodes: DrawEpisodes) -> None:
    dataset = store(draw_episodes([5], env_name=""))
    config = build_config({"algorithm_name": "bc", "env_name": "Pendulum-v1", "dataset": dataset})
    assert config.find_environment_faults() == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused({"dataset": str(tmp_path / "none.h5")}, "dataset", "neither a reference set nor a file", "none.h5")


def test_a_broken_file_is_refused_with_the_reason(store: Store, draw_episodes: DrawEpisodes) -> None:
    dataset = store(draw_episodes([5]))
    with h5py.File(dataset, "r+") as file:
        file["rewards"][2] = np.nan
    assert_refused({"dataset": dataset}, "dataset", "rewards, row 2", "isn't finite")
    with h5py.File(dataset, "r+") as file:
        del file["lengths"]
        file["lengths"] = np.zeros(0, dtype=np.int64)
    assert_refused({"dataset": dataset}, "dataset", "no episodes")


def test_an_environment_that_it_cannot_use_is_refused(store: Store, draw_episodes: DrawEpisodes) -> None:
    dataset = store(draw_episodes([5], env_name=""))
    assert_refused({"dataset": dataset, "env_name": "CartPole-v1"}, "env_name", "continuous")
    assert_refused({"dataset": dataset, "env_name": "Pendulum-v0"}, "env_name", "Pendulum-v1")


def test_what_evaluations_change_is_checked_and_used(
    small_offline: BuildOffline, store: Store, draw_episodes: DrawEpisodes
) -> None:
    dataset = store(draw_episodes([5]))
    settings = {"algorithm_name": "bc", "env_name": "Pendulum-v1", "dataset": dataset}
    (fault,) = build_config(settings | {"eval_env_kwargs": {"gravity": 5.0}}).find_environment_faults()
    assert fault.keys[0] == "eval_env_kwargs.gravity"
    short = small_offline(eval_env_kwargs={"max_episode_steps": 7})
    assert small_offline().evaluate([1]).lengths == (200,)
    assert short.evaluate([1]).lengths == (7,)


def test_returns_without_a_difference_cannot_be_normalised_by(store: Store, draw_episodes: DrawEpisodes) -> None:
    dataset = store(draw_episodes([5]))
    assert_refused({"algorithm_name": "iql", "dataset": dataset}, "dataset", "normalize_reward: false")
    config = build_config(
        {"algorithm_name": "iql", "env_name": "Pendulum-v1", "dataset": dataset, "normalize_reward": False}
    )
    assert config.find_environment_faults() == []
    assert build_config(config.shape_settings()).find_environment_faults() == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_shape_is_a_config_of_its_own(algorithm: str) -> None:
    settings = {"algorithm_name": algorithm, "env_name": "Pendulum-v1", "dataset": "x.h5", "hidden_dims": [8]}
    shape = build_config(settings | {"seed": 4, "max_timesteps": 20, "batch_size": 2_000_000}).shape_settings()
    assert build_config(shape).shape_settings() == shape == build_config(settings).shape_settings()
    assert shape["dataset"] == "x.h5"


@pytest.mark.parametrize("normalize", [True, False])
def test_iqls_rewards_are_scaled_by_the_difference_between_returns(
    small_offline: BuildOffline, normalize: bool, draw_episodes: DrawEpisodes
) -> None:
    episodes = draw_episodes([6, 9, 4])
    trainer = small_offline(episodes, algorithm_name="iql", normalize_reward=normalize)
    returns = [float(episodes.episode(number).rewards.sum()) for number in range(3)]
    factor = 1000 / (max(returns) - min(returns)) if normalize else 1.0
    rewards = trainer._transitions.gather(np.arange(19)).reward
    np.testing.assert_allclose(rewards, factor * episodes.rewards, rtol=1e-4)


MIRROR = {"env_name": "Mirror-v0", "hidden_dims": [32, 32], "learning_rate": 3e-3, "batch_size": 128}
SEEDS = list(range(5))


def train(trainer: OfflineTrainer, updates: int) -> float:
    """Train and give the mean return of some episodes; the best possible one is 100."""
    for _ in range(updates):
        trainer.train_step()
    return float(np.mean(trainer.evaluate(SEEDS).returns))


def test_cloning_comes_to_the_conditional_mean(small_offline: BuildOffline, draw_mirror_episodes: DrawEpisodes) -> None:
    trainer = small_offline(draw_mirror_episodes(30, slope=-0.5, noise=0.5), **MIRROR)
    train(trainer, 500)
    for obs in (-0.8, -0.3, 0.0, 0.5, 0.9):
        assert trainer._act(np.array([obs])).item() == pytest.approx(-0.5 * obs, abs=0.08)


@pytest.mark.parametrize(
    "settings",
    [{"algorithm_name": "td3_bc", "discount": 0.1}, {"algorithm_name": "iql", "max_timesteps": 1_000}],
    ids=lambda settings: settings["algorithm_name"],
)
def test_those_with_a_critic_come_above_the_mean_policy_of_the_data(
    small_offline: BuildOffline, settings: dict[str, Any], draw_mirror_episodes: DrawEpisodes
) -> None:
    """The data's mean action is always 0, which gives about 50; what was recorded gave about 33 on average."""
    episodes = draw_mirror_episodes(30, slope=0.0, noise=1.0)
    assert train(small_offline(episodes, **MIRROR), 500) == pytest.approx(50, abs=5)
    assert train(small_offline(episodes, **MIRROR, **settings), 1_000) > 80


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_module_acts_as_the_policy_in_the_environments_units(
    small_offline: BuildOffline, algorithm: str, normalize: bool
) -> None:
    trainer = small_offline(algorithm_name=algorithm, normalize_obs=normalize)
    for _ in range(20):
        trainer.train_step()
    observed = np.random.default_rng(0).normal(3, 2, (200, 3)).astype(np.float32)
    act, module = trainer.begin_acting(), trainer.build_policy_module()
    action = module(torch.from_numpy(observed)).numpy()
    np.testing.assert_allclose(action, np.stack([act(obs) for obs in observed]), atol=1e-6)
    assert action.std() > 1e-3


def test_references_are_those_of_the_data_set_in_the_same_environment(
    small_offline: BuildOffline, draw_episodes: DrawEpisodes
) -> None:
    episodes = draw_episodes([20, 5])
    policy = {"kind": "recipe", "references": {"random": -1200.0, "expert": -130.0}}
    scored = replace(episodes, header=replace(episodes.header, policy=policy))
    scored = gather_episodes(scored.header, [scored.episode(number) for number in range(len(scored))])
    assert small_offline(scored).references == References(random=-1200.0, expert=-130.0)
    assert small_offline(scored, env_kwargs={"g": 5.0}).references is None
    assert small_offline(scored, eval_env_kwargs={"g": 5.0}).references is None
    elsewhere = gather_episodes(
        replace(scored.header, env_kwargs={"g": 5.0}), [scored.episode(number) for number in range(len(scored))]
    )
    assert small_offline(elsewhere).references is None
    assert small_offline(elsewhere, eval_env_kwargs={"g": 5.0}).references == References(random=-1200.0, expert=-130.0)
    assert small_offline(episodes).references is None
