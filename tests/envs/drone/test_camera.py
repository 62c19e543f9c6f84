"""The geometry of pixels, and cameras that can't be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.drone.camera import Camera


def test_rays_go_through_the_centres_of_pixels_from_upper_left_to_lower_right() -> None:
    camera = Camera(height=2, width=4, horizontal_fov=90)
    assert np.allclose(camera.columns, [0.75, 0.25, -0.25, -0.75], atol=1e-15)
    assert np.allclose(camera.rows, [0.25, -0.25], atol=1e-15), "pixels are square"
    assert np.allclose(camera.column_norms, np.hypot(1, camera.columns))
    assert np.allclose(camera.row_norms, np.hypot(1, camera.rows))
    assert camera.squared_lengths.shape == (2, 4)
    assert np.isclose(camera.squared_lengths[1, 0], 1 + 0.25**2 + 0.75**2)


def test_pixels_need_not_be_square() -> None:
    camera = Camera(height=3, width=1, horizontal_fov=30, vertical_fov=120)
    assert np.allclose(camera.rows, np.array([2, 0, -2]) / 3 * np.sqrt(3))
    assert camera.columns.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "height is 0; a camera has 1 pixel or more"),
        ({"width": -3}, "width is -3"),
        ({"horizontal_fov": 180.0}, "horizontal_fov is 180.0; a field of view is above 0 and below 180 degrees"),
        ({"horizontal_fov": float("nan")}, "horizontal_fov is nan"),
        ({"vertical_fov": 0.0}, "vertical_fov is 0.0"),
        ({"max_depth": 0.0}, "max_depth is 0.0; it is a finite distance above 0"),
        ({"max_depth": float("inf")}, "max_depth is inf"),
        ({"max_depth": float("nan")}, "max_depth is nan"),
    ],
)
def test_a_camera_that_cannot_be_is_refused_by_name_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Camera(**{"height": 4, "width": 4, **changes})
