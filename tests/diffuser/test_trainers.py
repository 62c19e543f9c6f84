"""The two trainers: what each key does, exact counts, freezing, and straight equals resumed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from diffuser.components import count_parameters
from diffuser.utils.rl_trainer import OfflineRLTrainer, OnlineOfflineTrainer
from diffuser.utils.training import Trainer
from envs.episodes import gather_episodes, open_episodes, write_episodes
from experiment.problems import SettingsError
from train import build_config
from training.gate import GradientGate
from training.protocol import References, StepResult
from training.resources import hash_state

HORIZON, LENGTH = 4, 24

Build = Callable[..., Trainer]


def take_steps(trainer: Trainer, count: int) -> list[StepResult]:
    return [trainer.train_step() for _ in range(count)]


def collect_metrics(results: list[StepResult]) -> dict[str, float]:
    return {name: float(value) for result in results for name, value in result.metrics.items()}


def test_the_published_names_are_there() -> None:
    assert OfflineRLTrainer is OnlineOfflineTrainer


@pytest.mark.parametrize("online", [False, True])
def test_references_are_those_of_the_data_set(dataset: Path, tmp_path: Path, build: Build, online: bool) -> None:
    assert build(online_training=online).references is None
    episodes = open_episodes(dataset)
    policy = {"kind": "recipe", "references": {"random": -20.0, "expert": -1.0}}
    header = replace(episodes.header, policy=policy)
    recorded = [episodes.episode(number) for number in range(len(episodes))]
    write_episodes(tmp_path / "scored.h5", gather_episodes(header, recorded))
    trainer = build(online_training=online, dataset=str(tmp_path / "scored.h5"))
    assert trainer.references == References(random=-20.0, expert=-1.0)


def test_offline_metrics_have_the_guides_names(build: Build) -> None:
    metrics = collect_metrics(take_steps(build(), 2))
    assert set(metrics) == {"loss", "diffusion_loss", "vae_loss", "vae_recon_loss", "vae_kl_loss"}


def test_online_metrics_have_the_guides_names(build: Build) -> None:
    metrics = collect_metrics(take_steps(build(online_training=True), 6)[4:])
    assert {"loss", "policy_loss", "value_loss", "diffusion_loss"} <= set(metrics)
    assert "value_loss" not in collect_metrics(take_steps(build(online_training=True, use_value_function=False), 6))


class Reporting(gym.Wrapper[Any, Any, Any, Any]):
    """Reports of each episode how its wave began."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | {"distance": self.unwrapped.phase, "phase": 1.0}


def test_evaluations_have_the_measures_of_each_episode_in_the_order_of_the_seeds(build: Build) -> None:
    trainer = Trainer(build().config, torch.device("cpu"), lambda: Reporting(gym.make("Track-v0")))
    seeds = range(20, 40)  # more than run side by side
    env = gym.make("Track-v0")
    phases = []
    for seed in seeds:
        env.reset(seed=seed)
        phases.append(env.unwrapped.phase)
    assert trainer.evaluate(list(seeds)).measures == {"distance": tuple(phases)}


@pytest.mark.parametrize("online", [False, True])
def test_what_evaluations_change_is_checked_and_used(build: Build, online: bool) -> None:
    short = build(online_training=online, eval_env_kwargs={"max_episode_steps": 7})
    assert short.evaluate([1, 2]).lengths == (7, 7)
    assert [episode.length for result in take_steps(short, 30) for episode in result.episodes] == [LENGTH] * 4 * online
    wrong = build_config(short.config.resolved() | {"eval_env_kwargs": {"lenght": 3}})
    (fault,) = wrong.find_environment_faults()
    assert fault.keys[0] == "eval_env_kwargs.lenght"


def test_offline_training_never_makes_an_environment(dataset: Path, build: Build) -> None:
    config = build().config

    def refuse() -> Any:
        raise AssertionError("an environment was asked for")

    trainer = Trainer(config, torch.device("cpu"), refuse)
    take_steps(trainer, 3)
    trainer.load_state_dict(trainer.state_dict())
    with pytest.raises(AssertionError, match="asked for"):
        trainer.evaluate([1])


def test_a_run_without_evaluations_needs_no_environment_at_all(build: Build) -> None:
    config = build(eval_freq=0, num_final_eval=0).config
    entry = gym.registry.pop("Track-v0")
    try:
        assert config.find_environment_faults() == []
        counts = count_parameters(config)
        trainer = Trainer(config, torch.device("cpu"))
        take_steps(trainer, 2)
        (fault,) = build_config(config.resolved() | {"eval_freq": 10}).find_environment_faults()
    finally:
        gym.registry["Track-v0"] = entry
    assert counts == {name: sum(p.numel() for p in part.parameters()) for name, part in trainer.components().items()}
    assert "no environment is called 'Track-v0'" in fault.message


