"""`play.py` as a user types it: recording, evaluating, looking, making reference sets."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import play
from envs.episodes import Episodes, open_episodes
from envs.recipes import BEST, MEDIUM, RECIPES, Amount, Part, Recipe
from playing.formats import FORMATS

ROOT = Path(__file__).parents[2]
PLAY = str(ROOT / "play.py")
SETTINGS = {
    "algorithm_name": "td3",
    "max_timesteps": 600,
    "learning_starts": 50,
    "batch_size": 16,
    "hidden_dims": [16, 16],
    "eval_freq": 200,
    "save_freq": 200,
    "keep_last": 5,
    "num_eval": 2,
    "num_final_eval": 3,
    "device": "cpu",
}


def run(folder: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, PLAY, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small TD3 run on Pendulum-v1, trained to its end."""
    folder = tmp_path_factory.mktemp("trained")
    settings = SETTINGS | {"env_name": "Pendulum-v1", "env_kwargs": {"g": 9.5}}
    (folder / "settings.yaml").write_text(json.dumps(settings))
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-e", "settings.yaml", "--exp-name", "small"],
        cwd=folder,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (found,) = (folder / "logs" / "small").glob("*__*")
    return found


def test_random_episodes_are_recorded_and_described(tmp_path: Path) -> None:
    answer = run(
        tmp_path,
        *[
            "record",
            "--env",
            "Pendulum-v1",
            "--policy",
            "random",
            "--episodes",
            "20",
            "--seed",
            "3",
            "-o",
            "some/random.h5",
        ],
    )
    recorded = open_episodes(tmp_path / "some" / "random.h5")
    assert len(recorded) == 20
    assert recorded.header.policy == {"kind": "random", "noise": 0.0, "seed": 3}
    lines = answer.stdout.splitlines()
    assert "2 episodes, 400 steps" in lines[0]
    info = run(tmp_path, "info", "some/random.h5").stdout.splitlines()
    assert info == lines[-len(info) :]
    assert f"SHA-256:     {recorded.sha256}" in info


def test_the_environments_arguments_are_kept(tmp_path: Path) -> None:
    words = "record --env Pendulum-v1 --policy random --steps 25 -o a.h5 --env-kwargs g=5 max_episode_steps=10"
    run(tmp_path, *words.split())
    recorded = open_episodes(tmp_path / "a.h5")
    assert recorded.lengths.tolist() == [10, 10, 5]
    assert recorded.header.env_kwargs == {"g": 5, "max_episode_steps": 10}


def test_a_scripted_policy_brings_its_environment_and_a_file_its_name(tmp_path: Path) -> None:
    run(tmp_path, *["record", "--policy", "scripted:pendulum_energy", "--noise", "0.3", "--episodes", "30"])
    recorded = open_episodes(tmp_path / "data" / "Pendulum-v1-pendulum_energy.h5")
    assert recorded.header.policy == {"kind": "scripted", "name": "pendulum_energy", "noise": 0.3, "seed": 0}
    assert recorded.returns().mean() > -220
    answer = run(tmp_path, *["record", "--policy", "scripted:pendulum_energy", "--episodes", "1"], expect=2)
    assert "is there already; give another with -o, or --overwrite" in answer.stderr
    run(tmp_path, *["record", "--policy", "scripted:pendulum_energy", "--episodes", "1", "--overwrite"])
    assert len(open_episodes(tmp_path / "data" / "Pendulum-v1-pendulum_energy.h5")) == 1


def test_a_runs_policy_is_recorded_with_its_name_and_hashes(tmp_path: Path, run_folder: Path) -> None:
    run(tmp_path, "record", "--policy", str(run_folder), *["--steps", "300", "-o", "a.h5"])
    recorded = open_episodes(tmp_path / "a.h5")
    assert (recorded.header.env_name, recorded.header.env_kwargs) == ("Pendulum-v1", {"g": 9.5})
    policy = recorded.header.policy
    assert policy["run"] == run_folder.name.rpartition("__")[2]
    assert policy["config_sha256"] == hashlib.sha256((run_folder / "config.yaml").read_bytes()).hexdigest()
    assert (policy["checkpoint"], policy["step"]) == ("step_00000600", 600)
    run(
        tmp_path,
        "record",
        "--policy",
        str(run_folder),
        "--checkpoint",
        "step_00000200",
        "--steps",
        "300",
        "-o",
        "b.h5",
    )
    other = open_episodes(tmp_path / "b.h5")
    assert other.header.policy["weights_sha256"] != policy["weights_sha256"]
    np.testing.assert_array_equal(other.observations[0], recorded.observations[0])
    assert not np.array_equal(other.actions, recorded.actions)


