"""Signals compare a run with itself: by hand, and whatever the unit of reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.health import HealthGuard
from training.protocol import Episode, StepResult
from training.signals import CRITIC_VITALS, WINDOW_UPDATES, HealthSignals, Window

SQUARES = ("error_square", "target_variance", "reward_square")
SIZES = ("reward_max", "value_size", "next_value_size", "bootstrap_size")


def make_vitals(**other: float) -> dict[str, float]:
    """A healthy critic: errors as large as the targets' spread, values within what rewards of 1 can add up to."""
    healthy = {
        "error_square": 4.0,
        "target_variance": 4.0,
        "reward_square": 1.0,
        "reward_max": 2.0,
        "value_size": 30.0,
        "next_value_size": 20.0,
        "bootstrap_size": 18.0,
        "discount": 0.9,
    }
    return healthy | other


def make_episodes(predicted: float, came: float, number: int = 5, spread: float = 1.0) -> list[Episode]:
    """Episodes whose discounted returns lie around `came`, with a deviation of `spread` (for an even number)."""
    signs = [0.0] if number == 1 else [(-1.0) ** place for place in range(number)]
    return [Episode(0.0, 9, True, predicted_return=predicted, discounted_return=came + spread * sign) for sign in signs]


def close(signals: HealthSignals, vitals: Mapping[str, float], episodes: Sequence[Episode] = ()) -> Window:
    signals.add(vitals, episodes)
    return signals.close_window()


def test_a_signal_is_given_where_all_that_it_needs_is_there() -> None:
    signals = HealthSignals()
    assert close(signals, {}) == Window({}, ())
    assert close(signals, {"gradient/actor": 1.0}) == Window({}, ())  # nothing to compare with yet
    assert close(signals, {"stuck_share": 0.25}).signals == {"stuck_actor": 0.25}
    for name in sorted(CRITIC_VITALS):
        vitals = make_vitals()
        del vitals[name]
        assert close(HealthSignals(), vitals).signals == {}, name


def test_critic_signals_by_hand() -> None:
    window = close(HealthSignals(), make_vitals(error_square=36.0))
    assert window.not_finite == ()
    assert window.signals == {
        "critic_error": pytest.approx(6.0 / 2.0),
        "bootstrap_gain": pytest.approx(18.0 / 20.0, rel=1e-5),
        "value_bound": pytest.approx(30.0 / (1.5 * 2.0 / (1 - 0.9))),
    }


def test_the_error_is_in_units_of_rewards_while_values_are_all_alike() -> None:
    window = close(HealthSignals(), make_vitals(error_square=25.0, target_variance=1e-8, reward_square=0.25))
    assert window.signals["critic_error"] == pytest.approx(5.0 / 0.5)


def test_a_target_that_leaps_does_not_excuse_itself() -> None:
    signals = HealthSignals()
    for _ in range(7):
        close(signals, make_vitals())
    leap = make_vitals(error_square=1e12, target_variance=1e12)
    assert close(signals, leap).signals["critic_error"] == pytest.approx(1e6 / 2.0)


def test_a_window_is_the_mean_of_its_updates() -> None:
    signals = HealthSignals()
    for share in (0.0, 0.5, 1.0):
        signals.add({"stuck_share": torch.tensor(share)}, [])
        signals.add({}, [])
    assert signals.close_window().signals == {"stuck_actor": 0.5}
    assert signals.close_window().signals == {}


def test_values_are_held_against_the_largest_reward_so_far() -> None:
    signals = HealthSignals()
    close(signals, make_vitals(reward_max=8.0))
    assert close(signals, make_vitals()).signals["value_bound"] == pytest.approx(30.0 / (1.5 * 8.0 / (1 - 0.9)))


@pytest.mark.parametrize("discount", [1.0, 1.2])
def test_without_discounting_the_length_of_episodes_bounds_values(discount: float) -> None:
    """The one that goes on counts too: an agent that begins to survive is worth more before its episode has ended."""
    signals = HealthSignals()
    episode = [Episode(-9e9, 40, True)]
    bound = close(signals, make_vitals(discount=discount), episode).signals["value_bound"]
    assert bound == pytest.approx(30.0 / (1.5 * 40 * 2.0))
    for _ in range(99):
        signals.add({}, [])
    bound = close(signals, make_vitals(discount=discount)).signals["value_bound"]
    assert bound == pytest.approx(30.0 / (1.5 * 100 * 2.0))
    bound = close(signals, make_vitals(discount=discount), episode).signals["value_bound"]
    assert bound == pytest.approx(30.0 / (1.5 * 40 * 2.0))


def test_a_gradient_is_compared_with_its_own_median_from_the_fourth_window_on() -> None:
    signals = HealthSignals()
    lengths = [1.0, 3.0, 2.0, 8.0, 5.0]
    seen = [close(signals, {"gradient/critic": length}).signals for length in lengths]
    assert seen[:3] == [{}, {}, {}]
    assert seen[3] == {"gradient_critic": 8.0 / 2.0}
    assert seen[4] == {"gradient_critic": 5.0 / 2.5}
    for _ in range(8):
        last = close(signals, {"gradient/critic": 10.0})
    assert last.signals == {"gradient_critic": 1.0}


