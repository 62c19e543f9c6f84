"""Recorded episodes: what was written is what is opened, and what is wrong with a file is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.episodes import (
    EpisodeError,
    Episodes,
    Header,
    RecordedEpisode,
    check_episodes,
    gather_episodes,
    open_episodes,
    write_episodes,
)


def make_header(num_agents: int = 1, action_dim: int = 2) -> Header:
    high = np.full((num_agents, action_dim), 2.0, dtype=np.float32)
    return Header("Pendulum-v1", {"g": 9.81}, -high, high, {"kind": "random", "seed": 3})


def draw_episodes(lengths: list[int], num_agents: int = 1, seed: int = 0) -> Episodes:
    generator = np.random.default_rng(seed)
    episodes = [
        RecordedEpisode(
            observations=generator.standard_normal((length + 1, num_agents, 3)).astype(np.float32),
            actions=generator.uniform(-2, 2, (length, num_agents, 2)).astype(np.float32),
            rewards=generator.standard_normal((length, num_agents)).astype(np.float32),
            terminated=bool(length % 2),
        )
        for length in lengths
    ]
    return gather_episodes(make_header(num_agents), episodes)


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), num_agents=st.integers(1, 3))
def test_what_was_written_is_what_is_opened(
    lengths: list[int], num_agents: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = draw_episodes(lengths, num_agents)
    path = tmp_path_factory.mktemp("episodes") / "some.h5"
    write_episodes(path, written)
    opened = open_episodes(path)
    assert opened.sha256 == written.sha256
    assert (opened.num_steps, opened.num_agents, opened.obs_dim, opened.action_dim) == (sum(lengths), num_agents, 3, 2)
    for number in range(len(lengths)):
        mine, theirs = written.episode(number), opened.episode(number)
        assert len(theirs.observations) == len(theirs.actions) + 1 == lengths[number] + 1
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert mine.terminated == theirs.terminated
    assert opened.header.env_kwargs == {"g": 9.81}
    assert opened.header.policy == {"kind": "random", "seed": 3}


def test_returns_are_sums_of_an_episodes_rewards() -> None:
    episodes = draw_episodes([3, 1, 7])
    wanted = [float(episodes.episode(number).rewards.sum(dtype=np.float64)) for number in range(3)]
    np.testing.assert_allclose(episodes.returns(), wanted, rtol=1e-6)


def test_large_arrays_are_mapped_and_not_read(tmp_path: Path) -> None:
    write_episodes(tmp_path / "large.h5", draw_episodes([40_000]))
    opened = open_episodes(tmp_path / "large.h5")
    assert isinstance(opened.observations, np.memmap)
    assert not opened.observations.flags.writeable


def spoil(path: Path, name: str, row: int, value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][row] = value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("observations", np.nan, "observations, row 2: a number that isn't finite"),
        ("rewards", np.inf, "rewards, row 2: a number that isn't finite"),
        ("actions", 3.0, "actions, row 2: outside their bounds"),
        ("actions", 0.5, "its content changed"),
    ],
)
def test_a_spoilt_number_is_found(tmp_path: Path, name: str, value: float, words: str) -> None:
    write_episodes(tmp_path / "some.h5", draw_episodes([5, 4]))
    spoil(tmp_path / "some.h5", name, 2, value)
    with pytest.raises(EpisodeError, match=words):
        open_episodes(tmp_path / "some.h5")


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.h5"
    write_episodes(path, draw_episodes([500, 400]))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EpisodeError, match=r"some\.h5: can't be read"):
        open_episodes(path)


def test_a_missing_file_says_how_to_record_one(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"there is no such file; record one with `python play\.py record`"):
        open_episodes(tmp_path / "none.h5")


def test_no_episodes_are_refused() -> None:
    with pytest.raises(EpisodeError, match="there are no episodes"):
        gather_episodes(make_header(), [])


def test_episodes_of_other_shapes_are_refused() -> None:
    short, wide = draw_episodes([3]).episode(0), draw_episodes([3], num_agents=2).episode(0)
    with pytest.raises(EpisodeError, match="different shapes"):
        gather_episodes(make_header(), [short, wide])


@pytest.mark.parametrize(
    "change",
    [{"lengths": np.array([4, 4])}, {"lengths": np.array([9, 0])}, {"actions": np.zeros((9, 1, 3), np.float32)}],
)
def test_arrays_that_do_not_fit_together_are_refused(change: dict[str, Any]) -> None:
    episodes = draw_episodes([5, 4])
    with pytest.raises(EpisodeError):
        check_episodes(replace(episodes, **change))


def test_references_are_given_for_the_environment_that_they_were_measured_in() -> None:
    policy = {"kind": "recipe", "references": {"random": -1200.0, "expert": -130.0}}
    header = replace(make_header(), policy=policy)
    assert header.find_references({"g": 9.81}) == (-1200.0, -130.0)
    assert header.find_references({}) is None
    assert header.find_references({"g": 5.0}) is None
    assert make_header().find_references({"g": 9.81}) is None


def test_an_expert_that_is_not_better_than_random_actions_is_no_reference() -> None:
    header = replace(make_header(), policy={"kind": "recipe", "references": {"random": 3.0, "expert": 3.0}})
    assert header.find_references({"g": 9.81}) is None


@pytest.mark.parametrize("references", [3.0, {}, {"random": 1.0}, {"random": 1.0, "expert": "much"}])
def test_references_that_cannot_be_read_are_refused(references: Any) -> None:
    header = replace(make_header(), policy={"kind": "recipe", "references": references})
    with pytest.raises(EpisodeError, match="references in its header are"):
        check_episodes(replace(draw_episodes([3]), header=header))
