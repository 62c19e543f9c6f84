"""Small agents that plan; tests/rl/conftest.py keeps them on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.trainer import TDMPC2Trainer
from train import build_config

BuildTrainer = Callable[..., TDMPC2Trainer]

SMALL: dict[str, Any] = {
    "algorithm_name": "tdmpc2",
    "env_name": "Pendulum-v1",
    "model_size": 1,
    "mlp_dim": 16,
    "enc_dim": 16,
    "latent_dim": 16,
    "num_bins": 11,
    "num_samples": 16,
    "num_elites": 4,
    "num_pi_trajs": 4,
    "iterations": 2,
    "batch_size": 8,
    "learning_starts": 10,
    "max_timesteps": 60,
    "pretrain_updates": 3,
}


@pytest.fixture
def small_tdmpc2() -> Iterator[BuildTrainer]:
    """Give a function that builds a trainer of tiny networks; all are closed at the end."""
    built: list[TDMPC2Trainer] = []

    def build(**settings: Any) -> TDMPC2Trainer:
        config = build_config(SMALL | settings)
        assert isinstance(config, TDMPC2Config)
        trainer = TDMPC2Trainer(config, torch.device("cpu"))
        built.append(trainer)
        return trainer

    yield build
    for trainer in built:
        trainer.close()
