"""What a chunk of actions is worth where it would be executed: by this, the best of several candidates is chosen.

It is learnt from recorded episodes alone, as Kostrikov et al. 2021 (arXiv:2110.06169) do for single actions: nobody
asks for the value of a chunk that wasn't recorded. Hansen-Estruch et al. 2023 (arXiv:2304.10573) choose among samples
of a diffusion policy by such a critic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffuser.datasets.batch import History, Outcome
from diffuser.models.encoder import count_history_features, join_history
from diffuser.models.layers import MLP
from training.losses import expectile_loss

Metrics = dict[str, Tensor]


class ChunkCritic(nn.Module):
    """Two values of a chunk after a history, and one of the history alone; nothing is shared with the policy.

    Values are in the unit that rewards are divided by, which the caller chooses.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_agents: int,
        history_horizon: int,
        horizon: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        history_dim = count_history_features(obs_dim, action_dim, num_agents, history_horizon)
        chunk_dim = horizon * num_agents * action_dim
        self.first = MLP(history_dim + chunk_dim, hidden_dims, 1)
        self.second = MLP(history_dim + chunk_dim, hidden_dims, 1)
        self.value = MLP(history_dim, hidden_dims, 1)

    def value_of_chunk(self, history: History, chunk: Tensor) -> tuple[Tensor, Tensor]:
        """Give both critics' values, each (batch,), of chunks (batch, horizon, num_agents, action_dim)."""
        features = torch.cat([join_history(history), chunk.flatten(1)], dim=1)
        return self.first(features).squeeze(1), self.second(features).squeeze(1)

    def value_of_history(self, history: History) -> Tensor:
        """Give what a history is worth under the better recorded actions, (batch,)."""
        value: Tensor = self.value(join_history(history))
        return value.squeeze(1)

    @torch.no_grad()
    def rank(self, history: History, candidates: Tensor) -> Tensor:
        """Give which candidate has the highest value, (batch,), by the lower of both critics.

        Args:
            history: of `batch` situations.
            candidates: (batch, number of candidates, horizon, num_agents, action_dim).
        """
        batch, count = candidates.shape[:2]
        known = join_history(history).repeat_interleave(count, dim=0)
        features = torch.cat([known, candidates.flatten(0, 1).flatten(1)], dim=1)
        return torch.minimum(self.first(features), self.second(features)).view(batch, count).argmax(1)


def critic_loss(
    critic: ChunkCritic, target: ChunkCritic, history: History, outcome: Outcome, expectile: float
) -> tuple[Tensor, Metrics]:
    """Give the sum of the value's expectile loss and both critics' squared errors, and its named numbers.

    Critics learn `reward + discount * (1 - terminated) * V(next history)`. Their slow copy says what `V` of a history
    is an expectile of.

    Args:
        critic: learns.
        target: its slow copy; no gradient reaches it.
        history: where chunks were recorded.
        outcome: what came of them, rewards in the unit of values.
        expectile: in (0, 1): which of the recorded chunks' values `V` is.
    """
    with torch.no_grad():
        recorded = torch.minimum(*target.value_of_chunk(history, outcome.chunk))
        ahead = outcome.discount * (1 - outcome.terminated) * critic.value_of_history(outcome.next_history)
        wanted = outcome.reward + ahead
    value = critic.value_of_history(history)
    value_loss = expectile_loss(recorded - value, expectile)
    first, second = critic.value_of_chunk(history, outcome.chunk)
    chunk_loss = ((first - wanted) ** 2).mean() + ((second - wanted) ** 2).mean()
    metrics = {
        "critic_loss": chunk_loss.detach(),
        "expectile_loss": value_loss.detach(),
        "train/q_mean": first.detach().mean(),
        "train/target_std": wanted.std(correction=0),
    }
    return value_loss + chunk_loss, metrics
