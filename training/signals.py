"""Signals of a run's health: numbers without units, from what its trainer measures, a window of updates at a time.

A trainer gives *vitals*, raw numbers of some of its updates, in the scale of its own rewards. A window of them becomes
a few ratios. Each ratio compares the run with itself, so that rewards in other units give the same signals.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from training.metrics import Averages
from training.protocol import Episode

WINDOW_UPDATES = 250
"""Updates that one value of each signal is taken over."""
HISTORY = 8
"""Windows that medians are taken over."""
LEAST_HISTORY = 3
"""Windows before the first comparison with a median."""
WEIGHTS_SPAN = 2
"""Windows over which the growth of parameters is measured: optimizers bound how far one step moves them."""
LEAST_EPISODES = 5
"""Finished episodes that one value of the bias is taken over."""
BOUND_SLACK = 1.5
"""How far values may lie beyond what the rewards seen so far can add up to."""
ROUNDING = 1e-6
"""Of a reward's size: differences below this share of it are rounding errors of 32-bit numbers."""
GRADIENT = "gradient/"
"""Vitals whose name begins like this are each held against their own median."""
WEIGHTS = "weights/"
"""Vitals whose name begins like this are each held against what they were `WEIGHTS_SPAN` windows before."""

CRITIC_VITALS = frozenset(
    {
        "error_square",
        "target_variance",
        "reward_square",
        "reward_max",
        "value_size",
        "next_value_size",
        "bootstrap_size",
        "discount",
    }
)
"""A trainer with a critic gives all of these together."""

Vitals = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class Window:
    """What a window of updates came to: signals by name, and the vitals that were not finite."""

    signals: Mapping[str, float]
    not_finite: tuple[str, ...]


