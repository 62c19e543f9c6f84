"""`play.py render` as a user types it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import play

ROOT = Path(__file__).parents[2]
PILOT = ["render", "--policy", "scripted:straight_line", "--env", "DepthNavState-v0"]
SAC = {
    "algorithm_name": "sac",
    "env_name": "DepthNavState-v0",
    "env_kwargs": {"density": "easy"},
    "eval_env_kwargs": {"density": "hard", "max_episode_steps": 9},
    "max_timesteps": 30,
    "learning_starts": 20,
    "batch_size": 8,
    "hidden_dims": [8],
    "eval_freq": 0,
    "num_final_eval": 1,
    "device": "cpu",
}


def test_maps_strips_and_a_film_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps, strips, film = (tmp_path / "new" / name for name in ("maps.png", "strips.png", "film.gif"))
    kwargs = ["--env-kwargs", "density=hard", "max_episode_steps=12", "--seeds", "2000001", "3"]
    assert play.main([*PILOT, *kwargs, "-o", str(maps), "--strips", str(strips), "--video", str(film)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scripted:straight_line"
    assert [line.split(":")[0] for line in lines[1:3]] == ["seed 2000001", "seed 3"]
    assert lines[3:] == [f"picture: {maps}", f"picture: {strips}", f"film: {film}"]
    assert sorted(path.name for path in maps.parent.iterdir()) == ["film.gif", "maps.png", "strips.png"]
    for path in (maps, strips):
        with Image.open(path) as picture:
            assert (picture.format, picture.size[0] > 600) == ("PNG", True)
    with Image.open(film) as frames:
        assert frames.format == "GIF"
        assert frames.n_frames == sum(
            1 + int(10 * float(line.split("after ")[1].split(" s")[0])) for line in lines[1:3]
        )
        assert frames.info["duration"] == 100  # milliseconds: as fast as it was


def test_an_mp4_is_written_where_its_package_is(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    film = tmp_path / "film.mp4"
    kwargs = ["--env-kwargs", "max_episode_steps=5", "--episodes", "1"]
    assert play.main([*PILOT, *kwargs, "--video", str(film)]) == 0
    with imageio.get_reader(film, format="FFMPEG") as reader:
        assert reader.count_frames() == 6
        assert reader.get_meta_data()["fps"] == 10


def test_a_run_flies_where_it_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.yaml").write_text(json.dumps(SAC))
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-e", "settings.yaml", "--exp-name", "small"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (run,) = (tmp_path / "logs" / "small").glob("*__*")
    maps = tmp_path / "maps.png"
    assert play.main(["render", str(run), "-o", str(maps), "--episodes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run.name}, step_00000030"
    final = json.loads((run / "summary.json").read_text())["final_eval"]
    assert final["lengths"] == [9]
    assert lines[1] == f"seed 2000000: time is up after 0.9 s, return {final['returns'][0]:.1f}"
    assert (
        play.main(["render", str(run), "-o", str(maps), "--episodes", "1", "--env-kwargs", "max_episode_steps=4"]) == 0
    )
    assert "time is up after 0.4 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give either the folder of a run or --policy"),
        ("--policy random", "say what to draw: -o MAP.png, --strips FILE.png, --video FILE.mp4 or .gif"),
        ("--policy random -o map.jpg", "-o map.jpg: the picture is a .png"),
        ("--policy random --strips depth", "--strips depth: the picture is a .png"),
        ("--policy random --video film.avi", "--video film.avi: the film is an .mp4 or a .gif"),
        ("--policy random --video film.mp4", "an .mp4 needs imageio_ffmpeg; install gridpilot[video], or take a .gif"),
        ("--policy random -o map.png --episodes 0", "--episodes: give 1 or more"),
        ("--policy random --env Pendulum-v1 -o map.png", "Pendulum-v1 can't be drawn"),
        ("some -o map.png", "some is not a run folder"),
    ],
)
def test_bad_usage_is_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find_spec(name))
    try:
        code: int | str | None = play.main(["render", *words.split()])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_is_not_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analysis.film.draw_film", break_off)
    film = tmp_path / "film.gif"
    assert play.main([*PILOT, "--env-kwargs", "max_episode_steps=2", "--episodes", "1", "--video", str(film)]) == 1
    assert list(tmp_path.iterdir()) == []
