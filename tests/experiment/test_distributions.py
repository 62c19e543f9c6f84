"""Random variables: what is drawn, from which distribution, and that nothing else changes it."""

from __future__ import annotations

import decimal
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.distributions import DISTRIBUTIONS, Distribution, explain_misspelt
from experiment.scalars import read_scalar, show_value

ROOT = Path(__file__).parents[2]
MANY = 20_000

GOLDEN: list[tuple[Distribution, str, int, list[Any]]] = [
    (
        Distribution("log_uniform", (1e-5, 1e-2)),
        "learning_rate",
        0,
        [0.002222, 0.0001763, 0.004868, 9.449e-05, 3.076e-05, 1.054e-05],
    ),
    (Distribution("uniform", (0.0, 0.5)), "dropout", 0, [0.2013, 0.08739, 0.4331, 0.3019, 0.07568, 0.2447]),
    (Distribution("int_uniform", (1, 4)), "layers", 0, [4, 4, 4, 2, 4, 4, 3, 1]),
    (Distribution("choice", ("relu", "tanh")), "act", 0, ["relu", "relu", "relu", "tanh", "tanh", "relu"]),
    (Distribution("uniform", (1000.1, 1000.4)), "x", 7, [1000.2352, 1000.3811, 1000.309, 1000.1231]),
    (Distribution("uniform", (-1.0, 1.0)), "网.lr", 10**30, [-0.5881, 0.1875, -0.7339, -0.5421]),
    (Distribution("log_uniform", (1e-300, 1e300)), "x", 0, [9632000000000.0, 3.633e-67, 1.169e-156, 1.406e63]),
    (Distribution("int_uniform", (-(2**53), 2**53)), "x", 0, [389823287138731, -1994784942706212, -4681702757414261]),
]


@pytest.mark.parametrize(("distribution", "key", "seed", "values"), GOLDEN)
def test_golden_values_hold(distribution: Distribution, key: str, seed: int, values: list[Any]) -> None:
    drawn = distribution.draw(key, len(values), seed)
    assert drawn == values
    assert [type(value) for value in drawn] == [type(value) for value in values]


KEYS = st.text(min_size=1, max_size=8)
SEEDS = st.integers(0, 2**70)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
WHOLE = st.integers(-(2**53), 2**53)


def bounds(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    pairs = st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1])
    return pairs.map(lambda pair: (min(pair), max(pair)))


NUMBERS = st.one_of(
    st.builds(Distribution, st.just("uniform"), bounds(FLOATS)),
    st.builds(Distribution, st.just("log_uniform"), bounds(POSITIVE)),
    st.builds(Distribution, st.just("int_uniform"), bounds(WHOLE)),
)
CHOICES = st.builds(Distribution, st.just("choice"), st.lists(st.integers(), min_size=1, unique=True).map(tuple))


@settings(deadline=None)
@given(NUMBERS | CHOICES, KEYS, SEEDS, st.integers(0, 12), st.integers(0, 12))
def test_more_points_keep_those_that_were_there(
    distribution: Distribution, key: str, seed: int, fewer: int, more: int
) -> None:
    fewer, more = sorted((fewer, more))
    drawn = distribution.draw(key, more, seed)
    assert len(drawn) == more
    assert distribution.draw(key, fewer, seed) == drawn[:fewer]


@settings(deadline=None)
@given(NUMBERS, KEYS, SEEDS)
def test_numbers_are_within_their_bounds(distribution: Distribution, key: str, seed: int) -> None:
    low, high = distribution.arguments
    kind = int if distribution.name == "int_uniform" else float
    for value in distribution.draw(key, 10, seed):
        assert type(value) is kind
        assert low <= value <= high


@settings(deadline=None)
@given(CHOICES, KEYS, SEEDS)
def test_a_choice_is_one_of_its_values(distribution: Distribution, key: str, seed: int) -> None:
    assert set(distribution.draw(key, 10, seed)) <= set(distribution.arguments)


@settings(deadline=None)
@given(NUMBERS, KEYS, SEEDS)
def test_a_drawn_number_means_the_same_when_it_is_read_from_a_label(
    distribution: Distribution, key: str, seed: int
) -> None:
    for value in distribution.draw(key, 5, seed):
        assert read_scalar(show_value(value)) == value


def count_evenly(values: list[float], bins: int) -> float:
    """Chi-square of values in [0, 1] over equal bins."""
    counts = Counter(min(int(value * bins), bins - 1) for value in values)
    expected = len(values) / bins
    return sum((counts[index] - expected) ** 2 / expected for index in range(bins))


# The seeds are fixed, so nothing here is left to luck: 43.8 is passed by one even sample in 1,000 (19 degrees).
CHI_SQUARE_19 = 43.8


@pytest.mark.parametrize("key", ["learning_rate", "tau", "a", "b"])
@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_is_even(key: str, seed: int) -> None:
    values = Distribution("uniform", (-2.0, 3.0)).draw(key, MANY, seed)
    assert count_evenly([(value + 2) / 5 for value in values], 20) < CHI_SQUARE_19


