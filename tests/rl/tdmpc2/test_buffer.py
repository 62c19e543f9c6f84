"""Windows that are drawn are those of the episodes that were lived, against a reference that keeps whole episodes."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rl.tdmpc2.buffer import SequenceBuffer, Sequences
from training.checkpoint import CheckpointStore, load_newest

FLOAT = np.dtype(np.float32)
OBS_SHAPE, ACTION_DIM = (2,), 1
Step = tuple[NDArray[np.float32], float, bool]
Window = tuple[bytes, ...]


class InOrder:
    """Stands for a generator, and draws every window once."""

    def integers(self, low: int, high: int, size: int) -> NDArray[np.int64]:
        assert size == high - low
        return np.arange(low, high)


@dataclass
class Episode:
    """One that was lived: its observations' numbers in their environment, its steps, whether it goes on."""

    task: int
    frames: list[int]
    obs: list[NDArray[Any]]
    steps: list[Step] = field(default_factory=list)
    over: bool = False


class Naive:
    """Keeps every episode whole, and feeds the buffer; observations, actions and rewards are all different."""

    def __init__(self, capacity: int, horizon: int, num_envs: int = 1, obs_dtype: np.dtype[Any] = FLOAT) -> None:
        self.horizon, self.obs_dtype = horizon, obs_dtype
        self.room = capacity // num_envs
        self.episodes: list[list[Episode]] = [[] for _ in range(num_envs)]
        self.frames = [0] * num_envs
        self.buffer = SequenceBuffer(
            capacity, horizon, OBS_SHAPE, obs_dtype, ACTION_DIM, np.random.default_rng(0), num_envs
        )

    def see(self, env: int) -> NDArray[Any]:
        number = self.frames[env]
        self.frames[env] += 1
        return np.array([number % 251, 100 + env], self.obs_dtype)

    def begin(self, env: int = 0, task: int = 0) -> None:
        obs = self.see(env)
        self.episodes[env].append(Episode(task, [self.frames[env] - 1], [obs]))
        self.buffer.begin(env, obs, task)

    def step(self, env: int = 0, ending: str = "") -> None:
        episode, obs = self.episodes[env][-1], self.see(env)
        number = self.frames[env]
        action, reward, terminated = np.array([number], np.float32), -number - env / 8, ending == "task"
        episode.frames.append(number - 1)
        episode.obs.append(obs)
        episode.steps.append((action, reward, terminated))
        episode.over = ending in ("task", "clock")
        self.buffer.add(env, action, reward, terminated, obs, episode.over)
        if ending == "abandoned":
            self.abandon(env)

    def abandon(self, env: int = 0) -> None:
        self.episodes[env][-1].over = True
        self.buffer.abandon(env)

    def live(self, length: int, ending: str, env: int = 0, task: int = 0) -> None:
        self.begin(env, task)
        for number in range(length):
            self.step(env, ending if number == length - 1 else "")

    def find_windows(self) -> set[Window]:
        """Give every window that there is, but for those whose first observation had to go."""
        found = set()
        for env, episodes in enumerate(self.episodes):
            for episode in episodes:
                starts = range(len(episode.steps) - self.horizon + 1)
                if episode.over and 0 < len(episode.steps) < self.horizon:
                    starts = range(1)
                for start in starts:
                    if episode.frames[start] >= self.frames[env] - self.room:
                        found.add(self.cut(episode, start))
        return found

    def cut(self, episode: Episode, start: int) -> Window:
        steps = episode.steps[start : start + self.horizon]
        obs = episode.obs[start : start + self.horizon + 1]
        missing = self.horizon - len(steps)
        obs = obs + obs[-1:] * missing
        steps = steps + [(np.zeros(ACTION_DIM, np.float32), 0.0, False)] * missing
        valid = np.arange(self.horizon) < self.horizon - missing
        action, reward, terminated = zip(*steps, strict=True)
        return (
            np.stack(obs).tobytes(),
            np.stack(action).tobytes(),
            np.array(reward, np.float32).tobytes(),
            np.array(terminated, np.float32).tobytes(),
            valid.astype(np.float32).tobytes(),
            np.int64(episode.task).tobytes(),
        )

    def count_steps(self) -> int:
        """Give how many steps there are whose observation is kept."""
        return sum(
            frame >= self.frames[env] - self.room
            for env, episodes in enumerate(self.episodes)
            for episode in episodes
            for frame in episode.frames[: len(episode.steps)]
        )

    def check(self) -> None:
        expected = self.find_windows()
        assert len(self.buffer) == len(expected)
        assert self.buffer.num_steps == self.count_steps()
        if expected:
            assert set(draw_all(self.buffer)) == expected


