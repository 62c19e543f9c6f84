"""Small agents that look at small frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.trainer import VMambaTD3Trainer
from train import build_config

BuildTrainer = Callable[..., VMambaTD3Trainer]

SMALL: dict[str, Any] = {
    "algorithm_name": "vmamba_td3",
    "env_name": "DepthNav-v0",
    "env_kwargs": {"height": 8, "width": 8, "num_obstacles": 5},
    "vmamba_patch_size": 4,
    "vmamba_hidden_dim": 4,
    "vmamba_num_vss_blocks": [1, 1, 1, 1],
    "vmamba_mlp_ratio": 1.0,
    "vmamba_ssm_d_state": 2,
    "vmamba_num_heads": 2,
    "feature_dim": 8,
    "state_feature_dim": 8,
    "hidden_dim": 8,
    "batch_size": 4,
    "seq_len": 2,
    "max_timesteps": 200,
    "learning_starts": 6,
    "buffer_size": 60,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on several threads wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_vmamba() -> Iterator[BuildTrainer]:
    """Give a function that builds a trainer of tiny networks; all are closed at the end."""
    built: list[VMambaTD3Trainer] = []

    def build(**settings: Any) -> VMambaTD3Trainer:
        config = build_config(SMALL | settings)
        assert isinstance(config, VMambaTD3Config)
        trainer = VMambaTD3Trainer(config, torch.device("cpu"))
        built.append(trainer)
        return trainer

    yield build
    for trainer in built:
        trainer.close()
