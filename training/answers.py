"""What is asked of settings before anything starts, answered by a process of its own. Imports no torch by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.memory import MemoryRoom, read_free_memory
from experiment.preflight import shape_key
from experiment.problems import Fault, SettingsError
from training.config import TrainerConfig
from training.trainers import TrainerEntry

PAGE = 4096
"""Bytes; what the kernel counts a process's memory in."""


class Answerer:
    """Answers about one lot of settings after another; what belongs to a shape is found once.

    Args:
        counts: whether parameters and memory are wanted, for which torch and the trainer are loaded.
        placed_on: `cpu`, or a GPU's bytes; None where nobody knows, and then nothing is too large.
        held_bytes: of memory that others have now and count as free.
        build_config: gives the config of settings.
        find_trainer: gives the trainer that settings name.
        import_trainers: imports a user's own modules.
    """

    def __init__(
        self,
        counts: bool,
        placed_on: str | None,
        held_bytes: int,
        build_config: Callable[[Mapping[str, Any]], TrainerConfig],
        find_trainer: Callable[[Mapping[str, Any]], TrainerEntry],
        import_trainers: Callable[[Sequence[str]], object],
    ) -> None:
        self._counts = counts
        self._placed_on = placed_on
        self._held_bytes = held_bytes
        self._build_config = build_config
        self._find_trainer = find_trainer
        self._import_trainers = import_trainers
        self._faults: dict[str, list[Fault]] = {}
        self._parameters: dict[str, dict[str, int]] = {}

    def answer(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Give faults and, where asked for, what was counted and predicted, as plain values."""
        config = self._build_config(settings)
        try:
            self._import_trainers(config.imports)
        except SettingsError as error:
            return {"faults": _plain(error.faults)}
        shape = shape_key(config.shape_settings())
        if shape not in self._faults:
            self._faults[shape] = config.find_environment_faults()
        if faults := self._faults[shape]:
            return {"faults": _plain(faults)}
        parameters = self._count(config, shape) if self._counts else None
        answer: dict[str, Any] = {"faults": _plain(self._find_memory_faults(config, parameters))}
        if parameters is not None:
            need = config.predict_memory(parameters, on_gpu=self._placed_on not in (None, "cpu"))
            host = read_rss_bytes() + need.host_bytes
            answer |= {"parameters": parameters, "memory": {"host_bytes": host, "gpu_bytes": need.gpu_bytes}}
        return answer

    def _count(self, config: TrainerConfig, shape: str) -> dict[str, int]:
        if shape not in self._parameters:
            import training.loop  # noqa: F401  a run loads it too, and its memory is measured here

            entry = self._find_trainer(config.model_dump())
            entry.import_trainer()
            self._parameters[shape] = entry.count_parameters(config)
        return self._parameters[shape]

    def _find_memory_faults(self, config: TrainerConfig, parameters: Mapping[str, int] | None) -> list[Fault]:
        if self._placed_on is None:
            return []
        gpu = None if self._placed_on == "cpu" else int(self._placed_on)
        return config.find_memory_faults(MemoryRoom(read_free_memory() + self._held_bytes, gpu), parameters)


def _plain(faults: Sequence[Fault]) -> list[tuple[tuple[str, ...], str]]:
    return [(fault.keys, fault.message) for fault in faults]


def read_rss_bytes() -> int:
    """Give the memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def answer_preflight(
    kind: str,
    placed_on: str | None,
    held_bytes: int,
    build_config: Callable[[Mapping[str, Any]], TrainerConfig],
    find_trainer: Callable[[Mapping[str, Any]], TrainerEntry],
    import_trainers: Callable[[Sequence[str]], object],
) -> int:
    """Answer about settings, JSON lines in and JSON lines out, and give the exit code; see `Answerer`."""
    answerer = Answerer(kind == "count", placed_on, held_bytes, build_config, find_trainer, import_trainers)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answerer.answer(json.loads(line))) + "\n")
        sys.stdout.flush()
    return 0
