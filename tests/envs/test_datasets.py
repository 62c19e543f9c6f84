"""Data sets by name or path: each format gives the episodes that were put into it, and what is wrong is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from envs.datasets import find_dataset, load_dataset
from envs.episodes import EpisodeError, Episodes, Header, RecordedEpisode, gather_episodes, write_episodes
from envs.recipes import RECIPES, find_set_path

Arrays = dict[str, NDArray[Any]]


def keep_quiet(line: str) -> None:
    """Take what is said and leave it."""


def load(path: Path | str) -> Episodes:
    return load_dataset(str(path), keep_quiet)


def draw_episodes(lengths: list[int], num_agents: int = 1) -> Episodes:
    """Episodes with actions in [-1, 1]; the first, the third, ... ended by their task."""
    generator = np.random.default_rng(0)
    high = np.ones((num_agents, 2), dtype=np.float32)
    recorded = [
        RecordedEpisode(
            generator.standard_normal((length + 1, num_agents, 3)).astype(np.float32),
            generator.uniform(-1, 1, (length, num_agents, 2)).astype(np.float32),
            generator.standard_normal((length, num_agents)).astype(np.float32),
            terminated=number % 2 == 0,
        )
        for number, length in enumerate(lengths)
    ]
    return gather_episodes(Header("", {}, -high, high, {}), recorded)


def compare(read: Episodes, written: Episodes) -> None:
    assert len(read) == len(written)
    for number in range(len(written)):
        mine, theirs = read.episode(number), written.episode(number)
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert mine.terminated == theirs.terminated


def compare_without_last_steps(read: Episodes, written: Episodes) -> None:
    assert read.lengths.tolist() == (written.lengths - 1).tolist()
    assert not read.terminated.any()
    for number in range(len(written)):
        mine, theirs = read.episode(number), written.episode(number)
        np.testing.assert_array_equal(mine.observations, theirs.observations[:-1])
        np.testing.assert_array_equal(mine.actions, theirs.actions[:-1])
        np.testing.assert_array_equal(mine.rewards, theirs.rewards[:-1])


# D4RL


def make_d4rl(written: Episodes) -> Arrays:
    """The arrays of a file as D4RL has it, with next observations."""
    episodes = [written.episode(number) for number in range(len(written))]
    ends = np.cumsum(written.lengths) - 1
    terminals, timeouts = np.zeros(written.num_steps, bool), np.zeros(written.num_steps, bool)
    terminals[ends], timeouts[ends] = written.terminated, ~written.terminated
    return {
        "observations": np.concatenate([episode.observations[:-1, 0] for episode in episodes]),
        "next_observations": np.concatenate([episode.observations[1:, 0] for episode in episodes]),
        "actions": written.actions[:, 0].copy(),
        "rewards": written.rewards[:, 0].copy(),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def write_hdf5(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def test_d4rl_gives_its_episodes_with_their_last_frames(tmp_path: Path) -> None:
    written = draw_episodes([5, 3, 7])
    path = write_hdf5(tmp_path / "some.hdf5", make_d4rl(written))
    compare(load(path), written)
    assert load(path).header.env_name == ""
    assert load(path).header.policy == {"kind": "unknown", "format": "d4rl"}


def test_d4rl_without_next_observations_loses_last_steps_and_says_so(tmp_path: Path) -> None:
    written = draw_episodes([5, 3, 7])
    arrays = make_d4rl(written)
    del arrays["next_observations"]
    lines: list[str] = []
    read = load_dataset(str(write_hdf5(tmp_path / "some.hdf5", arrays)), lines.append)
    compare_without_last_steps(read, written)
    assert "the last step of each of its 3 episodes is left out" in lines[0]


def test_a_last_episode_that_nothing_ended_is_cut_off_by_the_file(tmp_path: Path) -> None:
    arrays = {name: array[:-2] for name, array in make_d4rl(draw_episodes([5, 6])).items()}
    read = load(write_hdf5(tmp_path / "some.hdf5", arrays))
    assert read.lengths.tolist() == [5, 4]
    assert read.terminated.tolist() == [True, False]


def change(name: str, value: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], None]:
    def apply(arrays: Arrays) -> None:
        arrays[name] = value(arrays[name])

    return apply


def drop(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__delitem__(name)


def put(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def apply(array: NDArray[Any]) -> NDArray[Any]:
        changed = np.array(array)
        changed.reshape(-1)[4] = value
        return changed

    return apply


def empty_all(arrays: Arrays) -> None:
    for name in list(arrays):
        arrays[name] = arrays[name][:0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("timeouts"), "D4RL's timeouts missing; there are: actions"),
        (change("observations", lambda array: array[:, :, None]), "observations must have 2 axes"),
        (change("actions", lambda array: array[:, 0]), "actions must have 2 axes"),
        (change("rewards", lambda array: array[:-3]), r"numbers of rows differ: .*rewards \(12,\).* cut short"),
        (change("next_observations", lambda array: array[:, :2]), "differ in shape"),
        (change("observations", put(np.nan)), "observations, row 1: a number that isn't finite"),
        (change("rewards", put(np.inf)), "rewards, row 4: a number that isn't finite"),
        (change("rewards", lambda array: array.astype(np.float64) * 1e300), "rewards, row 0: a number that isn't"),
        (change("actions", put(1.5)), "doesn't tell the bounds of actions, and they reach 1.5"),
        (change("actions", lambda array: array.astype(np.int64)), "whole numbers"),
        (change("rewards", lambda array: array.astype("S8")), "rewards hold"),
        (change("timeouts", np.zeros_like), "row 8 doesn't begin where row 7 ended"),
        (empty_all, "there are no episodes"),
    ],
)
def test_what_is_wrong_with_a_file_of_d4rl_is_said(tmp_path: Path, spoil: Callable[[Arrays], None], words: str) -> None:
    arrays = make_d4rl(draw_episodes([5, 3, 7]))
    spoil(arrays)
    path = write_hdf5(tmp_path / "some.hdf5", arrays)
    with pytest.raises(EpisodeError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


# Minari

Minari = dict[str, Any]


def write_minari(folder: Path, written: Episodes, **metadata: Any) -> Path:
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-3.0, -1.0], "high": [3.0, 1.0]}
    facts = {
        "data_format": "hdf5",
        "dataset_id": "some/set-v0",
        "observation_space": json.dumps(box | {"shape": [3]}),
        "action_space": json.dumps(box),
        "env_spec": json.dumps({"id": "Pendulum-v1", "kwargs": {"g": 9.81}, "max_episode_steps": 200}),
    }
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text(json.dumps(facts | metadata))
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number in range(len(written)):
            episode = written.episode(number)
            last = np.arange(len(episode.actions)) == len(episode.actions) - 1
            group = file.create_group(f"episode_{number}")
            group["observations"], group["actions"] = episode.observations[:, 0], episode.actions[:, 0]
            group["rewards"] = episode.rewards[:, 0].astype(np.float64)
            group["terminations"], group["truncations"] = last & episode.terminated, last & (not episode.terminated)
    return folder


def test_minari_gives_its_episodes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    written = draw_episodes([2, 3, 2, 5, 2, 3, 2, 4, 2, 3, 2, 6])
    folder = write_minari(tmp_path / "set", written)
    for path in (folder, folder / "data", folder / "data" / "main_data.hdf5"):
        compare(load(path), written)
    header = load(folder).header
    assert (header.env_name, header.env_kwargs) == ("Pendulum-v1", {"g": 9.81})
    np.testing.assert_array_equal(header.action_high, np.float32([[3.0, 1.0]]))
    assert header.policy == {"kind": "unknown", "format": "minari", "dataset_id": "some/set-v0"}


def test_minari_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    written = draw_episodes([2, 3])
    write_minari(tmp_path / "mujoco/hopper/medium-v0", written)
    compare(load("minari:mujoco/hopper/medium-v0"), written)
    with pytest.raises(EpisodeError, match=r"did you mean 'mujoco/hopper/medium-v0'.*`minari download"):
        load("minari:mujoco/hopper/medium-v1")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(EpisodeError, match="nowhere: none"):
        load("minari:mujoco/hopper/medium-v0")


def test_minari_without_metadata_takes_plain_bounds(tmp_path: Path) -> None:
    folder = write_minari(tmp_path / "set", draw_episodes([2, 3]))
    (folder / "data" / "metadata.json").unlink()
    np.testing.assert_array_equal(load(folder).header.action_high, np.ones((1, 2), np.float32))


@pytest.mark.parametrize(
    ("key", "space", "words"),
    [
        ("action_space", {"type": "Discrete", "n": 3}, "actions are a Discrete; only flat vectors"),
        ("observation_space", {"type": "Dict", "subspaces": {}}, "observations are a Dict"),
        ("observation_space", {"type": "Box", "shape": [8, 8, 3]}, r"observations are a Box of shape \[8, 8, 3\]"),
    ],
)
def test_minari_has_to_have_flat_boxes(tmp_path: Path, key: str, space: Any, words: str) -> None:
    folder = write_minari(tmp_path / "set", draw_episodes([2, 3]), **{key: json.dumps(space)})
    with pytest.raises(EpisodeError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("observations", np.zeros((3, 3)), "episode_1: observations have the shape .* 3 steps need 4"),
        ("actions", np.zeros((3, 5)), "shape"),
        ("rewards", np.zeros(2), "episode_1: the numbers of rows differ"),
        ("rewards", np.full(3, np.nan), "rewards, row 2: a number that isn't finite"),
        ("actions", np.full((3, 2), 2.5), "actions, row 2: outside their bounds"),
        ("terminations", np.array([True, False, False]), "goes on after its task ended, in step 0"),
    ],
)
def test_what_is_wrong_with_an_episode_of_minari_is_said(
    tmp_path: Path, name: str, value: NDArray[Any], words: str
) -> None:
    folder = write_minari(tmp_path / "set", draw_episodes([2, 3]))
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1"][name]
        file["episode_1"][name] = value
    with pytest.raises(EpisodeError, match=words):
        load(folder)


def test_minari_with_broken_metadata_is_refused(tmp_path: Path) -> None:
    folder = write_minari(tmp_path / "set", draw_episodes([2, 3]))
    (folder / "data" / "metadata.json").write_text("{")
    with pytest.raises(EpisodeError, match=r"metadata\.json: not the metadata of a Minari data set"):
        load(folder)


def test_minari_without_episodes_or_steps_is_refused(tmp_path: Path) -> None:
    folder = write_minari(tmp_path / "set", draw_episodes([2, 3]))
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        for name, rows in (("observations", 1), ("actions", 0), ("rewards", 0), ("terminations", 0)):
            array = file["episode_0"][name][:rows]
            del file["episode_0"][name]
            file["episode_0"][name] = array
    with pytest.raises(EpisodeError, match="one without a step"):
        load(folder)
    with h5py.File(folder / "data" / "main_data.hdf5", "w"):
        pass
    with pytest.raises(EpisodeError, match=r"it has: nothing"):
        load(folder)


def test_arrow_data_of_minari_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = write_minari(tmp_path / "set-v0", draw_episodes([2, 3]))
    (folder / "data" / "main_data.hdf5").unlink()
    for name in ("minari:set-v0", str(folder)):
        with pytest.raises(EpisodeError, match="only Minari's HDF5 layout can be read"):
            load(name)


# MADiff


def make_joint(written: Episodes) -> Arrays:
    episodes = [written.episode(number) for number in range(len(written))]
    return {
        "obs": np.concatenate([episode.observations[:-1] for episode in episodes]),
        "actions": np.array(written.actions),
        "rewards": np.array(written.rewards),
        "path_lengths": np.array(written.lengths),
    }


def make_particles(written: Episodes, seed: str) -> Arrays:
    joint = make_joint(written)
    arrays = {}
    for agent in range(written.num_agents):
        arrays[f"{seed}/obs_{agent}"] = joint["obs"][:, agent]
        arrays[f"{seed}/acs_{agent}"] = joint["actions"][:, agent]
        arrays[f"{seed}/rews_{agent}"] = joint["rewards"][:, agent]
        arrays[f"{seed}/dones_{agent}"] = np.zeros(written.num_steps)
    return arrays


def write_npy(folder: Path, arrays: Arrays) -> Path:
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    return folder


def test_madiff_with_all_agents_in_one_array(tmp_path: Path) -> None:
    written = draw_episodes([5, 3, 7], num_agents=2)
    lines: list[str] = []
    read = load_dataset(str(write_npy(tmp_path, make_joint(written))), lines.append)
    compare_without_last_steps(read, written)
    assert read.num_agents == 2
    assert "the last step of each of its 3 episodes is left out" in lines[0]


def test_madiff_with_a_reward_for_all_agents(tmp_path: Path) -> None:
    written = draw_episodes([5, 3], num_agents=2)
    arrays = make_joint(written)
    arrays["rewards"] = arrays["rewards"][:, :1]
    read = load(write_npy(tmp_path, arrays))
    np.testing.assert_array_equal(read.rewards[:, 0], read.rewards[:, 1])
    np.testing.assert_array_equal(read.episode(0).rewards[:, 0], written.episode(0).rewards[:-1, 0])


def test_madiff_with_arrays_of_each_agent_in_folders_of_seeds(tmp_path: Path) -> None:
    written = draw_episodes([25, 25, 25], num_agents=3)
    folder = write_npy(tmp_path, make_particles(written, "seed_0_data") | make_particles(written, "seed_1_data"))
    read = load(folder)
    assert read.lengths.tolist() == [24] * 6
    compare_without_last_steps(load(folder / "seed_1_data"), written)


def test_an_episode_of_particles_ends_where_all_agents_are_done(tmp_path: Path) -> None:
    arrays = make_particles(draw_episodes([25, 25], num_agents=2), "seed_0_data")
    arrays["seed_0_data/dones_0"][[3, 9]] = 1
    arrays["seed_0_data/dones_1"][9] = 1
    read = load(write_npy(tmp_path, arrays))
    assert read.lengths.tolist() == [9, 24, 14]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("rewards"), r"rewards\.npy: there is no such file"),
        (change("obs", lambda array: array[:, 0]), "obs must have 3 axes"),
        (change("obs", lambda array: array[:-1]), "numbers of rows differ"),
        (change("actions", lambda array: array[:, :1]), "the second axis counts agents, and differs"),
        (change("path_lengths", lambda array: array[:-1]), "path_lengths add up to 8 steps, and obs.npy has 15"),
        (change("path_lengths", lambda array: array * 1.0), "path_lengths must be whole numbers above 0"),
        (change("obs", put(np.nan)), "observations, row 0: a number that isn't finite"),
        (change("actions", put(-7.0)), "reach 7"),
        (change("actions", lambda array: array.astype(np.int64)), "discrete actions can't be used"),
        (empty_all, "there are no episodes"),
    ],
)
def test_what_is_wrong_with_a_folder_of_madiff_is_said(
    tmp_path: Path, spoil: Callable[[Arrays], None], words: str
) -> None:
    arrays = make_joint(draw_episodes([5, 3, 7], num_agents=2))
    spoil(arrays)
    with pytest.raises(EpisodeError, match=words):
        load(write_npy(tmp_path, arrays))


def test_agents_that_observe_differently_are_refused(tmp_path: Path) -> None:
    arrays = make_particles(draw_episodes([25], num_agents=2), "seed_0_data")
    arrays["seed_0_data/obs_1"] = arrays["seed_0_data/obs_1"][:, :2]
    with pytest.raises(EpisodeError, match=r"all agents need arrays of one shape .* obs_1\.npy \(25, 2\)"):
        load(write_npy(tmp_path, arrays))


def test_an_array_that_is_cut_short_or_holds_objects_is_refused(tmp_path: Path) -> None:
    folder = write_npy(tmp_path, make_joint(draw_episodes([50, 30])))
    content = (folder / "actions.npy").read_bytes()
    (folder / "actions.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(EpisodeError, match=r"actions\.npy: can't be read"):
        load(folder)
    (folder / "actions.npy").write_text("no array")
    with pytest.raises(EpisodeError, match=r"actions\.npy: can't be read"):
        load(folder)
    np.save(folder / "actions.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(EpisodeError, match=r"actions\.npy: can't be read"):
        load(folder)


# Any


def test_our_own_file_is_opened_by_its_path(tmp_path: Path) -> None:
    written = draw_episodes([4, 6])
    write_episodes(tmp_path / "mine.hdf5", written)
    assert load(tmp_path / "mine.hdf5").sha256 == written.sha256


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.h5"
    path.write_bytes(content)
    with pytest.raises(EpisodeError, match=r"some\.h5: (not an HDF5 file|can't be read)"):
        load(path)


def test_hdf5_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "some.h5", {"pictures": np.zeros(3)})
    with pytest.raises(EpisodeError, match=r"neither ours, D4RL's .* it has: pictures"):
        load(path)


def test_every_format_cut_short_is_refused(tmp_path: Path) -> None:
    written = draw_episodes([300, 200])
    write_episodes(tmp_path / "ours.h5", written)
    write_hdf5(tmp_path / "d4rl.h5", make_d4rl(written))
    minari = write_minari(tmp_path / "minari", written) / "data" / "main_data.hdf5"
    for path in (tmp_path / "ours.h5", tmp_path / "d4rl.h5", minari):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(EpisodeError, match="can't be read"):
            load(path)


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="a folder without a data set"):
        load(tmp_path)


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(EpisodeError, match="did you mean 'pendulum-noisy'") as caught:
        find_dataset("pendulum-nosy")
    assert all(name in str(caught.value) for name in RECIPES)


def test_reference_sets_live_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path))
    assert find_dataset("pendulum-noisy") == tmp_path / "pendulum-noisy.h5"
    monkeypatch.delenv("GRIDPILOT_DATA")
    assert find_set_path("pendulum-noisy") == Path("data/pendulum-noisy.h5")


def test_a_reference_set_is_made_on_first_use_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path))
    lines: list[str] = []
    made = load_dataset("pendulum-expert", lines.append)
    assert (
        lines[0]
        == f"{tmp_path / 'pendulum-expert.h5'} isn't there; it takes {RECIPES['pendulum-expert'].takes} to make"
    )
    assert any("256 episodes, 51,200 steps" in line for line in lines)
    assert -160 < made.returns().mean() < -120
    references = made.header.policy["references"]
    assert references["random"] < -1000 < -160 < references["expert"]
    lines.clear()
    assert load_dataset("pendulum-expert", lines.append).sha256 == made.sha256
    assert lines == []


def test_a_set_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRIDPILOT_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(EpisodeError, match=r"pendulum-expert couldn't be made: .* exit code 1: .*Not a directory"):
        load("pendulum-expert")


def test_opening_data_loads_no_environment_and_no_torch(tmp_path: Path) -> None:
    write_episodes(tmp_path / "mine.h5", draw_episodes([4]))
    code = (
        "import sys; from envs.datasets import load_dataset; load_dataset(sys.argv[1], print);"
        "print(sorted({'gymnasium', 'torch'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine.h5")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"
