"""Windows of frames that are kept once are those that were seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.make import make_env
from rl.vmamba_td3.buffer import SequenceReplayBuffer
from training.resources import hash_state
from training.state import pack_state, unpack_state

SIZE = (5, 7)


class Naive:
    """Keeps every window whole, as it was given, and what is privileged of each moment, where anything is."""

    def __init__(self, seq_len: int, privileged_dim: int = 0) -> None:
        self.seq_len, self.privileged_dim = seq_len, privileged_dim
        self.steps: list[dict[str, Any]] = []

    def play(self, buffer: SequenceReplayBuffer, lengths: list[tuple[int, bool]], seed: int, env: int = 0) -> None:
        """Make up episodes of so many steps, ended by their task or by their clock; add them to both."""
        generator = np.random.default_rng(seed)
        for number, (length, terminated) in enumerate(lengths):
            base, depth = self.draw(generator)
            bases, frames = [base] * self.seq_len, [depth] * self.seq_len
            known = self.draw_known(generator)
            for step in range(length):
                last = step == length - 1
                base, depth = self.draw(generator)
                action, reward = generator.uniform(-1, 1, 2).astype(np.float32), float(generator.normal())
                done = last and terminated
                now = (np.stack(bases), np.stack(frames))
                bases, frames = [*bases[1:], base], [*frames[1:], depth]
                following = (np.stack(bases), np.stack(frames))
                before, known = known, self.draw_known(generator)
                told = {"privileged": before, "next_privileged": known} if self.privileged_dim else {}
                over = last and not terminated
                buffer.add(*now, action, reward, *following, float(done), truncated=over, env=env, **told)
                self.steps.append(
                    {
                        "now": now,
                        "known": before,
                        "action": action,
                        "reward": reward,
                        "next": following,
                        "next_known": known,
                        "done": done,
                        "episode": (env, number),
                    }
                )

    def draw(self, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        levels = generator.integers(0, 256, (1, *SIZE)).astype(np.float32)
        return generator.normal(size=3).astype(np.float32), levels / np.float32(255)

    def draw_known(self, generator: np.random.Generator) -> NDArray[np.float32]:
        return generator.normal(size=self.privileged_dim).astype(np.float32)

    def find(self, base: NDArray[np.float32], action: NDArray[np.float32]) -> int:
        """Give the number of the step that a drawn row is of: actions are all different."""
        matches = [index for index, step in enumerate(self.steps) if np.array_equal(step["action"], action)]
        assert len(matches) == 1
        return matches[0]


EPISODES = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(EPISODES, st.integers(1, 5), st.integers(1, 4), st.sampled_from([0, 1, 4]), st.integers(0, 10_000))
def test_windows_are_bit_equal_to_those_of_a_buffer_that_stacks(
    lengths: list[tuple[int, bool]], seq_len: int, n_step: int, privileged_dim: int, seed: int
) -> None:
    capacity = 24
    buffer = SequenceReplayBuffer(capacity, seq_len, np.random.default_rng(seed), n_step=n_step, discount=0.9)
    naive = Naive(seq_len, privileged_dim)
    naive.play(buffer, lengths, seed)
    batch = buffer.sample_windows(64)
    base, action, reward, next_base, done = batch.base, batch.action, batch.reward, batch.next_base, batch.terminated
    depth, next_depth = (frames.astype(np.float32) / np.float32(255) for frames in (batch.depth, batch.next_depth))
    assert batch.privileged.dtype == batch.next_privileged.dtype == np.float32
    for row in range(64):
        index = naive.find(base[row], action[row])
        window = [index]
        while len(window) < n_step and window[-1] + 1 < len(naive.steps):
            if naive.steps[window[-1] + 1]["episode"] != naive.steps[index]["episode"]:
                break
            window.append(window[-1] + 1)
        first, last = naive.steps[index], naive.steps[window[-1]]
        assert np.array_equal(base[row], first["now"][0])
        assert np.array_equal(depth[row], first["now"][1])
        assert np.array_equal(next_base[row], last["next"][0])
        assert np.array_equal(next_depth[row], last["next"][1])
        assert np.array_equal(batch.privileged[row], first["known"])
        assert np.array_equal(batch.next_privileged[row], last["next_known"])
        assert done[row, 0] == float(last["done"])
        total = sum(0.9**power * naive.steps[number]["reward"] for power, number in enumerate(window))
        assert reward[row, 0] == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert index >= len(naive.steps) - capacity


@settings(max_examples=20, deadline=None)
@given(EPISODES, st.integers(1, 5), st.integers(0, 1000))
def test_every_step_that_is_kept_is_drawn_and_the_first_of_an_episode_too(
    lengths: list[tuple[int, bool]], seq_len: int, seed: int
) -> None:
    buffer = SequenceReplayBuffer(200, seq_len, np.random.default_rng(seed))
    naive = Naive(seq_len)
    naive.play(buffer, lengths, seed)
    assert buffer.size == len(naive.steps)
    batch = buffer.sample_windows(60 * len(naive.steps))
    drawn = {naive.find(base, action) for base, action in zip(batch.base, batch.action, strict=True)}
    assert drawn == set(range(len(naive.steps)))


def test_discounts_are_to_the_power_of_the_steps_that_there_were() -> None:
    buffer = SequenceReplayBuffer(50, 2, np.random.default_rng(0), n_step=3, discount=0.5)
    Naive(2).play(buffer, [(2, True), (4, False)], 1)
    found = {round(float(value), 4) for value in buffer.sample_windows(200).discount.ravel()}
    assert found == {0.5, 0.25, 0.125}


def test_environments_are_kept_apart() -> None:
    buffer = SequenceReplayBuffer(60, 3, np.random.default_rng(0), num_envs=2)
    naive = Naive(3)
    for seed in range(6):
        naive.play(buffer, [(1, True)] * 3, seed, env=seed % 2)
    batch = buffer.sample_windows(400)
    for row in range(400):
        step = naive.steps[naive.find(batch.base[row], batch.action[row])]
        assert np.array_equal(batch.base[row], step["now"][0])
        assert np.array_equal(batch.next_base[row], step["next"][0])
    assert buffer.size == 18


def test_interleaved_environments_do_not_mix() -> None:
    buffer = SequenceReplayBuffer(60, 2, np.random.default_rng(0), num_envs=2)
    windows = np.zeros((2, 2, 3), np.float32)
    depth = np.zeros((2, 1, *SIZE), np.float32)
    for step in range(8):
        for env in range(2):
            following = np.stack([windows[env][1], np.full(3, 10 * step + env + 1, np.float32)])
            buffer.add(windows[env], depth, np.full(2, env), 0.0, following, depth, 0.0, env=env)
            windows[env] = following
    batch = buffer.sample_windows(300)
    late = batch.next_base[:, :, 0] > 20
    parity = batch.next_base[:, :, 0].astype(int) % 10 - 1
    assert (parity[late] == np.repeat(batch.action[:, :1], 2, axis=1)[late]).all()


def test_twenty_thousand_steps_of_large_frames_fit_into_350_megabytes() -> None:
    buffer = SequenceReplayBuffer(20_000, 4)
    base, depth = np.zeros((4, 10), np.float32), np.zeros((4, 1, 128, 128), np.float32)
    buffer.add(base, depth, np.zeros(3), 0.0, base + 1, depth, 0.0)
    assert buffer.nbytes < 350e6


def test_a_window_that_begins_in_mid_episode_is_kept_whole() -> None:
    """As where a script adds what it has, without the episode's beginning."""
    buffer = SequenceReplayBuffer(50, 3)
    base = np.arange(9, dtype=np.float32).reshape(3, 3)
    depth = np.linspace(0, 1, 3, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, *SIZE), np.float32)
    buffer.add(base, depth, np.zeros(2), 1.0, base + 3, depth, 0.0)
    batch = buffer.sample_windows(2)
    assert np.array_equal(batch.base[0], base)
    assert np.array_equal(batch.next_base[0], base + 3)


