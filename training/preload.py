"""What every run imports, for a process that runs are forked from."""

from __future__ import annotations

import importlib

COMMON = (
    "tensorboard.summary",
    "torch",
    "torch.utils.serialization",
    "training.loop",
    "training.manifest",
    "training.measures",
    "training.metrics",
    "training.seeding",
    "training.session",
)


def import_common() -> None:
    """Import what every trainer's run does."""
    for name in COMMON:
        importlib.import_module(name)
