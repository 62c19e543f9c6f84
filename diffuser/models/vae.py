"""A variational autoencoder of action chunks: where the diffusion happens is its latent space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffuser.models.layers import MLP

LOGVAR_RANGE = (-12.0, 4.0)
"""Where the logarithms of posterior variances are kept."""


class ActionVAE(nn.Module):
    """Gives a chunk of actions as tokens of a latent sequence, and back.

    A chunk of `horizon` steps is cut into `num_tokens` pieces of equal length, each of which becomes one latent: one
    token for the whole chunk, or one token a step. Pieces and agents share the weights. Nothing else conditions it:
    what the situation has to do with actions is for the denoiser to know.

    Args:
        num_tokens: a divisor of `horizon`.

    Source: Kingma and Welling 2014, arXiv:1312.6114.
    """

    def __init__(
        self, action_dim: int, horizon: int, num_tokens: int, latent_dim: int, hidden_dims: Sequence[int]
    ) -> None:
        super().__init__()
        if horizon % num_tokens:
            raise ValueError(f"a chunk of {horizon} steps can't be cut into {num_tokens} tokens of equal length")
        self.action_dim = action_dim
        self.num_tokens = num_tokens
        self.steps_per_token = horizon // num_tokens
        piece_dim = self.steps_per_token * action_dim
        self.encoder = MLP(piece_dim, hidden_dims, 2 * latent_dim)
        self.decoder = MLP(latent_dim, hidden_dims, piece_dim)

    def encode(self, chunk: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Give the posterior's means and logarithms of variances, each (batch, num_tokens, num_agents, latent_dim).

        Args:
            chunk: (batch, horizon, num_agents, action_dim), in [-1, 1].
            mask: (batch, horizon): actions where it is False are taken as 0, whatever they are.
        """
        batch, _, num_agents, action_dim = chunk.shape
        hidden = torch.where(mask[:, :, None, None], chunk, 0)
        pieces = hidden.view(batch, self.num_tokens, self.steps_per_token, num_agents, action_dim).transpose(2, 3)
        mean, logvar = self.encoder(pieces.flatten(3)).chunk(2, dim=-1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latent: Tensor, *, frozen: bool = False) -> Tensor:
        """Give chunks in [-1, 1], (batch, horizon, num_agents, action_dim), of latents as `encode` shapes them.

        Args:
            frozen: no gradient reaches the decoder's parameters.
        """
        batch, num_tokens, num_agents, _ = latent.shape
        if frozen:
            parameters = {name: value.detach() for name, value in self.decoder.named_parameters()}
            pieces = torch.tanh(functional_call(self.decoder, parameters, (latent,)))
        else:
            pieces = torch.tanh(self.decoder(latent))
        steps = pieces.view(batch, num_tokens, num_agents, self.steps_per_token, self.action_dim).transpose(2, 3)
        return steps.reshape(batch, num_tokens * self.steps_per_token, num_agents, self.action_dim)

    def find_token_mask(self, mask: Tensor) -> Tensor:
        """Give which tokens stand for an action at all, (batch, num_tokens), from (batch, horizon)."""
        return mask.reshape(len(mask), self.num_tokens, self.steps_per_token).any(2)


def draw_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Give a sample of the posterior from standard normal noise; gradients go through."""
    return mean + (0.5 * logvar).exp() * noise


def reconstruction_loss(chunk: Tensor, decoded: Tensor, mask: Tensor) -> Tensor:
    """Give squared errors summed over the actions of a chunk, averaged over the batch; hidden actions count nothing."""
    errors = torch.where(mask[:, :, None, None], decoded - chunk, 0)
    return (errors**2).flatten(1).sum(1).mean()


def kl_loss(mean: Tensor, logvar: Tensor, token_mask: Tensor) -> Tensor:
    """Give the divergence from N(0, 1), in nats, summed over the latents of a chunk, averaged over the batch."""
    divergences = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    return torch.where(token_mask[:, :, None, None], divergences, 0).flatten(1).sum(1).mean()
