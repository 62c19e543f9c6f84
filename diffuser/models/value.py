"""What a situation is worth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from diffuser.models.layers import MLP


class ValueFunction(nn.Module):
    """Gives the expected discounted return from a situation, the baseline of the policy gradient."""

    def __init__(self, trajectory_latent_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        self.mlp = MLP(trajectory_latent_dim, hidden_dims, 1)

    def forward(self, c: Tensor) -> Tensor:
        """Give values of shape (batch,) for encoded histories of shape (batch, trajectory_latent_dim)."""
        value: Tensor = self.mlp(c)
        return value.squeeze(1)