def draw_all(buffer: SequenceBuffer) -> list[Window]:
    """Give every window of a buffer once; what it draws later is left as it was."""
    other = copy.copy(buffer)
    other.reseed(InOrder())  # type: ignore[arg-type]
    return split(other.sample(len(buffer)))


def split(batch: Sequences) -> list[Window]:
    return [
        (*(part[:, column].tobytes() for part in batch[:-1]), batch.task[column].tobytes())
        for column in range(len(batch.task))
    ]


def assert_same(one: Sequences, two: Sequences) -> None:
    for name, left, right in zip(Sequences._fields, one, two, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name, strict=True)  # dtypes too


@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("room", [1, 2, 5, 40])
def test_every_window_of_up_to_three_episodes_is_drawable_and_no_other_is(horizon: int, room: int) -> None:
    """After each step of the last episode: those before it were last ones too."""
    kinds = list(itertools.product(range(1, 6), ["task", "clock"]))
    for count in (1, 2, 3):
        for episodes in itertools.product(kinds, repeat=count):
            naive = Naive(horizon + room, horizon)
            for length, ending in episodes[:-1]:
                naive.live(length, ending)
            naive.begin(task=count)
            naive.check()
            length, ending = episodes[-1]
            for number in range(length):
                naive.step(ending=ending if number == length - 1 else "")
                naive.check()


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["", "", "", "", "task", "clock", "abandoned"]), st.integers(0, 9)),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.sampled_from(["float32", "uint8"]))
def test_environments_that_step_in_any_order_keep_their_own_windows(
    events: list[tuple[int, str, int]], horizon: int, num_envs: int, room: int, dtype: str
) -> None:
    naive = Naive(num_envs * (horizon + room), horizon, num_envs, np.dtype(dtype))
    for env, ending, task in events:
        env %= num_envs
        episodes = naive.episodes[env]
        if not episodes or episodes[-1].over:
            naive.begin(env, task)
            if ending == "abandoned":
                naive.abandon(env)
        else:
            naive.step(env, ending)
        naive.check()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), max_size=12),
    st.integers(1, 3),
)
def test_a_loaded_buffer_goes_on_with_the_same_draws_and_rings(
    before: list[tuple[int, int]], after: list[tuple[int, int]], horizon: int
) -> None:
    naive = Naive(22, horizon, num_envs=2)
    for env, length in before:
        naive.live(length, "clock", env)
    naive.begin(before[0][0], task=3)
    naive.step(before[0][0])
    naive.buffer.sample(3)
    other = Naive(22, horizon, num_envs=2)
    other.buffer.load_state_dict(copy.deepcopy(naive.buffer.state_dict()))
    other.episodes, other.frames = copy.deepcopy((naive.episodes, naive.frames))
    for each in (naive, other):
        each.step(before[0][0])
        each.abandon(before[0][0])
        for env, length in after:
            each.live(length, "task", env)
        each.check()
    assert_same(naive.buffer.sample(40), other.buffer.sample(40))
    mine, theirs = naive.buffer.state_dict(), other.buffer.state_dict()
    assert mine["generator"] == theirs["generator"]
    for left, right in zip(mine["rings"], theirs["rings"], strict=True):
        for name in ("frames", "steps", "links", "starts"):
            assert left[name].total == right[name].total
            np.testing.assert_array_equal(left[name].rows, right[name].rows)
        assert (left["episode_start"], left["task"]) == (right["episode_start"], right["task"])


def test_a_checkpoint_brings_back_windows_and_preference_rewards_written_after_the_one_before(tmp_path: Path) -> None:
    naive, other = (Naive(40, 3, num_envs=2, obs_dtype=np.dtype(np.uint8)) for _ in range(2))
    store = CheckpointStore(tmp_path / "checkpoints", 2, lambda line: None)
    naive.begin(env=0, task=7)
    for step in range(1, 7):
        naive.step(env=0)
        naive.live(step, "clock", env=1, task=step)
        if step > 2:
            naive.buffer.write_pref_reward(0, np.arange(naive.buffer.num_steps) + step / 8)
        store.save(step, {"buffer": naive.buffer.state_dict()}, {})
    found = load_newest(tmp_path / "checkpoints")
    assert found is not None
    other.buffer.load_state_dict(found.state["buffer"])
    written = other.buffer.read_pref_reward(0, other.buffer.num_steps)
    np.testing.assert_array_equal(written, np.arange(other.buffer.num_steps) + np.float32(0.75))
    other.episodes, other.frames = copy.deepcopy((naive.episodes, naive.frames))
    for each in (naive, other):
        each.step(env=0)
        each.check()
    assert_same(other.buffer.sample(50), naive.buffer.sample(50))


