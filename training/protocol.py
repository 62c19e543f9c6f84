"""What the training loop asks of a trainer. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Episode:
    """A finished training episode. `truncated` is True where the clock ended it and the task did not.

    `predicted_return` is the critic's value of its first step, and `discounted_return` what came, both in the scale
    that is learned in; after a clock's end the last observation's value stands for the rest. None where no critic says.
    """

    episode_return: float
    length: int
    truncated: bool
    predicted_return: float | None = None
    discounted_return: float | None = None


@dataclass(frozen=True)
class StepResult:
    """What one `train_step` gives: named numbers (tensors stay on their device), steps taken, episodes finished.

    `vitals` are for the training-health guard, under the names that `training.signals.HealthSignals` lists, in those
    steps in which they were measured. `faults` says, a text each, where a number from an environment wasn't finite.
    `ticks` is how far the run's clock moves, where that is neither the environment steps nor, without any, one.
    `counts` are totals of the run so far, by name; rows have the latest.
    """

    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    env_steps: int = 0
    updates: int = 0
    episodes: Sequence[Episode] = ()
    vitals: Mapping[str, Tensor | float] = field(default_factory=dict)
    faults: Sequence[str] = ()
    ticks: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Treatment:
    """What the guard has changed about a run in which it repairs.

    Attributes:
        learning_rate_factor: all learning rates are those of the config times this.
        batch_halvings: so often the batch is halved.
    """

    learning_rate_factor: float = 1.0
    batch_halvings: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Undisturbed episodes of the current policy, one per seed, in the environment's own reward scale.

    `measures` are what the environment reports of each episode, under the names in `training.measures.MEASURES`.
    """

    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    measures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class References:
    """Mean returns that normalised scores count from and to: `random` actions get 0, an `expert` 100."""

    random: float
    expert: float

    def score(self, episode_return: float) -> float:
        """Give a return, or a mean of returns, as a normalised score."""
        return 100 * (episode_return - self.random) / (self.expert - self.random)


class EvaluationStopped(Exception):  # noqa: N818  nothing went wrong
    """An evaluation that was asked to stop came to its end early; none of its episodes counts."""


class Trainer(Protocol):
    """One learning algorithm with its environment and its data.

    `references` are those of the data set that is learned from; None where it has none, and where nothing is learned
    from one.
    """

    references: References | None

    @property
    def resume_mode(self) -> Literal["exact", "episode"]:
        """`exact` where the environment's state comes back to the bit, `episode` where a resumed run begins anew.

        Both this and the reason may change while it trains.
        """
        ...

    @property
    def resume_reason(self) -> str | None:
        """Why a resumed run begins a new episode; None where it doesn't."""
        ...

    def train_step(self) -> StepResult:
        """Act and learn once."""
        ...

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool]) -> Evaluation:
        """Run one episode per seed without changing anything that training reads.

        Raises:
            EvaluationStopped: `should_stop`, asked before each step of the environment, said so.
        """
        ...

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, targets left out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs, as tensors, arrays, `RowLog`s and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...

    def treat(self, treatment: Treatment) -> None:
        """Go on with other learning rates and batches than the config's. Called after every loading of a state."""
        ...

    def redraw(self, number: int) -> None:
        """Draw batches from a stream of their own from here on, another one for each number."""
        ...

    def close(self) -> None:
        """Let go of environments and files."""
        ...


@runtime_checkable
class ActsInEnvironment(Protocol):
    """A trainer whose policy can be taken out and put to work: to record episodes, or to be looked at."""

    def begin_acting(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Give the policy without noise, for one episode that begins now.

        It is called with each observation in turn, as the environment gave it, and gives the action in the
        environment's units. What it remembers of the episode (histories, planned actions) is its own; what it draws
        comes from the global generators.
        """
        ...


@runtime_checkable
class ShowsAttention(Protocol):
    """A trainer whose policy attends to the steps of a window, and can be looked into while it acts."""

    def begin_tracing(self) -> Callable[[Any], Mapping[str, NDArray[Any]]]:
        """Give the policy without noise, for one episode that begins now, as `ActsInEnvironment.begin_acting` does.

        Called with each observation in turn, it gives the same `action`, and beside it `attention`, (heads, steps),
        the oldest step first; vectors `visual`, `state` and `context`: what the newest frame, the newest state and the
        window became; `values` of the action by each critic that sees no more than this; `base`, the newest state as
        it was observed, and `depth`, (height, width), the newest frame over its largest, in [0, 1].
        """
        ...


@runtime_checkable
class ChoosesBackends(Protocol):
    """A trainer with several ways to compute the same on one device, of which it takes the best that a machine has."""

    def describe_backends(self) -> dict[str, str]:
        """Give what is taken here, by what it is for: names, versions, and whatever else last digits depend on.

        An attempt says so when it begins; checkpoints and the summary keep it; a resumed run tells where it differs.
        """
        ...


@runtime_checkable
class TakesWeights(Protocol):
    """A trainer that can begin with the networks that another run of the same trainer has learned."""

    def take_weights(self, state: dict[str, Any]) -> None:
        """Take networks and the slow copies of them out of a state that `state_dict` gave, and nothing else.

        Optimizers, statistics, counters, generators, replay data and environments stay as they were built.

        Raises:
            WeightsError: a network there is of another kind or size.
        """
        ...


class NotOneModuleError(ValueError):
    """A policy that can't be written as one module, and why."""


@runtime_checkable
class HasPolicyModule(Protocol):
    """A trainer whose policy can be written as one module, to be used without this project."""

    def build_policy_module(self) -> nn.Module:
        """Give the policy without noise: one observation at a time decides, and nothing is drawn.

        The module is a copy on the CPU. It takes observations as the environment gives them, in float32 and of shape
        (batch, obs_dim), and gives actions in the environment's units and number type, (batch, action_dim). Where
        observations are a mapping of arrays, it takes those that it reads, each by its name there.

        Raises:
            NotOneModuleError: these settings make a policy that is more than that.
        """
        ...
