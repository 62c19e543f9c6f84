"""Images moved by whole pixels: what keeps networks that learn from few of them from knowing each by heart."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_images(images: Tensor, reach: int, generator: torch.Generator, batch_dim: int) -> Tensor:
    """Move images by random numbers of pixels along both sides, two numbers for each place along the batch's axis.

    Edges are repeated. With a reach of 0 nothing is drawn, and the images are given as they are.

    Args:
        images: (..., height, width).
        reach: moves are from minus this to this, each as likely.
        generator: on the device of the images.
        batch_dim: the axis, counted from the front, along which moves differ; along all others they are the same.

    Source: Yarats et al. 2021, arXiv:2107.09645, section 3.1, there between pixels too.
    """
    if reach == 0:
        return images
    count, device = images.shape[batch_dim], images.device
    shifts = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator, device=device)
    for dim, shift in zip((-2, -1), shifts, strict=True):
        length = images.shape[dim]
        sources = (torch.arange(length, device=device) + shift).clamp_(0, length - 1)
        shape = [1] * images.ndim
        shape[batch_dim], shape[dim] = count, length
        images = images.gather(dim, sources.view(shape).expand_as(images))
    return images
