from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.statistics import (
    Interval,
    Values,
    interquartile_mean,
    stratified_bootstrap_interval,
    wilson_interval,
)

VALUES = st.lists(st.floats(-1000, 1000).map(lambda value: round(value, 3)), min_size=1, max_size=12)
STRATA = st.lists(VALUES, min_size=1, max_size=4)


def bootstrap(strata: list[list[float]], seed: int = 0) -> Interval:
    return stratified_bootstrap_interval(strata, resamples=200, seed=seed)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([1.0, 2.0, 9.0], 4.0),  # under four values nothing is cut: the plain mean
        ([-100.0, 1.0, 3.0, 100.0], 2.0),
        ([100.0, 1.0, 2.0, 3.0, -100.0], 2.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0], 3.5),
        ([-9.0, -9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0, 99.0], 3.5),
    ],
)
def test_the_interquartile_mean_has_its_closed_form(values: list[float], expected: float) -> None:
    assert float(interquartile_mean(values)) == pytest.approx(expected)


def test_the_interquartile_mean_works_along_the_last_axis() -> None:
    rows = np.array([[1.0, 2.0, 3.0, 40.0], [4.0, 4.0, 4.0, 4.0]])
    assert interquartile_mean(rows).tolist() == [2.5, 4.0]


def test_a_nan_can_not_hide_in_the_part_that_is_cut() -> None:
    assert np.isnan(interquartile_mean([1.0, 2.0, 3.0, 4.0, np.nan]))


@pytest.mark.parametrize("values", [[], 3.0, np.empty((2, 0))])
def test_the_interquartile_mean_of_nothing_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        interquartile_mean(values)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(STRATA, st.randoms(use_true_random=False))
def test_the_interval_does_not_depend_on_any_order(strata: list[list[float]], random: object) -> None:
    shuffled = [list(values) for values in strata]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for values in shuffled:
        random.shuffle(values)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(_ends(bootstrap(strata)), _ends(bootstrap(shuffled)))


@settings(max_examples=60)
@given(STRATA, st.floats(-1000, 1000))
def test_the_interval_moves_with_the_values(strata: list[list[float]], shift: float) -> None:
    moved = bootstrap([[value + shift for value in values] for values in strata])
    np.testing.assert_allclose(_ends(moved), np.array(_ends(bootstrap(strata))) + shift, atol=1e-8)


@settings(max_examples=60)
@given(STRATA, st.floats(0.125, 8))
def test_the_interval_scales_with_the_values(strata: list[list[float]], factor: float) -> None:
    scaled = bootstrap([[value * factor for value in values] for values in strata])
    np.testing.assert_allclose(_ends(scaled), np.array(_ends(bootstrap(strata))) * factor, atol=1e-8)


@settings(max_examples=80)
@given(STRATA, st.integers(0, 5))
def test_the_interval_contains_the_point_and_stays_within_the_data(strata: list[list[float]], seed: int) -> None:
    interval = bootstrap(strata, seed)
    pooled = np.concatenate(strata)
    if all(len(values) == 1 for values in strata):
        assert not interval.exists
    else:
        assert interval.low <= float(interquartile_mean(pooled)) <= interval.high
        assert pooled.min() - 1e-9 <= interval.low <= interval.high <= pooled.max() + 1e-9


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_two_values_give_an_interval_from_one_to_the_other() -> None:
    assert stratified_bootstrap_interval([[1.0, 3.0]]) == Interval(1.0, 3.0)


def test_equal_values_give_an_interval_without_width() -> None:
    assert stratified_bootstrap_interval([[2.0] * 5, [2.0] * 3]) == Interval(2.0, 2.0)


def test_single_values_have_no_interval_and_overlap_nothing() -> None:
    interval = stratified_bootstrap_interval([[1.0], [5.0]])
    assert not interval.exists
    assert not interval.overlaps(Interval(0.0, 9.0))


