"""Numbers as weights on two bins: against the closed form in float64, there and back, and what their loss pulls at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rl.tdmpc2.two_hot import TwoHot, symexp, symlog

DEFAULT = TwoHot(-10.0, 10.0, 101)
LARGEST = math.expm1(10.0)
IMPOSSIBLE = -100.0
"""A logit whose weight is 0 in float32."""

in_range = st.builds(
    lambda exponent, sign: sign * math.expm1(exponent), st.floats(0, 9.999), st.sampled_from([-1.0, 1.0])
)
"""Numbers of all magnitudes that the default code has."""
codes = st.builds(
    lambda low, width, bins: TwoHot(low, low + width, bins), st.floats(-12, 3), st.floats(0.5, 20), st.integers(2, 120)
)


def as_column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def to_logits(weights: Tensor) -> Tensor:
    return weights.log().clamp(min=IMPOSSIBLE)


def encode_in_float64(code: TwoHot, value: float) -> NDArray[np.float64]:
    """Give the weights by what they are: a bin gets what its distance, in bins, leaves of 1."""
    place = math.copysign(math.log1p(abs(value)), value)
    bins = np.linspace(code.low, code.high, code.num_bins)
    distance = np.abs(np.clip(place, code.low, code.high) - bins) / code.width
    weights: NDArray[np.float64] = np.maximum(0.0, 1.0 - distance)
    return weights


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6, width=32))
def test_symlog_and_symexp_undo_each_other(value: float) -> None:
    number = torch.tensor(value, dtype=torch.float64)
    expected = math.copysign(math.log1p(abs(value)), value)
    assert symlog(number).item() == pytest.approx(expected, rel=1e-12)
    assert symexp(symlog(number)).item() == pytest.approx(value, rel=1e-12)
    assert symlog(-number).item() == -symlog(number).item()


@settings(max_examples=200, deadline=None)
@given(codes, st.floats(-1e5, 1e5, width=32))
def test_weights_are_the_closed_form_and_add_up_to_one(code: TwoHot, value: float) -> None:
    weights = code.encode(as_column(value))[0]
    np.testing.assert_allclose(weights.numpy(), encode_in_float64(code, value), atol=2e-4)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert weights.min() >= 0
    used = weights.nonzero().flatten()
    assert len(used) <= 2
    assert len(used) == 1 or used[1] == used[0] + 1


@settings(max_examples=200, deadline=None)
@given(in_range)
def test_a_number_comes_back_as_it_went_in_at_any_magnitude(value: float) -> None:
    found = DEFAULT.decode(to_logits(DEFAULT.encode(as_column(value)))).item()
    assert found == pytest.approx(value, rel=1e-4, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(codes, st.floats(0, 1))
def test_a_number_comes_back_whatever_the_bins_are(code: TwoHot, share: float) -> None:
    value = symexp(torch.tensor([[code.low + share * (code.high - code.low)]], dtype=torch.float64)).float()
    found = code.decode(to_logits(code.encode(value)))
    torch.testing.assert_close(found, value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("value", [LARGEST, 1.01 * LARGEST, 1e9, math.inf])
def test_numbers_beyond_the_ends_are_the_ends(value: float) -> None:
    weights = DEFAULT.encode(as_column(value, -value))
    assert weights[0].tolist() == pytest.approx([0.0] * 100 + [1.0], abs=1e-5)
    assert torch.equal(weights[1], weights[0].flip(0))
    found = DEFAULT.decode(to_logits(weights)).flatten().tolist()
    assert found == pytest.approx([LARGEST, -LARGEST], rel=1e-4)


def test_a_number_on_a_bin_has_all_its_weight_there() -> None:
    code = TwoHot(-2.0, 2.0, 5)
    bins = code.list_bins(torch.device("cpu"))
    assert bins.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    torch.testing.assert_close(code.encode(symexp(bins)[:, None]), torch.eye(5), atol=1e-6, rtol=0)


def test_two_bins_are_enough() -> None:
    code = TwoHot(0.0, 1.0, 2)
    value = as_column(math.expm1(0.25))
    torch.testing.assert_close(code.encode(value), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("shape", [(1,), (4, 1), (3, 4, 1), (2, 3, 4, 1), (0, 1)])
def test_shapes_are_kept_but_for_the_last_axis(shape: tuple[int, ...]) -> None:
    values = torch.linspace(-3, 3, math.prod(shape)).view(shape)
    weights = DEFAULT.encode(values)
    assert weights.shape == (*shape[:-1], 101)
    assert DEFAULT.decode(weights).shape == shape
    assert DEFAULT.measure(weights, values).shape == shape


def test_equal_logits_are_the_middle_of_the_range() -> None:
    assert DEFAULT.decode(torch.zeros(2, 101)).abs().max() < 1e-5
    assert TwoHot(0.0, 2.0, 3).decode(torch.zeros(1, 3)).item() == pytest.approx(math.expm1(1.0))


def test_logits_of_16_bits_are_decoded_in_32() -> None:
    logits = torch.randn(8, 101, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = DEFAULT.decode(logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, DEFAULT.decode(logits.float()))


def find_loss(code: TwoHot, logits: NDArray[np.float64], value: float) -> float:
    logs = logits - np.log(np.exp(logits).sum())
    return float(-(encode_in_float64(code, value) * logs).sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), in_range)
def test_the_loss_is_the_cross_entropy_of_the_closed_form(seed: int, value: float) -> None:
    logits = np.random.default_rng(seed).normal(scale=3, size=101)
    found = DEFAULT.measure(torch.from_numpy(logits).float()[None], as_column(value)).item()
    assert found == pytest.approx(find_loss(DEFAULT, logits, value), rel=1e-4)


def measure_slope(logits: Tensor, value: float) -> Tensor:
    logits = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(DEFAULT.measure(logits, as_column(value)).sum(), logits)
    return slope


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 5_000.0])
def test_only_two_bins_are_pulled_up_from_equal_logits(value: float) -> None:
    """The slope is what is said less what is wanted: 1 / 101 at all but the number's own bins."""
    slope = measure_slope(torch.zeros(1, 101), value)[0]
    torch.testing.assert_close(
        slope.double(), 1 / 101 - torch.from_numpy(encode_in_float64(DEFAULT, value)), atol=2e-4, rtol=0
    )
    rising = (slope < 0).nonzero().flatten()
    assert 1 <= len(rising) <= 2
    assert slope.sum().abs() < 1e-6


@settings(max_examples=50, deadline=None)
@given(in_range, st.integers(0, 2**31))
def test_no_logits_have_a_smaller_loss_than_those_of_the_number(value: float, seed: int) -> None:
    weights = DEFAULT.encode(as_column(value))
    best = to_logits(weights)
    assert measure_slope(best, value).abs().max() < 1e-6
    least = DEFAULT.measure(best, as_column(value)).item()
    entropy = -sum(weight * math.log(weight) for weight in weights[0].tolist() if weight > 0)
    assert least == pytest.approx(entropy, abs=1e-5)
    other = best + 0.5 * torch.randn(1, 101, generator=torch.Generator().manual_seed(seed))
    assert DEFAULT.measure(other, as_column(value)).item() >= least - 1e-6