@pytest.mark.parametrize("key", ["learning_rate", "tau"])
def test_logarithms_of_log_uniform_are_even(key: str) -> None:
    values = Distribution("log_uniform", (1e-5, 1e-2)).draw(key, MANY, 0)
    assert count_evenly([(math.log10(value) + 5) / 3 for value in values], 20) < CHI_SQUARE_19


@pytest.mark.parametrize("key", ["layers", "heads"])
def test_whole_numbers_are_even_with_both_bounds(key: str) -> None:
    counts = Counter(Distribution("int_uniform", (-3, 16)).draw(key, MANY, 0))
    assert sorted(counts) == list(range(-3, 17))
    assert sum((count - MANY / 20) ** 2 / (MANY / 20) for count in counts.values()) < CHI_SQUARE_19


def test_choices_are_even() -> None:
    counts = Counter(Distribution("choice", tuple("abcdefghijklmnopqrst")).draw("act", MANY, 0))
    assert len(counts) == 20
    assert sum((count - MANY / 20) ** 2 / (MANY / 20) for count in counts.values()) < CHI_SQUARE_19


def correlate(one: list[float], other: list[float]) -> float:
    mean, mean_other = sum(one) / len(one), sum(other) / len(other)
    products = sum((a - mean) * (b - mean_other) for a, b in zip(one, other, strict=True))
    squares = sum((a - mean) ** 2 for a in one) * sum((b - mean_other) ** 2 for b in other)
    return products / math.sqrt(squares)


def test_keys_seeds_and_neighbouring_points_don_t_go_together() -> None:
    plain = Distribution("uniform", (0.0, 1.0))
    values = plain.draw("a", MANY, 0)
    others = [plain.draw("b", MANY, 0), plain.draw("a.b", MANY, 0), plain.draw("a", MANY, 1)]
    others.append(plain.draw("a", MANY + 1, 0)[1:])
    # Four standard errors of no correlation at all.
    assert max(abs(correlate(values, other)) for other in others) < 4 / math.sqrt(MANY)


def test_pairs_of_keys_fill_their_square_evenly() -> None:
    plain = Distribution("uniform", (0.0, 1.0))
    pairs = zip(plain.draw("a", MANY, 0), plain.draw("b", MANY, 0), strict=True)
    counts = Counter((int(one * 10) % 10, int(other * 10) % 10) for one, other in pairs)
    # 148.2 is passed by one even sample in 1,000 (99 degrees).
    assert sum((counts[i, j] - MANY / 100) ** 2 / (MANY / 100) for i in range(10) for j in range(10)) < 148.2


def test_other_bounds_give_the_same_quantiles() -> None:
    narrow = Distribution("uniform", (0.0, 1.0)).draw("tau", 20, 0)
    wide = Distribution("uniform", (0.0, 100.0)).draw("tau", 20, 0)
    assert wide == pytest.approx([100 * value for value in narrow], rel=1e-3)


def test_numbers_have_four_digits_and_more_where_bounds_are_near_each_other() -> None:
    rates = Distribution("log_uniform", (1e-5, 1e-2)).draw("learning_rate", 500, 0)
    assert all(len(decimal.Decimal(repr(rate)).as_tuple().digits) <= 4 for rate in rates)
    near = Distribution("uniform", (1000.1, 1000.4)).draw("x", 500, 0)
    assert len(set(near)) > 400


def test_the_caller_s_decimal_context_changes_nothing() -> None:
    distribution = Distribution("log_uniform", (1e-5, 1e-2))
    with decimal.localcontext() as context:
        context.prec, context.rounding = 2, decimal.ROUND_UP
        assert distribution.draw("learning_rate", 3, 0) == [0.002222, 0.0001763, 0.004868]


def test_the_decimals_of_pure_python_draw_the_same() -> None:
    code = (
        "import sys, _pydecimal; sys.modules['decimal'] = _pydecimal\n"
        "from experiment.distributions import Distribution as D\n"
        "print(D('log_uniform', (1e-5, 1e-2)).draw('learning_rate', 40, 0), D('uniform', (0., .3)).draw('x', 40, 0))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    rates = Distribution("log_uniform", (1e-5, 1e-2)).draw("learning_rate", 40, 0)
    assert done.stdout == f"{rates} {Distribution('uniform', (0.0, 0.3)).draw('x', 40, 0)}\n"


@pytest.mark.parametrize(
    "name", ["log_unifrom", "loguniform", "LogUniform", "unifrom", "Uniform", "int_unifrom", "choise"]
)
def test_a_misspelt_distribution_is_recognised(name: str) -> None:
    said = explain_misspelt("a.b", name)
    assert said is not None
    assert said.startswith(f"a.b: unknown distribution {name!r}; did you mean '")


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, "g", "lr", "form", "choices_made", "layouts", "uniformity_weight"])
def test_other_names_are_taken_as_they_are(name: str) -> None:
    assert explain_misspelt("a", name) is None
