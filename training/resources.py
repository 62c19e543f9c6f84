"""What a run costs and what it came to: parameters, memory, time, and one hash of its state."""

from __future__ import annotations

import errno
import hashlib
import resource
import struct
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiment.devices import read_utilisation
from training.rowlog import RowLog
from training.state import find_row_logs, sort_keys


def count_parameters(components: Mapping[str, nn.Module]) -> dict[str, int]:
    """Count the learnable numbers of each component; a parameter shared within one counts once."""
    return {
        name: sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        for name, module in components.items()
    }


def read_peak_rss_bytes() -> int:
    """Give the most memory that this process has had in RAM so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_peak_gpu_bytes() -> int | None:
    """Give the most memory that torch has allocated on one GPU so far; None where no CUDA device is in use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))


def read_gpu_utilisation(device: str) -> dict[str, float]:
    """Give `time/gpu_utilisation`, in percent, of the CUDA device that a run trains on; nothing where it has none."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    percent = read_utilisation(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return {} if percent is None else {"time/gpu_utilisation": float(percent)}


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory is short. On the CPU torch has no class for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "std::bad_alloc" in text)


def measure_replay_bytes(state: object) -> int:
    """Give the memory of all `RowLog`s of a state when full."""
    return sum(log.rows.nbytes for log in find_row_logs(state).values())


class Meter:
    """Time and peak memory of a run, summed and kept over its attempts: the share of earlier ones is its state."""

    TRANSIENT: ClassVar = frozenset({"_wall_start", "_cpu_start"})

    def __init__(self) -> None:
        self._wall_start = time.perf_counter()
        self._cpu_start = time.process_time()
        self._wall_before = 0.0
        self._cpu_before = 0.0
        self._rss_before = 0
        self._gpu_before: int | None = None

    def wall_s(self) -> float:
        """Give the seconds since training began, evaluations and saves included, time between attempts left out."""
        return self._wall_before + time.perf_counter() - self._wall_start

    def cpu_s(self) -> float:
        """Give the CPU seconds of this process and of its attempts before."""
        return self._cpu_before + time.process_time() - self._cpu_start

    def peak_rss_bytes(self) -> int:
        """Give the most RAM of any attempt."""
        return max(self._rss_before, read_peak_rss_bytes())

    def peak_gpu_bytes(self) -> int | None:
        """Give the most GPU memory of any attempt, None where none had a GPU."""
        known = [peak for peak in (self._gpu_before, read_peak_gpu_bytes()) if peak is not None]
        return max(known, default=None)

    def state_dict(self) -> dict[str, Any]:
        """Give the sums and peaks so far."""
        return {
            "wall_before": self.wall_s(),
            "cpu_before": self.cpu_s(),
            "rss_before": self.peak_rss_bytes(),
            "gpu_before": self.peak_gpu_bytes(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the clocks of this attempt keep running."""
        self._wall_before, self._cpu_before = state["wall_before"], state["cpu_before"]
        self._rss_before, self._gpu_before = state["rss_before"], state["gpu_before"]


def hash_state(state: object) -> str:
    """Give the SHA-256 of a nested state: equal exactly when keys, types, dtypes, shapes and bits are.

    Of a `RowLog` the rows in its window count, oldest first, and its total; the device of a tensor doesn't.

    Raises:
        TypeError: a leaf that can't stand in a state.
    """
    digest = hashlib.sha256()
    _add_state(digest, state)
    return digest.hexdigest()


def _add_state(digest: hashlib._Hash, state: object) -> None:
    if isinstance(state, Mapping):
        digest.update(f"dict {len(state)}\0".encode())
        for key in sort_keys(state):
            digest.update(f"{key!r}\0".encode())
            _add_state(digest, state[key])
    elif isinstance(state, list | tuple):
        digest.update(f"{'list' if isinstance(state, list) else 'tuple'} {len(state)}\0".encode())
        for value in state:
            _add_state(digest, value)
    else:
        _add_leaf(digest, state)


def _add_leaf(digest: hashlib._Hash, leaf: object) -> None:
    if isinstance(leaf, torch.Tensor):
        data = leaf.detach().cpu().contiguous()
        digest.update(f"tensor {data.dtype} {tuple(data.shape)}\0".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(leaf, np.ndarray | np.generic):
        _add_array(digest, "array" if isinstance(leaf, np.ndarray) else "scalar", np.asarray(leaf))
    elif isinstance(leaf, RowLog):
        slot = leaf.total % leaf.capacity if leaf.first else 0
        end = leaf.capacity if leaf.first else leaf.total
        digest.update(f"rows {leaf.total}\0".encode())
        _add_array(digest, "older", leaf.rows[slot:end])
        _add_array(digest, "newer", leaf.rows[:slot])
    elif isinstance(leaf, float):
        digest.update(b"float" + struct.pack("<d", leaf))
    elif isinstance(leaf, bool | int | str | bytes | None):
        digest.update(f"{type(leaf).__name__} {leaf!r}\0".encode())
    else:
        raise TypeError(f"a {type(leaf).__name__} can't stand in a state and can't be hashed")


def _add_array(digest: hashlib._Hash, kind: str, array: NDArray[Any]) -> None:
    digest.update(f"{kind} {array.dtype.str} {array.shape}\0".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
