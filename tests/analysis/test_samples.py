"""Samples against data: the distance and its floor, calibration, principal components, and a picture that repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.samples import (
    MAX_MARGINALS,
    ActionFit,
    compare_actions,
    draw_comparison,
    estimate_r2,
    measure_distance,
    project_chunks,
    tabulate_fits,
)
from analysis.tables import render_text

Values = NDArray[np.float64]


def draw_world(slope: float, noise: float, draws: int, windows: int = 4_000) -> tuple[Values, Values]:
    """Chunks of two steps and one action around `slope` times what was seen, and as many from the same distribution."""
    generator = np.random.default_rng(0)
    seen = generator.standard_normal((windows, 1, 1))
    data = slope * seen + noise * generator.standard_normal((windows, 2, 1))
    return data, slope * seen + noise * generator.standard_normal((draws, windows, 2, 1))


@pytest.mark.parametrize(("slope", "noise"), [(0.1, 0.3), (0.3, 0.3), (0.3, 0.1)])
@pytest.mark.parametrize("draws", [2, 16])
def test_a_calibrated_sampler_has_a_correlation_of_r2_however_many_draws_there_are(
    slope: float, noise: float, draws: int
) -> None:
    (fit,) = compare_actions(*draw_world(slope, noise, draws))
    truth = slope**2 / (slope**2 + noise**2)
    assert fit.correlation == pytest.approx(truth, abs=0.03)
    assert fit.r2 == pytest.approx(truth, abs=0.05)
    assert fit.distance == pytest.approx(fit.floor, abs=0.02)
    assert (fit.data_mean, fit.data_sd) == (
        pytest.approx(fit.sample_mean, abs=0.02),
        pytest.approx(fit.sample_sd, 0.05),
    )


def test_a_sampler_of_means_has_a_larger_correlation_than_r2() -> None:
    data, _ = draw_world(0.3, 0.3, 2)
    seen = 0.3 * np.random.default_rng(0).standard_normal((4_000, 1, 1))
    (fit,) = compare_actions(data, np.stack([seen.repeat(2, axis=1)] * 2))
    assert fit.r2 == pytest.approx(0.5, abs=0.05)
    assert fit.correlation == pytest.approx(0.5**0.5, abs=0.05)


def test_a_sampler_that_ignores_the_history_has_no_r2() -> None:
    data, _ = draw_world(0.3, 0.1, 2)
    samples = np.random.default_rng(1).permuted(np.stack([data] * 8), axis=1)
    (fit,) = compare_actions(data, samples)
    assert fit.correlation == pytest.approx(0, abs=0.03)
    assert fit.r2 is None
    assert fit.distance < 2 * fit.floor + 0.01


def test_constant_samples_have_neither_correlation_nor_r2() -> None:
    data, _ = draw_world(0.3, 0.1, 2)
    (fit,) = compare_actions(data, np.zeros((4, *data.shape)))
    assert (fit.correlation, fit.r2) == (None, None)
    assert fit.distance == pytest.approx(np.abs(data[:, 0]).mean(), rel=0.05)
    assert estimate_r2(data[:, 0, 0], np.zeros((3, len(data)))) is None


def test_the_distance_is_how_far_values_have_to_be_moved() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 500)
    assert measure_distance(values, np.random.default_rng(1).permutation(values)) == 0
    assert measure_distance(values, values + 0.25) == pytest.approx(0.25)
    assert measure_distance(np.array([0.0, 0.0, 1.0, 1.0]), np.zeros(4)) == 0.5


def test_components_are_those_in_which_the_datas_chunks_vary_most() -> None:
    generator = np.random.default_rng(0)
    data = generator.standard_normal((3_000, 3, 2)) * np.array([[0.1, 0.1], [3.0, 0.1], [0.1, 1.0]])
    mine, theirs = project_chunks(data, data[::-1] + 0.0)
    assert mine.std(0) == pytest.approx([3.0, 1.0], rel=0.05)
    np.testing.assert_allclose(mine[:, 0], data[:, 1, 0] - data[:, 1, 0].mean(), atol=0.3)
    np.testing.assert_allclose(theirs, mine[::-1], atol=1e-9)


@pytest.mark.parametrize(("horizon", "actions"), [(4, 1), (2, 3), (1, MAX_MARGINALS + 3), (1, 1)])
def test_the_picture_is_the_same_bytes_each_time(horizon: int, actions: int) -> None:
    generator = np.random.default_rng(0)
    data, samples = generator.uniform(-1, 1, (2, 300, horizon, actions))

    def draw(**changes: Any) -> bytes:
        parts = {"data": data, "samples": samples, "learnt_std": np.ones(3), "sampled_std": np.ones(3)}
        return draw_comparison(**(parts | changes), title="a run")

    picture = draw()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000
    assert draw() == picture
    assert draw(samples=-(samples**2)) != picture
    assert draw(sampled_std=np.full(3, 0.5)) != picture


def test_the_table_has_a_row_for_each_action_and_dashes_for_what_is_not_there() -> None:
    fits = [ActionFit(0.1, 0.5, 0.2, 0.4, 0.03, 0.01, 0.6, 0.7), ActionFit(0.0, 0.5, 0.0, 0.0, 0.4, 0.01, None, None)]
    lines = render_text(tabulate_fits(fits)).splitlines()
    assert lines[1].split() == ["0", "0.100", "0.500", "0.200", "0.400", "0.030", "0.010", "0.600", "0.700"]
    assert lines[2].split()[-2:] == ["–", "–"]  # noqa: RUF001
