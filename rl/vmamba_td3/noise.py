"""Exploration noise that shrinks as a run goes on."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from rl.noise import OrnsteinUhlenbeckNoise


class ShrinkingNoise(OrnsteinUhlenbeckNoise):
    """Ornstein-Uhlenbeck noise whose push falls in a line from `sigma` to `sigma_min`.

    Args:
        shape: (num_envs, action_dim).
        sigma: deviation of one step's push at the beginning, in normalised action units.
        sigma_min: at the end.
        theta: share of the noise that is forgotten in a step.
        generator: draws the pushes.
    """

    TRANSIENT: ClassVar[tuple[str, ...]] = ("std", "theta", "_sigma", "_sigma_min")  # the push follows from progress

    def __init__(
        self, shape: tuple[int, int], sigma: float, sigma_min: float, theta: float, generator: np.random.Generator
    ) -> None:
        super().__init__(shape, sigma, theta, generator)
        self._sigma, self._sigma_min = sigma, sigma_min

    @property
    def sigma(self) -> float:
        """Give the deviation of the next push."""
        return float(self.std)

    def scale_sigma(self, progress_ratio: float) -> None:
        """Set the push for how much of the run is done, in [0, 1]."""
        line = self._sigma * (1 - progress_ratio) + self._sigma_min * progress_ratio
        self.std = np.float32(max(line, self._sigma_min))
