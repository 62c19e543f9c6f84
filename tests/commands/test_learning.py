"""What the specs that are shipped promise, seen through `run_experiment.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.statistics import interquartile_mean
from experiment.plan import plan_runs
from experiment.spec import load_spec
from run_experiment import build_config

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "exp_specs").rglob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_spec_can_be_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = plan_runs(load_spec(path), tmp_path, build_config)
    assert plan.runs
    assert plan.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ddpg", "sac"])
def test_the_pendulum_is_learned_on_ten_seeds(
    tmp_path: Path, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "run_experiment.py",
        "-e",
        f"exp_specs/{algorithm}/pendulum.yaml",
        "-g",
        "cpu",
        "--plain",
        "--log-root",
        str(tmp_path),
    ]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, timeout=1800, capture_output=True)
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/summary.json")]
    means = [summary["final_eval"]["mean"] for summary in summaries]
    assert len(means) == 10
    iqm = float(interquartile_mean(means))
    with capsys.disabled():
        print(f"\n{algorithm}, Pendulum-v1, 10,000 steps, 10 seeds: IQM {iqm:.1f}, worst {min(means):.1f}")
    assert iqm >= -200
