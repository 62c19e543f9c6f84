"""What all environments of our own refuse, and what they forgive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.refusals import check_action, refuse_reset_options


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ([0, 0, np.nan], r"action\[2\]: nan is not in \[-1, 1\]"),
        ([0, 1.1, 0], r"action\[1\]: 1\.1 is not in"),
        ([-np.inf, 0, 0], r"action\[0\]: -inf is not in"),
        ([-1 - 3e-6, 0, 0], r"action\[0\]: -1\.000003 is not in"),
        ([0, 0], r"action: \(2,\) is its shape, and \(3,\) is needed"),
        (0.0, r"action: \(\) is its shape"),
    ],
)
def test_an_action_that_is_none_is_refused_with_its_entry(action: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        check_action(action, 3)


def test_rounding_over_a_bound_is_forgiven() -> None:
    assert check_action(np.array([1 + 5e-7, -1 - 5e-7, 0]), 3).tolist() == [1, -1, 0]


def test_reset_options_that_nothing_reads_are_refused() -> None:
    refuse_reset_options(None)
    refuse_reset_options({})
    with pytest.raises(ValueError, match=r"'wind': 3.*mean nothing at a reset"):
        refuse_reset_options({"wind": 3})