def test_parameters_are_compared_with_what_they_were_two_windows_before_or_at_first() -> None:
    signals = HealthSignals()
    signals.add({"weights/actor": torch.tensor(2.0)}, [])
    signals.add({"weights/actor": torch.tensor(6.0)}, [])
    assert signals.close_window().signals == {"weights_actor": 4.0 / 2.0}
    assert close(signals, {"weights/actor": 10.0}).signals == {"weights_actor": 10.0 / 2.0}
    assert close(signals, {"weights/actor": 12.0}).signals == {"weights_actor": 12.0 / 4.0}


def test_steps_left_out_are_counted_over_the_window() -> None:
    signals = HealthSignals()
    for skips in (0.0, 2.0, 1.0):
        signals.add({"skips": skips}, [])
    assert signals.close_window().signals == {"skips": pytest.approx(3.0)}


def test_a_bias_that_grows_is_measured_in_deviations_of_returns() -> None:
    signals = HealthSignals()
    assert close(signals, {}, make_episodes(0.0, 10.0, number=6)).signals == {}  # nothing to move away from yet
    window = close(signals, {}, make_episodes(30.0, 10.0, number=6))
    assert window.signals == {"value_bias": pytest.approx(20.0 / 1.0)}
    lower = close(signals, {}, make_episodes(-40.0, 10.0, number=6))  # past the truth and out on the other side
    assert lower.signals == {"value_bias": pytest.approx(50.0 / 1.0)}


def test_predictions_that_come_nearer_to_the_truth_are_no_bias() -> None:
    signals = HealthSignals()
    close(signals, {}, make_episodes(0.0, -100.0))
    for predicted in (-10.0, -20.0, -60.0, -99.0):
        assert close(signals, {}, make_episodes(predicted, -100.0)).signals == {"value_bias": 0.0}


def test_a_truth_that_runs_away_from_predictions_is_no_bias() -> None:
    """Episodes that become longer give other returns before the critic can know."""
    signals = HealthSignals()
    close(signals, {}, make_episodes(-90.0, -100.0))
    for came in (-1000.0, -20_000.0):
        assert close(signals, {}, make_episodes(-90.0, came)).signals == {"value_bias": 0.0}


@pytest.mark.parametrize(
    ("came", "spread", "reward", "unit"),
    [(10.0, 4.0, 1.0, 4.0), (10.0, 0.5, 0.1, 1.0), (10.0, 0.5, 3.0, 3.0)],
    ids=["deviation", "tenth", "reward"],
)
def test_the_unit_of_a_bias_is_the_largest_of_three(came: float, spread: float, reward: float, unit: float) -> None:
    signals = HealthSignals()
    vitals = {"reward_square": reward**2}
    close(signals, vitals, make_episodes(12.0, came, 6, spread))
    window = close(signals, vitals, make_episodes(60.0, came, 6, spread))
    assert window.signals == {"value_bias": pytest.approx(50.0 / unit)}


def test_a_bias_needs_five_fresh_episodes_that_somebody_predicted() -> None:
    signals = HealthSignals()
    close(signals, {}, make_episodes(0.0, 10.0, number=6))
    assert close(signals, {}, make_episodes(30.0, 10.0, number=4)).signals == {}
    assert close(signals, {}, [Episode(1.0, 9, True)] * 9).signals == {}
    assert "value_bias" in close(signals, {}, make_episodes(30.0, 10.0, number=1)).signals


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_and_never_compared(number: float) -> None:
    signals = HealthSignals()
    vitals = {"gradient/critic": 1.0, "weights/actor": 1.0} | make_vitals()
    healthy = [close(signals, vitals, make_episodes(12.0, 10.0, 6)).signals for _ in range(4)][-1]
    broken = close(signals, dict.fromkeys(vitals, number), make_episodes(number, number, 6))
    assert (broken.signals, set(broken.not_finite)) == ({}, set(vitals))
    for _ in range(4):  # the returns that came are remembered for some windows
        after = close(signals, vitals, make_episodes(12.0, 10.0, 6)).signals
    assert after == healthy


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0, 1.2])
def test_a_world_without_rewards_raises_no_signal(discount: float) -> None:
    """Values are then nothing but what networks begin with: there is no scale to judge them in."""
    signals = HealthSignals()
    nothing = dict.fromkeys([*SQUARES, *SIZES], 0.0) | {"discount": discount}
    for size in (0.0, 1e-6, 1e-3, 1e-9, 0.0):
        vitals = nothing | {"error_square": size**2, "value_size": size, "gradient/critic": size, "weights/critic": 9.0}
        episodes = [Episode(0.0, 20, False, predicted_return=3 * size, discounted_return=0.0)] * 6
        window = close(signals, vitals, episodes)
        assert all(value <= 1.0 for value in window.signals.values()), window
        assert window.not_finite == ()


