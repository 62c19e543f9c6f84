"""What the training-health guard sees of the diffusion agents, also where they act for a few training steps alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffuser.utils.training import Trainer
from training.health import Decision, HealthGuard

WARMUP, PASSES = 4, 70
ONLINE: dict[str, Any] = {
    "online_training": True,
    "rl_warmup_steps": WARMUP,
    "rl_collect_freq": 1,
    "rl_update_freq": 1,
    "rl_collect_steps": 24,
    "max_timesteps": WARMUP + PASSES,
}
"""A pass has 36 denoising steps in batches of 5, so that 70 of them are 560 updates: two windows of the guard."""


def watch(folder: Path, trainer: Trainer, steps: int) -> list[Decision]:
    """Train under a guard, and give what it decided."""
    guard, updates = HealthGuard("warn", folder / "events.jsonl", "id", lambda line: None), 0
    for step in range(1, steps + 1):
        result = trainer.train_step()
        updates += result.updates
        guard.observe(step, updates, result)
    return guard.decisions


@pytest.mark.parametrize("network", ["policy", "value"])
def test_a_learning_rate_of_1_is_caught_in_a_short_online_phase(
    tmp_path: Path, build: Callable[..., Trainer], network: str
) -> None:
    decisions = watch(tmp_path, build(**ONLINE, rl_learning_rate=1.0), WARMUP + PASSES)
    (decision,) = (each for each in decisions if each.metric == f"health/weights_{network}")
    assert decision.verdict == "weights"
    assert 500 <= decision.updates < 560


def test_a_learning_rate_of_1_is_caught_offline(tmp_path: Path, build: Callable[..., Trainer]) -> None:
    decisions = watch(tmp_path, build(learning_rate=1.0, max_timesteps=500), 500)
    assert [(each.verdict, each.metric, each.updates) for each in decisions] == [
        ("weights", "health/weights_model", 500)
    ]


@pytest.mark.parametrize("settings", [ONLINE, {"max_timesteps": 600}], ids=["online", "offline"])
def test_healthy_agents_are_left_alone(tmp_path: Path, build: Callable[..., Trainer], settings: dict[str, Any]) -> None:
    trainer = build(**settings)
    assert watch(tmp_path, trainer, trainer.config.max_timesteps) == []
