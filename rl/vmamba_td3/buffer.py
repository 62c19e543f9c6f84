"""Transitions of sequences of depth images, of one environment or several, drawn in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rl.vmamba_td3.frames import LEVELS, FrameRing, FrameSizes, Windows


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
        privileged: NDArray[Any] | None = None,
        next_privileged: NDArray[Any] | None = None,
    ) -> None:
        """Add one transition; only frames that are new are kept.

        Args:
            base: (seq_len, base_dim).
            depth: (seq_len, 1, height, width), in [0, depth_scale].
            action: in [-1, 1], or in what `to_unit` brings there.
            done: whether the task ended. An episode that only the clock ended goes on in its value: `truncated`.
            truncated: whether the clock ended the episode.
            env: which environment it is of.
            privileged: (privileged_dim,), what an `asymmetric_critic` sees of the windows' newest frame.
            next_privileged: the same of the next windows.

        Raises:
            ValueError: the windows aren't `seq_len` long, or are of other sizes than those before.
        """
        base, next_base = np.asarray(base, np.float32), np.asarray(next_base, np.float32)
        frames, next_frames = self._quantise(depth), self._quantise(next_depth)
        self._check_shapes(base, frames)
        known, next_known = _flatten_known(privileged), _flatten_known(next_privileged)
        if not self._rings:
            shape = (frames.shape[-2], frames.shape[-1])
            self._open_rings(FrameSizes(base.shape[1], shape, len(np.ravel(action)), len(known)))
        ring = self._rings[env]
        if {len(known), len(next_known)} != {ring.privileged_dim}:
            raise ValueError(
                f"privileged has {len(known)} numbers, next_privileged {len(next_known)}, and that of the first "
                f"transition {ring.privileged_dim}; all must have as many"
            )
        if not ring.goes_on_from(base, frames):
            ring.begin(base, frames, known)
        unit = np.ravel(action if self._to_unit is None else self._to_unit(np.asarray(action))).astype(np.float32)
        ring.add(unit, reward, bool(done), next_base, next_frames, next_known, bool(done) or truncated)

    def _open_rings(self, sizes: FrameSizes) -> None:
        self._rings = [FrameRing(self._size // self._num_envs, self._seq_len, sizes) for _ in range(self._num_envs)]

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
            self._open_rings(FrameRing.find_sizes(rings["0"]))
        if len(rings) != len(self._rings):
            raise ValueError(f"the saved buffer is of {len(rings)} environments, and this run's of {len(self._rings)}")
        for index, ring in enumerate(self._rings):
            ring.load_state_dict(rings[str(index)])
        self._generator.bit_generator.state = state["generator"]


def _flatten_known(privileged: NDArray[Any] | None) -> NDArray[np.float32]:
    """Give what is privileged as a vector, of no numbers where there is none."""
    return np.zeros(0, np.float32) if privileged is None else np.asarray(privileged, np.float32).ravel()
