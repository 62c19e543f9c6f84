"""Episodes of a fixed policy on fixed seeds, which training can't notice. Loads torch where episodes are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, SupportsFloat, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from experiment.files import to_json_number
from training.measures import IS_SUCCESS, average_measures, gather_measures, read_measures
from training.protocol import Evaluation, EvaluationStopped, References

MAX_SEEDS = 1_000_000
_FIRST_SELECTION_SEED = 1_000_000
_FIRST_REPORT_SEED = 2_000_000


Act: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""From an observation to an action, both as the environment has them."""


class EvaluationEnv(Protocol):
    """What an evaluation asks of an environment: Gymnasium's interface."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        ...

    def step(self, action: Any, /) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Give the next observation, the reward, whether it terminated or was truncated, and more."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


AnyEnv = TypeVar("AnyEnv", bound=EvaluationEnv)


@dataclass(frozen=True)
class FinishedEpisode:
    """The sum of an episode's rewards, its length, and its measures by name."""

    episode_return: float
    length: int
    measures: Mapping[str, float]


def selection_seeds(count: int) -> tuple[int, ...]:
    """Give the seeds that choices (the best checkpoint) are made by: the same in every run, none a report seed."""
    return _seeds(_FIRST_SELECTION_SEED, count)


def report_seeds(count: int) -> tuple[int, ...]:
    """Give the seeds of reported returns, which nothing is ever chosen by: the same in every run, so pairs compare."""
    return _seeds(_FIRST_REPORT_SEED, count)


def _seeds(first: int, count: int) -> tuple[int, ...]:
    if not 0 < count <= MAX_SEEDS:
        raise ValueError(f"there are 1 to {MAX_SEEDS:,} evaluation seeds, {count:,} were asked for")
    return tuple(range(first, first + count))


def evaluate_policy(
    make_env: Callable[[], EvaluationEnv], act: Act, seeds: Sequence[int], should_stop: Callable[[], bool]
) -> Evaluation:
    """Run one episode per seed of a policy that remembers nothing; else as `evaluate_begun`.

    Args:
        make_env: gives a fresh environment, with a limit on its episodes' length.
        act: the policy without noise, one observation to one action.
        seeds: each episode begins with `reset(seed=...)`.
        should_stop: asked before each step.

    Raises:
        EvaluationStopped, MeasureError: as `evaluate_begun`.
    """
    return evaluate_begun(make_env, lambda env: act, seeds, should_stop)


def evaluate_begun(
    make_env: Callable[[], AnyEnv],
    begin: Callable[[AnyEnv], Act],
    seeds: Sequence[int],
    should_stop: Callable[[], bool],
) -> Evaluation:
    """Run one episode per seed in an environment of its own, closed at the end.

    The global generators are put back afterwards, whatever the environment or the policy drew from them.

    Args:
        make_env: gives a fresh environment, with a limit on its episodes' length.
        begin: gives what acts in one episode; called after each reset.
        seeds: each episode begins with `reset(seed=...)`.
        should_stop: asked before each step.

    Raises:
        EvaluationStopped: `should_stop` said so.
        MeasureError: the environment reports a measure in some episodes only, or one that isn't a number.
    """
    from training.seeding import undisturbed_generators

    with undisturbed_generators():
        env = make_env()
        try:
            episodes = [_run_episode(env, begin, seed, should_stop) for seed in seeds]
        finally:
            env.close()
    return gather_evaluation(seeds, episodes)


def _run_episode(
    env: AnyEnv, begin: Callable[[AnyEnv], Act], seed: int, should_stop: Callable[[], bool]
) -> FinishedEpisode:
    """Give what one episode came to."""
    obs, _ = env.reset(seed=seed)
    act = begin(env)
    episode_return, length, over = 0.0, 0, False
    info: Mapping[str, Any] = {}
    while not over:
        if should_stop():
            raise EvaluationStopped
        obs, reward, terminated, truncated, info = env.step(act(obs))
        episode_return += float(reward)
        length += 1
        over = terminated or truncated
    return FinishedEpisode(episode_return, length, read_measures(info))


def gather_evaluation(seeds: Sequence[int], episodes: Sequence[FinishedEpisode]) -> Evaluation:
    """Give an evaluation of its episodes, one per seed and in their order.

    Raises:
        MeasureError: a measure is missing in some episodes.
    """
    return Evaluation(
        tuple(seeds),
        tuple(episode.episode_return for episode in episodes),
        tuple(episode.length for episode in episodes),
        gather_measures(seeds, [episode.measures for episode in episodes]),
    )


def summarise_evaluation(evaluation: Evaluation, references: References | None = None) -> dict[str, float]:
    """Give the numbers of an `eval/*` row; deviations are of the population, as in stable-baselines3.

    Where the environment reports measures, their means are among them: `eval/success_rate`, `eval/collision`, ... Only
    with references is there `eval/normalized_score`, that of the mean return.
    """
    mean = float(np.mean(evaluation.returns))
    numbers = {
        "eval/mean_reward": mean,
        "eval/std_reward": float(np.std(evaluation.returns)),
        "eval/mean_ep_length": float(np.mean(evaluation.lengths)),
    }
    numbers |= {f"eval/{name}": value for name, value in average_measures(evaluation.measures).items()}
    return numbers if references is None else numbers | {"eval/normalized_score": references.score(mean)}


def write_out_evaluation(evaluation: Evaluation, references: References | None) -> dict[str, Any]:
    """Give an evaluation as a summary holds it: means, and each episode's numbers, as JSON."""
    final = summarise_evaluation(evaluation, references)
    written: dict[str, Any] = {
        "mean": to_json_number(final["eval/mean_reward"]),
        "std": to_json_number(final["eval/std_reward"]),
        "returns": [to_json_number(value) for value in evaluation.returns],
        "lengths": list(evaluation.lengths),
        "seeds": list(evaluation.seeds),
    }
    if evaluation.measures:
        measures = {name: [to_json_number(value) for value in values] for name, values in evaluation.measures.items()}
        written |= write_out_means(evaluation) | {"measures": measures}
    if references is not None:
        score = to_json_number(final["eval/normalized_score"])
        written |= {"normalized_score": score, "references": asdict(references)}
    return written


def write_out_means(evaluation: Evaluation) -> dict[str, float | str]:
    """Give the means of measures as a summary holds them: `success_rate`, `collision`, ..., as JSON."""
    return {name: to_json_number(value) for name, value in average_measures(evaluation.measures).items()}


def describe_evaluation(evaluation: Evaluation, num_timesteps: int) -> list[str]:
    """Give the console lines that users of stable-baselines3 know: two, and a third where success is reported."""
    returns, lengths = evaluation.returns, evaluation.lengths
    lines = [
        f"Eval num_timesteps={num_timesteps}, "
        f"episode_reward={float(np.mean(returns)):.1f} +/- {float(np.std(returns)):.1f}",
        f"Episode length: {float(np.mean(lengths)):.1f} +/- {float(np.std(lengths)):.1f}",
    ]
    if IS_SUCCESS in evaluation.measures:
        lines.append(f"Success rate: {100 * float(np.mean(evaluation.measures[IS_SUCCESS])):.2f}%")
    return lines
