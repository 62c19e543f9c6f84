"""What TD-MPC2's spec for the pendulum promises, and what of it is the planner's, the value's and the policy's.

Training takes half an hour. `LEARNING_LOGS` names a folder of logs, where runs that are finished aren't trained again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from experiment.run import Run
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.trainer import TDMPC2Trainer, build_trainer
from train import build_config
from training.evaluation import report_seeds
from training.restore import restore_trainer

ROOT = Path(__file__).parents[2]
STARTS = 10
MEAN, MEDIAN, WITHOUT_VALUE = -250, -150, -800
"""Of an evaluation on ten fixed starts; near-optimal is -106, and random actions get -1,091."""


def swing(folder: Path, *, mpc: bool = True, valued: bool = True) -> list[float]:
    """Give the returns of a trained run on the fixed starts.

    Args:
        folder: of the run.
        mpc: whether it plans.
        valued: whether plans have a value at their horizon.
    """
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    config = build_config(settings | {"mpc": mpc})
    assert isinstance(config, TDMPC2Config)
    trainer, _ = restore_trainer(Run.open(folder), "newest", lambda: build_trainer(config, torch.device("cpu")))
    if not valued:
        forget_value(trainer)
    evaluation = trainer.evaluate(report_seeds(STARTS))
    trainer.close()
    return list(evaluation.returns)


def forget_value(trainer: TDMPC2Trainer) -> None:
    """Have all values of a trainer's model be 0: even logits decode to the middle bin."""
    model = trainer.agent.model
    for network in (model.q, model.target_q):
        network.weights[-1].detach().zero_()
        network.biases[-1].detach().zero_()
    nothing: Tensor = model.two_hot.decode(model.value(torch.zeros(1, model.sizes.joint_dim), None))
    assert nothing.abs().max() < 1e-5


@pytest.mark.slow
def test_the_pendulum_is_swung_up_within_3000_steps_by_planning_to_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Path(os.environ.get("LEARNING_LOGS", str(tmp_path)))
    words = ["-e", "exp_specs/tdmpc2/pendulum.yaml", "-g", "cpu", "-j", "2", "--plain", "--log-root", str(logs)]
    subprocess.run([sys.executable, "run_experiment.py", *words], cwd=ROOT, check=True, timeout=5_000)
    folders = sorted((logs / "tdmpc2_pendulum").glob("seed=*"))
    assert len(folders) == 3
    for folder in folders:
        final = json.loads((folder / "summary.json").read_text())["final_eval"]["returns"]
        assert len(final) == STARTS
        blind, prior = swing(folder, valued=False), swing(folder, mpc=False)
        with capsys.disabled():
            print(
                f"\n{folder.name}: mean {statistics.mean(final):.0f}, median {statistics.median(final):.0f}; without a "
                f"value at the horizon {statistics.mean(blind):.0f}; the policy alone {statistics.mean(prior):.0f}"
            )
        assert statistics.mean(final) >= MEAN
        assert statistics.median(final) >= MEDIAN
        assert statistics.mean(blind) < WITHOUT_VALUE