def test_a_data_set_of_another_environment_is_named_before_anything_starts(build: Build) -> None:
    (fault,) = build_config(build().config.resolved() | {"env_name": "Pendulum-v1"}).find_environment_faults()
    assert fault.keys == ("dataset", "env_name")
    (missing,) = build_config(build().config.resolved() | {"dataset": "none.h5"}).find_environment_faults()
    assert "neither a reference set nor a file" in missing.message


@pytest.mark.parametrize(
    ("collect_freq", "collect_steps", "update_freq", "num_envs", "updates"),
    # A pass has 12, 3 and 54 denoising steps in batches of 5.
    [(4, 9, 2, 2, 6 * 3), (1, 4, 1, 1, 12 * 1), (6, 24, 3, 3, 4 * 11)],
)
def test_environment_steps_and_updates_are_exactly_those_of_the_keys(
    build: Build, collect_freq: int, collect_steps: int, update_freq: int, num_envs: int, updates: int
) -> None:
    trainer = build(
        online_training=True,
        rl_collect_freq=collect_freq,
        rl_collect_steps=collect_steps,
        rl_update_freq=update_freq,
        num_envs=num_envs,
    )
    warm, online = take_steps(trainer, 4), take_steps(trainer, 12)
    assert [(result.env_steps, result.updates) for result in warm] == [(0, 1)] * 4
    collections = -(-12 // collect_freq)
    assert sum(result.env_steps for result in online) == collections * (collect_steps // HORIZON) * HORIZON * num_envs
    assert sum(result.updates for result in online) == updates
    assert all(result.ticks == 1 for result in online)


def test_a_pass_that_ends_early_counts_the_updates_that_it_made(build: Build) -> None:
    results = take_steps(build(online_training=True, rl_target_kl=1e-12, rl_learning_rate=1e-2), 5)
    assert results[-1].updates == 2  # the first batch of a collection has not moved yet


@pytest.mark.parametrize("warmup", [1, 2, 3, 4, 5])
def test_a_fifth_of_all_updates_is_measured_whatever_steps_they_fall_on(build: Build, warmup: int) -> None:
    often = {"rl_warmup_steps": warmup, "rl_collect_freq": 5, "rl_update_freq": 5, "max_timesteps": 200}
    trainer = build(online_training=True, rl_batch_size=10_000, **often)  # a pass is one update
    online = take_steps(trainer, warmup + 125)[warmup:]
    made = [result for result in online if result.updates]
    assert [result.updates for result in made] == [1] * 25
    assert sum(bool(result.vitals) for result in made) == 5
    assert {"weights/policy", "gradient/policy", "weights/value", "gradient/value"} == set(made[0].vitals)


def test_what_is_measured_in_a_pass_is_given_as_one_step(build: Build) -> None:
    trainer = build(online_training=True, rl_collect_steps=24, rl_update_freq=4)
    assert isinstance(trainer, OnlineOfflineTrainer)
    take_steps(trainer, 4)
    lengths: list[float] = []
    whole = trainer._descend_together

    def note(loss: torch.Tensor, vitals: dict[str, torch.Tensor] | None) -> None:
        whole(loss, vitals)
        if vitals is not None:
            lengths.append(float(vitals["gradient/policy"]))

    vars(trainer)["_descend_together"] = note
    # The averaged networks are what passes begin with.
    begin = [*trainer.average.denoiser.parameters(), *trainer.average.exploration.parameters()]
    before = float(torch.cat([parameter.detach().flatten() for parameter in begin]).norm())
    (result,) = take_steps(trainer, 1)
    assert (result.updates, len(lengths)) == (8, 2)
    assert float(result.vitals["gradient/policy"]) == pytest.approx(sum(lengths) / 2)
    assert float(result.vitals["weights/policy"]) == pytest.approx(before)


def test_encoder_and_decoder_stand_still_once_the_policy_acts(build: Build) -> None:
    trainer = build(online_training=True)
    take_steps(trainer, 4)
    moving = {name: hash_state(part.state_dict()) for name, part in trainer.components().items()}
    take_steps(trainer, 1)
    acting = {name: hash_state(part.state_dict()) for name, part in trainer.components().items()}
    assert acting["vae"] == hash_state(trainer.average.vae.state_dict())
    take_steps(trainer, 6)
    later = {name: hash_state(part.state_dict()) for name, part in trainer.components().items()}
    still = {name for name in later if later[name] == acting[name]}
    assert still == {"vae", "trajectory_encoder"}
    assert moving["denoiser"] != acting["denoiser"]


def test_the_first_pass_begins_with_the_policy_that_acted(build: Build) -> None:
    trainer = build(online_training=True, rl_batch_size=10_000)
    metrics = collect_metrics(take_steps(trainer, 5)[4:])
    assert metrics["train/kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy_loss"] == pytest.approx(0, abs=1e-4)  # minus the mean of normalised advantages


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation": 3, "denoiser": "unet", "unet_channels": 32}])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_straight_equals_resumed_offline(build: Build, settings: dict[str, Any], stop: int) -> None:
    check_resuming(build, settings, stop, 9)


@pytest.mark.parametrize("stop", [3, 4, 5, 7, 10])
@pytest.mark.parametrize("settings", [{}, {"use_value_function": False, "guard": "repair", "entropy_weight": -0.1}])
def test_straight_equals_resumed_online_with_chains_not_used_up(
    build: Build, settings: dict[str, Any], stop: int
) -> None:
    check_resuming(build, {"online_training": True} | settings, stop, 13)


def check_resuming(build: Build, settings: dict[str, Any], stop: int, total: int) -> None:
    from training.state import pack_state, unpack_state

    straight = build(**settings)
    take_steps(straight, total)
    first = build(**settings)
    take_steps(first, stop)
    saved = unpack_state(pack_state(first.state_dict()), lambda path: None)  # type: ignore[arg-type,return-value]
    second = build(**settings)
    second.load_state_dict(saved)
    take_steps(second, total - stop)
    assert hash_state(second.state_dict()) == hash_state(straight.state_dict())


def test_every_attribute_is_in_the_state_or_declared_transient(build: Build) -> None:
    online = build(online_training=True)
    assert isinstance(online, OnlineOfflineTrainer)
    world = online._worlds[0]
    stateful: list[Any] = [build(), online, world, world.history, online._sampler]
    for thing in stateful:
        names = {name.lstrip("_") for name in vars(thing)} - {name.lstrip("_") for name in thing.TRANSIENT}
        assert names == set(thing.state_dict()), type(thing)
        assert set(thing.TRANSIENT) <= set(vars(thing)), "a transient attribute that isn't there"


@pytest.mark.parametrize("online", [False, True])
def test_every_step_that_a_gate_leaves_out_is_told(build: Build, online: bool) -> None:
    trainer = build(online_training=online, guard="repair", offline_loss_weight=0.0)
    optimizers = list(trainer._optimizers.values())
    if isinstance(trainer, OnlineOfflineTrainer):
        take_steps(trainer, 4)
        optimizers = list(trainer._rl_optimizers.values())
    steps = 0

    def refuse_and_count(length: torch.Tensor, gate: GradientGate) -> torch.Tensor:
        nonlocal steps
        steps += 1
        gate._skips += 1
        return torch.ones(())

    for optimizer in optimizers:
        gate = optimizer.gate
        assert gate is not None
        vars(gate)["judge"] = partial(refuse_and_count, gate=gate)
    results = take_steps(trainer, 30)
    told = sum(float(result.vitals.get("skips", 0.0)) for result in results)
    waiting = sum(float(optimizer.gate.take_skips()) for optimizer in optimizers if optimizer.gate is not None)
    assert told > 0
    assert told + waiting == steps


@pytest.mark.parametrize("settings", [{"num_candidates": 2}, {"online_training": True}])
def test_no_step_leaves_a_tensor_behind(build: Build, settings: dict[str, Any]) -> None:
    trainer = build(**settings)
    counts = []
    for _ in range(3):
        take_steps(trainer, 16)
        gc.collect()
        counts.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert counts[2] <= counts[1]


def test_evaluations_change_nothing_and_do_not_depend_on_who_runs_beside_whom(build: Build) -> None:
    trainer = build(online_training=True)
    take_steps(trainer, 6)
    before = hash_state(trainer.state_dict())
    together = trainer.evaluate([5, 6, 7])
    assert hash_state(trainer.state_dict()) == before
    alone = [trainer.evaluate([seed]).returns[0] for seed in (5, 6, 7)]
    assert together.returns == pytest.approx(alone, rel=1e-4)
    assert together.lengths == (LENGTH,) * 3


EFFECTS: dict[str, Any] = {
    "horizon": 6,
    "history_horizon": 3,
    "obs_normalizer": "limits",
    "vae_latent_dim": 5,
    "trajectory_latent_dim": 9,
    "vae_weight": 0.5,
    "vae_kl_weight": 0.5,
    "hidden_dims": [17],
    "denoiser": "unet",
    "denoiser_hidden_dims": [17],
    "num_diffusion_steps": 20,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "learning_rate": 1e-2,
    "max_grad_norm": 0.01,
    "ema_decay": 0.5,
    "gradient_accumulation": 2,
    "batch_size": 8,
    "seed": 1,
}
ONLINE_EFFECTS: dict[str, Any] = {
    "num_sampling_steps": 10,
    "sampler": "ddpm",
    "eta": 0.5,
    "clip_range": 0.01,
    "use_value_function": False,
    "rl_learning_rate": 1e-2,
    "policy_gradient_weight": 0.0,
    "value_function_weight": 0.0,
    "entropy_weight": 1.0,
    "offline_loss_weight": 0.0,
    "rl_warmup_steps": 2,
    "rl_collect_freq": 2,
    "rl_collect_steps": 20,
    "rl_update_freq": 1,
    "rl_batch_size": 7,
    "rl_clip_range": 0.0001,
    "rl_target_kl": 1e-12,
    "rl_tuned_steps": 2,
    "discount": 0.5,
    "gae_lambda": 0.0,
    "denoising_discount": 0.5,
    "num_envs": 3,
}


def fingerprint(trainer: Trainer, steps: int) -> str:
    """Give a hash of the networks' averages after some steps."""
    take_steps(trainer, steps)
    return hash_state(trainer.average.state_dict())


@pytest.mark.parametrize("key", EFFECTS)
def test_each_offline_key_changes_what_is_learnt(build: Build, key: str) -> None:
    assert fingerprint(build(), 3) != fingerprint(build(**{key: EFFECTS[key]}), 3)


@pytest.mark.parametrize("key", ONLINE_EFFECTS)
def test_each_online_key_changes_what_is_learnt(build: Build, key: str) -> None:
    online = {"online_training": True}
    assert fingerprint(build(**online), 9) != fingerprint(build(**online, **{key: ONLINE_EFFECTS[key]}), 9)


def test_every_key_is_in_one_of_the_tables_or_named_here(build: Build) -> None:
    from training.config import TrainerConfig

    named = {"diffusion", "loader", "evaluator", "dataset", "online_training", "unet_channels"}
    named |= {"num_candidates", "q_weight", "sampling_temperature", "expectile"}  # test_candidates.py
    own = set(type(build().config).model_fields) - set(TrainerConfig.model_fields)
    assert own - set(EFFECTS) - set(ONLINE_EFFECTS) == named


def test_without_a_weight_the_vae_learns_nothing(build: Build) -> None:
    trainer = build(vae_weight=0.0)
    before = hash_state(trainer.model.vae.state_dict())
    take_steps(trainer, 3)
    assert hash_state(trainer.model.vae.state_dict()) == before


@pytest.mark.parametrize(("weight", "sign"), [(5.0, 1), (-5.0, -1)])
def test_the_entropys_weight_moves_the_exploration(build: Build, weight: float, sign: int) -> None:
    trainer = build(online_training=True, policy_gradient_weight=0.0, entropy_weight=weight, offline_loss_weight=0.0)
    before = trainer.model.log_std.detach().clone()
    take_steps(trainer, 8)
    assert ((trainer.model.log_std.detach() - before) * sign > 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"diffusion": "models.CCDiffusion"}, "diffusion must be one of 'models.DiffusionRL'"),
        ({"loader": "datasets.Other"}, "loader must be one of 'datasets.VAESequenceDataset'"),
        ({"evaluator": "utils.Other"}, "evaluator must be one of 'utils.MADEvaluator'"),
        ({"vae_latent_dim": 0}, "vae_latent_dim must be > 0"),
        ({"online_training": True, "rl_collect_steps": 3}, "not one chunk of actions would be executed"),
        ({"online_training": True, "rl_update_freq": 9}, "some of what is collected is not used"),
        ({"online_training": True, "sampler": "dpm_solver"}, "no step has a density"),
        ({"prediction_type": "epsilon"}, "samples explode"),
        ({"env_name": "Pendulum-v1"}, "recorded in Track-v0, and env_name is Pendulum-v1"),
        ({"dataset": "none.h5"}, "neither a reference set nor a file"),
        ({"horizon": 25}, "the longest episode has 24 steps, and horizon is 25"),
    ],
)
def test_what_cannot_work_is_refused(build: Build, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build(**settings)


def test_the_networks_of_another_run_are_taken_and_nothing_else(build: Build) -> None:
    taught, heir, fresh = (build(seed=seed) for seed in (1, 2, 2))
    take_steps(taught, 3)
    heir.take_weights(taught.state_dict())
    ours, theirs, before = (trainer.state_dict() for trainer in (heir, taught, fresh))
    for name in ("model", "average"):
        assert hash_state(ours.pop(name)) == hash_state(theirs[name])
        del before[name]
    assert hash_state(ours) == hash_state(before)
    take_steps(heir, 2)