def test_intervals_that_touch_or_hold_one_another_overlap_and_others_do_not_whichever_is_asked() -> None:
    low, middle, high, all_of_them = Interval(0.0, 2.0), Interval(2.0, 3.0), Interval(4.0, 5.0), Interval(-1.0, 9.0)
    pairs = [(low, middle, True), (middle, high, False), (low, high, False), (high, all_of_them, True)]
    assert [(a.overlaps(b), b.overlaps(a)) for a, b, _ in pairs] == [(expected,) * 2 for *_, expected in pairs]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_interval_that_leaves_out_the_point_is_widened_to_it(sign: float) -> None:
    def count_different(rows: Values) -> Values:
        counts: Values = sign * (1.0 + (np.diff(np.sort(rows, axis=-1), axis=-1) > 0).sum(axis=-1))
        return counts

    interval = stratified_bootstrap_interval([np.arange(40.0)], count_different, resamples=500)
    # Of 40 different values a resample holds about 25, and never all.
    ends = sorted((sign * interval.low, sign * interval.high))
    assert ends[1] == 40.0
    assert 15 < ends[0] < 30


def test_the_ends_of_a_plain_interval_hardly_depend_on_the_generator() -> None:
    values = [np.random.default_rng(7).normal(size=20)]
    ends = [_ends(stratified_bootstrap_interval(values, seed=seed)) for seed in range(12)]
    # From 100 resamples they would be ten times as far apart as from 10,000.
    assert np.std(ends, axis=0).max() < 0.02


def test_values_are_never_drawn_from_another_stratum() -> None:
    # Pooled, the resampled mean would vary with the mixture; within strata it can't vary at all.
    assert stratified_bootstrap_interval([[0.0] * 4, [100.0] * 4]) == Interval(50.0, 50.0)


def test_the_same_numbers_give_the_same_interval_and_another_seed_another() -> None:
    values = [np.random.default_rng(3).normal(size=9)]
    assert stratified_bootstrap_interval(values) == stratified_bootstrap_interval(values)
    assert stratified_bootstrap_interval(values) != stratified_bootstrap_interval(values, seed=1)


@pytest.mark.parametrize(
    ("strata", "message"),
    [([], "at least one stratum"), ([[1.0], []], "at least one value"), ([[1.0, np.nan]], "finite")],
)
def test_a_bootstrap_refuses_what_it_can_not_resample(strata: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_bootstrap_interval(strata)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        stratified_bootstrap_interval([[1.0, 2.0]], confidence=confidence)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    values = [np.random.default_rng(0).normal(size=12)]
    narrow, wide = (stratified_bootstrap_interval(values, confidence=share) for share in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_intervals_shrink_with_more_seeds() -> None:
    generator = np.random.default_rng(5)

    def mean_width(count: int) -> float:
        intervals = [bootstrap([generator.normal(size=count).tolist()], seed) for seed in range(60)]
        return float(np.mean([interval.high - interval.low for interval in intervals]))

    few, some, many = mean_width(5), mean_width(20), mean_width(80)
    assert few > 1.5 * some > 2.2 * many


@pytest.mark.parametrize(("count", "lowest", "highest"), [(3, 0.70, 0.80), (5, 0.87, 0.93), (40, 0.92, 0.97)])
def test_the_coverage_is_what_the_documents_say(count: int, lowest: float, highest: float) -> None:
    generator = np.random.default_rng(11)
    hits = 0
    for seed in range(1500):
        interval = stratified_bootstrap_interval([generator.normal(size=count)], resamples=500, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert lowest < hits / 1500 < highest


def test_many_values_are_resampled_in_pieces_without_changing_the_point() -> None:
    values = np.linspace(0, 1, 5_000)
    interval = stratified_bootstrap_interval([values], resamples=1_000)
    assert interval.low < float(interquartile_mean(values)) < interval.high


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_rate_has_published_values(successes: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, its method 3."""
    interval = wilson_interval(successes, count)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    mirrored = wilson_interval(count - successes, count)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low))


@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.5, 0.999))
def test_the_interval_of_a_rate_holds_it_and_stays_between_0_and_1(successes: int, count: int, level: float) -> None:
    successes = min(successes, count)
    interval = wilson_interval(successes, count, level)
    assert 0 <= interval.low <= successes / count <= interval.high <= 1
    wider = wilson_interval(successes, count, 0.9999)
    assert wider.low <= interval.low
    assert interval.high <= wider.high


@pytest.mark.parametrize(("successes", "count", "level"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_there_is_no_interval_of_what_is_no_rate(successes: int, count: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"trial|confidence"):
        wilson_interval(successes, count, level)
