"""The frames and transitions of one environment, each frame kept once.

An episode of T steps is T + 1 frames. A transition is the number of its frame; the window of `seq_len` frames that an
agent saw is cut out when a batch is drawn, and before its episode's first frame that frame is repeated, as the
environment does it.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.rowlog import RowLog

LEVELS = 255
"""Depth in [0, 1] is kept as a byte, in steps of one over this: without loss where it comes so, as in `DepthNav-v0`."""


class Windows(NamedTuple):
    """Transitions as arrays, the oldest frame first; the first seven in the order of the published `sample`.

    Attributes:
        base: (batch, seq_len, base_dim) float32.
        depth: (batch, seq_len, 1, height, width) uint8, `LEVELS` for 1.
        action: (batch, action_dim) float32, in [-1, 1].
        reward: (batch, 1) float32; over `m` steps the discounted sum.
        next_base: as `base`, `m` steps later.
        next_depth: as `depth`, `m` steps later.
        terminated: (batch, 1) float32, 1 where the task ended within the `m` steps; a clock's end is 0.
        discount: (batch, 1) float32, to the power of `m`: the factor of what follows.
        privileged: (batch, privileged_dim) float32, of each window's newest frame; of none without `asymmetric_critic`.
        next_privileged: as `privileged`, `m` steps later.
    """

    base: NDArray[np.float32]
    depth: NDArray[np.uint8]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    next_base: NDArray[np.float32]
    next_depth: NDArray[np.uint8]
    terminated: NDArray[np.float32]
    discount: NDArray[np.float32]
    privileged: NDArray[np.float32]
    next_privileged: NDArray[np.float32]


class FrameSizes(NamedTuple):
    """How many numbers are kept of a frame and of an action.

    Attributes:
        base_dim: of a state.
        frame_shape: height and width.
        action_dim: of an action.
        privileged_dim: of what a critic sees beside the state; 0 without `asymmetric_critic`.
    """

    base_dim: int
    frame_shape: tuple[int, int]
    action_dim: int
    privileged_dim: int


class FrameRing:
    """The frames and transitions of one environment, in the order in which they came.

    Args:
        capacity: frames before the oldest are written over.
        seq_len: frames in a window.
        sizes: of a frame, and of an action.
    """

    TRANSIENT: ClassVar = ("_capacity", "_seq_len", "_action_dim")

    def __init__(self, capacity: int, seq_len: int, sizes: FrameSizes) -> None:
        self._capacity, self._seq_len, self._action_dim = capacity, seq_len, sizes.action_dim
        self._depth = np.zeros((capacity, *sizes.frame_shape), np.uint8)
        self._base = np.zeros((capacity, sizes.base_dim), np.float32)
        self._privileged = np.zeros((capacity, sizes.privileged_dim), np.float32)
        self._links = np.zeros((capacity, 2), np.int64)  # of a transition: its frame, and its episode's first frame
        self._rows = np.zeros((capacity, sizes.action_dim + 2), np.float32)  # action, reward, terminated
        self._frames = 0
        self._transitions = 0
        self._first = 0
        self._episode_start = -1  # of the episode that goes on; -1 where none does

    def __len__(self) -> int:
        return self._transitions - self._first

    @property
    def privileged_dim(self) -> int:
        """Give how many numbers of a frame are privileged."""
        return int(self._privileged.shape[1])

    def begin(self, base: NDArray[np.float32], depth: NDArray[np.uint8], privileged: NDArray[np.float32]) -> None:
        """Begin an episode with its first window: one frame, unless frames before it differ from it.

        What is privileged is known of the newest frame, and asked of no frame before the one that a window ends in.
        """
        distinct = 1
        for back in range(2, len(base) + 1):
            if not (np.array_equal(base[-back], base[-1]) and np.array_equal(depth[-back], depth[-1])):
                distinct = back
        self._episode_start = self._frames
        for index in range(len(base) - distinct, len(base)):
            self._append(base[index], depth[index, 0], privileged)

    def add(
        self,
        action: NDArray[np.float32],
        reward: float,
        terminated: bool,
        next_base: NDArray[np.float32],
        next_depth: NDArray[np.uint8],
        next_privileged: NDArray[np.float32],
        over: bool,
    ) -> None:
        """Add what followed the newest frame: the newest frames of the next window are what is new in it."""
        assert self._episode_start >= 0, "a transition without an episode: begin one"
        place = self._transitions % self._capacity
        self._links[place] = (self._frames - 1, self._episode_start)
        row = self._rows[place]
        row[: self._action_dim], row[-2], row[-1] = action, reward, terminated
        self._append(next_base[-1], next_depth[-1, 0], next_privileged)
        self._transitions += 1
        self._drop_cut_windows()
        if over:
            self._episode_start = -1

    def goes_on_from(self, base: NDArray[np.float32], depth: NDArray[np.uint8]) -> bool:
        """Tell whether a window ends in the newest frame of the episode that goes on."""
        if self._episode_start < 0:
            return False
        newest = (self._frames - 1) % self._capacity
        return bool(np.array_equal(self._base[newest], base[-1]) and np.array_equal(self._depth[newest], depth[-1, 0]))

    def end(self) -> None:
        """End the episode that goes on: what comes next begins another."""
        self._episode_start = -1

    def _append(self, base: NDArray[np.float32], depth: NDArray[np.uint8], privileged: NDArray[np.float32]) -> None:
        place = self._frames % self._capacity
        self._base[place], self._depth[place], self._privileged[place] = base, depth, privileged
        self._frames += 1

    def _drop_cut_windows(self) -> None:
        """Forget the oldest transitions whose windows reach frames that have been written over."""
        oldest = self._frames - self._capacity
        while self._first < self._transitions:
            frame, start = self._links[self._first % self._capacity].tolist()
            if max(start, frame - self._seq_len + 1) >= oldest:
                return
            self._first += 1

    def gather(self, numbers: NDArray[np.int64], n_step: int, discount: float) -> Windows:
        """Give the transitions `numbers`, counted from the oldest that is there, each over up to `n_step` steps.

        A transition's steps end with its episode, whether the task or the clock ended it, and with the newest one.
        """
        numbers = numbers + self._first
        places = numbers % self._capacity
        frames, starts = self._links[places].T
        reward = self._rows[places, -2].astype(np.float64)
        steps = np.ones(len(numbers), np.int64)
        inside = np.ones(len(numbers), np.bool_)
        for distance in range(1, n_step):
            following = numbers + distance
            later = following % self._capacity
            inside &= (following < self._transitions) & (self._links[later, 1] == starts)
            reward += discount**distance * np.where(inside, self._rows[later, -2], 0.0)
            steps += inside
        last = (numbers + steps - 1) % self._capacity
        base, depth = self._cut(frames, starts)
        next_base, next_depth = self._cut(frames + steps, starts)
        return Windows(
            base,
            depth,
            self._rows[places, : self._action_dim],
            reward.astype(np.float32)[:, None],
            next_base,
            next_depth,
            self._rows[last, -1:],
            (discount**steps).astype(np.float32)[:, None],
            self._privileged[frames % self._capacity],
            self._privileged[(frames + steps) % self._capacity],
        )

    def _cut(
        self, frames: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Give the windows that end in some frames."""
        wanted = np.maximum(frames[:, None] - np.arange(self._seq_len - 1, -1, -1), starts[:, None])
        places = wanted % self._capacity
        return self._base[places], self._depth[places][:, :, None]

    def state_dict(self) -> dict[str, Any]:
        """Give the rings' own memory, not copied."""
        logs = {
            "depth": RowLog(self._depth, self._frames),
            "base": RowLog(self._base, self._frames),
            "links": RowLog(self._links, self._transitions),
            "rows": RowLog(self._rows, self._transitions),
        }
        if self._privileged.size:
            logs["privileged"] = RowLog(self._privileged, self._frames)
        return logs | {"first": self._first, "episode_start": self._episode_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the rings in it are kept, not copied.

        Raises:
            ValueError: they are of other sizes than this one's.
        """
        for name in ("depth", "base", "links", "rows", *(["privileged"] if self._privileged.size else [])):
            log, own = state[name], vars(self)[f"_{name}"]
            if log.rows.shape[1:] != own.shape[1:] or not log.fits(self._capacity):
                raise ValueError(
                    f"the saved buffer's {name} has shape {log.rows.shape}, and this run's {own.shape}: buffer_size, "
                    "max_timesteps, num_envs or the environment has changed"
                )
            setattr(self, f"_{name}", np.ascontiguousarray(log.widen(self._capacity).rows, dtype=own.dtype))
        self._frames, self._transitions = state["depth"].total, state["rows"].total
        self._first, self._episode_start = state["first"], state["episode_start"]

    @classmethod
    def find_sizes(cls, state: dict[str, Any]) -> FrameSizes:
        """Give the sizes that a state of `state_dict` is of."""
        base_dim, row_dim = (state[name].rows.shape[1] for name in ("base", "rows"))
        privileged_dim = state["privileged"].rows.shape[1] if "privileged" in state else 0
        return FrameSizes(base_dim, state["depth"].rows.shape[1:], row_dim - 2, privileged_dim)
