"""The guard tells in time what is sick, never what is only large, and asks for what it may ask for."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.health import LIMITS, HealthGuard
from training.protocol import Episode, StepResult, Treatment
from training.signals import WINDOW_UPDATES


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_makes_one_event(tmp_path: Path, value: float) -> None:
    said: list[str] = []
    guard = HealthGuard("warn", tmp_path / "events.jsonl", "0123456789abcdef", said.append)
    guard.check(7, 0, {"train/critic_loss": value, "train/actor_loss": 1.0})
    guard.check(8, 0, {"train/critic_loss": value})
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["event"] == "guard"
    assert event["run"] == "0123456789abcdef"
    assert event["verdict"] == "non-finite"
    assert (event["metric"], event["value"], event["step"]) == ("train/critic_loss", str(value), 7)
    assert len(said) == 1
    assert "train/critic_loss" in said[0]
    assert (guard.summary()["verdict"], guard.summary()["events"]) == ("non-finite", 1)


def test_finite_values_are_healthy_however_large(tmp_path: Path) -> None:
    guard = HealthGuard("stop", tmp_path / "events.jsonl", "id", print)
    guard.check(1, 0, {"train/actor_loss": -1e300})
    assert (guard.summary()["verdict"], guard.summary()["events"]) == ("healthy", 0)
    assert not guard.wants_stop
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize(("mode", "stops"), [("warn", False), ("stop", True)])
def test_only_the_stop_mode_asks_for_a_stop(tmp_path: Path, mode: Any, stops: bool) -> None:
    guard = HealthGuard(mode, tmp_path / "events.jsonl", "id", lambda line: None)
    guard.check(1, 0, {"loss": float("nan")})
    assert guard.wants_stop is stops


def test_a_resumed_guard_does_not_repeat_itself(tmp_path: Path) -> None:
    guard = HealthGuard("warn", tmp_path / "events.jsonl", "id", lambda line: None)
    guard.check(1, 0, {"loss": float("nan")})
    resumed = HealthGuard("warn", tmp_path / "events.jsonl", "id", lambda line: None)
    resumed.load_state_dict(guard.state_dict())
    resumed.check(2, 0, {"loss": float("nan"), "value_loss": float("inf")})
    assert [event["metric"] for event in read_events(tmp_path / "events.jsonl")] == ["loss", "value_loss"]
    assert resumed.summary()["events"] == 2


def make_guard(folder: Path, mode: Any = "warn", absolute: dict[str, float] | None = None) -> HealthGuard:
    return HealthGuard(mode, folder / "events.jsonl", "id", lambda line: None, absolute)


def make_vitals(**other: float) -> dict[str, float]:
    """Of a healthy run; `error` is the signal `critic_error`."""
    error = other.pop("error", 1.0)
    return {
        "error_square": error**2,
        "target_variance": 1.0,
        "reward_square": 1.0,
        "reward_max": 1.0,
        "value_size": 5.0,
        "next_value_size": 5.0,
        "bootstrap_size": 4.5,
        "discount": 0.9,
        "stuck_share": 0.1,
        "gradient/critic": 1.0,
        "weights/critic": 1.0,
    } | other


def watch(guard: HealthGuard, windows: Sequence[Mapping[str, Any]], first: int = 0) -> None:
    """Let the guard see windows of two training steps each; keys are vitals, or fields of a `StepResult`."""
    for number, window in enumerate(windows, start=first):
        for half in (1, 2):
            updates = number * WINDOW_UPDATES + half * WINDOW_UPDATES // 2
            guard.observe(2 * number + half, updates, make_result(window))


def make_result(window: Mapping[str, Any]) -> StepResult:
    fields = {name: value for name, value in window.items() if name in ("episodes", "faults", "metrics")}
    return StepResult(
        updates=WINDOW_UPDATES // 2, vitals={k: v for k, v in window.items() if k not in fields}, **fields
    )


GOOD, BAD = make_vitals(), make_vitals(error=1e9)


def tell(guard: HealthGuard) -> list[tuple[str, int, str]]:
    return [(each.verdict, each.updates // WINDOW_UPDATES, each.action) for each in guard.decisions]


@pytest.mark.parametrize(
    ("windows", "alarms"),
    [
        ([GOOD, BAD, GOOD], []),
        ([GOOD, BAD, BAD], [3]),
        ([GOOD, BAD, GOOD, BAD, GOOD, BAD], []),
        ([BAD, BAD, BAD], [2]),
        ([BAD, {}, BAD], [3]),  # a window that gave no such signal says nothing
    ],
    ids=["one", "two", "every-other", "three", "unmeasured"],
)
def test_two_windows_in_a_row_make_an_alarm(tmp_path: Path, windows: Any, alarms: list[int]) -> None:
    guard = make_guard(tmp_path)
    watch(guard, windows)
    assert tell(guard) == [("critic-error", window, "warn") for window in alarms]


def test_windows_are_judged_even_where_updates_jump_over_their_ends(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    for step in (1, 2):
        guard.observe(step, step * 3 * WINDOW_UPDATES + 7, make_result(BAD))
    assert [(each.verdict, each.step) for each in guard.decisions] == [("critic-error", 2)]


def test_a_signal_that_was_told_about_is_quiet_for_twenty_windows(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    watch(guard, [BAD] * 45)
    assert [window for _, window, _ in tell(guard)] == [2, 22, 42]


def test_another_signal_speaks_while_one_is_quiet(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    watch(guard, [BAD] * 4 + [BAD | {"stuck_share": 1.0}] * 3)
    assert tell(guard) == [("critic-error", 2, "warn"), ("stuck-actor", 6, "warn")]


LEAST_SICK = {
    "skips": {"skips": 3.1},  # twice a window
    "weights": {"weights/critic": 21.0},
    "gradient": {"gradient/critic": 1.1e4},
    "bootstrap-gain": {"bootstrap_size": 5.006},
    "value-bound": {"value_size": 15.1},
    "critic-error": {"error_square": 1.01e6},
    "stuck-actor": {"stuck_share": 0.96},
}
MOST_HEALTHY = {
    "skips": {"skips": 2.4},
    "weights": {"weights/critic": 19.0},
    "gradient": {"gradient/critic": 0.9e4},
    "bootstrap-gain": {"bootstrap_size": 5.004},
    "value-bound": {"value_size": 14.9},
    "critic-error": {"error_square": 0.99e6},
    "stuck-actor": {"stuck_share": 0.94},
}


@pytest.mark.parametrize("verdict", LEAST_SICK)
def test_every_limit_is_where_the_documentation_says(tmp_path: Path, verdict: str) -> None:
    sick, healthy = make_guard(tmp_path), make_guard(tmp_path)
    watch(sick, [GOOD] * 4 + [GOOD | LEAST_SICK[verdict]] * 2)
    watch(healthy, [GOOD] * 4 + [GOOD | MOST_HEALTHY[verdict]] * 2)
    assert [each for each in tell(sick) if each[2] != "skip"] == [(verdict, 6, "warn")]
    assert [each for each in tell(healthy) if each[2] != "skip"] == []


@pytest.mark.parametrize(("share", "alarms"), [(0.95, 0), (1.05, 1)])
def test_a_value_that_moves_away_from_returns_is_told(tmp_path: Path, share: float, alarms: int) -> None:
    guard = make_guard(tmp_path)
    limit = {limit.signal: limit.limit for limit in LIMITS}["value_bias"]
    windows = []
    for predicted in (10.0, 10.0 + limit * share, 10.0 + 1.01 * limit * share):
        episodes = [Episode(0.0, 9, False, predicted, 10.0 + sign) for sign in (-1.0, 1.0, -1.0, 1.0)]
        windows.append(GOOD | {"episodes": episodes})
    watch(guard, windows)
    assert [verdict for verdict, *_ in tell(guard)] == ["value-bias"] * alarms


def test_the_table_of_limits_in_the_documentation_is_the_codes() -> None:
    page = (Path(__file__).parents[2] / "docs/health.md").read_text()
    rows = re.findall(r"^\| `health/([\w<>]+)` \|.*\| ([\d.,]+) \| `([\w-]+)` \|$", page, re.MULTILINE)
    documented = {(name, float(limit.replace(",", "")), verdict) for name, limit, verdict in rows}
    assert documented == {(limit.signal, limit.limit, limit.verdict) for limit in LIMITS}


@pytest.mark.parametrize("network", ["critic", "actor", "value", "model", "policy", "of_a_trainer_to_come"])
def test_limits_hold_for_whatever_network_a_trainer_has(tmp_path: Path, network: str) -> None:
    size = {f"weights/{network}": 1.0, f"gradient/{network}": 1.0}
    guard = make_guard(tmp_path)
    watch(guard, [size] * 4 + [{name: 1.1e4 * value for name, value in size.items()}] * 2)
    assert [(each.verdict, each.metric) for each in guard.decisions] == [
        ("weights", f"health/weights_{network}"),
        ("gradient", f"health/gradient_{network}"),
    ]


def test_a_learner_that_is_not_finite_is_told_once_and_at_once(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    watch(guard, [GOOD, GOOD | {"gradient/critic": math.nan}, GOOD | {"error_square": math.inf}])
    assert tell(guard) == [("non-finite", 2, "warn")]
    assert guard.decisions[0].metric == "health/gradient/critic"


@pytest.mark.parametrize(("mode", "action"), [("warn", "warn"), ("stop", "stop")])
def test_an_environments_fault_is_not_the_learners(tmp_path: Path, mode: str, action: str) -> None:
    guard = make_guard(tmp_path, mode)
    fault = "reward nan of environment 0 in its episode 3, step 7"
    guard.observe(9, 0, StepResult(faults=[fault]))
    guard.observe(10, 0, StepResult(faults=[fault]))
    watch(guard, [GOOD | {"error_square": math.nan, "gradient/critic": math.nan}] * 3)
    assert [(each.verdict, each.metric, each.step, each.action) for each in guard.decisions] == [
        ("environment", fault, 9, action)
    ]
    assert guard.wants_stop is (mode == "stop")


def test_a_few_transitions_of_a_repaired_run_may_be_discarded_and_no_more(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, "repair")
    watch(guard, [GOOD | {"faults": ["bad"] * 10}, GOOD])
    assert [(each.verdict, each.metric, each.value, each.action) for each in guard.decisions] == [
        ("environment", "transitions", 20.0, "discard")
    ]
    assert not guard.wants_stop
    watch(guard, [GOOD | {"faults": ["bad"] * 10}], first=2)
    assert not guard.wants_stop  # it is counted by windows
    guard.observe(7, 3 * WINDOW_UPDATES + 1, StepResult(faults=["worse"] * 21))
    assert tell(guard)[-1] == ("environment", 3, "stop")
    assert guard.wants_stop


def test_what_was_left_out_after_the_last_window_is_told_at_the_end(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, "repair")
    watch(guard, [GOOD] * 2)
    guard.observe(5, 2 * WINDOW_UPDATES + 9, StepResult(vitals={"skips": 2.0}, faults=["bad"]))
    assert not guard.summary()["repaired"]
    guard.finish(5, 2 * WINDOW_UPDATES + 9)
    assert [(each.action, each.value) for each in guard.decisions] == [("skip", 2.0), ("discard", 1.0)]
    assert guard.summary()["repaired"]


@pytest.mark.parametrize(
    ("limits", "window", "alarm"),
    [
        ({"critic_loss": 1e4}, {"metrics": {"train/critic_loss": 10_001.0}}, True),
        ({"critic_loss": 1e4}, {"metrics": {"train/critic_loss": 9_999.0}}, False),
        ({"actor_loss": 1e3}, {"metrics": {"train/actor_loss": -1_001.0}}, True),
        ({"actor_loss": 1e3}, {"metrics": {"train/actor_loss": -999.0}}, False),
        ({"episode_length": 50.0}, {"episodes": [Episode(0.0, 49, False)]}, True),
        ({"episode_length": 50.0}, {"episodes": [Episode(0.0, 50, False)]}, False),
        ({"episode_length": 50.0}, {}, False),
    ],
)
def test_limits_in_the_tasks_own_units_hold_where_they_are_set(
    tmp_path: Path, limits: dict[str, float], window: dict[str, Any], alarm: bool
) -> None:
    limited, unlimited = make_guard(tmp_path, absolute=limits), make_guard(tmp_path)
    for guard in (limited, unlimited):
        watch(guard, [GOOD, GOOD | window])
        assert guard.decisions == []
        watch(guard, [GOOD | window], first=2)
    assert tell(limited) == ([("absolute-limit", 3, "warn")] if alarm else [])
    assert tell(unlimited) == []


EPISODES = st.lists(
    st.lists(
        st.builds(
            Episode,
            st.floats(-1e12, 1e12) | st.sampled_from([-6_381_221.0, -28_000.0]),
            st.integers(1, 10_000),
            st.booleans(),
        ),
        max_size=5,
    ),
    min_size=2,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(EPISODES, st.sampled_from(["warn", "stop", "repair"]))
def test_no_returns_and_no_lengths_ever_make_an_alarm(episodes: list[list[Episode]], mode: str) -> None:
    with TemporaryDirectory() as folder:
        guard = make_guard(Path(folder), mode)
        watch(guard, [GOOD | {"episodes": each} for each in episodes])
        assert guard.decisions == []
        assert (guard.wants_stop, guard.wants_roll_back) == (False, False)


def test_stop_asks_for_a_stop_and_for_nothing_before_it(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, "stop")
    watch(guard, [GOOD, BAD])
    assert not guard.wants_stop
    watch(guard, [BAD], first=2)
    assert (guard.wants_stop, guard.wants_roll_back) == (True, False)
    assert tell(guard) == [("critic-error", 3, "stop")]


def test_repairs_halve_learning_rates_three_times_and_the_batch_once_then_stop(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, "repair")
    seen = []
    for roll_back in range(3):
        watch(guard, [BAD, BAD], first=2 * roll_back)
        assert (guard.wants_roll_back, guard.wants_stop) == (True, False)
        guard.complete_roll_back(guard.begin_roll_back(to_step=0))
        assert not guard.wants_roll_back
        # A checkpoint of a time before remembers neither the repairs nor what they were for.
        seen.append((guard.treatment, guard.roll_backs))
        guard._quiet_until = {}
    assert seen == [(Treatment(0.5, 0), 1), (Treatment(0.25, 0), 2), (Treatment(0.125, 1), 3)]
    watch(guard, [BAD, BAD], first=6)
    assert (guard.wants_roll_back, guard.wants_stop) == (False, True)
    assert [action for *_, action in tell(guard)] == ["roll_back", "roll_back", "drop_rung", "stop"]


def test_healthy_up_to_is_the_last_window_within_all_limits(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    for step in (1, 2, 3):
        guard.observe(step, 0, StepResult())
    assert guard.healthy_step == 3  # nothing is learned yet
    seen = []
    for number, window in enumerate([GOOD, BAD, GOOD, GOOD | {"skips": math.nan}, {}]):
        watch(guard, [window], first=number)
        seen.append(guard.healthy_step)
    assert seen == [2, 2, 6, 6, 10]


def test_a_checkpoint_that_was_gone_back_to_counts_as_healthy(tmp_path: Path) -> None:
    """Or a second alarm, before the first window ends well, would have none to go back to."""
    guard = make_guard(tmp_path, "repair")
    watch(guard, [GOOD])
    state = guard.state_dict()  # of a checkpoint of step 3: the window up to step 2 was healthy
    watch(guard, [GOOD, BAD, BAD], first=1)
    kept = guard.begin_roll_back(to_step=3)
    guard.load_state_dict(state)
    guard.complete_roll_back(kept)
    assert guard.healthy_step == 3


SICK = BAD | {"metrics": {"train/critic_loss": 9.0}, "episodes": [Episode(-1.0, 3, True, 4.0, 2.0)] * 3, "skips": 1.0}
SEQUENCE = [GOOD, GOOD, SICK, SICK, GOOD, SICK | {"stuck_share": 1.0}, SICK | {"faults": ["bad"]}, GOOD] * 3 + [
    GOOD | {"error_square": math.nan}
]


@pytest.mark.parametrize("mode", ["warn", "stop", "repair"])
def test_a_guard_resumed_at_any_step_decides_as_one_that_never_stopped(tmp_path: Path, mode: str) -> None:
    results = [make_result(window) for window in SEQUENCE for _ in (1, 2)]
    guards = [make_guard(tmp_path, mode, {"critic_loss": 5.0, "episode_length": 2.0})]
    straight = guards[0]
    for place, result in enumerate(results, start=1):
        resumed = make_guard(tmp_path, mode, {"critic_loss": 5.0, "episode_length": 2.0})
        resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
        guards.append(resumed)
        for guard in guards:
            guard.observe(place, place * WINDOW_UPDATES // 2, result)
        for guard in guards[1:]:
            assert str(guard.state_dict()) == str(straight.state_dict()), place
            assert guard.signals == straight.signals
    assert len(straight.decisions) >= 4
    assert len({each.verdict for each in straight.decisions}) >= 3


def test_every_attribute_is_in_the_state_or_declared_transient(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    assert set(vars(guard)) >= HealthGuard.TRANSIENT
    assert {name.lstrip("_") for name in set(vars(guard)) - HealthGuard.TRANSIENT} == set(guard.state_dict())
