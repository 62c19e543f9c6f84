"""What agents see of a flight: the last frames as pictures, or a flat vector. For one world, or for many at a time."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.drone.camera import Camera
from envs.drone.flight import BASE_DIM, Flight
from envs.drone.options import NavigationOptions
from envs.drone.privileged import PRIVILEGED_DIM, Insight

NUM_RAYS = 32
FAN_ROWS, FAN_COLUMNS, FAN_HEIGHT = 5, 64, 10.0
"""Of the rays whose shortest are the flat observation's: rows, columns, and the angle that they span upright."""
NOISE_DEPTH = 10.0
LEVELS: NDArray[np.float32] = np.arange(256, dtype=np.float32) / np.float32(255)
"""The values that depth may have in a picture."""


class Eyes(Protocol):
    """Turns what flights measure into observations of a number of worlds.

    Attributes:
        camera: that depth is to be cast for.
        level: whether the camera is kept level; else it is fixed to the drone.
        space: of one world's observation.
    """

    camera: Camera
    level: bool
    space: gym.Space[Any]

    def begin(self, index: int, flight: Flight, depth: NDArray[np.float64]) -> None:
        """Take in the first sight of a flight in one of the worlds, with depth (H, W) in metres."""
        ...

    def look(self, index: int, flight: Flight, depth: NDArray[np.float64]) -> None:
        """Take in the next sight."""
        ...

    def read(self, index: int) -> Any:
        """Give one world's observation, in memory of its own."""
        ...

    def read_all(self) -> Any:
        """Give the observations of all worlds, stacked, in memory of their own."""
        ...

    def read_state(self) -> dict[str, Any]:
        """Give what is remembered."""
        ...

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over what `read_state` gave.

        Raises:
            ValueError: it is of other sizes.
        """
        ...


class PictureEyes:
    """The last `seq_len` frames, the oldest first; at the beginning all are the first.

    An observation: `base`, (seq_len, 10) in [-1, 1]; `depth`, (seq_len, 1, height, width), planar depth over
    `max_depth`, in steps of 1/255; where options ask for it, `privileged` of the newest moment alone,
    (PRIVILEGED_DIM,) in [-1, 1].
    """

    level = False

    def __init__(self, options: NavigationOptions, num_worlds: int) -> None:
        count, size = options.seq_len, (1, options.height, options.width)
        self.camera = Camera(
            options.height, options.width, horizontal_fov=options.horizontal_fov, max_depth=options.max_depth
        )
        spaces: dict[str, gym.Space[Any]] = {
            "base": gym.spaces.Box(-1, 1, (count, BASE_DIM), np.float32),
            "depth": gym.spaces.Box(0, 1, (count, *size), np.float32),
        }
        self._base = np.zeros((num_worlds, count, BASE_DIM), np.float32)
        self._depth = np.zeros((num_worlds, count, *size), np.float32)
        self._seen = {"base": self._base, "depth": self._depth}
        self._insights: list[Insight] = []
        if options.privileged:
            spaces["privileged"] = gym.spaces.Box(-1, 1, (PRIVILEGED_DIM,), np.float32)
            self._seen["privileged"] = np.zeros((num_worlds, PRIVILEGED_DIM), np.float32)
            self._insights = [Insight() for _ in range(num_worlds)]
        self.space: gym.Space[Any] = gym.spaces.Dict(spaces)

    def begin(self, index: int, flight: Flight, depth: NDArray[np.float64]) -> None:
        """Fill the memory with the first frame."""
        self._base[index], self._depth[index] = flight.observe_base(), quantise(depth, self.camera.max_depth)
        self._know(index, flight)

    def look(self, index: int, flight: Flight, depth: NDArray[np.float64]) -> None:
        """Let the oldest frame go."""
        bases, frames = self._base[index], self._depth[index]
        bases[:-1], frames[:-1] = bases[1:], frames[1:]
        bases[-1], frames[-1] = flight.observe_base(), quantise(depth, self.camera.max_depth)
        self._know(index, flight)

    def _know(self, index: int, flight: Flight) -> None:
        if self._insights:
            self._seen["privileged"][index] = self._insights[index].describe(flight)

    def read(self, index: int) -> dict[str, NDArray[np.float32]]:
        """Give one world's frames, and what else is asked for."""
        return {name: part[index].copy() for name, part in self._seen.items()}

    def read_all(self) -> dict[str, NDArray[np.float32]]:
        """Give all worlds' frames, and what else is asked for."""
        return {name: part.copy() for name, part in self._seen.items()}

    def read_state(self) -> dict[str, Any]:
        """Give the frames; nothing else is remembered."""
        return {"base": self._base, "depth": self._depth}

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over frames of the same size."""
        if state["depth"].shape != self._depth.shape:
            raise ValueError(f"the frames are {state['depth'].shape} large, and here {self._depth.shape}")
        self._base, self._depth = state["base"], state["depth"]
        self._seen |= {"base": self._base, "depth": self._depth}


class FanEyes:
    """A flat vector of 42: the ten numbers of the base, then 32 shortest rays over `max_depth`, from left to right.

    The rays are those of a camera that is kept level, `horizontal_fov` wide and 10 degrees high; each number is the
    shortest of two columns of five. Lengths are along the rays.
    """

    level = True

    def __init__(self, options: NavigationOptions, num_worlds: int) -> None:
        self.camera = Camera(
            FAN_ROWS,
            FAN_COLUMNS,
            horizontal_fov=options.horizontal_fov,
            vertical_fov=FAN_HEIGHT,
            max_depth=options.max_depth,
        )
        low = np.concatenate([np.full(BASE_DIM, -1), np.zeros(NUM_RAYS)]).astype(np.float32)
        self.space: gym.Space[Any] = gym.spaces.Box(low, np.ones_like(low))
        self._stretch = np.sqrt(self.camera.squared_lengths)
        self._seen = np.zeros((num_worlds, BASE_DIM + NUM_RAYS), np.float32)

    def begin(self, index: int, flight: Flight, depth: NDArray[np.float64]) -> None:
        """See the same as later on."""
        self.look(index, flight, depth)

    def look(self, index: int, flight: Flight, depth: NDArray[np.float64]) -> None:
        """Find the shortest rays."""
        shortest = (depth * self._stretch).min(axis=0).reshape(NUM_RAYS, -1).min(axis=1)
        self._seen[index, :BASE_DIM] = flight.observe_base()
        self._seen[index, BASE_DIM:] = np.minimum(shortest / self.camera.max_depth, 1)

    def read(self, index: int) -> NDArray[np.float32]:
        """Give one world's vector."""
        seen: NDArray[np.float32] = self._seen[index].copy()
        return seen

    def read_all(self) -> NDArray[np.float32]:
        """Give all worlds' vectors."""
        return self._seen.copy()

    def read_state(self) -> dict[str, Any]:
        """Give nothing: nothing is remembered."""
        return {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over nothing."""


def spoil_depth(
    depth: NDArray[np.float64], options: NavigationOptions, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Give depth as a stereo camera measures it: wrong by an amount that grows with its square. Blind, it sees 0."""
    if options.blind:
        return np.zeros_like(depth)
    if not options.depth_noise:
        return depth
    noise = generator.standard_normal(depth.shape)
    return np.clip(depth + options.depth_noise * (depth / NOISE_DEPTH) ** 2 * noise, 0, options.max_depth)


def quantise(depth: NDArray[np.float64], max_depth: float) -> NDArray[np.float32]:
    """Give depth in metres as the nearest of the 256 levels from 0 to 1."""
    levels: NDArray[np.float32] = LEVELS[np.rint(depth * (255 / max_depth)).astype(np.uint8)]
    return levels
