"""What features hold, on made-up ones whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import features
from analysis.features import NEAREST, analyse, list_quantities, shrink_frames
from analysis.readout import read_out, split_episodes
from analysis.spectra import (
    correlate_steps,
    find_constant,
    find_dormant,
    find_effective_rank,
    find_shape,
    project_components,
)
from analysis.traces import TraceError, write_trace
from tests.analysis.test_attention import make_trace

FIVE = [slice(100 * number, 100 * number + 100) for number in range(5)]


def draw(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_features_of_k_equal_directions_have_an_effective_rank_of_k(rank: int) -> None:
    basis = np.linalg.qr(draw(500, 16) - draw(500, 16).mean(0))[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0][:, :rank]
    turned = basis @ np.linalg.qr(draw(20, 20, 1))[0][:rank]
    assert find_effective_rank(turned + 100) == pytest.approx(rank)
    assert find_effective_rank(7 * turned) == pytest.approx(rank)


def test_effective_rank_counts_small_directions_by_their_size() -> None:
    basis = np.linalg.qr(draw(400, 2) - draw(400, 2).mean(0))[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    # Singular values 3 and 1: p = 3/4, 1/4, and exp(entropy) = 4 / 3^(3/4).
    assert find_effective_rank(basis * [3, 1]) == pytest.approx(4 / 3**0.75)
    assert find_effective_rank(np.full((50, 4), 0.3)) == 0


def test_constant_and_dormant_features_are_found() -> None:
    moving = draw(300, 6)
    moving[:, 1] = 5
    moving[:, 2] = 0
    moving[:, 3] *= 1e-3
    moving[:, 4] = 5 + 1e-7 * moving[:, 4]
    assert find_constant(moving).tolist() == [False, True, True, False, True, False]
    assert find_dormant(moving).tolist() == [False, False, True, True, False, False]
    shape = find_shape(moving, [slice(0, 300)])
    assert (shape.dim, shape.constant, shape.dormant) == (6, 0.5, pytest.approx(1 / 3))


def test_neighbours_correlate_as_they_were_made_to() -> None:
    steps = draw(20_000, 4)
    for number in range(1, len(steps)):
        steps[number] = 0.9 * steps[number - 1] + np.sqrt(1 - 0.81) * steps[number]
    assert correlate_steps(steps, [slice(0, len(steps))]) == pytest.approx(0.9, abs=0.02)
    assert correlate_steps(draw(20_000, 4), [slice(0, 20_000)]) == pytest.approx(0, abs=0.02)
    assert correlate_steps(np.ones((10, 2)), [slice(0, 10)]) is None


def test_neighbours_are_of_one_episode() -> None:
    alternating = np.repeat([[1.0], [-1.0]], 2, axis=0)
    assert correlate_steps(alternating, [slice(0, 2), slice(2, 4)]) == pytest.approx(1)
    assert correlate_steps(alternating, [slice(0, 4)]) == pytest.approx(1 / 3)


def test_a_linear_read_out_finds_what_is_there_and_nothing_else() -> None:
    held = draw(500, 12)
    targets = np.stack(
        [
            held @ draw(12, 1, 1)[:, 0] + 40,
            1e4 * held[:, 3] + 1e4 * draw(500, 1, 2)[:, 0],
            draw(500, 1, 3)[:, 0],
            np.ones(500),
            held[:, 0] ** 2,
        ],
        axis=1,
    )
    exact, half, nothing, never, curved = read_out(held * 1e-3 + 9, targets, FIVE)
    assert exact == pytest.approx(1, abs=1e-6)
    assert half == pytest.approx(0.5, abs=0.08)
    assert nothing == pytest.approx(0, abs=0.05)
    assert never is None
    assert curved == pytest.approx(0, abs=0.1)


def test_a_read_out_is_judged_on_episodes_that_it_has_not_seen() -> None:
    # Each episode has a name of its own in the features, and a level of its own in the target: nothing carries over.
    names = np.repeat(np.eye(5), 100, axis=0) + 0.01 * draw(500, 5)
    levels = np.repeat([1.0, -1.0, 2.0, -2.0, 0.5], 100)[:, None]
    (found,) = read_out(names, levels, FIVE)
    assert found is not None
    assert found < 0.1


def test_more_features_than_steps_are_no_read_out() -> None:
    (found,) = read_out(draw(60, 200), draw(60, 1, 5), [slice(20 * n, 20 * n + 20) for n in range(3)])
    assert found is not None
    assert found < 0.2


def test_an_episode_is_in_one_part_only() -> None:
    episodes = [slice(3 * number, 3 * number + 3) for number in range(7)]
    parts = split_episodes(21, episodes)
    assert len(parts) == 5
    assert sorted(np.concatenate(parts).tolist()) == list(range(21))
    assert parts[0].tolist() == [0, 1, 2, 15, 16, 17]


def test_components_are_those_of_the_largest_variance() -> None:
    places = draw(3_000, 2) * [3, 1]
    turned = places @ np.linalg.qr(draw(6, 6, 1))[0][:2]
    found, parts = project_components(turned + 4)
    assert abs(np.corrcoef(found[:, 0], places[:, 0])[0, 1]) > 0.99
    assert parts == pytest.approx([0.9, 0.1], abs=0.02)
    found, parts = project_components(np.arange(5.0)[:, None])
    assert found.tolist() == [[-2, 0], [-1, 0], [0, 0], [1, 0], [2, 0]]
    assert parts.tolist() == [1, 0]


def test_quantities_are_the_states_numbers_and_how_near_things_are() -> None:
    depth = np.full((4, 6, 16), 255, np.uint8)
    depth[2, 3, 5] = 51
    trace = make_trace([4], [[1.0]], depth=depth)
    known = list_quantities(trace)
    assert list(known)[:4] == ["base[0]", "base[1]", "base[2]", NEAREST]
    np.testing.assert_array_equal(known["base[1]"], trace.base[:, 1].astype(np.float64))
    assert known[NEAREST].tolist() == [1, 1, 0.2, 1]
    assert known[f"{NEAREST}, band 2"].tolist() == [1, 1, 0.2, 1]
    assert known[f"{NEAREST}, band 3"].tolist() == [1] * 4


def test_a_small_picture_has_the_means_of_a_grid() -> None:
    depth = np.zeros((1, 16, 24), np.uint8)
    depth[0, 2:4, 3:6] = 255
    small = shrink_frames(depth).reshape(8, 8)
    assert small[1, 1] == 1
    assert small.sum() == 1
    assert shrink_frames(np.full((2, 3, 5), 51, np.uint8)).tolist() == [[0.2] * 15] * 2


def test_a_file_becomes_a_page_with_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = make_trace([30, 40, 30], [[0.5, 0.5]])
    visual = np.concatenate([trace.base, trace.visual], axis=1)
    write_trace(tmp_path / "a.npz", replace(trace, visual=visual))
    assert features.main([str(tmp_path / "a.npz"), "--colour", "base[1]"]) == 0
    names = {path.name for path in tmp_path.iterdir()} - {"a.npz"}
    assert names == {"features.png", "features.pdf", "features.md", "features_shape.csv", "features_readout.csv"}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["base[2]"]]
    assert row[1] == "1.00"
    assert all(float(value) < 0.4 for value in row[2:])
    before = (tmp_path / "features.pdf").read_bytes()
    assert features.main([str(tmp_path / "a.npz"), "--colour", "base[1]"]) == 0
    assert (tmp_path / "features.pdf").read_bytes() == before


def test_few_episodes_are_not_read_out_and_unknown_colours_refused() -> None:
    findings = analyse(make_trace([30, 40], [[0.5, 0.5]]))
    assert [table.name for table in findings.tables] == ["shape"]
    assert "Nothing is read out: that takes 3 episodes or more." in findings.sentences
    with pytest.raises(TraceError, match="--colour 'blue': there is no such quantity; there are: base"):
        analyse(make_trace([5], [[1.0]]), "blue")
