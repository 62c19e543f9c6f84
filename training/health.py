"""The training-health guard: judges each window of updates, and decides what is done about it.

It acts on ratios that compare a run with itself (`training.signals`), and only on those that are beyond their limit in
two windows one after the other. It never acts on a return, nor, unless a key says so, on the size of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from experiment.files import append_event, to_json_number
from training.metrics import Averages
from training.protocol import StepResult, Treatment
from training.signals import WINDOW_UPDATES, HealthSignals

Mode = Literal["warn", "stop", "repair"]
Action = Literal["warn", "stop", "skip", "discard", "roll_back", "drop_rung"]

CONFIRMING_WINDOWS = 2
"""Windows in a row that a signal has to be beyond its limit in."""
COOL_DOWN = 20
"""Windows in which a signal that was told about isn't told about again."""
ROLL_BACKS: tuple[Action, ...] = ("roll_back", "roll_back", "drop_rung")
"""What the first alarms of a run lead to that is repaired; the one after them stops it."""
LEARNING_RATE_FACTOR = 0.5
"""By which each of these multiplies the learning rates."""
MOST_DISCARDS = 20
"""Transitions of a window that may be discarded because an environment gave what isn't finite."""


EACH_NETWORK = "<network>"
"""Stands for any name at the end of a limit's signal."""


@dataclass(frozen=True)
class Limit:
    """Where a signal begins to be an alarm, and what that is called. `is_least`: it alarms below, and not above."""

    signal: str
    verdict: str
    limit: float
    is_least: bool = False

    def find_signals(self, names: Iterable[str]) -> list[str]:
        """Give those of some signals that it holds for: the one of its name, or those of every network."""
        if self.signal.endswith(EACH_NETWORK):
            return [name for name in names if name.startswith(self.signal.removesuffix(EACH_NETWORK))]
        return [name for name in names if name == self.signal]

    def is_passed(self, value: float) -> bool:
        """Tell whether a value is on the wrong side."""
        return value < self.limit if self.is_least else value > self.limit


LIMITS = (
    Limit("skips", "skips", 5.0),
    Limit(f"weights_{EACH_NETWORK}", "weights", 20.0),
    Limit(f"gradient_{EACH_NETWORK}", "gradient", 1e4),
    Limit("bootstrap_gain", "bootstrap-gain", 1.001),
    Limit("value_bound", "value-bound", 1.0),
    Limit("critic_error", "critic-error", 1000.0),
    Limit("stuck_actor", "stuck-actor", 0.95),
    Limit("value_bias", "value-bias", 10.0),
)
"""In the order in which they are told where several are confirmed at once; docs/health.md has the measurements."""


@dataclass(frozen=True)
class Decision:
    """One thing that the guard has decided; `limit` is None where anything at all was too much."""

    verdict: str
    metric: str
    value: float | str
    limit: float | None
    step: int
    updates: int
    action: Action


