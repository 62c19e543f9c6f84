"""What the specs that are shipped promise, seen through `run_experiment.py`."""

import json
import os
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
    # The guide to diffusion agents sweeps a key that half of its runs don't read, and names another one twice.
    known: tuple[str, ...] = ("is switched off in", "gives way to", "mean the same") if "diffusion" in str(path) else ()
    if "vmamba_td3" in str(path):
        known = ("(encoder is cnn)",)  # beside runs that do read the key
    assert [note for note in plan.notes if not any(words in note for words in known)] == []


def train_spec(spec: str, log_root: Path, *words: str, timeout: float = 5000) -> list[float]:
    """Run a spec and give the mean return of each run's final evaluation."""
    command = [sys.executable, "run_experiment.py", "-e", spec, "-g", "cpu", "--plain", "--log-root", str(log_root)]
    subprocess.run([*command, *words], cwd=ROOT, check=True, timeout=timeout, capture_output=True)
    summaries = [json.loads(path.read_text()) for path in log_root.glob("*/*/summary.json")]
    return [summary["final_eval"]["mean"] for summary in summaries]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ddpg", "sac"])
def test_the_pendulum_is_learned_on_ten_seeds(
    tmp_path: Path, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    means = train_spec(f"exp_specs/{algorithm}/pendulum.yaml", tmp_path)
    assert len(means) == 10
    iqm = float(interquartile_mean(means))
    with capsys.disabled():
        print(f"\n{algorithm}, Pendulum-v1, 10,000 steps, 10 seeds: IQM {iqm:.1f}, worst {min(means):.1f}")
    assert iqm >= -200


@pytest.mark.slow
def test_td3_gets_where_the_papers_does_in_its_first_hundred_thousand_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three seeds of HalfCheetah-v5, the spec's own or those in `LEARNING_SEEDS` ("7,8,9").

    The paper's ten have 5,519 on average at this point, 4,542 the lowest (learning_curves/ of its code).
    """
    seeds = os.environ.get("LEARNING_SEEDS", "100,200,300")
    # Evaluations cost a fifth of the time; the final one is what counts here.
    words = ["-j", "2", "-o", f"seed=[{seeds}]", "-o", "eval_freq=0"]
    means = train_spec("exp_specs/td3/halfcheetah.yaml", tmp_path, *words)
    assert len(means) == len(seeds.split(","))
    with capsys.disabled():
        print(f"\ntd3, HalfCheetah-v5, 100,000 steps, seeds {seeds}: {[round(mean) for mean in means]}")
    assert sum(means) / len(means) >= 4_500


@pytest.mark.slow
@pytest.mark.timeout(15_000)
@pytest.mark.parametrize("name", ["hopper_medium", "halfcheetah_medium"])
def test_a_diffusion_policy_gets_from_medium_data_what_the_baselines_get(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All runs are evaluated on the same starts; making the data set and nine baselines take an hour or two."""
    iqms = {}
    for algorithm in ("bc", "td3_bc", "iql"):
        words = ["-j", "2", "--only", f"algorithm_name={algorithm}"]
        means = train_spec(f"exp_specs/offline/{name}.yaml", tmp_path / algorithm, *words, timeout=10_000)
        assert len(means) == 3
        iqms[algorithm] = float(interquartile_mean(means))
    means = train_spec(f"exp_specs/diffusion/{name}.yaml", tmp_path / "diffusion", "-j", "2", timeout=10_000)
    iqms["diffusion"] = float(interquartile_mean(means))
    with capsys.disabled():
        print(f"\n{name}: IQM over three seeds {iqms}")
    assert iqms["diffusion"] >= 0.9 * max(iqms.values())
    assert iqms["diffusion"] >= 0.95 * iqms["bc"]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["vmamba", "cnn"])
def test_what_was_seen_first_is_recalled_by_a_window_that_reaches_back_and_by_no_other(
    tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer's sign is all that counts: a policy that says the same each time has 0 on average."""
    means = {}
    for steps in (4, 1):
        words = ["-j", "2", "--only", f"encoder={encoder}", "--only", f"seq_len={steps}"]
        means[steps] = train_spec("exp_specs/vmamba_td3/memory_cue.yaml", tmp_path / str(steps), *words)
        assert len(means[steps]) == 3
    with capsys.disabled():
        print(f"\n{encoder}, DepthRecall-v0, 3,000 steps, three seeds, by frames in a window: {means}")
    assert min(means[4]) > 0.9
    assert max(abs(mean) for mean in means[1]) < 0.5
