"""The guard of a run's health. So far it watches one thing: numbers in the logged metrics that aren't finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from experiment.files import append_event


class HealthGuard:
    """Looks at each logged row, says once for each name what is wrong, and may ask for the run to be stopped.

    Args:
        mode: `warn` tells and lets the run go on; `stop` asks for its end.
        events_path: the experiment's `events.jsonl`.
        run_id: of this run.
        say: gets the same in a line for people.
    """

    TRANSIENT: ClassVar = frozenset({"_mode", "_events_path", "_run_id", "_say"})

    def __init__(
        self, mode: Literal["warn", "stop"], events_path: Path, run_id: str, say: Callable[[str], None]
    ) -> None:
        self._mode = mode
        self._events_path = events_path
        self._run_id = run_id
        self._say = say
        self._warned: set[str] = set()

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Look at the numbers of a row; each name that isn't finite for the first time makes an event."""
        for name, value in values.items():
            if not math.isfinite(value) and name not in self._warned:
                self._warned.add(name)
                self._tell(step, name, value)

    def _tell(self, step: int, name: str, value: float) -> None:
        action = "the run is stopped (guard: stop)" if self._mode == "stop" else "the run goes on (guard: warn)"
        append_event(
            self._events_path,
            "guard",
            run=self._run_id,
            verdict="non-finite",
            metric=name,
            value=str(float(value)),
            step=step,
            action=self._mode,
        )
        self._say(f"Guard: {name} is {float(value)} at step {step:,}; {action}")

    @property
    def wants_stop(self) -> bool:
        """Whether the run should end now."""
        return self._mode == "stop" and bool(self._warned)

    def summary(self) -> dict[str, str | int]:
        """Give the verdict and the number of events for `summary.json`."""
        return {"verdict": "non-finite" if self._warned else "healthy", "events": len(self._warned)}

    def state_dict(self) -> dict[str, Any]:
        """Give the names that were told about."""
        return {"warned": sorted(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._warned = set(state["warned"])
