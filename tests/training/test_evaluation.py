"""Evaluation: fixed seeds, one episode each, and nothing that training could notice."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.evaluation import (
    MAX_SEEDS,
    FinishedEpisode,
    describe_evaluation,
    evaluate_begun,
    evaluate_policy,
    gather_evaluation,
    report_seeds,
    selection_seeds,
    summarise_evaluation,
    write_out_evaluation,
)
from training.measures import MeasureError, read_measures
from training.protocol import Evaluation, EvaluationStopped, References
from training.resources import hash_state
from training.seeding import read_global_generators


class SeededEnv:
    """Ends after (seed % 3) + 1 steps, by itself or by its clock; each reward is the action."""

    def __init__(self) -> None:
        self.left = 0
        self.taken = 0
        self.closed = False
        self.fails = False
        self.info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
        assert seed is not None
        self.left = seed % 3 + 1
        return np.array([float(seed)]), {}

    def step(self, action: Any, /) -> tuple[NDArray[Any], np.float32, bool, bool, dict[str, Any]]:
        if self.fails:
            raise RuntimeError("simulator gone")
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(3)
        self.left -= 1
        self.taken += 1
        over = self.left == 0
        info = (
            self.info if over else {"is_success": False, "distance": -1.0}
        )  # of a step on the way, which never counts
        return np.array([0.0]), np.float32(action[0]), over and action[0] > 1, over, info

    def close(self) -> None:
        self.closed = True


def act(obs: NDArray[Any]) -> NDArray[Any]:
    return obs + 1


def never() -> bool:
    return False


def test_each_seed_gives_one_episode() -> None:
    evaluation = evaluate_policy(SeededEnv, act, [3, 4, 5], never)
    assert evaluation == Evaluation((3, 4, 5), (4.0, 6.0, 8.0), (1, 2, 3))


def evaluate_with(info: dict[str, Any]) -> Evaluation:
    env = SeededEnv()
    env.info = info
    return evaluate_policy(lambda: env, act, [3, 4, 5], never)


def test_measures_come_from_the_last_step_of_each_episode_under_the_names_of_the_table() -> None:
    info = {"is_success": np.True_, "collision": False, "distance": np.float32(2.5), "TimeLimit.truncated": True}
    assert evaluate_with(info).measures == {
        "is_success": (1.0, 1.0, 1.0),
        "collision": (0.0, 0.0, 0.0),
        "distance": (2.5, 2.5, 2.5),
    }
    assert evaluate_with({}).measures == {}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"distance": [1.0]}, r"info\['distance'\] of an episode's last step must be one number, got \[1.0\]"),
        ({"distance": np.ones(1)}, "must be one number"),
        ({"distance": "far"}, "must be one number, got 'far'"),
        ({"is_success": 0.5}, r"info\['is_success'\] of an episode's last step must be true or false, got 0.5"),
        ({"is_success": float("nan")}, "must be true or false, got nan"),
    ],
)
def test_a_measure_that_is_no_number_is_refused(info: dict[str, Any], said: str) -> None:
    with pytest.raises(MeasureError, match=said):
        evaluate_with(info)


def test_a_measure_that_some_episodes_lack_is_refused_and_not_averaged_over_the_others() -> None:
    infos = [{"distance": 1.0}, {"distance": 1.0, "collision": True}, {"distance": 1.0}]
    episodes = [FinishedEpisode(1.0, 1, read_measures(info)) for info in infos]
    with pytest.raises(MeasureError, match=r"info\['collision'\] is missing in the last step of 2 of 3 .* seed 7;"):
        gather_evaluation([7, 8, 9], episodes)


def test_means_of_measures_have_names_of_their_own() -> None:
    measures = {"is_success": (1.0, 0.0, 0.0, 0.0), "tracking_error": (1.0, 2.0, 3.0, float("inf"))}
    evaluation = Evaluation((1, 2, 3, 4), (0.0,) * 4, (9,) * 4, measures)
    numbers = summarise_evaluation(evaluation)
    assert numbers["eval/success_rate"] == 0.25
    assert numbers["eval/tracking_error"] == float("inf")
    assert len(numbers) == 5
    assert describe_evaluation(evaluation, 100)[2:] == ["Success rate: 25.00%"]
    written = write_out_evaluation(evaluation, None)
    assert (written["success_rate"], written["tracking_error"]) == (0.25, "inf")
    assert written["measures"] == {"is_success": [1.0, 0.0, 0.0, 0.0], "tracking_error": [1.0, 2.0, 3.0, "inf"]}


def test_a_policy_begins_anew_after_each_reset() -> None:
    begun: list[int] = []

    def begin(env: SeededEnv) -> Any:
        begun.append(env.left)
        return lambda obs: np.array([float(len(begun))])

    evaluation = evaluate_begun(SeededEnv, begin, [3, 4, 5], never)
    assert begun == [1, 2, 3]
    assert evaluation == Evaluation((3, 4, 5), (1.0, 4.0, 9.0), (1, 2, 3))


def test_the_global_generators_are_as_before() -> None:
    before = hash_state(read_global_generators())
    evaluate_policy(SeededEnv, act, [3, 4, 5], never)
    assert hash_state(read_global_generators()) == before


@pytest.mark.parametrize("fails", [False, True])
def test_the_environment_is_closed_also_when_it_fails(fails: bool) -> None:
    env = SeededEnv()
    env.fails = fails
    if fails:
        with pytest.raises(RuntimeError, match="simulator gone"):
            evaluate_policy(lambda: env, act, [3], never)
    else:
        evaluate_policy(lambda: env, act, [3], never)
    assert env.closed


@pytest.mark.parametrize("steps", range(6))
def test_a_wish_to_stop_is_heard_before_each_step(steps: int) -> None:
    env, before = SeededEnv(), hash_state(read_global_generators())
    answers = iter([False] * steps + [True])
    with pytest.raises(EvaluationStopped):
        evaluate_policy(lambda: env, act, [3, 4, 5], lambda: next(answers))
    assert env.taken == steps
    assert env.closed
    assert hash_state(read_global_generators()) == before


def test_selection_and_report_seeds_are_fixed_and_never_meet() -> None:
    assert selection_seeds(3) == selection_seeds(10)[:3]
    assert report_seeds(3) == report_seeds(10)[:3]
    assert not set(selection_seeds(MAX_SEEDS)) & set(report_seeds(MAX_SEEDS))
    with pytest.raises(ValueError, match="1,000,001"):
        report_seeds(MAX_SEEDS + 1)


def test_the_console_lines_are_those_of_stable_baselines3() -> None:
    evaluation = Evaluation((1, 2), (-130.0, -170.0), (200, 200))
    assert describe_evaluation(evaluation, 10_000) == [
        "Eval num_timesteps=10000, episode_reward=-150.0 +/- 20.0",
        "Episode length: 200.0 +/- 0.0",
    ]
    assert summarise_evaluation(evaluation) == {
        "eval/mean_reward": -150.0,
        "eval/std_reward": 20.0,
        "eval/mean_ep_length": 200.0,
    }


def test_a_normalised_score_is_0_for_random_actions_and_100_for_an_expert() -> None:
    references = References(random=-1200.0, expert=-200.0)
    assert [references.score(value) for value in (-1200.0, -200.0, -700.0, -100.0)] == [0.0, 100.0, 50.0, 110.0]
    numbers = summarise_evaluation(Evaluation((1, 2), (-100.0, -300.0), (9, 9)), references)
    assert list(numbers) == ["eval/mean_reward", "eval/std_reward", "eval/mean_ep_length", "eval/normalized_score"]
    assert numbers["eval/normalized_score"] == 100.0
