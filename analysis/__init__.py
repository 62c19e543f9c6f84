"""From run folders to tables, figures and a report. Reads `logs/`, never trains, imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.load import ExperimentData

__all__ = ["load_runs"]


def load_runs(experiment_dir: Path | str, include_repaired: bool = False) -> ExperimentData:
    """Read an experiment's folder as tidy frames; see `analysis.load.load_runs`. Imports pandas when called."""
    from analysis.load import load_runs as load

    return load(experiment_dir, include_repaired)
