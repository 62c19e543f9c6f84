"""`DepthRecall-v0`: nothing but memory can tell the answer."""

from __future__ import annotations

import numpy as np
import pytest

from envs.make import make_env
from envs.recall import FAR, NEAR, DepthRecallEnv


def find_side(frame: np.ndarray) -> int:
    """Give -1 for a block on the left, 1 for one on the right, 0 for none."""
    left, right = np.split(frame[0], 2, axis=1)
    return int((right == NEAR).any()) - int((left == NEAR).any())


@pytest.mark.parametrize("seed", range(8))
def test_the_last_action_counts_alone_and_the_first_frame_says_what_is_right(seed: int) -> None:
    env = DepthRecallEnv()
    obs, _ = env.reset(seed=seed)
    side = find_side(obs["depth"][0])
    assert all(np.array_equal(frame, obs["depth"][0]) for frame in obs["depth"])
    rewards = []
    for asked in (False, False, False, True):
        assert (obs["base"][-1, 0] == 1) == asked
        assert find_side(obs["depth"][0]) == side != 0
        obs, reward, terminated, truncated, info = env.step(np.array([0.5 * side if asked else -1.0]))
        rewards.append(reward)
        assert terminated == asked
        assert not truncated
    assert rewards == [0, 0, 0, 0.5]
    assert info == {"is_success": True}


def test_a_window_that_is_too_short_shows_the_same_whatever_is_right() -> None:
    seen: dict[int, set[bytes]] = {-1: set(), 1: set()}
    for seed in range(20):
        env = DepthRecallEnv(seq_len=3)
        env.reset(seed=seed)
        for _ in range(3):
            obs, *_ = env.step(np.array([0.0]))
        assert obs["base"][-1, 0] == 1
        assert (obs["depth"] == FAR).all()
        seen[env.answer].add(obs["base"].tobytes() + obs["depth"].tobytes())
    assert seen[-1] == seen[1]


def test_both_answers_are_drawn_and_no_action_changes_what_is_seen() -> None:
    env = DepthRecallEnv()
    answers = []
    for seed in range(40):
        env.reset(seed=seed)
        answers.append(env.answer)
        frames = [env.step(np.array([action]))[0]["depth"] for action in (-1.0, 1.0, -1.0)]
        env.reset(seed=seed)
        others = [env.step(np.array([0.0]))[0]["depth"] for _ in range(3)]
        assert all(np.array_equal(*pair) for pair in zip(frames, others, strict=True))
    assert 8 < answers.count(1) < 32


def test_a_wrong_answer_is_no_success_and_neither_is_none() -> None:
    env = DepthRecallEnv(delay=1)
    for said, success in ((1.0, True), (-1.0, False), (0.0, False)):
        env.reset(seed=0)
        env.step(np.array([said]))
        _, reward, terminated, _, info = env.step(np.array([said * env.answer]))
        assert (reward, terminated, info) == (said, True, {"is_success": success})


@pytest.mark.parametrize(
    ("name", "value"), [("seq_len", 0), ("seq_len", 65), ("delay", 0), ("side", 1), ("side", 8.0), ("delay", True)]
)
def test_an_argument_out_of_its_range_is_refused_with_its_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: {value!r} is not a whole number from"):
        DepthRecallEnv(**{name: value})  # type: ignore[arg-type]


def test_reset_options_are_refused() -> None:
    with pytest.raises(ValueError, match="mean nothing at a reset"):
        make_env("DepthRecall-v0", {}).unwrapped.reset(options={"answer": 1})