def test_evaluating_the_newest_checkpoint_gives_the_runs_own_final_evaluation(run_folder: Path) -> None:
    final = json.loads((run_folder / "summary.json").read_text())["final_eval"]
    answer = run(run_folder.parent, "evaluate", run_folder.name, "--episodes", "3")
    assert f"mean return {final['mean']:.1f} +/- {final['std']:.1f}" in answer.stdout
    assert "step_00000600" in answer.stdout
    best = json.loads((run_folder / "summary.json").read_text())["best_eval"]["step"]
    answer = run(run_folder.parent, "evaluate", run_folder.name, "--episodes", "1", "--checkpoint", "best")
    assert f"best_{best:08d}" in answer.stdout


def test_a_policy_is_exported_with_what_it_is_beside_it(
    tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "policy.pt"
    words = ["export", str(run_folder), "--format", "torchscript", "-o", str(out)]
    assert play.main(words) == 0
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "new" / "policy.pt.json").read_text())
    assert sorted(path.name for path in out.parent.iterdir()) == ["policy.pt", "policy.pt.json"]
    assert (facts["format"], facts["env_name"], facts["env_kwargs"]) == ("torchscript", "Pendulum-v1", {"g": 9.5})
    assert facts["policy"]["run"] == run_folder.name.rpartition("__")[2]
    assert (facts["policy"]["checkpoint"], facts["policy"]["step"]) == ("step_00000600", 600)
    assert (facts["obs"]["shape"], facts["obs"]["high"]) == ([3], [1.0, 1.0, 8.0])
    assert (facts["action"]["shape"], facts["action"]["low"], facts["action"]["dtype"]) == ([1], [-2.0], "float32")
    assert facts["checked"]["observations"] == 512
    assert facts["checked"]["largest_difference"] < 1e-5
    assert f"largest difference on 512 observations: {facts['checked']['largest_difference']:.1e}" in said
    act = FORMATS["torchscript"].load(out)
    recorded = open_run_policy(run_folder, tmp_path)
    np.testing.assert_allclose(act({"obs": recorded.observations[:200, 0]}), recorded.actions[:200, 0], atol=1e-5)
    with pytest.raises(SystemExit):
        play.main(words)
    assert "is there already; give another -o, or --overwrite" in capsys.readouterr().err
    assert play.main([*words, "--overwrite", "--checkpoint", "step_00000200"]) == 0
    assert json.loads((tmp_path / "new" / "policy.pt.json").read_text())["policy"]["step"] == 200


def open_run_policy(run_folder: Path, folder: Path) -> Episodes:
    """Give an episode of a run's policy, from another start than an export's."""
    out = folder / "recorded.h5"
    words = ["--episodes", "1", "--seed", "7", "-o", str(out)]
    assert play.main(["record", "--policy", str(run_folder), *words]) == 0
    return open_episodes(out)


