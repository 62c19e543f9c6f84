"""The settings of behaviour cloning. Imports no torch, so that a whole grid can be checked at once."""

from __future__ import annotations

from typing import ClassVar, Literal

from rl.offline.offline_config import OfflineConfig


class BCConfig(OfflineConfig):
    """A deterministic policy fitted to recorded actions by their mean squared error."""

    batch_copies: ClassVar[int] = 5

    algorithm_name: Literal["bc"]

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that mean nothing here, whether or not they were set."""
        return super().list_switched_off() | {"guard_max_critic_loss": "bc has no critic"}
