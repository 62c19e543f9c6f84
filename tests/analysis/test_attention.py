"""Attention of made-up traces whose answers are known."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import attention, inside
from analysis.attending import (
    Attended,
    average_by_age,
    average_episodes,
    count_frames,
    follow_episodes,
    list_attended,
    measure_change,
)
from analysis.attention_figure import choose_moments, find_frame
from analysis.traces import Trace, TraceError, list_arrays, read_trace, write_trace


def make_trace(lengths: list[int], weights: Any, **changes: Any) -> Trace:
    """Give a trace whose attention, (steps, heads, window), is given and whose other numbers are drawn."""
    generator, steps = np.random.default_rng(0), sum(lengths)
    episodes = [{"seed": 7 + number, "return": 1.5, "length": length} for number, length in enumerate(lengths)]
    header = {"name": "a run", "env_name": "Somewhere-v0", "env_kwargs": {}, "slides": True, "episodes": episodes}
    drawn = {
        name: generator.standard_normal((steps, 3)).astype(np.float32)
        for name in ("visual", "state", "context", "values", "action", "base")
    }
    depth = generator.integers(0, 256, (steps, 4, 5), dtype=np.uint8)
    header["base_names"] = [f"base[{number}]" for number in range(3)]
    attention = np.broadcast_to(np.asarray(weights, np.float32), (steps, *np.shape(weights)[-2:]))
    return Trace(
        **{"header": header, "attention": attention, "reward": np.zeros(steps), "depth": depth} | drawn | changes
    )


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    trace = make_trace([4, 3], [[0.25, 0.75]])
    write_trace(tmp_path / "new" / "a.npz", trace)
    back = read_trace(tmp_path / "new" / "a.npz")
    for name in list_arrays():
        np.testing.assert_array_equal(getattr(back, name), getattr(trace, name))
        assert getattr(back, name).dtype == getattr(trace, name).dtype
    assert back.header["episodes"] == trace.header["episodes"]
    assert back.list_episodes() == [slice(0, 4), slice(4, 7)]
    assert back.count_steps().tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    trace = make_trace([4], [[0.5, 0.5]])
    path.write_bytes(b"something else")
    with pytest.raises(TraceError, match="this is not what"):
        read_trace(path)
    np.savez(path, header=np.array("{}"))
    with pytest.raises(TraceError, match="this is not what"):
        read_trace(path)
    np.savez(path, header=np.array([{"format": "x"}], dtype=object))
    with pytest.raises(TraceError, match="pickle"):
        read_trace(path)
    write_trace(path, replace(trace, visual=trace.visual[:3]))
    with pytest.raises(TraceError, match=r"visual has shape \(3, 3\), and there are 4 steps"):
        read_trace(path)
    write_trace(path, replace(trace, context=np.full((4, 3), np.nan, np.float32)))
    with pytest.raises(TraceError, match="context has numbers that aren't finite"):
        read_trace(path)
    write_trace(path, trace)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TraceError, match="or is damaged"):
        read_trace(path)


def test_frames_taken_are_one_for_one_and_n_for_n_alike() -> None:
    weights = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(count_frames(weights), [1, 4, 2])
    # Shannon's own example: 1/2, 1/3, 1/6 have 1.4591 bits.
    assert np.log2(count_frames(np.array([1 / 2, 1 / 3, 1 / 6]))) == pytest.approx(1.4591, abs=1e-4)


def test_ages_count_from_the_newest_frame_and_padded_windows_are_left_out() -> None:
    weights = np.zeros((9, 2, 3), np.float32)
    weights[:, 0, 2] = 1  # head 0 takes the newest frame, head 1 the oldest
    weights[:, 1, 0] = 1
    weights[[0, 1, 5, 6]] = 1 / 3  # the first two steps of both episodes
    episodes = list_attended(make_trace([5, 4], weights))
    assert [len(episode.weights) for episode in episodes] == [3, 2]
    table = average_by_age(episodes)
    assert [[estimate.mean for estimate in head] for head in table] == [[1, 0, 0], [0, 0, 1]]
    assert episodes[0].ages.tolist() == [[0, 2]] * 3


def test_episodes_count_alike_however_long() -> None:
    steady = [Attended(np.tile([[[1.0, 0.0]]], (30, 1, 1))), Attended(np.tile([[[0.0, 1.0]]], (2, 1, 1)))]
    (head,) = average_by_age(steady)
    assert [estimate.mean for estimate in head] == [0.5, 0.5]
    assert (head[0].interval.low, head[0].interval.high) == (0, 1)


def test_an_interval_over_episodes_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    estimate = average_episodes(values)
    error = values.std() / 20
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.interval.high - estimate.interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert not average_episodes([1.0]).interval.exists


def test_an_episode_is_followed_from_its_first_part_to_its_last() -> None:
    rising = np.arange(20, dtype=np.float64)[:, None] * [1.0, 3.0]
    course = follow_episodes([rising, rising + 2, np.zeros((9, 2))])
    assert course is not None
    assert [estimate.mean for estimate in course] == [2 * (2 * part + 0.5) + 1 for part in range(10)]
    assert follow_episodes([np.zeros((9, 2))]) is None


def test_attention_that_stays_does_not_move_and_one_that_alternates_moves_by_half() -> None:
    swapped = np.array([[[1.0, 0.0], [0.3, 0.7]], [[0.0, 1.0], [0.3, 0.7]]])
    assert measure_change([Attended(np.tile(swapped, (4, 1, 1)))]) == pytest.approx([0.5, 0])


def test_no_full_window_is_said() -> None:
    with pytest.raises(TraceError, match="no episode fills a window of 4 frames: the longest has 3 steps"):
        list_attended(make_trace([3, 2], [[0.25] * 4]))


def test_drawn_windows_are_full_ones_where_there_are_some() -> None:
    assert choose_moments(31, 4) == [3, 12, 21, 30]
    assert choose_moments(2, 4) == [0, 1]
    assert [find_frame(2, age) for age in range(4)] == [2, 1, 0, 0]


@pytest.mark.parametrize("slides", [True, False])
def test_a_file_becomes_a_page_with_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slides: bool
) -> None:
    trace = make_trace([12, 14], [[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    write_trace(tmp_path / "a.npz", replace(trace, header=trace.header | {"slides": slides}))
    assert attention.main([str(tmp_path / "a.npz"), "-o", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"attention.png"} | ({"attention_windows.png"} if slides else set())
    assert names == pictures | {"attention.pdf", "attention.md", "attention_ages.csv", "attention_heads.csv"}
    page = (tmp_path / "out" / "attention.md").read_text()
    assert r"| 0 | 0.500 \[0.500, 0.500\] | 0.800 \[0.800, 0.800\] |" in page
    assert all(f"({name})" in page for name in pictures)
    assert "2 episodes, 22 steps, 2 heads over 3 frames" in capsys.readouterr().out
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    assert attention.main([str(tmp_path / "a.npz"), "-o", str(tmp_path / "out")]) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == before


def test_a_run_folder_is_traced_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "seed=1__0123456789abcdef"
    run.mkdir()
    asked: list[list[str]] = []

    def play(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        write_trace(Path(command[command.index("-o") + 1]), make_trace([5], [[0.5, 0.5]]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(inside.subprocess, "run", play)
    assert attention.main([str(run), "--episodes", "3", "--checkpoint", "best"]) == 0
    ((python, script, *words),) = asked
    assert (python, Path(script).name) == (sys.executable, "play.py")
    assert words == [
        *["trace", str(run), "--checkpoint", "best", "--episodes", "3", "--device", "cpu"],
        *["-o", str(run / "inside" / "trace.npz"), "--overwrite"],
    ]
    assert (run / "inside" / "attention.md").exists()
    monkeypatch.setattr(inside.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 3))
    assert attention.main([str(run)]) == 3


@pytest.mark.parametrize(("name", "said"), [("nowhere.npz", "No such file"), (".", "is not a run folder")])
def test_what_is_not_there_is_said_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert attention.main([str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
