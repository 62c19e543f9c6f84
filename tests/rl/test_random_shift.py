"""Images move as a whole, by numbers that the generator alone decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl.random_shift import shift_images

SHAPES = {0: (9, 3, 2, 8, 6), 1: (3, 9, 2, 8, 6), 2: (3, 2, 9, 8, 6)}


def build_images(batch_dim: int) -> Tensor:
    """Give the same image everywhere, each of whose pixels is another number."""
    return torch.arange(48, dtype=torch.uint8).view(8, 6).expand(SHAPES[batch_dim]).contiguous()


@pytest.mark.parametrize("batch_dim", SHAPES)
def test_each_place_in_the_batch_moves_by_the_two_numbers_drawn_for_it(batch_dim: int) -> None:
    images = build_images(batch_dim)
    moved = shift_images(images, 3, torch.Generator().manual_seed(5), batch_dim)
    drawn = torch.randint(-3, 4, (2, 9, 1), generator=torch.Generator().manual_seed(5))[..., 0]
    assert drawn.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert moved.is_contiguous()
    for place, (down, right) in enumerate(drawn.T.tolist()):
        rows, columns = (torch.arange(8) + down).clamp(0, 7), (torch.arange(6) + right).clamp(0, 5)
        found = moved.select(batch_dim, place)
        assert torch.equal(found, images.select(batch_dim, place)[..., rows, :][..., columns])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_numbers_stay_of_their_type_and_the_given_ones_stay_where_they_are(dtype: torch.dtype) -> None:
    images = build_images(0).to(dtype)
    before = images.clone()
    moved = shift_images(images, 2, torch.Generator().manual_seed(0), 0)
    assert moved.dtype == dtype
    assert torch.equal(images, before)
    assert not torch.equal(moved, before)


def test_where_nothing_is_to_move_nothing_is_drawn() -> None:
    images, generator = build_images(1), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert shift_images(images, 0, generator, 1) is images
    assert torch.equal(generator.get_state(), before)
