"""The agent in its environments: it learns, resumes to the bit, and acts with what it knows of old frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from experiment.problems import SettingsError
from rl.vmamba_td3.frames import LEVELS
from rl.vmamba_td3.heads import Actor
from rl.vmamba_td3.stream import FrameFeatures
from rl.vmamba_td3.trainer import VMambaTD3Trainer, count_parameters
from tests.rl.vmamba_td3.conftest import SMALL
from train import build_config
from training.protocol import Treatment
from training.resources import hash_state
from training.rowlog import RowLog
from training.state import find_row_logs, pack_state, unpack_state
from training.weights import WeightsError

Build = Callable[..., VMambaTD3Trainer]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"encoder_sharing": "shared", "exploration": "gaussian", "noise_std": 0.3},
    {"encoder": "cnn", "env_kwargs": {"height": 16, "width": 16, "num_obstacles": 5}, "n_step": 3, "num_envs": 2},
    {"temporal_scan": "causal", "critic_loss": "huber", "random_shift": 2, "encoder_lr": 1e-4},
    {"grad_clip_scope": "global", "train_freq": 3, "random_steps": 4, "use_amp": True, "use_checkpointing": True},
    {"guard": "repair", "grad_clip": 0.0, "vmamba_layer_scale_init": None, "use_input_adapter": True},
    {"lr_schedule": "linear", "saturation_weight": 0.1, "encoder_sharing": "shared"},
    {"asymmetric_critic": True, "n_step": 2, "num_envs": 2, "encoder_lr": 1e-4},
]


def save_and_load(trainer: VMambaTD3Trainer, fresh: VMambaTD3Trainer) -> None:
    """Carry a state over as a checkpoint does, in plain values and copies of the logs."""
    state = trainer.state_dict()
    logs = {path: RowLog(log.rows.copy(), log.total) for path, log in find_row_logs(state).items()}
    packed = pack_state(state)
    fresh.load_state_dict(unpack_state(packed, logs.__getitem__))


def hash_trainer(trainer: VMambaTD3Trainer) -> str:
    agent = trainer.agent.state_dict()
    return hash_state({"agent": agent, "noise": trainer.noise.state_dict()})


@pytest.mark.parametrize("settings", VARIANTS)
def test_straight_equals_resumed_in_mid_episode(small_vmamba: Build, settings: dict[str, Any]) -> None:
    straight = small_vmamba(**settings)
    for _ in range(13):
        straight.train_step()
    fresh = small_vmamba(**settings)
    save_and_load(straight, fresh)
    for _ in range(9):
        one, other = straight.train_step(), fresh.train_step()
        assert one.updates == other.updates
        assert {key: float(value) for key, value in one.metrics.items()} == {
            key: float(value) for key, value in other.metrics.items()
        }
    assert hash_trainer(straight) == hash_trainer(fresh)
    assert straight._updates > 3


def test_every_attribute_is_saved_or_declared_transient(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    state = {f"_{key}" for key in trainer.state_dict()} | set(trainer.state_dict())
    assert set(vars(trainer)) <= state | set(VMambaTD3Trainer.TRANSIENT)
    agent = trainer.agent
    saved = {f"_{key}" for key in agent.state_dict()} | set(agent.state_dict())
    assert set(vars(agent)) - {"_modules", "training"} <= saved | set(type(agent).TRANSIENT)


@pytest.mark.parametrize("settings", [*VARIANTS[:3], VARIANTS[-1]])
def test_counted_parameters_are_those_of_the_networks(small_vmamba: Build, settings: dict[str, Any]) -> None:
    trainer = small_vmamba(**settings)
    built = {name: sum(p.numel() for p in net.parameters()) for name, net in trainer.components().items()}
    assert count_parameters(trainer.config) == built


def test_a_terminal_step_is_worth_its_reward_and_a_truncated_one_goes_on(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    for _ in range(10):
        trainer.train_step()
    batch = trainer.agent.load_batch(trainer.buffer.sample_windows(4))
    ended = type(batch)(**(vars(batch) | {"terminated": torch.ones_like(batch.terminated)}))
    target, _ = trainer.agent._find_target(ended)
    assert torch.equal(target, batch.reward)
    going_on = type(batch)(**(vars(batch) | {"terminated": torch.zeros_like(batch.terminated)}))
    target, value = trainer.agent._find_target(going_on)
    torch.testing.assert_close(target, batch.reward + 0.99 * value)


def test_targets_are_in_eval_mode_and_follow_slowly(small_vmamba: Build) -> None:
    trainer = small_vmamba(tau=0.5)
    agent = trainer.agent
    for _ in range(8):
        trainer.train_step()
    assert not any(module.training for module in agent.targets.modules())
    before = [tensor.clone() for tensor in agent._slow]
    while agent._updates % 2 == 0:
        trainer.train_step()
    trainer.train_step()
    for old, slow, online in zip(before, agent._slow, agent._online, strict=True):
        torch.testing.assert_close(slow, old + 0.5 * (online - old))


def test_the_actors_update_leaves_the_critic_alone(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    for _ in range(8):
        trainer.train_step()
    agent = trainer.agent
    batch = agent.load_batch(trainer.buffer.sample_windows(4))
    critic = [tensor.clone() for name in ("critic", "critic_stream") for tensor in agent.networks[name].parameters()]
    loss = agent._find_actor_loss(batch, torch.zeros(4, 8), None)
    agent._actor_descent.descend(loss, {}, None)
    now = [tensor for name in ("critic", "critic_stream") for tensor in agent.networks[name].parameters()]
    assert all(torch.equal(one, other) for one, other in zip(critic, now, strict=True))


def test_a_saturation_weight_pulls_actions_back_from_their_bounds(small_vmamba: Build) -> None:
    pulled, plain = (small_vmamba(saturation_weight=weight, vmamba_drop_path_rate=0.0) for weight in (2.0, 0.0))
    for _ in range(8):
        pulled.train_step()
    agent = pulled.agent
    actor = agent.networks["actor"]
    assert isinstance(actor, Actor)
    with torch.no_grad():
        actor.mlp.layers[-1].bias.fill_(3.0)
    plain.agent.networks.load_state_dict(agent.networks.state_dict())
    batch = agent.load_batch(pulled.buffer.sample_windows(4))
    context = torch.zeros(4, 8)
    extra = agent._find_actor_loss(batch, context, None) - plain.agent._find_actor_loss(batch, context, None)
    logits = actor.mlp(agent.find_stream("actor")(batch.base, batch.depth))
    torch.testing.assert_close(extra, 2.0 * logits.square().mean())
    (slope,) = torch.autograd.grad(extra, actor.mlp.layers[-1].bias)
    assert (slope > 0).all()


def test_learning_rates_fall_in_a_line_and_a_treatment_lowers_what_is_left(small_vmamba: Build) -> None:
    trainer = small_vmamba(lr_schedule="linear", encoder_lr=1e-4, max_timesteps=20)
    rates = []
    for step in range(20):
        if step == 14:
            trainer.treat(Treatment(learning_rate_factor=0.5))
        trainer.train_step()
        state = trainer.agent._critic_descent
        rates.append([optimizer.learning_rate for optimizer in state.optimizers])
    first = dict(zip(state.state_dict(), rates[0], strict=True))
    assert first["critic"] == trainer.config.critic_lr
    assert first["critic_visual_encoder"] == 1e-4
    for step, found in enumerate(rates[7:14], 8):
        assert found == pytest.approx([rate * (1 - step / 20) for rate in rates[0]])
    assert rates[16] == pytest.approx([0.5 * rate * (1 - 17 / 20) for rate in rates[0]])
    assert rates[19] == [0.0] * len(rates[0])


def test_a_shared_encoder_learns_from_the_critic_alone(small_vmamba: Build) -> None:
    trainer = small_vmamba(encoder_sharing="shared")
    assert set(trainer.components()) == {
        "critic_visual_encoder",
        "critic_state_encoder",
        "critic_mamba",
        "actor",
        "critic",
    }
    for _ in range(8):
        trainer.train_step()
    assert trainer.agent.find_stream("actor") is trainer.agent.find_stream("critic")
    assert list(trainer.agent._actor_descent.state_dict()) == ["actor"]


def test_acting_with_known_features_is_acting_without_at_a_quarter_of_the_encoding(small_vmamba: Build) -> None:
    trainer = small_vmamba(seq_len=4)
    env = trainer._make_evaluation_env()
    seen, _ = env.reset(seed=0)
    known, steps = FrameFeatures(), 40
    for step in range(steps):
        action = trainer.act(seen, known)
        assert np.array_equal(action, trainer.act(seen, FrameFeatures()))
        assert np.array_equal(action, trainer.act(seen, known))
        seen, *_ = env.step(np.array([0.4, 0.0, np.sin(step / 5)], dtype=np.float32))
    assert 4 * steps / known.num_encoded >= 3.5
    env.close()


def test_known_features_are_forgotten_when_the_weights_have_moved(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    env = trainer._make_evaluation_env()
    seen, _ = env.reset(seed=0)
    known = FrameFeatures()
    before = trainer.act(seen, known)
    for _ in range(12):
        trainer.train_step()
    after = trainer.act(seen, known)
    assert np.array_equal(after, trainer.act(seen, FrameFeatures()))
    assert not np.array_equal(before, after)
    env.close()


def test_an_evaluation_changes_nothing_that_training_reads(small_vmamba: Build) -> None:
    one, other = small_vmamba(), small_vmamba()
    for step in range(14):
        if step == 9:
            one.evaluate([3])
        one.train_step()
        other.train_step()
    assert hash_trainer(one) == hash_trainer(other)


def test_shifts_move_whole_windows_and_repeat_the_edges(small_vmamba: Build) -> None:
    trainer = small_vmamba(random_shift=2)
    for _ in range(8):
        trainer.train_step()
    depth = torch.arange(64, dtype=torch.uint8).view(1, 1, 1, 8, 8).expand(6, 2, 1, 8, 8).contiguous()
    windows = trainer.buffer.sample_windows(6)._replace(depth=depth.numpy(), next_depth=depth.numpy())
    batch = trainer.agent.load_batch(windows)
    assert not torch.equal(batch.depth, batch.next_depth), "the frames that follow move by numbers of their own"
    moved = batch.depth.mul(LEVELS).round().to(torch.uint8)
    found = set()
    for window in moved:
        assert torch.equal(window[0], window[1])
        rows, columns = window[0, 0, 4, 4].item() // 8 - 4, window[0, 0, 4, 4].item() % 8 - 4
        found.add((rows, columns))
        rows_at = (torch.arange(8) + rows).clamp(0, 7)
        columns_at = (torch.arange(8) + columns).clamp(0, 7)
        assert torch.equal(window[0, 0], depth[0, 0, 0][rows_at][:, columns_at])
    assert len(found) > 1
    assert all(abs(rows) <= 2 and abs(columns) <= 2 for rows, columns in found)


def test_depth_reaches_the_networks_as_numbers_up_to_one(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    for _ in range(8):
        trainer.train_step()
    windows = trainer.buffer.sample_windows(4)
    batch = trainer.agent.load_batch(windows)
    assert np.array_equal(batch.depth.numpy(), windows.depth.astype(np.float32) / np.float32(LEVELS))


def test_noise_shrinks_with_the_run(small_vmamba: Build) -> None:
    trainer = small_vmamba(max_timesteps=20, learning_starts=15, random_steps=0, ou_sigma=0.4, ou_sigma_min=0.1)
    for _ in range(11):
        trainer.train_step()
    assert trainer.noise.sigma == pytest.approx(0.4 * 0.5 + 0.1 * 0.5)  # type: ignore[attr-defined]


def list_faults(settings: dict[str, Any]) -> str:
    try:
        return "\n".join(fault.message for fault in build_config(settings).find_environment_faults())
    except SettingsError as error:
        return str(error)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"vmamba_patch_size": 16}, "frames of 8x8 pixels are smaller than one patch of vmamba_patch_size 16"),
        ({"vmamba_num_heads": 3}, "vmamba_num_heads (3) does not divide hidden_dim (8)"),
        ({"vmamba_num_vss_blocks": [1, 1]}, "vmamba_num_vss_blocks: [1, 1] are 2 numbers; there are 4 stages"),
        ({"env_kwargs": {"seq_len": 3}}, "env_kwargs.seq_len (3) is not seq_len (2)"),
        ({"env_name": "Pendulum-v1", "env_kwargs": {}}, "this trainer needs a Dict of base"),
        ({"buffer_size": 4, "seq_len": 4}, "buffer_size (4) holds no window of seq_len (4) frames"),
        ({"ou_sigma": 0.1, "ou_sigma_min": 0.2}, "ou_sigma_min (0.2) > ou_sigma (0.1): the noise would grow"),
        ({"encoder": "cnn"}, "frames of 8x8"),
    ],
)
def test_what_can_not_be_trained_is_refused_with_the_reason(settings: dict[str, Any], wanted: str) -> None:
    assert wanted in list_faults(SMALL | settings)


def test_keys_of_another_encoder_or_noise_are_switched_off() -> None:
    config = build_config(SMALL | {"encoder": "cnn", "exploration": "gaussian", "ou_theta": 0.2})
    off = config.inactive_keys()
    assert off["vmamba_patch_size"] == "encoder is cnn"
    assert off["ou_theta"] == "exploration is gaussian"


def test_the_documents_defaults_are_ours() -> None:
    config = build_config({"algorithm_name": "vmamba_td3"})
    wanted = {
        "env_name": "AirSimEnv-v42",
        "max_timesteps": 200_000,
        "buffer_size": 20_000,
        "batch_size": 128,
        "seq_len": 4,
        "learning_starts": 2_000,
        "grad_clip": 10.0,
        "gamma": 0.99,
        "tau": 0.005,
        "policy_noise": 0.2,
        "noise_clip": 0.2,
        "policy_freq": 2,
        "actor_lr": 5e-4,
        "critic_lr": 1e-3,
        "ou_theta": 0.15,
        "ou_sigma": 0.2,
        "ou_sigma_min": 0.01,
        "vmamba_patch_size": 16,
        "vmamba_hidden_dim": 64,
        "vmamba_num_vss_blocks": [2, 2, 4, 2],
        "vmamba_drop_path_rate": 0.1,
        "vmamba_layer_scale_init": 1e-6,
        "vmamba_ssm_d_state": 16,
        "vmamba_ssm_ratio": 2.0,
        "vmamba_mlp_ratio": 4.0,
        "vmamba_temporal_layers": 1,
        "vmamba_num_heads": 4,
        "feature_dim": 128,
        "state_feature_dim": 128,
        "hidden_dim": 256,
    }
    assert {key: value for key, value in config.resolved().items() if key in wanted} == wanted


def test_the_networks_of_another_run_are_taken_and_nothing_else(small_vmamba: Build) -> None:
    taught, heir, fresh = (small_vmamba(seed=seed) for seed in (1, 2, 2))
    for _ in range(13):
        taught.train_step()
    heir.take_weights(taught.state_dict())
    ours, theirs, before = (trainer.state_dict() for trainer in (heir, taught, fresh))
    for name in ("networks", "targets"):
        assert hash_state(ours["agent"].pop(name)) == hash_state(theirs["agent"][name])
        del before["agent"][name]
    assert hash_state(ours) == hash_state(before)
    with pytest.raises(WeightsError, match=r"networks is (of other sizes|built otherwise) there"):
        heir.take_weights(small_vmamba(hidden_dim=16).state_dict())
    for _ in range(8):
        heir.train_step()