def test_before_the_first_reward_nothing_is_judged_that_needs_a_scale() -> None:
    """However wrong a critic is that knows of no reward; and what it was then is no measure for what comes."""
    signals = HealthSignals()
    nothing = make_vitals(error_square=1e6, target_variance=1e-6, reward_square=0.0, reward_max=0.0)
    for power in range(6):
        vitals = nothing | {"stuck_share": 1.0, "weights/critic": 1.0, "gradient/critic": 10.0 ** (3 * power)}
        window = close(signals, vitals, make_episodes(9.0**power, 0.0, 6, spread=1e-3))
        assert window.signals.keys() == {"weights_critic", "bootstrap_gain"}
    first = close(signals, make_vitals() | {"stuck_share": 1.0, "gradient/critic": 1.0}, make_episodes(0.0, 0.0, 6))
    assert first.signals.keys() == {"critic_error", "value_bound", "bootstrap_gain", "stuck_actor"}
    assert first.signals["critic_error"] == pytest.approx(1.0)


def make_sequence() -> st.SearchStrategy[list[tuple[dict[str, float], list[Episode]]]]:
    """Windows of vitals and episodes, some sick."""
    size = st.floats(1e-3, 1e3)
    critic = st.fixed_dictionaries(
        dict.fromkeys((*SQUARES, *SIZES), size) | {"discount": st.sampled_from([0.9, 0.99, 1.0, 1.2])}
    )
    networks = st.fixed_dictionaries({"gradient/critic": size, "weights/actor": size})
    episode = st.builds(
        Episode,
        st.floats(-1e3, 1e3),
        st.integers(1, 500),
        st.booleans(),
        st.floats(-1e3, 1e3),
        st.floats(-1e3, 1e3),
    )
    return st.lists(
        st.tuples(st.builds(lambda a, b: a | b, critic, networks), st.lists(episode, max_size=7)),
        min_size=1,
        max_size=12,
    )


def rescale(vitals: Mapping[str, float], factor: float) -> dict[str, float]:
    """The same in other units of reward; a gradient of a squared error goes with its square."""
    powers = dict.fromkeys(SQUARES, 2) | dict.fromkeys(SIZES, 1) | {"gradient/critic": 2}
    return {name: value * factor ** powers.get(name, 0) for name, value in vitals.items()}


def rescale_episode(episode: Episode, factor: float) -> Episode:
    assert episode.predicted_return is not None
    assert episode.discounted_return is not None
    return Episode(
        episode.episode_return * factor,
        episode.length,
        episode.truncated,
        episode.predicted_return * factor,
        episode.discounted_return * factor,
    )


@settings(max_examples=150, deadline=None)
@given(make_sequence(), st.floats(-6, 6))
def test_rewards_in_other_units_give_the_same_signals(sequence: Any, exponent: float) -> None:
    factor = 10**exponent
    one, other = HealthSignals(), HealthSignals()
    for vitals, episodes in sequence:
        left = close(one, vitals, episodes).signals
        scaled = [rescale_episode(episode, factor) for episode in episodes]
        right = close(other, rescale(vitals, factor), scaled).signals
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@settings(max_examples=60, deadline=None)
@given(make_sequence(), st.integers(-20, 20))
def test_rewards_in_other_units_give_the_same_decisions(sequence: Any, exponent: int) -> None:
    """By powers of two, which round nothing: a value a hair's breadth from its limit stays on its side."""
    factor = 2.0**exponent
    decisions = []
    for scale in (1.0, factor):
        with TemporaryDirectory() as folder:
            guard = HealthGuard("warn", Path(folder) / "events.jsonl", "id", lambda line: None)
            for place, (vitals, episodes) in enumerate(sequence):
                scaled = [rescale_episode(episode, scale) for episode in episodes]
                result = StepResult(vitals=rescale(vitals, scale), episodes=scaled, updates=WINDOW_UPDATES)
                guard.observe(place + 1, (place + 1) * WINDOW_UPDATES, result)
            decisions.append([(each.verdict, each.metric, each.step) for each in guard.decisions])
    assert decisions[0] == decisions[1]


def test_a_state_in_the_midst_of_a_window_goes_on_as_if_never_stopped() -> None:
    straight, resumed = HealthSignals(), HealthSignals()
    vitals = make_vitals() | {"gradient/critic": 1.0, "weights/actor": torch.tensor(2.0), "skips": 1.0}
    for place in range(5):
        straight.add(vitals, make_episodes(10.0 * place, 10.0, 3))
        resumed.load_state_dict(straight.state_dict())
        assert resumed.state_dict() == straight.state_dict()
        straight.add(vitals, make_episodes(11.0 * place, 10.0, 3))
        resumed.add(vitals, make_episodes(11.0 * place, 10.0, 3))
        left, right = straight.close_window(), resumed.close_window()
        assert left == right
        assert math.isfinite(sum(left.signals.values()))


def test_every_attribute_is_in_the_state_or_declared_transient() -> None:
    signals = HealthSignals()
    saved = {name.lstrip("_") for name in vars(signals)} - HealthSignals.TRANSIENT
    assert saved == set(signals.state_dict())
