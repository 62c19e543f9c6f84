"""Windows over recorded episodes: histories, and the chunks of actions that followed them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser.datasets.batch import History, Outcome, SequenceBatch
from diffuser.datasets.normalization import ActionScale, Floats, NormalizerKind, fit_obs_normalizer
from envs.episodes import EpisodeError, Episodes, check_episodes

Indices = NDArray[np.int64]


class VAESequenceDataset:
    """Every step of every episode begins a window: a history up to it, and a chunk of actions from it.

    Where a window reaches over an end of its episode it is padded with zeros and its masks say so. Nothing is copied
    when it is opened but one return a step: batches are gathered from the mapped arrays by index arithmetic.

    Args:
        episodes: looked at as a whole once, and checked.
        horizon: actions in a chunk.
        history_horizon: observations in a history, the newest being the one that the chunk answers.
        discount: of the returns to go, per step.
        obs_normalizer: how observations are normalised.

    Attributes:
        normalizer: of observations, for whoever acts too.
        action_scale: of actions, by the header's bounds.

    Raises:
        EpisodeError: what `check_episodes` refuses, no episode as long as a chunk, or actions without finite bounds.
    """

    def __init__(
        self,
        episodes: Episodes,
        *,
        horizon: int,
        history_horizon: int,
        discount: float,
        obs_normalizer: NormalizerKind,
    ) -> None:
        check_episodes(episodes)
        if (longest := int(episodes.lengths.max())) < horizon:
            raise EpisodeError(
                f"{episodes.path or 'recorded episodes'}: the longest episode has {longest} steps, and horizon is "
                f"{horizon}: no chunk would ever be whole; set horizon to {longest} at most"
            )
        bounds = episodes.header.action_low, episodes.header.action_high
        if not np.isfinite(bounds).all():
            raise EpisodeError(
                f"{episodes.path or 'recorded episodes'}: actions have no finite bounds ({bounds[0].tolist()} to "
                f"{bounds[1].tolist()}), so that nothing says what -1 and 1 are; record with bounds"
            )
        self.episodes = episodes
        self.horizon = horizon
        self.history_horizon = history_horizon
        self.normalizer = fit_obs_normalizer(obs_normalizer, episodes)
        self.action_scale = ActionScale(*bounds)
        self._first_steps = episodes.first_steps
        self._discount = discount
        self._returns = find_returns_to_go(episodes, discount)

    def __len__(self) -> int:
        return self.episodes.num_steps

    def gather(self, windows: Indices, device: torch.device | None = None) -> SequenceBatch:
        """Give the windows that begin at these steps, counted over the whole file, (batch,)."""
        episode = np.searchsorted(self._first_steps, windows, side="right") - 1
        first = self._first_steps[episode]
        step = windows - first
        history = self._gather_history(windows, step, episode)
        ahead = step[:, None] + np.arange(self.horizon)
        inside = ahead < self.episodes.lengths[episode][:, None]
        chunk = self._gather_actions(first[:, None] + ahead, inside)
        arrays = (*history, chunk, inside, self._returns[windows])
        obs, action, mask, *rest = (torch.from_numpy(array).to(device) for array in arrays)
        return SequenceBatch(History(obs, action, mask), *rest)

    def gather_outcomes(self, windows: Indices, batch: SequenceBatch, unit: float) -> Outcome:
        """Give what came of the chunks of a batch.

        Args:
            windows: that the batch was gathered from.
            batch: what `gather` gave for them.
            unit: that rewards are divided by.
        """
        device = batch.chunk.device
        episode = np.searchsorted(self._first_steps, windows, side="right") - 1
        step, length = windows - self._first_steps[episode], self.episodes.lengths[episode]
        taken = np.minimum(self.horizon, length - step)
        ahead = np.arange(self.horizon)
        inside = ahead < taken[:, None]
        rewards = self.episodes.rewards[np.where(inside, windows[:, None] + ahead, 0)].mean(-1)
        reward = (np.where(inside, rewards, 0) * self._discount**ahead).sum(1) / unit
        terminated = self.episodes.terminated[episode] & (step + taken == length)
        history = self._gather_history(windows + taken, step + taken, episode)
        columns = (reward, self._discount**taken, terminated)
        rewarded, discount, ended = (torch.from_numpy(column.astype(np.float32)).to(device) for column in columns)
        after = History(*(torch.from_numpy(array).to(device) for array in history))
        # What an end cut off mustn't be told from a whole chunk: at decisions, chunks are whole.
        chunk = torch.where(batch.chunk_mask[:, :, None, None], batch.chunk, batch.chunk.roll(1, 0))
        return Outcome(chunk, rewarded, discount, ended, after)

    def measure_return_size(self) -> float:
        """Give the root mean square of the returns to go, 1 where all are 0: a unit in which values are about 1."""
        size = float(np.sqrt(np.mean(np.square(self._returns, dtype=np.float64))))
        return size if size > 0 else 1.0

    def _gather_history(
        self, windows: Indices, step: Indices, episode: Indices
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Give observations, the actions before them, and which of them there were."""
        back = np.arange(1 - self.history_horizon, 1)
        ago = step[:, None] + back
        mask = ago >= 0
        frames = windows[:, None] + episode[:, None] + np.where(mask, back, 0)  # an episode has a frame more than steps
        obs = self.normalizer.apply(self.episodes.observations[frames])
        obs = np.where(mask[:, :, None, None], obs, np.float32(0))
        return obs, self._gather_actions(windows[:, None] + back - 1, ago >= 1), mask

    def _gather_actions(self, steps: Indices, there: NDArray[np.bool_]) -> Floats:
        """Give actions in [-1, 1] at steps of the whole file, 0 where none is there."""
        actions = self.action_scale.to_unit(self.episodes.actions[np.where(there, steps, 0)])
        return np.where(there[:, :, None, None], actions, np.float32(0))


