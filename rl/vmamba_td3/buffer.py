"""Transitions of sequences of depth images, each frame kept once.

An episode of T steps is T + 1 frames. A transition is the number of its frame; the window of `seq_len` frames that an
agent saw is cut out when a batch is drawn, and before its episode's first frame that frame is repeated, as the
environment does it.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """

    base: NDArray[np.float32]
    depth: NDArray[np.uint8]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    next_base: NDArray[np.float32]
    next_depth: NDArray[np.uint8]
    terminated: NDArray[np.float32]
    discount: NDArray[np.float32]


class FrameRing:
    """The frames and transitions of one environment, in the order in which they came.

    Args:
        capacity: frames before the oldest are written over.
        frame_shape: (height, width).
    """

    TRANSIENT: ClassVar = ("_capacity", "_seq_len", "_action_dim")

    def __init__(
        self, capacity: int, seq_len: int, base_dim: int, frame_shape: tuple[int, int], action_dim: int
    ) -> None:
        self._capacity, self._seq_len, self._action_dim = capacity, seq_len, action_dim
        self._depth = np.zeros((capacity, *frame_shape), np.uint8)
        self._base = np.zeros((capacity, base_dim), np.float32)
        self._links = np.zeros((capacity, 2), np.int64)  # of a transition: its frame, and its episode's first frame
        self._rows = np.zeros((capacity, action_dim + 2), np.float32)  # action, reward, terminated
        self._frames = 0
        self._transitions = 0
        self._first = 0
        self._episode_start = -1  # of the episode that goes on; -1 where none does

    def __len__(self) -> int:
        return self._transitions - self._first

    def begin(self, base: NDArray[np.float32], depth: NDArray[np.uint8]) -> None:
        """Begin an episode with its first window: one frame, unless frames before it differ from it."""
        distinct = 1
        for back in range(2, len(base) + 1):
            if not (np.array_equal(base[-back], base[-1]) and np.array_equal(depth[-back], depth[-1])):
                distinct = back
        self._episode_start = self._frames
        for index in range(len(base) - distinct, len(base)):
            self._append(base[index], depth[index, 0])

    def add(
        self,
        action: NDArray[np.float32],
        reward: float,
        terminated: bool,
        next_base: NDArray[np.float32],
        next_depth: NDArray[np.uint8],
        over: bool,
    ) -> None:
        """Add what followed the newest frame: the newest frames of the next window are what is new in it."""
        assert self._episode_start >= 0, "a transition without an episode: begin one"
        place = self._transitions % self._capacity
        self._links[place] = (self._frames - 1, self._episode_start)
        row = self._rows[place]
        row[: self._action_dim], row[-2], row[-1] = action, reward, terminated
        self._append(next_base[-1], next_depth[-1, 0])
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

    def _append(self, base: NDArray[np.float32], depth: NDArray[np.uint8]) -> None:
        place = self._frames % self._capacity
        self._base[place], self._depth[place] = base, depth
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
        return {
            "depth": RowLog(self._depth, self._frames),
            "base": RowLog(self._base, self._frames),
            "links": RowLog(self._links, self._transitions),
            "rows": RowLog(self._rows, self._transitions),
            "first": self._first,
            "episode_start": self._episode_start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the rings in it are kept, not copied.

        Raises:
            ValueError: they are of other sizes than this one's.
        """
        for name in ("depth", "base", "links", "rows"):
            log, own = state[name], vars(self)[f"_{name}"]
            if log.rows.shape != own.shape:
                raise ValueError(
                    f"the saved buffer's {name} has shape {log.rows.shape}, and this run's {own.shape}: buffer_size, "
                    "max_timesteps, num_envs or the environment has changed"
                )
            setattr(self, f"_{name}", np.ascontiguousarray(log.rows, dtype=own.dtype))
        self._frames, self._transitions = state["depth"].total, state["rows"].total
        self._first, self._episode_start = state["first"], state["episode_start"]


class SequenceReplayBuffer:
    """Transitions of sequences, drawn uniformly and with replacement.

    Rings claim their memory page by page as they fill. Their sizes are those of the first transition that is added.

    Args:
        buffer_size: frames that are kept; with episodes of T steps that is T / (T + 1) as many transitions.
        seq_len: frames in a window.
        generator: draws batches; belongs to the buffer.
        num_envs: environments whose frames are kept apart, with an equal part of the memory each.
        discount: factor per step, of `n_step` returns.
        n_step: over how many steps a reward is summed.
        depth_scale: what a depth of 1 is in what is added, as 255 for raw images.
        to_unit: brings added actions to [-1, 1]; None where they are there already.
    """

    TRANSIENT: ClassVar = ("_size", "_seq_len", "_discount", "_n_step", "_scale", "_num_envs", "_to_unit")

    def __init__(
        self,
        buffer_size: int,
        seq_len: int,
        generator: np.random.Generator | None = None,
        num_envs: int = 1,
        discount: float = 0.99,
        n_step: int = 1,
        depth_scale: float = 1.0,
        to_unit: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        if buffer_size < num_envs * (seq_len + n_step + 1):
            raise ValueError(
                f"buffer_size: {buffer_size} frames for {num_envs} environments don't hold a window of {seq_len} "
                f"frames and {n_step} steps each"
            )
        self._size, self._seq_len, self._num_envs = buffer_size, seq_len, num_envs
        self._discount, self._n_step, self._scale, self._to_unit = discount, n_step, depth_scale, to_unit
        self._generator = np.random.default_rng() if generator is None else generator
        self._rings: list[FrameRing] = []

    def __len__(self) -> int:
        return sum(map(len, self._rings))

    @property
    def size(self) -> int:
        """Give the number of transitions that can be drawn."""
        return len(self)

    @property
    def nbytes(self) -> int:
        """Give the memory that frames and transitions take when the buffer is full, in bytes."""
        return sum(
            array.nbytes for ring in self._rings for array in vars(ring).values() if isinstance(array, np.ndarray)
        )

    def add(
        self,
        base: NDArray[Any],
        depth: NDArray[Any],
        action: NDArray[Any],
        reward: float,
        next_base: NDArray[Any],
        next_depth: NDArray[Any],
        done: float,
        truncated: bool = False,
        env: int = 0,
    ) -> None:
        """Add one transition; only frames that are new are kept.

        Args:
            base: (seq_len, base_dim).
            depth: (seq_len, 1, height, width), in [0, depth_scale].
            action: in [-1, 1], or in what `to_unit` brings there.
            done: whether the task ended. An episode that only the clock ended goes on in its value: `truncated`.
            truncated: whether the clock ended the episode.
            env: which environment it is of.

        Raises:
            ValueError: the windows aren't `seq_len` long, or are of other sizes than those before.
        """
        base, next_base = np.asarray(base, np.float32), np.asarray(next_base, np.float32)
        frames, next_frames = self._quantise(depth), self._quantise(next_depth)
        self._check_shapes(base, frames)
        if not self._rings:
            shape = (frames.shape[-2], frames.shape[-1])
            sizes = (self._size // self._num_envs, self._seq_len, base.shape[1], shape, len(np.ravel(action)))
            self._rings = [FrameRing(*sizes) for _ in range(self._num_envs)]
        ring = self._rings[env]
        if not ring.goes_on_from(base, frames):
            ring.begin(base, frames)
        unit = np.ravel(action if self._to_unit is None else self._to_unit(np.asarray(action))).astype(np.float32)
        ring.add(unit, reward, bool(done), next_base, next_frames, bool(done) or truncated)

    def _check_shapes(self, base: NDArray[np.float32], depth: NDArray[np.uint8]) -> None:
        if base.ndim != 2 or depth.ndim != 4 or len(base) != self._seq_len or depth.shape[:2] != (self._seq_len, 1):
            raise ValueError(
                f"base {base.shape} and depth {depth.shape}: windows of {self._seq_len} frames are "
                f"({self._seq_len}, base_dim) and ({self._seq_len}, 1, height, width)"
            )

    def _quantise(self, depth: NDArray[Any]) -> NDArray[np.uint8]:
        array = np.asarray(depth)
        if array.dtype == np.uint8 and self._scale == LEVELS:
            return array
        levels: NDArray[np.uint8] = np.rint(np.clip(array * (LEVELS / self._scale), 0, LEVELS)).astype(np.uint8)
        return levels

    def end_episode(self, env: int = 0) -> None:
        """Hear that an environment's episode goes on no further, as where it was abandoned."""
        if self._rings:
            self._rings[env].end()

    def reseed(self, generator: np.random.Generator) -> None:
        """Draw from another generator from here on."""
        self._generator = generator

    def sample_windows(self, batch_size: int) -> Windows:
        """Give a batch as it is kept, depth as bytes.

        Raises:
            ValueError: the buffer is empty.
        """
        drawn = self._generator.integers(0, len(self), batch_size)
        if len(self._rings) == 1:
            return self._rings[0].gather(drawn, self._n_step, self._discount)
        ends = np.cumsum([len(ring) for ring in self._rings])
        owner = np.searchsorted(ends, drawn, side="right")
        parts, order = [], []
        for index, ring in enumerate(self._rings):
            mine = np.flatnonzero(owner == index)
            if len(mine):
                parts.append(ring.gather(drawn[mine] - (ends[index] - len(ring)), self._n_step, self._discount))
                order.append(mine)
        back = np.argsort(np.concatenate(order))
        return Windows(*(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True)))

    def sample(self, batch_size: int) -> tuple[NDArray[np.float32], ...]:
        """Give `base, depth, action, reward, next_base, next_depth, done`, float32, depth in [0, 1]."""
        batch = self.sample_windows(batch_size)
        depth, next_depth = (
            frames.astype(np.float32) / np.float32(LEVELS) for frames in (batch.depth, batch.next_depth)
        )
        return (batch.base, depth, batch.action, batch.reward, batch.next_base, next_depth, batch.terminated)

    def state_dict(self) -> dict[str, Any]:
        """Give all frames and transitions, not copied, and the state of the generator."""
        return {
            "rings": {str(index): ring.state_dict() for index, ring in enumerate(self._rings)},
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave.

        Raises:
            ValueError: it is of other sizes.
        """
        rings = state["rings"]
        if rings and not self._rings:
            depth, base, rows = (rings["0"][name].rows for name in ("depth", "base", "rows"))
            shape = (depth.shape[1], depth.shape[2])
            sizes = (self._size // self._num_envs, self._seq_len, base.shape[1], shape, rows.shape[1] - 2)
            self._rings = [FrameRing(*sizes) for _ in range(self._num_envs)]
        if len(rings) != len(self._rings):
            raise ValueError(f"the saved buffer is of {len(rings)} environments, and this run's of {len(self._rings)}")
        for index, ring in enumerate(self._rings):
            ring.load_state_dict(rings[str(index)])
        self._generator.bit_generator.state = state["generator"]