def test_raw_depth_is_scaled_and_kept_without_loss() -> None:
    buffer = SequenceReplayBuffer(50, 1, depth_scale=255)
    raw = np.arange(35, dtype=np.float32).reshape(1, 1, *SIZE) * 7
    base = np.zeros((1, 3), np.float32)
    buffer.add(base, raw, np.zeros(2), 1.0, base + 1, raw, 0.0)
    assert np.array_equal(buffer.sample_windows(1).depth[0], raw.astype(np.uint8))
    assert buffer.sample(1)[1].max() <= 1


def test_depth_of_the_environment_comes_back_to_the_bit() -> None:
    env = make_env("DepthNav-v0", {"seq_len": 3, "height": 16, "width": 16, "num_obstacles": 5})
    buffer = SequenceReplayBuffer(100, 3, np.random.default_rng(0))
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    seen = {}
    for _ in range(20):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        buffer.add(obs["base"], obs["depth"], action, float(reward), following["base"], following["depth"], terminated)
        seen[action.tobytes()] = (obs, following)
        obs = following
        assert not truncated
        assert not terminated
    base, depth, action, _, next_base, next_depth, _ = buffer.sample(50)
    for row in range(50):
        before, after = seen[action[row].tobytes()]
        assert np.array_equal(before["depth"], depth[row])
        assert np.array_equal(after["depth"], next_depth[row])
        assert np.array_equal(before["base"], base[row])
        assert np.array_equal(after["base"], next_base[row])


