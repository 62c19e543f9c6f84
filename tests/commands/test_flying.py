"""What the quick spec of VMamba-TD3 promises of flights, seen through the programs.

Training takes hours. `LEARNING_LOGS` names a folder of logs, where runs that are finished aren't trained again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.statistics import Interval, wilson_interval

ROOT = Path(__file__).parents[2]
FLIGHTS = 100


def find_logs(tmp_path: Path) -> Path:
    """Give the folder of logs: kept from before, or a fresh one."""
    return Path(os.environ.get("LEARNING_LOGS", str(tmp_path)))


def train_spec(spec: str, log_root: Path, *words: str) -> None:
    """Have all runs of a spec finished."""
    command = [sys.executable, "run_experiment.py", "-e", spec, "-g", "cpu", "--plain", "--log-root", str(log_root)]
    subprocess.run([*command, "-j", "2", *words], cwd=ROOT, check=True, timeout=14_000, capture_output=True)


def evaluate(tmp_path: Path, *words: str) -> dict[str, Any]:
    """Evaluate a policy on the report seeds by `play.py`, and give what it wrote."""
    file = tmp_path / "evaluation.json"
    command = [sys.executable, "play.py", "evaluate", *words, "--json", str(file), "--workers", "2"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=3_000, capture_output=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def count_successes(evaluation: dict[str, Any]) -> int:
    """Give how many of its episodes were successes."""
    return sum(episode["is_success"] > 0 for episode in evaluation["episodes"])


def show(name: str, successes: int, flights: int) -> str:
    """Give a rate with its interval, as a line."""
    interval = wilson_interval(successes, flights)
    return f"{name}: {successes} of {flights}, {100 * interval.low:.1f} to {100 * interval.high:.1f} %"


@pytest.mark.slow
@pytest.mark.timeout(15_000)
def test_flying_by_depth_is_learned_and_is_done_by_what_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three seeds on 100 held-out layouts each, beside the pilot who flies straight; the CNN is told, not judged."""
    logs = find_logs(tmp_path)
    encoders = os.environ.get("LEARNING_ENCODERS", "vmamba,cnn").split(",")
    train_spec("exp_specs/vmamba_td3/quick.yaml", logs, *[w for e in encoders for w in ("--only", f"encoder={e}")])
    straight = evaluate(
        tmp_path,
        *("--policy", "scripted:straight_line", "--env", "DepthNavState-v0"),
        *("--env-kwargs", "layouts=held_out", "--episodes", "200"),
    )
    anchor = wilson_interval(count_successes(straight), 200)
    lines = [show("straight line", count_successes(straight), 200)]
    seeing, blind = {}, {}
    for encoder in encoders:
        runs = sorted((logs / "vmamba_td3_quick").glob(f"encoder={encoder},*"))
        assert len(runs) == 3
        flights = [evaluate(tmp_path, str(run), "--episodes", str(FLIGHTS)) for run in runs]
        words = ("--episodes", str(FLIGHTS), "--env-kwargs", "blind=true")
        covered = [evaluate(tmp_path, str(run), *words) for run in runs]
        counts = [count_successes(each) for each in flights]
        seeing[encoder] = wilson_interval(sum(counts), 3 * FLIGHTS)
        blind[encoder] = wilson_interval(sum(map(count_successes, covered)), 3 * FLIGHTS)
        lines += [show(f"{encoder} {counts}", sum(counts), 3 * FLIGHTS)]
        lines += [show(f"{encoder}, camera covered", sum(map(count_successes, covered)), 3 * FLIGHTS)]
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert is_above(seeing["vmamba"], anchor)
    assert is_above(seeing["vmamba"], blind["vmamba"])


def is_above(one: Interval, other: Interval) -> bool:
    """Tell whether one interval is above another and apart from it."""
    return one.low > other.high