def test_a_checkpoint_of_the_best_policy_leaves_an_empty_buffer(tmp_path: Path) -> None:
    """It has no replay rows: what is loaded from it acts, and never draws."""
    naive = Naive(5, 2)
    for _ in range(6):
        naive.live(3, "clock")
    store = CheckpointStore(tmp_path / "checkpoints", 2, lambda line: None)
    store.save(1, {"buffer": naive.buffer.state_dict()}, {})
    found = load_newest(tmp_path / "checkpoints", with_replay=False)
    assert found is not None
    other = Naive(5, 2).buffer
    other.load_state_dict(found.state["buffer"])
    assert (len(other), other.num_steps) == (0, 0)
    with pytest.raises(ValueError, match="no window"):
        other.sample(1)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_windows_are_drawn_uniformly(num_envs: int) -> None:
    naive = Naive(60, 3, num_envs)
    for number, length in enumerate([3, 9, 1, 4, 2, 7, 12, 5]):
        naive.live(length, "clock", env=number % num_envs)
    names = draw_all(naive.buffer)
    counts = dict.fromkeys(names, 0)
    draws = 400 * len(names)
    for window in split(naive.buffer.sample(draws)):
        counts[window] += 1
    chi_square = sum((count - 400) ** 2 / 400 for count in counts.values())
    degrees = len(names) - 1
    assert degrees > 20
    assert chi_square < degrees + 3 * (2 * degrees) ** 0.5  # mean and three standard deviations of the distribution


def test_a_batch_is_time_first_and_in_memory_of_its_own() -> None:
    for num_envs in (1, 2):
        buffer = SequenceBuffer(40, 3, (4, 5, 6), np.dtype(np.uint8), 2, np.random.default_rng(0), num_envs)
        for env in range(num_envs):
            buffer.begin(env, np.full((4, 5, 6), env, np.uint8), task=7 + env)
            for step in range(5):
                buffer.add(env, np.ones(2), 1.0, False, np.full((4, 5, 6), 10 * step + env, np.uint8), step == 4)
        batch = buffer.sample(16)
        assert batch.obs.shape == (4, 16, 4, 5, 6)
        assert batch.action.shape == (3, 16, 2)
        assert batch.reward.shape == batch.terminated.shape == batch.valid.shape == (3, 16, 1)
        assert batch.task.shape == (16,)
        assert [part.dtype.name for part in batch] == ["uint8", *["float32"] * 4, "int64"]
        np.testing.assert_array_equal(batch.obs[0, :, 0, 0, 0] % 10 + 7, batch.task)
        kept = [ring[name].rows for ring in buffer.state_dict()["rings"] for name in ("frames", "steps", "starts")]
        for part in batch:
            assert part.flags.c_contiguous
            assert part.flags.writeable
            assert not any(np.shares_memory(part, rows) for rows in kept)


@pytest.mark.parametrize("ending", ["task", "clock", "abandoned"])
def test_a_short_episode_is_padded_after_its_end(ending: str) -> None:
    naive = Naive(40, 4)
    naive.live(2, ending, task=5)
    naive.live(6, "clock")
    batch = naive.buffer.sample(64)
    column = int(np.flatnonzero(batch.task == 5)[0])
    np.testing.assert_array_equal(batch.obs[:, column, 0], [0, 1, 2, 2, 2])
    np.testing.assert_array_equal(batch.action[:, column, 0], [2, 3, 0, 0])
    np.testing.assert_array_equal(batch.reward[:, column, 0], [-2, -3, 0, 0])
    np.testing.assert_array_equal(batch.terminated[:, column, 0], [0, ending == "task", 0, 0])
    np.testing.assert_array_equal(batch.valid[:, column, 0], [1, 1, 0, 0])


def test_an_episode_that_goes_on_has_no_window_while_it_is_shorter_than_the_horizon() -> None:
    naive = Naive(40, 3)
    naive.begin()
    for expected in (0, 0, 1, 2):
        naive.step()
        assert len(naive.buffer) == expected


def test_abandoning_where_no_episode_goes_on_changes_nothing() -> None:
    naive = Naive(40, 3)
    naive.buffer.abandon(0)
    naive.live(2, "clock")
    naive.buffer.abandon(0)
    naive.buffer.abandon(0)
    naive.check()
    assert len(naive.buffer) == 1


