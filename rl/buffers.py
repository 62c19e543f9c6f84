"""Transitions of the past, to learn from in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.off_policy_config import count_columns
from training.rowlog import RowLog

_EPISODES = 2**24
"""Episode numbers count up to this, then from 0 again: float32 holds whole numbers exactly below it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Transitions stacked along the first axis; views of gathered tensors.

    Attributes:
        obs: (batch, obs_dim).
        action: (batch, action_dim), in [-1, 1].
        reward: (batch, 1), in the environment's own scale; with n-step returns the discounted sum over `m` steps.
        terminated: (batch, 1), 1.0 where `next_obs` ended the task, 0.0 elsewhere, also where only the clock ran out.
        next_obs: (batch, obs_dim), `m` steps after `obs`.
        discount: the discount to the power of `m`, which is the factor of the value of `next_obs`: (batch, 1), or a
            single number, of shape (), where `m` is 1 in all rows.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_obs: Tensor
    discount: Tensor


class ReplayBuffer:
    """A ring of transitions, each one packed row of float32: obs, action, reward, terminated, next_obs.

    The ring lies in the computer's memory, claimed page by page as it fills. A batch is gathered with one call and
    then moved to the device. Rows of several environments alternate: row `i`, counted from the first ever added, is of
    environment `i % num_envs`, and the same environment's next row is row `i + num_envs`. With `n_step` above 1 each
    row ends in the number of its episode, by which a window of rows is known to lie in one.

    Args:
        capacity: rows before the oldest are written over; ask for no more than a run can add.
        generator: draws the rows of a batch, uniformly and with replacement; belongs to the buffer.
        device: where batches go.
        discount: factor per step of the environment.
        n_step: over how many steps the reward of a transition is summed, where its episode and the buffer go that far.
        num_envs: environments that add their rows in turn.
    """

    TRANSIENT: ClassVar = ("device", "_capacity", "_sizes", "_tensor", "_n_step", "_num_envs", "_discount", "_factor")

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        generator: np.random.Generator,
        device: torch.device,
        *,
        discount: float,
        n_step: int = 1,
        num_envs: int = 1,
    ) -> None:
        self.device = device
        self._capacity = capacity
        self._sizes = [obs_dim, action_dim, 1, 1, obs_dim]
        self._rows: NDArray[np.float32] = np.zeros((capacity, count_columns(obs_dim, action_dim, n_step)), np.float32)
        self._tensor = torch.from_numpy(self._rows)
        self._total = 0
        self._generator = generator
        self._n_step = n_step
        self._num_envs = num_envs
        self._discount = discount
        self._factor = torch.tensor(discount, device=device)

    def __len__(self) -> int:
        return min(self._total, self._capacity)

    def add(
        self,
        obs: NDArray[np.float32],
        action: NDArray[np.float32],
        reward: float,
        terminated: bool,
        next_obs: NDArray[np.float32],
        episode: int = 0,
    ) -> None:
        """Add one transition of the environment whose turn it is.

        Args:
            action: in [-1, 1].
            terminated: leaves out episodes cut by the clock.
            episode: differs between an environment's successive episodes; matters to n-step returns alone.
        """
        obs_dim, action_dim = self._sizes[0], self._sizes[1]
        row = self._rows[self._total % self._capacity]
        end = obs_dim + action_dim
        row[:obs_dim] = obs
        row[obs_dim:end] = action
        row[end] = reward
        row[end + 1] = terminated
        if self._n_step > 1:
            row[end + 2 : -1] = next_obs
            row[-1] = episode % _EPISODES
        else:
            row[end + 2 :] = next_obs
        self._total += 1

    def reseed(self, generator: np.random.Generator) -> None:
        """Draw from another generator from here on."""
        self._generator = generator

    def sample(self, batch_size: int) -> Batch:
        """Give a batch drawn uniformly with replacement.

        Raises:
            ValueError: the buffer is empty.
        """
        drawn = self._generator.integers(0, len(self), batch_size)
        if self._n_step > 1:
            newest = self._total - 1
            return self._gather_windows(newest - (newest - drawn) % self._capacity)
        obs, action, reward, terminated, next_obs = self._gather(drawn).split_with_sizes(self._sizes, dim=1)
        return Batch(obs, action, reward, terminated, next_obs, self._factor)

    def _gather_windows(self, start: NDArray[np.int64]) -> Batch:
        """Give the n-step transitions that begin at rows `start`, counted from the first ever added.

        A window ends with its episode, whether the task or the clock ended it, and at the newest row: its `m` steps are
        then fewer than `n_step`, and the value after them counts `discount ** m`.

        Source: Sutton and Barto 2018, section 7.1.
        """
        reward_column = self._sizes[0] + self._sizes[1]
        places = start % self._capacity
        episode = self._rows[places, -1]
        reward = self._rows[places, reward_column].astype(np.float64)
        steps = np.ones(len(start), dtype=np.int64)
        inside = np.ones(len(start), dtype=np.bool_)
        for distance in range(1, self._n_step):
            following = start + distance * self._num_envs
            places = following % self._capacity
            inside &= (following < self._total) & (self._rows[places, -1] == episode)
            rewards = np.where(inside, self._rows[places, reward_column], 0.0)
            reward += self._discount**distance * rewards
            steps += inside
        last = start + (steps - 1) * self._num_envs
        sizes = [*self._sizes, 1]
        obs, action, *_ = self._gather(start % self._capacity).split_with_sizes(sizes, dim=1)
        _, _, _, terminated, next_obs, _ = self._gather(last % self._capacity).split_with_sizes(sizes, dim=1)
        sums = torch.from_numpy(np.stack([reward, self._discount**steps], axis=1).astype(np.float32)).to(self.device)
        return Batch(obs, action, sums[:, :1], terminated, next_obs, discount=sums[:, 1:])

    def _gather(self, places: NDArray[np.int64]) -> Tensor:
        rows = self._tensor.index_select(0, torch.from_numpy(places))
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Give the ring's own memory, not copied, and the state of the generator."""
        return {"rows": RowLog(self._rows, self._total), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the ring in it is kept, not copied, unless this buffer's is larger.

        Raises:
            ValueError: the ring is larger than this buffer's, or smaller and full; or its rows are others.
        """
        log: RowLog = state["rows"]
        if (
            log.rows.shape[1:] != self._rows.shape[1:]
            or log.rows.dtype != self._rows.dtype
            or not log.fits(self._capacity)
        ):
            raise ValueError(
                f"the saved buffer has {log.rows.shape} {log.rows.dtype} rows, and this run's {self._rows.shape} "
                f"{self._rows.dtype}: buffer_size, max_timesteps, n_step or the environment has changed"
            )
        self._rows = np.ascontiguousarray(log.widen(self._capacity).rows, dtype=np.float32)
        self._tensor = torch.from_numpy(self._rows)
        self._total = log.total
        self._generator.bit_generator.state = state["generator"]
