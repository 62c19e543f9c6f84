"""One spec in, a grid of runs out. Never imports torch, numpy or pandas; see `experiment/cli.py` for what happens."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from experiment.cli import main
from experiment.identity import CheckedConfig


def build_config(settings: Mapping[str, Any]) -> CheckedConfig:
    """Check the settings of one run, by the table of trainers in `train.py`."""
    from train import build_config

    return build_config(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], build_config))
