"""What an experiment's runs have cost so far, and what that says of those to come: memory, seconds a step, hours."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from experiment.files import read_json, read_newest_rows
from experiment.identity import CheckedConfig
from experiment.loader import load_yaml
from experiment.plan import BuildConfig
from experiment.preflight import Footprint, shape_key
from experiment.problems import SettingsError, SpecError
from experiment.run import Run

TAIL_BYTES = 32768
BUFFER = ("max_timesteps", "buffer_size")
Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Cost:
    """What one run has cost.

    Attributes:
        kind: of the device that it trained on.
        spent_s: so far.
        whole_s: that it took from beginning to end, or will take at the rate of its last rows.
        steps: its `max_timesteps`.
        memory: at its peak; None until it is done.
    """

    kind: Kind
    spent_s: float
    whole_s: float
    steps: int
    memory: Footprint | None


@dataclass(frozen=True)
class Estimate:
    """How long a run takes, in seconds; `is_near` where it is by a run of the same shape with other settings."""

    seconds: float
    is_near: bool


@dataclass(frozen=True)
class _Known:
    cost: Cost
    speed: Mapping[str, Any]


class History:
    """The runs of an experiment that have something to tell: those that are done, or far enough under way.

    Args:
        kind: of the device that is asked about; runs on others tell nothing.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._costs: dict[str, Cost] = {}
        self._peaks: dict[str, Footprint] = {}
        # By shape, and there by the settings that may decide the speed: of a thousand runs few differ in these.
        self._shapes: dict[str, dict[str, list[_Known]]] = {}
        self._nearest: dict[tuple[str, str], _Known] = {}

    def add(self, run: Run, config: CheckedConfig) -> None:
        """Take in a run, if it has trained on such a device and come far enough."""
        cost = read_cost(run, config)
        if cost is None or cost.kind != self._kind:
            return
        self._costs[run.id] = cost
        speed = config.speed_settings()
        alike = self._shapes.setdefault(_name_shape(config), {}).setdefault(shape_key(speed), [])
        alike.append(_Known(cost, speed))
        self._nearest.clear()
        if cost.memory is not None:
            footprint = shape_key(config.footprint_settings())
            most = (self._peaks.get(footprint, cost.memory), cost.memory)
            self._peaks[footprint] = max(most, key=lambda memory: memory.gpu_bytes or memory.host_bytes)

    def add_folder(self, runs: Iterable[Run], build_config: BuildConfig) -> None:
        """Take in runs that the plan has left behind, by what they have written of their settings."""
        for run in runs:
            try:
                settings = load_yaml(run.config_path).data
                self.add(run, build_config(settings))
            except (OSError, SettingsError, SpecError, TypeError):
                continue  # of another version of the code, or of no trainer of ours

    def find_memory(self, footprint: str) -> Footprint | None:
        """Give the most that runs of the same footprint have taken; None where none is done."""
        return self._peaks.get(footprint)

    def find_cost(self, run_id: str) -> Cost | None:
        """Give what a run itself has cost."""
        return self._costs.get(run_id)

    def estimate(self, config: CheckedConfig) -> Estimate | None:
        """Give how long a run takes from beginning to end; None where no run of its shape has told.

        Runs with the same settings but for seed and end count, all of them; where there are none, the one of the same
        shape that differs in the fewest settings does.
        """
        shape = _name_shape(config) if self._shapes else ""
        if shape not in self._shapes:
            return None
        settings, steps = config.speed_settings(), int(config.resolved()["max_timesteps"])
        speed = shape_key(settings)
        if same := self._shapes[shape].get(speed):
            return Estimate(sum(_scale(known, steps) for known in same) / len(same), is_near=False)
        if (shape, speed) not in self._nearest:
            near = [alike[0] for alike in self._shapes[shape].values()]
            self._nearest[shape, speed] = min(near, key=lambda known: _count_differences(known.speed, settings))
        return Estimate(_scale(self._nearest[shape, speed], steps), is_near=True)


def _name_shape(config: CheckedConfig) -> str:
    """Give the same text for the same networks in the same environment, whatever the run's end and its buffer."""
    return shape_key({key: value for key, value in config.shape_settings().items() if key not in BUFFER})


def _scale(known: _Known, steps: int) -> float:
    """Give the seconds of as many steps; a run that ends by the clock ends there, however many they are."""
    limited = known.speed.get("wall_budget_s") is not None
    return known.cost.whole_s if limited else known.cost.whole_s * steps / known.cost.steps


def _count_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    return sum(one.get(key) != other.get(key) for key in one.keys() | other.keys())


def read_cost(run: Run, config: CheckedConfig) -> Cost | None:
    """Give what a run has cost, from its summary or from the last rows of its curve; None where these can't say."""
    steps = int(config.resolved()["max_timesteps"])
    summary = read_json(run.summary_path) if run.is_done() else None
    if summary is not None:
        try:
            wall, memory = float(summary["time"]["wall_s"]), summary["memory"]
            peak = Footprint(int(memory["peak_rss_bytes"]), memory["peak_gpu_bytes"])
            return Cost(_name_kind(str(summary["device"])), wall, wall, steps, peak)
        except (KeyError, TypeError, ValueError):
            return None
    placed = str(run.read_start(run.last_attempt()).get("device", ""))
    rate = _read_rate(run)
    if rate is None or not placed:
        return None
    seconds_a_step, spent = rate
    return Cost(_name_kind(placed), spent, max(spent, seconds_a_step * steps), steps, None)


def _name_kind(device: str) -> Kind:
    return "cuda" if device.isdecimal() or device.startswith("cuda") else "cpu"


def _read_rate(run: Run) -> tuple[float, float] | None:
    """Give seconds a step over the last rows in which networks learned, and the seconds so far.

    `time/fps` counts what `max_timesteps` does, from one training row to the next, evaluations and saves included.
    """
    rows = [row for row in _read_rows(run) if "time/fps" in row and row.get("train/n_updates", 0) > 0]
    spans = [(after["wall_time"] - before["wall_time"], after["time/fps"]) for before, after in pairwise(rows)]
    seconds, steps = sum(span for span, _ in spans), sum(span * speed for span, speed in spans)
    return (seconds / steps, float(rows[-1]["wall_time"])) if steps > 0 else None


def _read_rows(run: Run) -> list[dict[str, float]]:
    """Give the numbers of the last rows of a run's curve, the oldest first."""
    rows = [row for row in read_newest_rows(run.metrics_path, TAIL_BYTES) if "wall_time" in row]
    return [{name: value for name, value in row.items() if type(value) in (int, float)} for row in reversed(rows)]


def find_makespan(seconds: Iterable[float], jobs: int) -> float:
    """Give when the last of some runs ends that are started in this order, so many at a time."""
    ends = [0.0] * max(1, jobs)
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def show_duration(seconds: float) -> str:
    """Write a duration as people would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