def test_an_episode_longer_than_the_ring_keeps_its_newest_windows() -> None:
    naive = Naive(8, 3)
    naive.begin()
    for _ in range(30):
        naive.step()
    naive.check()
    assert (len(naive.buffer), naive.buffer.num_steps) == (5, 7)


def test_numbers_beside_the_end_of_an_episode_never_reach_its_padding() -> None:
    buffer = SequenceBuffer(20, 3, (1,), FLOAT, 1, np.random.default_rng(0))
    nan = np.full(1, np.nan, np.float32)
    buffer.begin(0, np.zeros(1))
    buffer.add(0, np.ones(1), 1.0, True, np.ones(1), True)
    buffer.begin(0, nan)
    buffer.add(0, nan, np.nan, False, nan, True)
    window = buffer.sample(50)
    clean = window.obs[0, :, 0] == 0
    assert 0 < clean.sum() < 50
    for part in window[:-1]:
        assert np.isfinite(part[:, clean]).all()


def test_preference_rewards_are_nan_until_written_and_belong_to_their_step() -> None:
    naive = Naive(16, 2, num_envs=2)
    for _ in range(3):
        naive.live(2, "clock", env=0)
        naive.live(1, "clock", env=1)
    buffer = naive.buffer
    total = buffer.num_steps
    assert total == 5 + 3
    assert np.isnan(buffer.read_pref_reward(0, total)).all()
    buffer.write_pref_reward(3, np.array([30, 40, 50, 60]))  # of both environments
    written = buffer.read_pref_reward(0, total)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, [np.nan, np.nan, np.nan, 30, 40, 50, 60, np.nan])
    np.testing.assert_array_equal(buffer.read_pref_reward(4, 6), [40, 50])
    assert buffer.read_pref_reward(8, 8).shape == (0,)
    naive.live(2, "clock", env=0)  # three observations more: as many of the oldest go, two steps with them
    np.testing.assert_array_equal(
        buffer.read_pref_reward(0, buffer.num_steps), [np.nan, 30, 40, np.nan, np.nan, 50, 60, np.nan]
    )


def test_a_step_that_takes_the_place_of_a_relabelled_one_has_no_preference_reward() -> None:
    naive = Naive(6, 1)
    naive.live(5, "clock")
    naive.buffer.write_pref_reward(0, np.ones(5))
    naive.live(9, "clock")
    assert np.isnan(naive.buffer.read_pref_reward(0, naive.buffer.num_steps)).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 2)])
def test_preference_rewards_of_steps_that_are_not_there_are_refused(start: int, stop: int) -> None:
    naive = Naive(20, 2)
    naive.live(5, "clock")
    with pytest.raises(ValueError, match=r"the buffer has those from 0 to 5"):
        naive.buffer.read_pref_reward(start, stop)
    with pytest.raises(ValueError, match=r"the buffer has those from 0 to 5"):
        naive.buffer.write_pref_reward(2, np.zeros(4))
    with pytest.raises(ValueError, match="one number for each step"):
        naive.buffer.write_pref_reward(0, np.zeros((5, 1)))


def test_observations_are_kept_once() -> None:
    buffer = SequenceBuffer(1000, 5, (9, 64, 64), np.dtype(np.uint8), 6, np.random.default_rng(0))
    observations = 1000 * 9 * 64 * 64
    assert observations < buffer.nbytes < 1.01 * observations
    before = buffer.nbytes
    buffer.begin(0, np.zeros((9, 64, 64), np.uint8))
    buffer.add(0, np.zeros(6), 0.0, False, np.zeros((9, 64, 64), np.uint8), False)
    assert buffer.nbytes == before
    buffer.write_pref_reward(0, np.zeros(1))
    assert buffer.nbytes == before + 4000


def test_another_generator_draws_from_then_on() -> None:
    naive, other = Naive(40, 2), Naive(40, 2)
    for each in (naive, other):
        each.live(20, "clock")
    naive.buffer.sample(7)
    for each in (naive, other):
        each.buffer.reseed(np.random.default_rng(5))
    assert_same(naive.buffer.sample(30), other.buffer.sample(30))


