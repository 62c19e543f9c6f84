"""Evaluation of diffusion policies: several environments side by side, one pass through the networks for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser.datasets.normalization import ActionScale, ObsNormalizer
from diffuser.models.diffusion_rl import DiffusionRL
from diffuser.worlds import World, stack_histories
from envs.make import Env
from training.evaluation import FinishedEpisode, gather_evaluation
from training.protocol import Evaluation
from training.seeding import derive_seed, undisturbed_generators

WIDTH = 16
"""Environments side by side at most; each that has finished takes the next start."""


class MADEvaluator:
    """Runs one episode per seed with a given policy.

    What is drawn for an episode follows from its seed alone, so that it doesn't matter which others run beside it.

    Args:
        make_env: gives a fresh environment; called for evaluations alone.
        check_env: looks at the first environment of each evaluation.
        normalizer: of observations.
        action_scale: of actions.
        history_horizon: observations in a history.
        width: environments side by side.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        check_env: Callable[[Env], None],
        normalizer: ObsNormalizer,
        action_scale: ActionScale,
        history_horizon: int,
        width: int = WIDTH,
    ) -> None:
        self._make_env = make_env
        self._check_env = check_env
        self._normalizer = normalizer
        self._scale = action_scale
        self._history_horizon = history_horizon
        self._width = width

    def evaluate(self, model: DiffusionRL, seeds: Sequence[int], should_stop: Callable[[], bool]) -> Evaluation:
        """Give returns, lengths and measures, one per seed and in their order; environments are closed at the end.

        Raises:
            EvaluationStopped: `should_stop`, asked before each step of an environment, said so.
            EpisodeError: the environment isn't one that the data set fits.
            MeasureError: as `training.evaluation.evaluate_begun`.
        """
        waiting = deque(enumerate(seeds))
        results: dict[int, FinishedEpisode] = {}
        with undisturbed_generators():
            worlds = [self._make_world() for _ in range(min(self._width, len(seeds)))]
            try:
                self._check_env(worlds[0].env)
                running: dict[int, tuple[World, np.random.Generator]] = {}
                idle = list(worlds)
                while waiting or running:
                    while waiting and idle:
                        number, seed = waiting.popleft()
                        world = idle.pop()
                        world.begin_episode(seed)
                        running[number] = world, np.random.Generator(np.random.PCG64(derive_seed(seed, "sampling")))
                    self._act_once(model, running, should_stop)
                    for number in [number for number, (world, _) in running.items() if world.is_over]:
                        world, _ = running.pop(number)
                        results[number] = FinishedEpisode(world.episode_return, world.episode_length, world.measures)
                        idle.append(world)
            finally:
                for world in worlds:
                    world.env.close()
        return gather_evaluation(seeds, [results[number] for number in range(len(seeds))])

    def _make_world(self) -> World:
        return World(self._make_env, self._normalizer, self._scale, self._history_horizon, "the evaluation")

    def _act_once(
        self,
        model: DiffusionRL,
        running: dict[int, tuple[World, np.random.Generator]],
        should_stop: Callable[[], bool],
    ) -> None:
        """Execute one chunk in each environment that runs."""
        noise = draw_noise(model, [generator for _, generator in running.values()], model.noise_shape)
        worlds = [world for world, _ in running.values()]
        history = stack_histories([world.history for world in worlds], noise.device)
        chunks: NDArray[Any] = model.decide(history, noise).cpu().numpy()
        for world, chunk in zip(worlds, chunks, strict=True):
            world.execute(chunk, should_stop)


def draw_noise(model: DiffusionRL, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Give standard normal numbers, (number of generators, *shape), each row of its own generator, on the model's
    device."""
    rows = [generator.standard_normal(shape, dtype=np.float32) for generator in generators]
    return torch.from_numpy(np.stack(rows)).to(model.log_std.device)
