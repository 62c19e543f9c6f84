"""Transitions of the past, to learn from in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.rowlog import RowLog


@dataclass(frozen=True, slots=True)
class Batch:
    """Transitions stacked along the first axis; views of one gathered tensor.

    Attributes:
        obs: (batch, obs_dim).
        action: (batch, action_dim), in [-1, 1].
        reward: (batch, 1), in the environment's own scale.
        terminated: (batch, 1), 1.0 where `next_obs` ended the task, 0.0 elsewhere, also where only the clock ran out.
        next_obs: (batch, obs_dim).
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_obs: Tensor


class ReplayBuffer:
    """A ring of transitions, each one packed row of float32: obs, action, reward, terminated, next_obs.

    The ring lies in the computer's memory, claimed page by page as it fills. A batch is gathered with one call and
    then moved to the device.

    Args:
        capacity: rows before the oldest are written over; ask for no more than a run can add.
        generator: draws the rows of a batch, uniformly and with replacement; belongs to the buffer.
        device: where batches go.
    """

    TRANSIENT: ClassVar = ("device", "_capacity", "_sizes", "_tensor")

    def __init__(
        self, capacity: int, obs_dim: int, action_dim: int, generator: np.random.Generator, device: torch.device
    ) -> None:
        self.device = device
        self._capacity = capacity
        self._sizes = [obs_dim, action_dim, 1, 1, obs_dim]
        self._rows: NDArray[np.float32] = np.zeros((capacity, sum(self._sizes)), dtype=np.float32)
        self._tensor = torch.from_numpy(self._rows)
        self._total = 0
        self._generator = generator

    def __len__(self) -> int:
        return min(self._total, self._capacity)

    def add(
        self,
        obs: NDArray[np.float32],
        action: NDArray[np.float32],
        reward: float,
        terminated: bool,
        next_obs: NDArray[np.float32],
    ) -> None:
        """Add one transition; `action` is in [-1, 1], and `terminated` leaves out episodes cut by the clock."""
        obs_dim, action_dim = self._sizes[0], self._sizes[1]
        row = self._rows[self._total % self._capacity]
        end = obs_dim + action_dim
        row[:obs_dim] = obs
        row[obs_dim:end] = action
        row[end] = reward
        row[end + 1] = terminated
        row[end + 2 :] = next_obs
        self._total += 1

    def sample(self, batch_size: int) -> Batch:
        """Give a batch drawn uniformly with replacement.

        Raises:
            ValueError: the buffer is empty.
        """
        indices = torch.from_numpy(self._generator.integers(0, len(self), batch_size))
        rows = self._tensor.index_select(0, indices)
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        return Batch(*rows.split_with_sizes(self._sizes, dim=1))

    def state_dict(self) -> dict[str, Any]:
        """Give the ring's own memory, not copied, and the state of the generator."""
        return {"rows": RowLog(self._rows, self._total), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the ring in it is kept, not copied.

        Raises:
            ValueError: the ring is of another size than this buffer's.
        """
        log: RowLog = state["rows"]
        if log.rows.shape != self._rows.shape or log.rows.dtype != self._rows.dtype:
            raise ValueError(
                f"the saved buffer has {log.rows.shape} {log.rows.dtype} rows, and this run's {self._rows.shape} "
                f"{self._rows.dtype}: buffer_size, max_timesteps or the environment has changed"
            )
        self._rows = np.ascontiguousarray(log.rows, dtype=np.float32)
        self._tensor = torch.from_numpy(self._rows)
        self._total = log.total
        self._generator.bit_generator.state = state["generator"]
