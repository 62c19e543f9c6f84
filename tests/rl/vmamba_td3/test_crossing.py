"""The four paths through a map, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl.vmamba_td3.crossing import cross_deal, cross_merge, cross_scan, find_order

SIZES = [(2, 3), (3, 2), (1, 1), (1, 4), (5, 5)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_paths_through_two_rows_of_three_are_those_drawn_by_hand() -> None:
    positions = torch.arange(6.0).view(1, 2, 3, 1)  # 0 1 2 above 3 4 5
    by_rows, by_columns, rows_back, columns_back = cross_scan(positions).view(6, 4).unbind(1)
    assert by_rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert by_columns.tolist() == [0, 3, 1, 4, 2, 5]
    assert rows_back.tolist() == [5, 4, 3, 2, 1, 0]
    assert columns_back.tolist() == [5, 2, 4, 1, 3, 0]


@pytest.mark.parametrize("size", SIZES)
def test_merging_what_was_scanned_is_four_times_the_map(size: tuple[int, int]) -> None:
    features = draw(2, *size, 3)
    torch.testing.assert_close(cross_merge(cross_scan(features), *size), 4 * features)


@pytest.mark.parametrize("size", SIZES)
def test_scan_and_merge_are_adjoint(size: tuple[int, int]) -> None:
    features, paths = draw(2, *size, 3), draw(2, size[0] * size[1], 4, 3, seed=1)
    torch.testing.assert_close((cross_scan(features) * paths).sum(), (features * cross_merge(paths, *size)).sum())


@pytest.mark.parametrize("size", SIZES)
def test_dealing_takes_each_path_what_is_at_its_positions(size: tuple[int, int]) -> None:
    parts = draw(2, size[0] * size[1], 4, 3)
    dealt = cross_deal(parts, *size)
    for path in range(4):
        whole = cross_scan(parts[:, :, path].reshape(2, *size, 3))
        assert torch.equal(dealt[:, :, path], whole[:, :, path])


@pytest.mark.parametrize("size", SIZES)
def test_the_gradients_are_those_of_finite_differences(size: tuple[int, int]) -> None:
    features, paths = draw(2, *size, 3).requires_grad_(), draw(2, size[0] * size[1], 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(cross_scan, (features,))
    assert torch.autograd.gradcheck(lambda paths: cross_merge(paths, *size), (paths,))
    assert torch.autograd.gradcheck(lambda parts: cross_deal(parts, *size), (paths,))


def test_a_map_that_is_a_view_is_scanned_like_its_copy() -> None:
    features = draw(2, 3, 4, 6)[..., :3]
    assert torch.equal(cross_scan(features), cross_scan(features.contiguous()))


def test_paths_found_while_no_gradients_are_kept_serve_where_they_are() -> None:
    find_order.cache_clear()
    with torch.inference_mode():
        cross_scan(draw(1, 2, 7, 3))
    features = draw(1, 2, 7, 3).requires_grad_()
    cross_merge(cross_scan(features), 2, 7).sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.full_like(features, 4))
