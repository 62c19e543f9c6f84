"""Many navigation worlds stepped in one process: depth of all of them is cast in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.drone.depth_nav import ACTION_DIM, refuse_picture_arguments
from envs.drone.embedded import EmbeddedBackend, see_many
from envs.drone.eyes import Eyes, FanEyes, PictureEyes, spoil_depth
from envs.drone.flight import Flight
from envs.drone.options import NavigationOptions, read_options
from envs.drone.raycast import choose_caster
from envs.refusals import check_action, refuse_reset_options

MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


class NavigationVectorEnv(gym.vector.VectorEnv[Any, NDArray[Any], NDArray[Any]]):
    """A number of worlds, each with a generator of its own: the same numbers as that many single environments give.

    Args:
        num_envs: how many.
        max_episode_steps: the clock, which truncates.
        autoreset_mode: what follows an ending: the first observation at the next step, whose action counts for nothing
            (`NextStep`), or at once, with what was last in `info` (`SameStep`).
        arguments: as for the single environment.

    Raises:
        ValueError: with a line for each argument that is no good.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        mode = AutoresetMode(autoreset_mode)
        if mode not in MODES:
            raise ValueError(
                f"autoreset_mode: {mode.value} isn't there; there are: {', '.join(m.value for m in MODES)}"
            )
        if num_envs < 1 or max_episode_steps < 1:
            raise ValueError(f"num_envs: {num_envs} worlds of {max_episode_steps} steps; there is at least 1 of both")
        self.options = read_options(arguments)
        self.num_envs, self._limit, self._mode = num_envs, max_episode_steps, mode
        self.metadata = {**self.metadata, "autoreset_mode": mode}  # type: ignore[misc]
        self._caster = choose_caster(self.options.caster)
        self._backends = [EmbeddedBackend(self._caster) for _ in range(num_envs)]
        self.flights = [Flight(self.options, backend) for backend in self._backends]
        self._eyes = self.open_eyes(self.options, num_envs)
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self.single_observation_space = self._eyes.space
        self.single_action_space = gym.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @staticmethod
    def open_eyes(options: NavigationOptions, num_worlds: int) -> Eyes:
        """Give what makes the observations."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a flight in every world; world i of a single seed begins with seed + i.

        Raises:
            ValueError: there are as many seeds as there are no worlds, or there are reset options.
        """
        refuse_reset_options(options)
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + index for index in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: {len(seeds)} seeds for {self.num_envs} worlds")
        for index, single in enumerate(seeds):
            if single is not None:
                self._generators[index] = seeding.np_random(single)[0]
        self._ended[:] = False
        infos = self._begin(range(self.num_envs), {})
        return self._eyes.read_all(), infos

    def _begin(self, indices: Sequence[int], infos: dict[str, Any]) -> dict[str, Any]:
        for index in indices:
            self._lengths[index] = 0
            infos = self._add_info(infos, self.flights[index].begin(self._generators[index]), index)
        self._see(indices, indices)
        return infos

    def _see(self, indices: Sequence[int], first: Sequence[int]) -> None:
        """Take in what some worlds look like now; for those that are named again it is the first sight."""
        depths = see_many(
            self._caster, [self._backends[index] for index in indices], self._eyes.camera, self._eyes.level
        )
        begun = set(first)
        for index, depth in zip(indices, depths, strict=True):
            noisy = spoil_depth(depth, self.options, self._generators[index])
            take_in = self._eyes.begin if index in begun else self._eyes.look
            take_in(index, self.flights[index], noisy)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Fly on for a period in every world.

        Raises:
            ValueError: the actions aren't three numbers in [-1, 1] for each world.
        """
        if np.shape(actions) != (self.num_envs, ACTION_DIM):
            raise ValueError(
                f"actions: {np.shape(actions)} is their shape, and {(self.num_envs, ACTION_DIM)} is needed"
            )
        count = self.num_envs
        rewards, terminated = np.zeros(count), np.zeros(count, dtype=np.bool_)
        infos: dict[str, Any] = {}
        last: dict[int, dict[str, Any]] = {}
        begun = np.flatnonzero(self._ended).tolist()
        for index in begun:
            self._lengths[index] = 0
            infos = self._add_info(infos, self.flights[index].begin(self._generators[index]), index)
        for index in np.flatnonzero(~self._ended).tolist():
            outcome = self.flights[index].advance(check_action(actions[index], ACTION_DIM), self._generators[index])
            rewards[index], terminated[index] = outcome.reward, outcome.terminated
            self._lengths[index] += 1
            infos = self._add_info(infos, outcome.info, index)
            last[index] = outcome.info
        truncated = self._lengths >= self._limit
        self._ended = terminated | truncated
        self._see(range(count), begun)
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            infos = self._begin_at_once(infos, last)
        return self._eyes.read_all(), rewards, terminated, truncated, infos

    def _begin_at_once(self, infos: dict[str, Any], last: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """Begin new flights where one has ended; give the infos with what was seen and said last."""
        ended = np.flatnonzero(self._ended).tolist()
        for index in ended:
            final = {"final_obs": self._eyes.read(index), "final_info": last[index]}
            infos = self._add_info(infos, final, index)
        self._ended[:] = False
        return self._begin(ended, infos)

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the backends."""
        for backend in self._backends:
            backend.close()


class DepthNavVectorEnv(NavigationVectorEnv):
    """Many `DepthNav-v0` in one process."""

    @staticmethod
    def open_eyes(options: NavigationOptions, num_worlds: int) -> Eyes:
        """Give what makes pictures."""
        return PictureEyes(options, num_worlds)


class DepthNavStateVectorEnv(NavigationVectorEnv):
    """Many `DepthNavState-v0` in one process."""

    def __init__(self, num_envs: int, max_episode_steps: int, **arguments: Any) -> None:
        refuse_picture_arguments(arguments)
        super().__init__(num_envs, max_episode_steps, **arguments)

    @staticmethod
    def open_eyes(options: NavigationOptions, num_worlds: int) -> Eyes:
        """Give what makes flat vectors."""
        return FanEyes(options, num_worlds)
