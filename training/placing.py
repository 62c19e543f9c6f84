"""Which device a run trains on, and how much memory there is for it. Loads torch where that is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiment.memory import MemoryRoom, read_free_memory

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str, placed: str) -> torch.device | None:
    """Give the device to train on; None where it was named and isn't there.

    Args:
        wanted: the setting `device`. `auto` takes a GPU if one is visible.
        placed: where the launcher put the run: the index of a GPU, `cpu`, or `auto` where it didn't.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return None if placed.isdecimal() else torch.device("cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return None
    return device


def find_room(device: torch.device) -> MemoryRoom:
    """Give the memory that there is for a run on a device: what is free of the computer's, and all of the GPU's."""
    import torch

    gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return MemoryRoom(read_free_memory(), gpu)