def find_returns_to_go(episodes: Episodes, discount: float) -> Floats:
    """Give the discounted sum of rewards from each step to its episode's end, (steps, num_agents).

    Nothing is added for what would have come after an end by the clock.
    """
    returns = np.array(episodes.rewards, dtype=np.float64)
    longest_first = np.argsort(-episodes.lengths, kind="stable")
    first, lengths = episodes.first_steps[longest_first], episodes.lengths[longest_first]
    for step in range(int(lengths[0]) - 2, -1, -1):
        rows = first[: np.searchsorted(-lengths, -(step + 1))] + step  # episodes that go on after this step
        returns[rows] += discount * returns[rows + 1]
    return returns.astype(np.float32)


class WindowSampler:
    """Windows in random order, each one once an epoch. Which comes when follows from a seed and two counters.

    Args:
        num_windows: there are.
        seed: of all permutations, from `derive_seed`.
    """

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"num_windows", "_order"})

    def __init__(self, num_windows: int, seed: int) -> None:
        self.num_windows = num_windows
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._permute()

    @property
    def epochs(self) -> float:
        """Passes over the windows so far."""
        return self._epoch + self._position / self.num_windows

    def draw(self, batch_size: int) -> Indices:
        """Give the next windows, (batch_size,); an epoch's last ones go together with the next one's first."""
        parts = []
        while batch_size:
            if self._position == self.num_windows:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._permute()
            part = self._order[self._position : self._position + batch_size]
            parts.append(part)
            self._position += len(part)
            batch_size -= len(part)
        return np.concatenate(parts)

    def reseed(self, seed: int) -> None:
        """Go on with other permutations from the next epoch's beginning, which is now."""
        self._seed = seed
        self._epoch, self._position = self._epoch + 1, 0
        self._order = self._permute()

    def _permute(self) -> Indices:
        return np.random.Generator(np.random.PCG64([self._seed, self._epoch])).permutation(self.num_windows)

    def state_dict(self) -> dict[str, Any]:
        """Give the seed and the counters; the order follows from them."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._order = self._permute()


def check_fit(
    episodes: Episodes, *, env_name: str, num_agents: int, obs_dim: int, action_low: Floats, action_high: Floats
) -> None:
    """Hold a data set against the environment that its policy is to act in.

    Args:
        action_low: the environment's, (num_agents, action_dim).
        action_high: likewise.

    Raises:
        EpisodeError: the data set is of other agents, dimensions or bounds; the message has both sides.
    """
    mine = (episodes.num_agents, episodes.obs_dim, episodes.action_dim)
    theirs = (num_agents, obs_dim, int(action_low.shape[-1]))
    for name, recorded, there in zip(("agents", "numbers in an observation", "actions"), mine, theirs, strict=True):
        if recorded != there:
            raise EpisodeError(
                f"{episodes.path or 'recorded episodes'}: {recorded} {name}, and {env_name} has {there}; choose a data "
                "set of this environment, or set env_name to the data set's own"
            )
    header = episodes.header
    pairs = (("action_low", header.action_low, action_low), ("action_high", header.action_high, action_high))
    for name, recorded_bound, bound in pairs:
        if not np.allclose(recorded_bound, bound, rtol=1e-5, atol=1e-6):
            raise EpisodeError(
                f"{episodes.path or 'recorded episodes'}: {name} is {recorded_bound.tolist()}, and {env_name} has "
                f"{bound.tolist()}: the same action in [-1, 1] would mean something else"
            )
