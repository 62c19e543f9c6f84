"""A program of Hydra's, whose every job does a run's work; runs inside a virtual environment of its own.

python -m benchmarks.peers.launch_hydra --multirun hydra/launcher=joblib seed=0,1 truth=truth.log work_s=0.2
"""

from __future__ import annotations

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from benchmarks.peers.payload import work

ConfigStore.instance().store("run", {"seed": "???", "truth": "???", "work_s": "???"})


def do_job(config: DictConfig) -> float:
    """Do one job of a multirun."""
    return work(config.seed, config.truth, config.work_s)


if __name__ == "__main__":
    hydra.main(version_base="1.3", config_name="run", config_path=None)(do_job)()
