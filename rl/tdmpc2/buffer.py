"""Windows of consecutive past steps to learn from, each observation kept once."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.rowlog import RowLog


class Sequences(NamedTuple):
    """A batch of windows, time first, in memory of its own.

    After the end of an episode that is shorter than the horizon its last observation is repeated, and actions, rewards
    and `terminated` are 0.

    Attributes:
        obs: (horizon + 1, batch, *obs_shape), as they are kept.
        action: (horizon, batch, action_dim) float32.
        reward: (horizon, batch, 1) float32.
        terminated: (horizon, batch, 1) float32, 1 where the step ended the task; a clock's end is 0.
        valid: (horizon, batch, 1) float32, 1 where the step is in the episode, 0 after its end.
        task: (batch,) int64, which task the episode is of.
    """

    obs: NDArray[Any]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.float32]
    valid: NDArray[np.float32]
    task: NDArray[np.int64]


class SequenceBuffer:
    """The past of one environment or several, drawn as windows of steps of one episode each.

    Windows are drawn uniformly and with replacement: an episode of T steps has T - horizon + 1, the one that goes on
    has those up to its newest step, and a finished one that is shorter than the horizon has one, padded. A window is
    forgotten as a whole once its first observation is written over. Memory is claimed page by page as it fills, and
    the time that a batch takes doesn't depend on how much there is.

    Args:
        capacity: steps that are kept, over all environments, which have an equal part each; an episode of T steps
            takes the room of T + 1, since its last observation is kept too.
        horizon: steps in a window.
        obs_shape: of one observation.
        obs_dtype: what observations are kept as, float32 or, for pixels, uint8.
        action_dim: numbers in an action.
        generator: draws batches; belongs to the buffer.
        num_envs: environments whose episodes are kept apart.

    Raises:
        ValueError: `horizon` is below 1, or `capacity` can't hold a window of each environment.
    """

    TRANSIENT: ClassVar = ()

    def __init__(
        self,
        capacity: int,
        horizon: int,
        obs_shape: tuple[int, ...],
        obs_dtype: np.dtype[Any],
        action_dim: int,
        generator: np.random.Generator,
        num_envs: int = 1,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon: {horizon} steps make no window; it is at least 1")
        least = num_envs * (horizon + 1)
        if capacity < least:
            raise ValueError(
                f"buffer_size: {capacity} steps for {num_envs} environments don't hold a window of {horizon} steps and "
                f"{horizon + 1} observations each; it is at least {least}"
            )
        self._horizon = horizon
        self._generator = generator
        self._rings = [
            _EpisodeRing(capacity // num_envs, horizon, obs_shape, obs_dtype, action_dim) for _ in range(num_envs)
        ]

    def __len__(self) -> int:
        """Give the number of windows that can be drawn."""
        return sum(ring.num_windows for ring in self._rings)

    @property
    def num_steps(self) -> int:
        """Give the number of steps that are kept, those included that no window begins with."""
        return sum(ring.num_steps for ring in self._rings)

    @property
    def nbytes(self) -> int:
        """Give the memory that everything takes when the buffer is full, in bytes."""
        return sum(ring.nbytes for ring in self._rings)

    def begin(self, env: int, obs: NDArray[Any], task: int = 0) -> None:
        """Begin an episode; the one before has ended or was abandoned.

        Args:
            env: which environment it is of.
            obs: the first observation, of shape `obs_shape`.
            task: what the environment is to do, as a number.

        Raises:
            ValueError: `obs` is of another shape, or of numbers that can't be kept.
        """
        self._rings[env].begin(obs, task)

    def add(
        self, env: int, action: NDArray[Any], reward: float, terminated: bool, next_obs: NDArray[Any], over: bool
    ) -> None:
        """Add a step of the episode that goes on.

        Args:
            env: which environment it is of.
            action: (action_dim,), as the agent will see it again.
            reward: of the step.
            terminated: whether the task ended.
            next_obs: what is seen after the step.
            over: whether the episode ended, by its task or by its clock.

        Raises:
            ValueError: as `begin`, or `action` is of another shape. Nothing was added.
        """
        self._rings[env].add(action, reward, terminated, next_obs, over)

    def abandon(self, env: int) -> None:
        """Hear that an episode goes on no further, as after a fault: what there is of it counts as cut by the clock."""
        self._rings[env].end()

    def reseed(self, generator: np.random.Generator) -> None:
        """Draw from another generator from here on."""
        self._generator = generator

    def sample(self, batch_size: int) -> Sequences:
        """Give a batch of windows.

        Raises:
            ValueError: there is none yet.
        """
        ends = np.cumsum([ring.num_windows for ring in self._rings])
        if ends[-1] == 0:
            raise ValueError(
                f"no window can be drawn yet: no episode in the buffer has {self._horizon} steps, and no shorter one "
                "has ended"
            )
        drawn = self._generator.integers(0, ends[-1], batch_size)
        if len(self._rings) == 1:
            return self._rings[0].gather(drawn)
        return self._gather_from_all(drawn, ends)

    def _gather_from_all(self, drawn: NDArray[np.int64], ends: NDArray[np.int64]) -> Sequences:
        """Give windows numbered over all environments, in the order in which they were drawn."""
        owner = np.searchsorted(ends, drawn, side="right")
        batch: list[NDArray[Any]] = []
        for index, ring in enumerate(self._rings):
            columns = np.flatnonzero(owner == index)
            part = ring.gather(drawn[columns] - (int(ends[index]) - ring.num_windows))
            if not batch:
                batch = [np.empty((len(piece), len(drawn), *piece.shape[2:]), piece.dtype) for piece in part[:-1]]
                batch.append(np.empty(len(drawn), np.int64))
            for whole, piece in zip(batch[:-1], part[:-1], strict=True):
                whole[:, columns] = piece
            batch[-1][columns] = part.task
        return Sequences(*batch)

    def read_pref_reward(self, start: int, stop: int) -> NDArray[np.float32]:
        """Give the preference rewards of steps, (stop - start,): NaN where none was written.

        Steps are numbered from the oldest that is kept, `num_steps` of them, the environments' one after the other; an
        added step may move them all.

        Raises:
            ValueError: there are no such steps.
        """
        parts = [ring.read_pref_reward(steps) for ring, steps in self._find_steps(start, stop)]
        return np.concatenate([*parts, np.zeros(0, np.float32)])

    def write_pref_reward(self, start: int, rewards: NDArray[Any]) -> None:
        """Set the preference rewards of the steps from `start` on, numbered as in `read_pref_reward`.

        Args:
            start: the first step's number.
            rewards: (number of steps,).

        Raises:
            ValueError: there are no such steps, or `rewards` is of another shape.
        """
        given = np.asarray(rewards, np.float32)
        if given.ndim != 1:
            raise ValueError(f"rewards {given.shape}: one number for each step, as (number of steps,)")
        done = 0
        for ring, steps in self._find_steps(start, start + len(given)):
            ring.write_pref_reward(steps, given[done : done + len(steps)])
            done += len(steps)

    def _find_steps(self, start: int, stop: int) -> list[tuple[_EpisodeRing, NDArray[np.int64]]]:
        """Give whose the steps of a range are, and their numbers there."""
        if not 0 <= start <= stop <= self.num_steps:
            raise ValueError(f"steps {start} to {stop}: the buffer has those from 0 to {self.num_steps}")
        found, before = [], 0
        for ring in self._rings:
            first, last = max(start - before, 0), min(stop - before, ring.num_steps)
            if first < last:
                found.append((ring, ring.first_step + np.arange(first, last)))
            before += ring.num_steps
        return found

    def state_dict(self) -> dict[str, Any]:
        """Give the rings' own memory, not copied, and the state of the generator."""
        return {
            "horizon": self._horizon,
            "rings": [ring.state_dict() for ring in self._rings],
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the rings in it are kept, not copied.

        Raises:
            ValueError: it is of other sizes. Nothing was taken over.
        """
        if state["horizon"] != self._horizon:
            raise ValueError(
                f"the saved buffer has windows of {state['horizon']} steps, and this run's {self._horizon}"
            )
        rings = state["rings"]
        if len(rings) != len(self._rings):
            raise ValueError(f"the saved buffer is of {len(rings)} environments, and this run's of {len(self._rings)}")
        for ring, saved in zip(self._rings, rings, strict=True):
            ring.check_state(saved)
        for ring, saved in zip(self._rings, rings, strict=True):
            ring.load_state_dict(saved)
        self._generator.bit_generator.state = state["generator"]


class _Rows:
    """Rows by their numbers, counted from the first ever appended; the oldest are written over."""

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic]) -> None:
        self.memory: NDArray[Any] = np.zeros((capacity, *shape), dtype)
        self.total = 0

    def append(self, row: Any) -> None:
        self.memory[self.total % len(self.memory)] = row
        self.total += 1

    def at(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Give a copy of some rows, of the shape of `numbers` and then that of a row."""
        return self.memory.take(numbers % len(self.memory), axis=0)

    def log(self) -> RowLog:
        return RowLog(self.memory, self.total)

    def load(self, log: RowLog) -> None:
        self.memory, self.total = np.ascontiguousarray(log.widen(len(self.memory)).rows), log.total


class _EpisodeRing:
    """The observations and steps of one environment, in the order in which they came, and the windows in them.

    Steps, observations and windows are numbered apart, each from the first ever added: an episode has one observation
    more than it has steps, and fewer windows.
    """

    TRANSIENT: ClassVar = ("_horizon", "first_step", "_first_start")

    def __init__(
        self, capacity: int, horizon: int, obs_shape: tuple[int, ...], obs_dtype: np.dtype[Any], action_dim: int
    ) -> None:
        self._horizon = horizon
        self._frames = _Rows(capacity, obs_shape, obs_dtype)
        self._steps = _Rows(capacity, (action_dim + 2,), np.float32)  # action, reward, terminated
        self._links = _Rows(capacity, (), np.int64)  # of a step: its observation
        self._starts = _Rows(capacity, (3,), np.int64)  # of a window: its first step, how many there are, the task
        self._pref_reward: NDArray[np.float32] | None = None  # None stands for NaNs that take no memory
        self._episode_start = -1  # the first step of the episode that goes on; -1 where none does
        self._task = 0
        self.first_step = 0
        self._first_start = 0

    @property
    def num_steps(self) -> int:
        return self._steps.total - self.first_step

    @property
    def num_windows(self) -> int:
        return self._starts.total - self._first_start

    @property
    def nbytes(self) -> int:
        column = 0 if self._pref_reward is None else self._pref_reward.nbytes
        return column + sum(rows.memory.nbytes for rows in self._find_rows().values())

    def begin(self, obs: NDArray[Any], task: int) -> None:
        assert self._episode_start < 0, "the episode before goes on: abandon it"
        self._frames.append(self._check_obs(obs))
        self._episode_start, self._task = self._steps.total, task
        self._forget()

    def add(self, action: NDArray[Any], reward: float, terminated: bool, next_obs: NDArray[Any], over: bool) -> None:
        assert self._episode_start >= 0, "a step without an episode: begin one"
        assert over or not terminated, "a step that ended the task ended its episode"
        row = np.empty(self._steps.memory.shape[1], np.float32)
        if np.shape(action) != (len(row) - 2,):
            raise ValueError(f"action {np.shape(action)}: the buffer keeps ({len(row) - 2},)")
        row[:-2], row[-2], row[-1] = action, reward, terminated
        seen = self._check_obs(next_obs)
        if self._pref_reward is not None:
            self._pref_reward[self._steps.total % len(self._pref_reward)] = np.nan
        self._links.append(self._frames.total - 1)
        self._steps.append(row)
        self._frames.append(seen)
        if self._steps.total - self._episode_start >= self._horizon:
            self._starts.append((self._steps.total - self._horizon, self._horizon, self._task))
        if over:
            self.end()
        self._forget()

    def _check_obs(self, obs: NDArray[Any]) -> NDArray[Any]:
        array, kept = np.asarray(obs), self._frames.memory
        if array.shape != kept.shape[1:] or not np.can_cast(array.dtype, kept.dtype, "same_kind"):
            raise ValueError(f"observation {array.shape} {array.dtype}: the buffer keeps {kept.shape[1:]} {kept.dtype}")
        return array

    def end(self) -> None:
        """End the episode that goes on, if one does: it has a window, however short it is."""
        length = self._steps.total - self._episode_start
        if self._episode_start >= 0 and 0 < length < self._horizon:
            self._starts.append((self._episode_start, length, self._task))
        self._episode_start = -1

    def _forget(self) -> None:
        """Forget the steps whose observation is written over, and the windows that begin with them."""
        links, starts, places = self._links.memory, self._starts.memory, len(self._links.memory)
        oldest = self._frames.total - places
        while self.num_steps and links[self.first_step % places] < oldest:
            self.first_step += 1
        while self.num_windows and starts[self._first_start % places, 0] < self.first_step:
            self._first_start += 1

    def gather(self, numbers: NDArray[np.int64]) -> Sequences:
        """Give the windows `numbers`, counted from the oldest that can be drawn."""
        first, length, task = self._starts.at(self._first_start + numbers).T
        times = np.arange(self._horizon + 1)[:, None]
        valid = times[:-1] < length
        steps = self._steps.at(first + times[:-1])
        steps[~valid] = 0  # they are of the next episode, or of one long ago
        return Sequences(
            obs=self._frames.at(self._links.at(first) + np.minimum(times, length)),
            action=steps[..., :-2].copy(),
            reward=steps[..., -2:-1].copy(),
            terminated=steps[..., -1:].copy(),
            valid=valid[..., None].astype(np.float32),
            task=task.copy(),
        )

    def read_pref_reward(self, steps: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._pref_reward is None:
            return np.full(len(steps), np.nan, np.float32)
        return self._pref_reward[steps % len(self._pref_reward)]

    def write_pref_reward(self, steps: NDArray[np.int64], rewards: NDArray[np.float32]) -> None:
        if self._pref_reward is None:
            self._pref_reward = np.full(len(self._steps.memory), np.nan, np.float32)
        self._pref_reward[steps % len(self._pref_reward)] = rewards

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: rows.log() for name, rows in self._find_rows().items()},
            # Not a log: a checkpoint writes only the rows of a log that are new, and these change long after.
            "pref_reward": self._pref_reward,
            "episode_start": self._episode_start,
            "task": self._task,
        }

    def _find_rows(self) -> dict[str, _Rows]:
        return {"frames": self._frames, "steps": self._steps, "links": self._links, "starts": self._starts}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state of other sizes."""
        for name, rows in self._find_rows().items():
            saved, own = state[name].rows, rows.memory
            same = (saved.shape[1:], saved.dtype) == (own.shape[1:], own.dtype)
            if not (same and state[name].fits(len(own))):
                raise ValueError(
                    f"the saved buffer's {name} are {saved.shape} {saved.dtype}, and this run's {own.shape} "
                    f"{own.dtype}: buffer_size, max_timesteps, num_envs or the environment has changed"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, rows in self._find_rows().items():
            rows.load(state[name])
        column = state["pref_reward"]
        self._pref_reward = None
        if column is not None:
            self._pref_reward = np.full(len(self._steps.memory), np.nan, np.float32)
            self._pref_reward[: len(column)] = column
        self._episode_start, self._task = state["episode_start"], state["task"]
        self.first_step, self._first_start = self._steps.log().first, self._starts.log().first
        self._forget()
