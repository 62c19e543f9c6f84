"""What a run's last digits depend on beside its settings: kept with it, and told at a resume where it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.protocol import ChoosesBackends, Trainer

PLAIN = ("device", "threads", "torch")
"""Those that every run has."""


def find_backends(trainer: Trainer) -> dict[str, str]:
    """Give what the trainer computes with on this machine, by what it is for; nothing where it has no choice."""
    return trainer.describe_backends() if isinstance(trainer, ChoosesBackends) else {}


def describe_trainer(trainer: Trainer) -> dict[str, Any]:
    """Give how a trainer resumes and what it computes with. Environments that can't be saved tell when a state is."""
    resume = {"resume": trainer.resume_mode, "resume_reason": trainer.resume_reason}
    return resume | {"backends": find_backends(trainer)}


def list_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Give a line for each fact that was another when a checkpoint was written.

    Args:
        before: the checkpoint's facts; in older ones no backends are named, and then nothing is said of them.
        now: the facts of this attempt.
    """
    pairs = {name: (before[name], now[name]) for name in PLAIN}
    if "backends" in before:
        known = before["backends"]
        pairs |= {name: (known[name], here) for name, here in now["backends"].items() if name in known}
    return [
        f"{name} was {was} and is {here} now: results may differ in their last digits"
        for name, (was, here) in pairs.items()
        if was != here
    ]
