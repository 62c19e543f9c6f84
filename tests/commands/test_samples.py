"""`play.py samples` as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import play
from envs.episodes import Header, RecordedEpisode, gather_episodes, write_episodes

ROOT = Path(__file__).parents[2]
DIFFUSION = {
    "diffusion": "models.DiffusionRL",
    "env_name": "Pendulum-v1",
    "max_timesteps": 6,
    "batch_size": 16,
    "vae_latent_dim": 3,
    "trajectory_latent_dim": 8,
    "hidden_dims": [16],
    "denoiser_hidden_dims": [16],
    "num_diffusion_steps": 10,
    "num_sampling_steps": 5,
    "eval_freq": 0,
    "num_final_eval": 0,
    "save_freq": 3,
    "device": "cpu",
}
CLONING = {
    "algorithm_name": "bc",
    "env_name": "Pendulum-v1",
    "max_timesteps": 2,
    "hidden_dims": [8],
    "eval_freq": 0,
    "num_final_eval": 0,
    "device": "cpu",
}


def train(folder: Path, name: str, settings: dict[str, object]) -> Path:
    (folder / "settings.yaml").write_text(json.dumps(settings | {"dataset": str(folder / "some.h5")}))
    command = [sys.executable, str(ROOT / "train.py"), "-e", "settings.yaml", "--exp-name", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    (run,) = (folder / "logs" / name).glob("*__*")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of the diffusion agent and one of behaviour cloning, on one data set."""
    folder, generator = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    episodes = [
        RecordedEpisode(
            observations=generator.standard_normal((31, 1, 3)).astype(np.float32),
            actions=generator.uniform(-2, 2, (30, 1, 1)).astype(np.float32),
            rewards=np.zeros((30, 1), dtype=np.float32),
            terminated=False,
        )
        for _ in range(4)
    ]
    bound = np.full((1, 1), 2, dtype=np.float32)
    write_episodes(folder / "some.h5", gather_episodes(Header("Pendulum-v1", {}, -bound, bound, {}), episodes))
    return {"diffusion": train(folder, "diffusion", DIFFUSION), "bc": train(folder, "bc", CLONING)}


def test_a_table_is_printed_and_a_picture_written_the_same_each_time(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["diffusion"]
    pictures = [run / "samples.png", tmp_path / "new" / "other.png"]
    assert play.main(["samples", str(run), "--windows", "50"]) == 0
    first = capsys.readouterr().out
    assert play.main(["samples", str(run), "--windows", "50", "--out", str(pictures[1])]) == 0
    again = capsys.readouterr().out
    assert first.splitlines()[:-1] == again.splitlines()[:-1]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    lines = first.splitlines()
    assert lines[0].startswith(f"run {run.name.rpartition('__')[2]}, step_00000006, 50 histories of ")
    assert lines[1].split()[:3] == ["Action", "Data", "mean"]
    assert len(lines[2].split()) == 9
    assert lines[-1] == f"picture: {pictures[0]}"
    assert play.main(["samples", str(run), "--checkpoint", "step_00000003", "-o", str(tmp_path / "early.png")]) == 0
    assert "step_00000003, 108 histories" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{bc}"], "is a run of bc; samples are drawn by vae_diffusion_rl alone"),
        (["{empty}"], "no checkpoint was ever finished; train the run first"),
        (["{diffusion}", "--checkpoint", "best"], "no best policy was kept"),
        (["nowhere"], "nowhere is not a run folder"),
        (["{diffusion}", "--windows", "1"], "--windows: give 2 or more"),
        (["{diffusion}", "--out", "picture.pdf"], "--out picture.pdf: the picture is a .png"),
    ],
)
def test_what_cannot_be_drawn_is_said_with_exit_code_2(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    empty = tmp_path / runs["diffusion"].name
    empty.mkdir()
    shutil.copy(runs["diffusion"] / "config.yaml", empty)
    named = {name: str(folder) for name, folder in (runs | {"empty": empty}).items()}
    try:
        code: int | str | None = play.main(["samples", *(word.format(**named) for word in words)])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*.png")} == set()


def test_a_policy_that_plans_with_drawn_noise_is_not_exported(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--format", "torchscript", "-o", str(tmp_path / "policy.pt")]
    assert play.main(["export", str(runs["diffusion"]), *words]) == 2
    said = capsys.readouterr().err
    assert "the policy of vae_diffusion_rl can't be exported: it is more than a module from one observation" in said
    assert list(tmp_path.iterdir()) == []
    assert play.main(["export", str(runs["bc"]), *words]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.pt", "policy.pt.json"]