@pytest.mark.parametrize(("envs", "privileged_dim"), [(1, 0), (2, 0), (2, 5)])
def test_a_state_that_was_taken_goes_on_to_the_bit(envs: int, privileged_dim: int) -> None:
    buffer = SequenceReplayBuffer(40, 3, np.random.default_rng(3), num_envs=envs)
    naive = Naive(3, privileged_dim)
    for env in range(envs):
        naive.play(buffer, [(7, True), (20, False), (6, True)], env, env=env)
    state = buffer.state_dict()
    assert ("privileged" in state["rings"]["0"]) == (privileged_dim > 0)
    packed = pack_state({name: value for name, value in state.items() if name == "generator"})
    other = SequenceReplayBuffer(40, 3, np.random.default_rng(0), num_envs=envs)
    other.load_state_dict({"rings": state["rings"], **unpack_state(packed, {}.__getitem__)})
    for one, two in zip(buffer.sample_windows(50), other.sample_windows(50), strict=True):
        assert np.array_equal(one, two)
    assert buffer.sample_windows(1).privileged.shape == (1, privileged_dim)
    with pytest.raises(ValueError, match="buffer_size"):
        SequenceReplayBuffer(20, 3, num_envs=envs).load_state_dict(state)


@pytest.mark.parametrize(("envs", "privileged_dim"), [(1, 0), (2, 5)])
def test_a_longer_run_s_buffer_goes_on_from_a_shorter_one_s(envs: int, privileged_dim: int) -> None:
    short, straight = (SequenceReplayBuffer(size, 3, np.random.default_rng(3), num_envs=envs) for size in (80, 200))
    longer = SequenceReplayBuffer(200, 3, np.random.default_rng(0), num_envs=envs)
    for buffer in (short, straight):
        naive = Naive(3, privileged_dim)
        for env in range(envs):
            naive.play(buffer, [(7, True), (20, False)], env, env=env)
    longer.load_state_dict(short.state_dict())
    for buffer in (longer, straight):
        naive = Naive(3, privileged_dim)
        for env in range(envs):
            naive.play(buffer, [(60, True), (30, True)], 9 + env, env=env)
    assert hash_state(longer.state_dict()) == hash_state(straight.state_dict())
    for one, two in zip(longer.sample_windows(50), straight.sample_windows(50), strict=True):
        assert np.array_equal(one, two)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_size: 4 frames for 1 environments"):
        SequenceReplayBuffer(4, 3)
    buffer = SequenceReplayBuffer(50, 3)
    base, depth = np.zeros((2, 3), np.float32), np.zeros((2, 1, *SIZE), np.float32)
    with pytest.raises(ValueError, match=r"windows of 3 frames"):
        buffer.add(base, depth, np.zeros(2), 0.0, base, depth, 0.0)


@pytest.mark.parametrize(("known", "next_known"), [(np.zeros(1), np.zeros(3)), (np.zeros(3), None), (None, None)])
def test_what_is_privileged_has_as_many_numbers_as_at_first(known: Any, next_known: Any) -> None:
    buffer = SequenceReplayBuffer(50, 1)
    base, depth = np.zeros((1, 3), np.float32), np.zeros((1, 1, *SIZE), np.float32)
    rest = (base, depth, np.zeros(2), 0.0, base, depth, 0.0)
    buffer.add(*rest, privileged=np.zeros(3), next_privileged=np.ones(3))
    with pytest.raises(ValueError, match=r"privileged has \d numbers, next_privileged \d, and that of the first .* 3"):
        buffer.add(*rest, privileged=known, next_privileged=next_known)
    assert buffer.size == 1
