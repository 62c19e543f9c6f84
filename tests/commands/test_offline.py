"""Learning from a data set, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.episodes import Header, RecordedEpisode, gather_episodes, write_episodes
from envs.make import make_env

ROOT = Path(__file__).parents[2]
SMALL = [
    "hidden_dims=[8, 8]", "batch_size=16", "max_timesteps=60", "eval_freq=20", "num_eval=2", "num_final_eval=3",
    "log_freq=20", "seed=[1]",
]  # fmt: skip


def run(folder: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", str(ROOT / "exp_specs/offline/pendulum.yaml")]
    options = [word for setting in SMALL for word in ("-o", setting)]
    answer = subprocess.run(
        [*command, "-g", "cpu", "-j", "2", "--plain", "--log-root", "logs", *options, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Some short episodes of random actions in Pendulum-v1."""
    env = make_env("Pendulum-v1", {"max_episode_steps": 30})
    generator, episodes = np.random.default_rng(0), []
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        frames, actions, rewards = [obs], [], []
        for _ in range(30):
            actions.append(generator.uniform(-2, 2, 1).astype(np.float32))
            obs, reward, *_ = env.step(actions[-1])
            frames.append(obs)
            rewards.append([float(reward)])
        step = RecordedEpisode(
            np.array(frames, dtype=np.float32)[:, None],
            np.array(actions)[:, None],
            np.array(rewards, np.float32),
            False,
        )
        episodes.append(step)
    env.close()
    bound = np.full((1, 1), 2, dtype=np.float32)
    path = tmp_path / "some.h5"
    write_episodes(path, gather_episodes(Header("Pendulum-v1", {}, -bound, bound, {"kind": "random"}), episodes))
    return path


def test_the_shipped_spec_trains_all_baselines_and_the_report_compares_them(tmp_path: Path, store: Path) -> None:
    run(tmp_path, "-o", f"dataset={store.name}")
    summaries = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("logs/*/*/summary.json")}
    assert len(summaries) == 3
    assert {frozenset(summary["parameters"]) for summary in summaries.values()} == {
        frozenset({"actor"}),
        frozenset({"actor", "critic"}),
        frozenset({"actor", "critic", "value"}),
    }
    for folder, summary in summaries.items():
        assert (summary["env_steps"], summary["updates"], summary["steps"]) == (0, 60, 60)
        assert summary["resume"] == "exact"
        assert len(summary["final_eval"]["returns"]) == 3
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "eval/mean_reward" in row] == [20, 40, 60]
    report = (tmp_path / "logs/offline_pendulum/report/report.html").read_text()
    for algorithm in ("bc", "td3_bc", "iql"):
        assert algorithm in report
    assert (tmp_path / "logs/offline_pendulum/report/learning_curves.png").exists()


def test_a_data_set_that_cannot_be_used_starts_nothing(tmp_path: Path, store: Path) -> None:
    answer = run(tmp_path, "-o", "dataset=none.h5", expect=2)
    assert "none.h5" in answer.stderr
    answer = run(tmp_path, "-o", f"dataset={store.name}", "-o", "env_name=Hopper-v5", expect=2)
    assert "recorded in Pendulum-v1" in answer.stderr
    assert "env_name is Hopper-v5" in answer.stderr
    assert not (tmp_path / "logs").exists()
