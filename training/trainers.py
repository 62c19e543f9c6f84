"""A row of the table of trainers, and what a user's own module adds to it. Imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.config import TrainerConfig

if TYPE_CHECKING:
    import torch

    from training.protocol import Trainer


@dataclass(frozen=True)
class TrainerEntry:
    """Where a trainer's parts are, as `module:name`, so that naming a trainer imports nothing.

    Attributes:
        config: a `TrainerConfig` class; its module must not import torch.
        build: a function `(config, device) -> Trainer`.
        count: a function `(config) -> {component: learnable parameters}`, computed without allocating memory.
    """

    config: str
    build: str
    count: str

    def load_config_class(self) -> type[TrainerConfig]:
        """Import and give the config class."""
        config_class = _load(self.config)
        if not (isinstance(config_class, type) and issubclass(config_class, TrainerConfig)):
            raise TypeError(f"{self.config} is not a TrainerConfig class")
        return config_class

    def import_trainer(self) -> None:
        """Import the trainer, torch with it."""
        _load(self.build)

    def build_trainer(self, config: TrainerConfig, device: torch.device) -> Trainer:
        """Import the trainer, torch with it, and build it on the device."""
        trainer: Trainer = _load(self.build)(config, device)
        return trainer

    def count_parameters(self, config: TrainerConfig) -> dict[str, int]:
        """Count learnable parameters by component, on torch's meta device."""
        counts: dict[str, int] = _load(self.count)(config)
        return counts


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