class HealthSignals:
    """Collects vitals and gives a window's signals by name.

    | vital | what the trainer measures in an update |
    | --- | --- |
    | `error_square` | mean squared error of a critic |
    | `target_variance` | variance of its targets over the batch |
    | `reward_square`, `reward_max` | mean square and largest size of what a target adds to the next value |
    | `value_size`, `next_value_size` | mean size of the values, and of the next values that targets are made of |
    | `bootstrap_size` | mean size of the targets' share that comes from next values |
    | `discount` | of the next value |
    | `stuck_share` | share of the policy's actions that sit at a bound although the critic would have them inside |
    | `gradient/<network>` | length of a gradient |
    | `weights/<network>` | length of the parameters, before the update; measured in a run's first update too |
    | `skips` | optimizer steps left out since the last measured update |

    All are optional; a signal is given where all that it needs is there.
    """

    TRANSIENT: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self._averages = Averages()
        self._measured = 0
        self._spreads: deque[float] = deque(maxlen=HISTORY)
        self._gradients: dict[str, deque[float]] = {}
        self._weights: dict[str, deque[float]] = {}
        self._first_weights: dict[str, Tensor | float] = {}
        self._reward_max = 0.0
        self._longest_episode = 0
        self._unfinished = 0
        self._episodes: list[tuple[float, float]] = []
        self._returns: deque[float] = deque(maxlen=4 * LEAST_EPISODES)
        self._bias_before: tuple[float, float] | None = None

    def add(self, vitals: Vitals, episodes: Iterable[Episode]) -> None:
        """Take in what a training step measured and the episodes that it finished; waits for no device."""
        if vitals:
            self._averages.add(vitals)
            self._measured += 1
            for name, length in vitals.items():
                if name.startswith(WEIGHTS) and name not in self._weights:
                    self._first_weights.setdefault(name, length)
        self._unfinished += 1
        for episode in episodes:
            self._unfinished = 0
            self._longest_episode = max(self._longest_episode, episode.length)
            predicted, discounted = episode.predicted_return, episode.discounted_return
            if predicted is not None and discounted is not None:
                self._episodes.append((predicted, discounted))

    def close_window(self) -> Window:
        """Give what the window that ends here came to, and begin the next."""
        measured, self._measured = self._measured, 0
        means = self._averages.take()
        vitals = {name: value for name, value in means.items() if math.isfinite(value)}
        self._reward_max = max(self._reward_max, vitals.get("reward_max", 0.0))
        signals = self._compare_weights(vitals)
        if "skips" in vitals:
            signals["skips"] = vitals["skips"] * measured
        if vitals.keys() >= CRITIC_VITALS:
            signals |= self._judge_targets(vitals)
        # Before the first reward there is no scale: values are what networks happened to begin with.
        if "reward_max" not in vitals or self._reward_max > 0:
            signals |= self._compare_gradients(vitals)
            if "stuck_share" in vitals:
                signals["stuck_actor"] = vitals["stuck_share"]
            if vitals.keys() >= CRITIC_VITALS:
                signals |= self._judge_critic(vitals)
            signals |= self._judge_bias(math.sqrt(vitals.get("reward_square", 0.0)))
        else:
            self._episodes = []
        return Window(signals, tuple(name for name in means if name not in vitals))

    def _compare_gradients(self, vitals: Mapping[str, float]) -> dict[str, float]:
        """Give each gradient's length in multiples of the median of the windows before."""
        signals: dict[str, float] = {}
        for name, length in vitals.items():
            if name.startswith(GRADIENT):
                history = self._gradients.setdefault(name, deque(maxlen=HISTORY))
                if len(history) >= LEAST_HISTORY:
                    signals |= _compare(f"gradient_{name.removeprefix(GRADIENT)}", length, statistics.median(history))
                history.append(length)
        return signals

    def _compare_weights(self, vitals: Mapping[str, float]) -> dict[str, float]:
        """Give the length of each network's parameters in multiples of what it was some windows before."""
        signals: dict[str, float] = {}
        for name, first in self._first_weights.items():
            self._weights[name] = deque([float(first)], WEIGHTS_SPAN)
        self._first_weights = {}
        for name, history in self._weights.items():
            if name in vitals:
                signals |= _compare(f"weights_{name.removeprefix(WEIGHTS)}", vitals[name], history[0])
                history.append(vitals[name])
        return signals

    def _judge_targets(self, vitals: Mapping[str, float]) -> dict[str, float]:
        """Give what targets make of the next value: a gain above the discount feeds on itself."""
        rounding = ROUNDING * math.sqrt(vitals["reward_square"])
        return _compare("bootstrap_gain", vitals["bootstrap_size"], vitals["next_value_size"] + rounding)

    def _judge_critic(self, vitals: Mapping[str, float]) -> dict[str, float]:
        """Give the critic's error against the spread of its targets, and its values against their bound.

        The spread is the median over recent windows, so that a target that leaps is not excused by its own leap. While
        values are still near 0 it is the rewards' own size: a critic that knows nothing is wrong by about that much.
        """
        self._spreads.append(math.sqrt(max(vitals["target_variance"], vitals["reward_square"])))
        signals = _compare("critic_error", math.sqrt(vitals["error_square"]), statistics.median(self._spreads))
        discount = vitals["discount"]
        # Without discounting, nothing but the length of episodes bounds a return.
        horizon = 1 / (1 - discount) if discount < 1 else float(max(self._longest_episode, self._unfinished))
        return signals | _compare("value_bound", vitals["value_size"], BOUND_SLACK * horizon * self._reward_max)

    def _judge_bias(self, reward_size: float) -> dict[str, float]:
        """Give how far predicted returns are from those that came, where predictions move away from them.

        A critic that is behind a policy which gets better is wrong too, but moves towards the truth: that gives 0. The
        unit is the largest of the returns' deviation, a tenth of their size, and one reward.
        """
        if len(self._episodes) < LEAST_EPISODES:
            return {}
        episodes, self._episodes = self._episodes, []
        self._returns.extend(discounted for _, discounted in episodes)
        predicted = statistics.fmean(value for value, _ in episodes)
        bias = predicted - statistics.fmean(discounted for _, discounted in episodes)
        before, self._bias_before = self._bias_before, (predicted, bias)
        size = statistics.fmean(map(abs, self._returns))
        if before is None or not math.isfinite(bias) or not math.isfinite(size):
            return {}
        moves_away = (predicted - before[0]) * bias > 0 and abs(bias) > abs(before[1])
        unit = max(statistics.pstdev(self._returns), size / 10, reward_size)
        return _compare("value_bias", abs(bias) if moves_away else 0.0, unit)

    def state_dict(self) -> dict[str, Any]:
        """Give the window's sums and what is known of the windows before."""
        return {
            "averages": self._averages.state_dict(),
            "measured": self._measured,
            "spreads": list(self._spreads),
            "gradients": {name: list(history) for name, history in self._gradients.items()},
            "weights": {name: list(history) for name, history in self._weights.items()},
            "first_weights": dict(self._first_weights),
            "reward_max": self._reward_max,
            "longest_episode": self._longest_episode,
            "unfinished": self._unfinished,
            "episodes": [list(episode) for episode in self._episodes],
            "returns": list(self._returns),
            "bias_before": self._bias_before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._averages.load_state_dict(state["averages"])
        self._measured = state["measured"]
        self._spreads = deque(state["spreads"], HISTORY)
        self._gradients = {name: deque(history, HISTORY) for name, history in state["gradients"].items()}
        self._weights = {name: deque(history, WEIGHTS_SPAN) for name, history in state["weights"].items()}
        self._first_weights = dict(state["first_weights"])
        self._reward_max = state["reward_max"]
        self._longest_episode = state["longest_episode"]
        self._unfinished = state["unfinished"]
        self._episodes = [(predicted, discounted) for predicted, discounted in state["episodes"]]
        self._returns = deque(state["returns"], 4 * LEAST_EPISODES)
        self._bias_before = None if state["bias_before"] is None else tuple(state["bias_before"])


def _compare(signal: str, size: float, unit: float) -> dict[str, float]:
    """Give a ratio of sizes by its name; nothing where there is nothing to compare with."""
    return {signal: size / unit} if unit > 0 else {}