def test_a_million_steps_are_drawn_from_their_whole_length() -> None:
    buffer = SequenceBuffer(1_000_001, 3, (1,), FLOAT, 1, np.random.default_rng(0))
    state = buffer.state_dict()
    ring = state["rings"][0]
    ring["frames"].rows[:, 0] = np.arange(1_000_001)
    ring["links"].rows[:] = np.arange(1_000_001)
    ring["starts"].rows[:999_998] = np.stack([np.arange(999_998), np.full(999_998, 3), np.zeros(999_998)], axis=1)
    totals = {"frames": 1_000_001, "steps": 1_000_000, "links": 1_000_000, "starts": 999_998}
    for name, total in totals.items():
        ring[name] = type(ring[name])(ring[name].rows, total)
    buffer.load_state_dict(state)
    assert (len(buffer), buffer.num_steps) == (999_998, 1_000_000)
    first = buffer.sample(4000).obs[0, :, 0]
    np.testing.assert_allclose(np.quantile(first, [0.25, 0.5, 0.75]), [250e3, 500e3, 750e3], atol=30e3)


@pytest.mark.parametrize(
    ("capacity", "horizon", "num_envs", "said"),
    [
        (3, 3, 1, "buffer_size: 3 steps for 1 environments .* at least 4"),
        (7, 3, 2, "buffer_size: 7 steps for 2 environments .* at least 8"),
        (7, 0, 1, "horizon: 0"),
    ],
)
def test_a_buffer_that_can_hold_no_window_is_refused(capacity: int, horizon: int, num_envs: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SequenceBuffer(capacity, horizon, (1,), FLOAT, 1, np.random.default_rng(0), num_envs)


def test_an_empty_buffer_gives_no_batch() -> None:
    naive = Naive(20, 3)
    naive.begin()
    naive.step()
    with pytest.raises(ValueError, match="no episode in the buffer has 3 steps"):
        naive.buffer.sample(1)


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((1, 2)), np.zeros(2, np.complex64)])
def test_observations_of_another_kind_are_refused_and_change_nothing(obs: NDArray[Any]) -> None:
    naive = Naive(20, 1)
    with pytest.raises(ValueError, match=r"observation .* the buffer keeps \(2,\) float32"):
        naive.buffer.begin(0, obs)
    naive.begin()
    with pytest.raises(ValueError, match=r"observation .* the buffer keeps \(2,\) float32"):
        naive.buffer.add(0, np.zeros(1), 0.0, False, obs, False)
    naive.step()
    naive.check()


def test_pixels_are_not_taken_from_fractions() -> None:
    buffer = SequenceBuffer(20, 1, (2,), np.dtype(np.uint8), 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"float64: the buffer keeps \(2,\) uint8"):
        buffer.begin(0, np.array([0.25, 0.5]))


@pytest.mark.parametrize("action", [np.zeros(2), np.zeros((1, 1)), np.float32(0)])
def test_actions_of_another_shape_are_refused_and_change_nothing(action: NDArray[Any]) -> None:
    naive = Naive(20, 1)
    naive.begin()
    with pytest.raises(ValueError, match=r"action .* the buffer keeps \(1,\)"):
        naive.buffer.add(0, action, 0.0, False, np.zeros(2), False)
    naive.step()
    naive.check()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"capacity": 42}, "frames are .* buffer_size"),
        ({"horizon": 2}, "windows of 2 steps, and this run's 3"),
        ({"obs_shape": (3,)}, "frames are"),
        ({"obs_dtype": np.dtype(np.uint8)}, "frames are .* uint8, and .* float32"),
        ({"action_dim": 2}, "steps are"),
        ({"num_envs": 1}, "of 1 environments, and this run's of 2"),
    ],
)
def test_a_state_of_other_sizes_is_refused_and_changes_nothing(sizes: dict[str, Any], said: str) -> None:
    naive = Naive(40, 3, num_envs=2)
    naive.live(6, "task", env=1)
    own: dict[str, Any] = {"capacity": 40, "horizon": 3, "obs_shape": OBS_SHAPE, "obs_dtype": FLOAT}
    own |= {"action_dim": ACTION_DIM, "num_envs": 2, "generator": np.random.default_rng(1)}
    with pytest.raises(ValueError, match=said):
        naive.buffer.load_state_dict(SequenceBuffer(**(own | sizes)).state_dict())
    naive.check()


def test_every_attribute_is_in_the_state_or_declared_transient() -> None:
    buffer = Naive(20, 3).buffer
    stateful: list[Any] = [buffer, *buffer._rings]
    for thing in stateful:
        names = {name.lstrip("_") for name in vars(thing)} - {name.lstrip("_") for name in thing.TRANSIENT}
        assert names == set(thing.state_dict()), type(thing)
        assert set(thing.TRANSIENT) <= set(vars(thing)), "a transient attribute that isn't there"