def test_packages_that_an_export_needs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"onnx": object(), "onnxscript": None, "onnxruntime": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there[name])
    with pytest.raises(SystemExit) as ended:
        play.main(["export", "anything", "--format", "onnx", "-o", str(tmp_path / "policy.onnx")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--format onnx needs onnxscript, onnxruntime; install gridpilot[onnx]" in said


def test_torch_is_loaded_for_trained_policies_alone(tmp_path: Path) -> None:
    code = (
        "import sys, play; play.main('record --env Pendulum-v1 --policy random --episodes 1 -o a.h5'.split());"
        "play.main(['info', 'a.h5']); play.main(['list']);"
        "play.main('evaluate --policy random --env Pendulum-v1 --episodes 1'.split()); print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("record --policy random", "--policy random: say where, with --env"),
        ("record --policy randm --env Pendulum-v1", "did you mean 'random'"),
        (
            "record --policy scripted:nobody",
            "called 'nobody'; there are: drone_track_pid, pendulum_energy, privileged, straight_line",
        ),
        ("record --policy scripted:pendulum_energy --env Hopper-v5", "controls Pendulum-v1"),
        ("record --policy random --env Pendulum-v2", "did you mean 'Pendulum-v1'"),
        ("record --policy random --env CartPole-v1", "discrete actions"),
        ("record --policy random --env Pendulum-v1 --env-kwargs gravity=3", "has no argument 'gravity'"),
        ("record --policy random --env Pendulum-v1 --env-kwargs g", "--env-kwargs takes key=value"),
        ("record --policy random --env Pendulum-v1 --episodes 0", "--episodes: give 1 or more"),
        ("record --policy random --env Pendulum-v1 --steps -5", "--steps: give 1 or more"),
        ("record --policy random --env Pendulum-v1 --noise nan", "--noise: give 0 or more"),
        ("record --policy random --env Pendulum-v1 --seed -1", "--seed: give 0 or more"),
        ("record --policy . --steps 5", "is not a run folder: it has no config.yaml"),
        ("evaluate nowhere", "nowhere is not a run folder"),
        ("info nowhere.h5", "neither a reference set nor a file"),
        ("info pendulum-noisy", "isn't made yet; `python play.py make pendulum-noisy`"),
        ("make pendulum-nosy", "did you mean 'pendulum-noisy'"),
        ("", "required: command"),
    ],
)
def test_bad_usage_is_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: int | str | None = play.main(words.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_refused_for_another_environment_or_checkpoint(tmp_path: Path, run_folder: Path) -> None:
    answer = run(tmp_path, "record", "--policy", str(run_folder), "--env", "Hopper-v5", expect=2)
    assert "was trained in Pendulum-v1" in answer.stderr
    answer = run(tmp_path, "evaluate", str(run_folder), "--checkpoint", "step_00000300", expect=1)
    assert "neither newest, best nor one of those there" in answer.stderr
    assert "step_00000200, step_00000400, step_00000600" in answer.stderr
    answer = run(tmp_path, "evaluate", str(run_folder), "--device", "cuda:99", expect=3)
    assert "--device cuda:99: torch sees no such device" in answer.stderr


def test_two_that_want_a_set_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-u", PLAY, "make", "pendulum-expert"]
    makers = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)
    ]
    texts = [maker.communicate(timeout=240)[0] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0]
    assert sum("making pendulum-expert" in text for text in texts) == 1
    assert sum("is being made by another process; waiting" in text and "is there" in text for text in texts) == 1


def make_small_recipe(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    parts = (Part(MEDIUM, 0.1, Amount(steps=250)), Part(BEST, 0.3, Amount(episodes=1)))
    recipe = Recipe("small", "Pendulum-v1", parts, "seconds", expert=BEST, training=SETTINGS | changes, seed=5)
    monkeypatch.setitem(RECIPES, "small", recipe)


def test_a_set_of_trained_policies_trains_them_and_names_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path))
    # Better than random actions from its first step on, as a medium policy has to be.
    make_small_recipe(monkeypatch, base_controller="pendulum_energy", delta_scale_max=0.5)
    assert play.main(["make", "small"]) == 0
    out = capfd.readouterr().out
    assert "Eval num_timesteps=200" in out
    made = open_episodes(tmp_path / "small.h5")
    medium, best = made.header.policy["parts"]
    assert (medium["episodes"], medium["noise"], medium["seed"]) == (2, 0.1, 5)
    assert (best["episodes"], best["noise"], best["seed"]) == (1, 0.3, 6)
    assert made.lengths.tolist() == [200, 50, 200]
    assert set(made.header.policy["references"]) == {"random", "expert"}
    (folder,) = (tmp_path / "runs" / "small").glob("*__*")
    assert medium["run"] == best["run"] == folder.name.rpartition("__")[2]
    assert medium["checkpoint"].startswith("step_")
    assert best["checkpoint"].startswith("best_")
    (tmp_path / "small.h5").unlink()
    assert play.main(["make", "small"]) == 0
    assert "finished before" in capfd.readouterr().out
    assert open_episodes(tmp_path / "small.h5").sha256 == made.sha256
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path / "elsewhere"))
    assert play.main(["make", "small"]) == 0
    assert open_episodes(tmp_path / "elsewhere" / "small.h5").sha256 == made.sha256


def test_a_training_that_fails_leaves_no_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path))
    make_small_recipe(monkeypatch, batch_size=10_000)
    assert play.main(["make", "small"]) == 1
    said = capfd.readouterr().err
    assert "batch_size (10000) > max_timesteps (600)" in said
    assert "the training ended with exit code 2; `python play.py make small` goes on with it" in said
    assert not (tmp_path / "small.h5").exists()


def test_the_reference_sets_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path))
    assert play.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(RECIPES)
    assert f"not made yet; takes {RECIPES['pendulum-noisy'].takes}" in listed


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.training])
def test_the_settings_of_a_recipe_are_good_ones(name: str) -> None:
    from train import build_config

    recipe = RECIPES[name]
    assert recipe.training is not None
    config = build_config({"env_name": recipe.env_name} | dict(recipe.training))
    assert config.find_environment_faults() == []
    assert config.inactive_keys() == {}
    assert config.eval_freq == config.save_freq
    assert config.keep_last >= config.max_timesteps / config.save_every