class HealthGuard:
    """Judges a run as it goes, tells what it decides, and asks the loop for a stop or a roll-back.

    Args:
        mode: `warn` tells and lets the run go on as it is; `stop` asks for its end; `repair` changes the run, see
            docs/health.md.
        events_path: the experiment's `events.jsonl`.
        run_id: of this run.
        say: gets each decision in a line for people.
        absolute: limits of means over a window in the scale of the task's own rewards, which only its user can know:
            of `critic_loss`, of `actor_loss` (its size), of `episode_length` (a least one).

    Attributes:
        signals: the last window's, by metric name.
        healthy_step: the last step up to which every window was within all limits.
        decisions: all so far.
        wants_stop: whether the run should end now.
        wants_roll_back: whether it should go back to its newest checkpoint at or before `healthy_step`.
    """

    TRANSIENT: ClassVar = frozenset(
        {"_mode", "_events_path", "_run_id", "_say", "_limits", "_watched", "wants_stop", "wants_roll_back"}
    )

    def __init__(
        self,
        mode: Mode,
        events_path: Path,
        run_id: str,
        say: Callable[[str], None],
        absolute: Mapping[str, float] | None = None,
    ) -> None:
        self._mode: Mode = mode
        self._events_path = events_path
        self._run_id = run_id
        self._say = say
        wanted = absolute or {}
        own = [Limit(name, "absolute-limit", value, name == "episode_length") for name, value in wanted.items()]
        self._limits = (*LIMITS, *own)
        self._watched = {f"train/{name}": name for name in wanted if name != "episode_length"}
        self._vitals = HealthSignals()
        self._sizes = Averages()
        self._window = 0
        self._over: dict[str, int] = {}
        self._quiet_until: dict[str, int] = {}
        self._not_finite: set[str] = set()
        self._discards = 0
        self._roll_backs = 0
        self.signals: dict[str, float] = {}
        self.healthy_step = 0
        self.decisions: list[Decision] = []
        self.wants_stop = False
        self.wants_roll_back = False

    @property
    def may_repair(self) -> bool:
        """Whether it may change the run."""
        return self._mode == "repair"

    @property
    def roll_backs(self) -> int:
        """How often the run has gone back to an earlier checkpoint."""
        return self._roll_backs

    @property
    def treatment(self) -> Treatment:
        """What repairs have changed so far."""
        done = ROLL_BACKS[: self._roll_backs]
        return Treatment(LEARNING_RATE_FACTOR ** len(done), done.count("drop_rung"))

    def observe(self, step: int, updates: int, result: StepResult) -> None:
        """Take in a training step, and judge the window of updates that it ends.

        Args:
            step: finished training steps, this one included.
            updates: made so far, this step's included.
            result: of the step.
        """
        if result.faults:
            self._hear_environment(step, updates, result.faults)
        self._vitals.add(result.vitals, result.episodes)
        for metric, name in self._watched.items():
            if metric in result.metrics:
                self._sizes.add({name: result.metrics[metric]})
        for episode in result.episodes:
            self._sizes.add({"episode_length": float(episode.length)})
        if updates == 0:
            self.healthy_step = step
        elif updates // WINDOW_UPDATES > self._window:
            self._window = updates // WINDOW_UPDATES
            self._close_window(step, updates)

    def _hear_environment(self, step: int, updates: int, faults: Sequence[str]) -> None:
        """Tell what an environment did: at once where it goes on into training, else when it is more than a few."""
        self._discards += len(faults)
        if not self.may_repair:
            if "environment" not in self._not_finite:
                self._not_finite.add("environment")
                self._decide([Decision("environment", faults[0], "nan", None, step, updates, self._usual_action)])
        elif self._discards > MOST_DISCARDS:
            count, most = float(self._discards), float(MOST_DISCARDS)
            self._decide([Decision("environment", faults[0], count, most, step, updates, "stop")])

    def _close_window(self, step: int, updates: int) -> None:
        """Judge a window: alarms are those limits that were passed in the window before as well."""
        window = self._vitals.close_window()
        signals = dict(window.signals) | {name: abs(value) for name, value in self._sizes.take().items()}
        self.signals = {f"health/{name}": value for name, value in window.signals.items()}
        held = [replace(limit, signal=name) for limit in self._limits for name in limit.find_signals(signals)]
        passed = [limit for limit in held if limit.is_passed(signals[limit.signal])]
        names = {limit.signal for limit in passed}
        for name in signals:
            self._over[name] = self._over.get(name, 0) + 1 if name in names else 0
        if not passed and not window.not_finite:
            self.healthy_step = step
        self._tell_what_was_left_out(step, updates, signals.get("skips", 0.0))
        if window.not_finite and not self.may_repair:  # where it repairs, such steps are left out and counted
            self._hear_not_finite(step, updates, f"health/{window.not_finite[0]}")
        action = self._usual_action
        alarms = [limit for limit in passed if self._is_alarm(limit.signal)]
        self._decide(
            [
                Decision(
                    alarm.verdict, f"health/{alarm.signal}", signals[alarm.signal], alarm.limit, step, updates, action
                )
                for alarm in alarms
            ]
        )

    def _is_alarm(self, signal: str) -> bool:
        """Tell whether a signal that is beyond its limit is confirmed, and wasn't told about a short while ago."""
        if self._over[signal] < CONFIRMING_WINDOWS or self._window < self._quiet_until.get(signal, 0):
            return False
        self._quiet_until[signal] = self._window + COOL_DOWN
        return True

    def _tell_what_was_left_out(self, step: int, updates: int, skips: float) -> None:
        """Tell how many optimizer steps and transitions the trainer has left out in this window of a repaired run."""
        if skips > 0:
            self._decide([Decision("gradient", "health/skips", skips, None, step, updates, "skip")])
        if self.may_repair and self._discards > 0:
            value = float(self._discards)
            self._decide([Decision("environment", "transitions", value, None, step, updates, "discard")])
            self._discards = 0

    def finish(self, step: int, updates: int) -> None:
        """Hear that training is over: tell what was left out since the last window."""
        self._tell_what_was_left_out(step, updates, self._vitals.close_window().signals.get("skips", 0.0))

    def _hear_not_finite(self, step: int, updates: int, metric: str) -> None:
        """Tell once that a number of the learner isn't finite, unless something said so before."""
        if not self._not_finite:
            self._not_finite.add(metric)
            self._decide([Decision("non-finite", metric, "nan", None, step, updates, self._usual_action)])

    def check(self, step: int, updates: int, values: Mapping[str, float]) -> None:
        """Look at the numbers of a metric row; each name that isn't finite for the first time is a decision."""
        action: Action = "stop" if self._mode == "stop" else "warn"
        for name, value in values.items():
            if not math.isfinite(value) and name not in self._not_finite:
                self._not_finite.add(name)
                self._decide([Decision("non-finite", name, str(float(value)), None, step, updates, action)])

    @property
    def _usual_action(self) -> Action:
        """What an alarm leads to now."""
        if self._mode != "repair":
            return self._mode
        return ROLL_BACKS[self._roll_backs] if self._roll_backs < len(ROLL_BACKS) else "stop"

    def _decide(self, decisions: Sequence[Decision]) -> None:
        """Keep, write down and say what was decided, and ask the loop for what follows."""
        for decision in decisions:
            self.decisions.append(decision)
            append_event(self._events_path, "guard", run=self._run_id, **_describe(decision))
            self._say(f"Guard: {_say(decision)}")
            self.wants_stop |= decision.action == "stop"
            self.wants_roll_back |= decision.action in ROLL_BACKS

    def begin_roll_back(self, to_step: int) -> dict[str, Any]:
        """Count a roll-back to a checkpoint, and give what has to outlive it: see `complete_roll_back`."""
        self._roll_backs += 1
        return {"roll_backs": self._roll_backs, "to_step": to_step, "decisions": [_describe(d) for d in self.decisions]}

    def complete_roll_back(self, kept: Mapping[str, Any]) -> None:
        """Take over what outlives a roll-back, after the state of the checkpoint was loaded."""
        self._roll_backs = kept["roll_backs"]
        self.decisions = [Decision(**decision) for decision in kept["decisions"]]
        self._over = {}
        # Later windows were healthy too, or there would have been a checkpoint from before this one to go back to.
        self.healthy_step = max(self.healthy_step, kept["to_step"])
        self.wants_roll_back = False

    def summary(self) -> dict[str, Any]:
        """Give mode, verdict, whether the run was changed, and the decisions, for `summary.json`."""
        return {
            "mode": self._mode,
            "verdict": self.decisions[0].verdict if self.decisions else "healthy",
            "events": len(self.decisions),
            "repaired": any(decision.action not in ("warn", "stop") for decision in self.decisions),
            "decisions": [_describe(decision) for decision in self.decisions],
        }

    def state_dict(self) -> dict[str, Any]:
        """Give windows, decisions and what was told about."""
        return {
            "vitals": self._vitals.state_dict(),
            "sizes": self._sizes.state_dict(),
            "window": self._window,
            "over": dict(self._over),
            "quiet_until": dict(self._quiet_until),
            "not_finite": sorted(self._not_finite),
            "discards": self._discards,
            "roll_backs": self._roll_backs,
            "signals": dict(self.signals),
            "healthy_step": self.healthy_step,
            "decisions": [_describe(decision) for decision in self.decisions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._vitals.load_state_dict(state["vitals"])
        self._sizes.load_state_dict(state["sizes"])
        self._window = state["window"]
        self._over, self._quiet_until = dict(state["over"]), dict(state["quiet_until"])
        self._not_finite = set(state["not_finite"])
        self._discards = state["discards"]
        self._roll_backs = state["roll_backs"]
        self.signals = dict(state["signals"])
        self.healthy_step = state["healthy_step"]
        self.decisions = [Decision(**decision) for decision in state["decisions"]]


def _describe(decision: Decision) -> dict[str, Any]:
    value = decision.value
    return asdict(decision) | {"value": to_json_number(value) if isinstance(value, float) else value}


_FOLLOWS: Mapping[Action, str] = {
    "warn": "the run goes on",
    "stop": "the run is stopped",
    "skip": "these optimizer steps were left out",
    "discard": "these transitions were left out",
    "roll_back": "the run goes back to its last healthy checkpoint, with other batches and half the learning rates",
    "drop_rung": "the run goes back to its last healthy checkpoint, with half the batch and half the learning rates",
}


def _say(decision: Decision) -> str:
    value = decision.value if isinstance(decision.value, str) else f"{decision.value:.3g}"
    limit = "" if decision.limit is None else f" (limit {decision.limit:.4g})"
    place = f"at step {decision.step:,}, update {decision.updates:,}"
    return f"{decision.verdict}: {decision.metric} is {value}{limit} {place}; {_FOLLOWS[decision.action]}"
