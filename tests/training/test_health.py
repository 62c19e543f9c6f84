"""The guard tells once for each name, and asks for a stop only where it may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.health import HealthGuard


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_makes_one_event(tmp_path: Path, value: float) -> None:
    said: list[str] = []
    guard = HealthGuard("warn", tmp_path / "events.jsonl", "0123456789abcdef", said.append)
    guard.check(7, 0, {"train/critic_loss": value, "train/actor_loss": 1.0})
    guard.check(8, 0, {"train/critic_loss": value})
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["event"] == "guard"
    assert event["run"] == "0123456789abcdef"
    assert event["verdict"] == "non-finite"
    assert (event["metric"], event["value"], event["step"]) == ("train/critic_loss", str(value), 7)
    assert len(said) == 1
    assert "train/critic_loss" in said[0]
    assert (guard.summary()["verdict"], guard.summary()["events"]) == ("non-finite", 1)


def test_finite_values_are_healthy_however_large(tmp_path: Path) -> None:
    guard = HealthGuard("stop", tmp_path / "events.jsonl", "id", print)
    guard.check(1, 0, {"train/actor_loss": -1e300})
    assert (guard.summary()["verdict"], guard.summary()["events"]) == ("healthy", 0)
    assert not guard.wants_stop
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize(("mode", "stops"), [("warn", False), ("stop", True)])
def test_only_the_stop_mode_asks_for_a_stop(tmp_path: Path, mode: Any, stops: bool) -> None:
    guard = HealthGuard(mode, tmp_path / "events.jsonl", "id", lambda line: None)
    guard.check(1, 0, {"loss": float("nan")})
    assert guard.wants_stop is stops


def test_a_resumed_guard_does_not_repeat_itself(tmp_path: Path) -> None:
    guard = HealthGuard("warn", tmp_path / "events.jsonl", "id", lambda line: None)
    guard.check(1, 0, {"loss": float("nan")})
    resumed = HealthGuard("warn", tmp_path / "events.jsonl", "id", lambda line: None)
    resumed.load_state_dict(guard.state_dict())
    resumed.check(2, 0, {"loss": float("nan"), "value_loss": float("inf")})
    assert [event["metric"] for event in read_events(tmp_path / "events.jsonl")] == ["loss", "value_loss"]
    assert resumed.summary()["events"] == 2
