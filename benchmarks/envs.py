"""The speed of drone navigation on one core, and beside PyFlyt's drone on the same flights.

python -m benchmarks.peers.make_venv pyflyt        once: PyFlyt needs packages that can't live with ours
OMP_NUM_THREADS=1 python -m benchmarks.envs        everything (some five minutes)
OMP_NUM_THREADS=1 python -m benchmarks.envs --alone --only 'NumPy'      no peer, and the cases whose name has this in it

A pilot that sees the map flies first, off the clock; then its actions are flown again, in turn with the peer, through
`make_env` or `gymnasium.make_vec` with all that users have: rewards, stacked frames, wrappers, resets. The peer follows
the same tracks among the same obstacles with a camera of the same size, a frame a step, and has no reward, stack or
reset to pay for. Numbers are medians of CPU time over the repetitions; docs/benchmarks.md says what was measured.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flights import Recording, fly_alone, fly_together, measure_floors, record
from benchmarks.peers.make_venv import CACHE, PINS, find_python
from benchmarks.peers.process import PeerProcess
from benchmarks.tables import print_row
from envs.drone.flight import PERIOD
from experiment.provenance import describe_machine

PEER_GOAL = 5.0
"""Our steps per CPU second over the peer's."""
NUM_OBSTACLES = 30
"""In each world that the peer flies in."""
LEAST_OBSTACLES = 0.05
"""The least share of all pixels that has to show an obstacle, on both sides."""
LEAST_DISTINCT = 0.99
"""The least share of frames that has to differ from all others, on both sides."""
PEER_PINS = PINS / "pyflyt.txt"
PEER_SCRIPT = PINS / "fly_pyflyt.py"


@dataclass(frozen=True, eq=False)
class Case:
    """One way to fly.

    Attributes:
        goal: steps per CPU second.
        beside_peer: whether the peer does the same; it then has 30 obstacles, pictures, and one world.
    """

    name: str
    goal: float | None = None
    env_name: str = "DepthNav-v0"
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_worlds: int = 1
    beside_peer: bool = False

    @property
    def size(self) -> int:
        """Give the width of a frame in pixels."""
        width: int = self.env_kwargs.get("width", 64)
        return width


CASES = (
    Case("one world, compiled", 1_500, env_kwargs={"caster": "compiled"}, beside_peer=True),
    Case("one world, NumPy", 800, env_kwargs={"caster": "numpy"}),
    Case("16 worlds, compiled", 2_500, env_kwargs={"caster": "compiled"}, num_worlds=16),
    Case("flat vector, compiled", env_name="DepthNavState-v0", env_kwargs={"caster": "compiled"}),
    Case("84 px, compiled", env_kwargs={"caster": "compiled", "height": 84, "width": 84}, beside_peer=True),
    Case("128 px, compiled", env_kwargs={"caster": "compiled", "height": 128, "width": 128}, beside_peer=True),
    Case("100 obstacles, compiled", env_kwargs={"caster": "compiled", "density": "hard", "num_obstacles": 100}),
    Case("half of 30 obstacles moving, compiled", env_kwargs={"caster": "compiled", "moving": 0.5}),
)
"""All frames are 64 x 64 and all fields hold 30 obstacles where a name says nothing else."""


@dataclass
class Samples:
    """What the repetitions gave, by name: seconds a step, on the clock of the processor where nothing else is said."""

    ours: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peer: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, name: str) -> float:
        """Give our median."""
        return statistics.median(self.ours[name])

    def take_peer(self, name: str) -> float:
        """Give the peer's."""
        return statistics.median(self.peer[name])


def record_case(case: Case, rows: int) -> list[Recording]:
    """Record a case's worlds, and check that there is something to see."""
    recordings = [record(case.env_name, case.env_kwargs, seed, rows) for seed in range(case.num_worlds)]
    shown = np.mean([share for recording in recordings for share in recording.obstacle_pixels])
    assert shown >= LEAST_OBSTACLES, f"{case.name}: obstacles fill {shown:.1%} of the frames"
    return recordings


def measure_ours(case: Case, recordings: Sequence[Recording], samples: Samples) -> None:
    """Fly a case once, and its parts by themselves."""
    if case.num_worlds == 1:
        timing = fly_alone(case.env_name, case.env_kwargs, recordings[0])
    else:
        timing = fly_together(case.env_name, case.env_kwargs, recordings)
    assert timing.distinct >= LEAST_DISTINCT * timing.steps, f"{case.name}: {timing.distinct} of {timing.steps} frames"
    floors = measure_floors(case.env_name, case.env_kwargs, recordings)
    parts = {
        "whole": timing.cpu_s,
        "wall": timing.wall_s,
        "physics": floors.physics_s,
        "depth": floors.depth_s,
        "worlds": floors.worlds_s,
    }
    for name, seconds in parts.items():
        samples.ours[name].append(seconds / timing.steps)


def write_request(case: Case, recording: Recording) -> dict[str, Any]:
    """Give what the peer is asked: the flights of a recording."""
    legs = [leg for leg in recording.legs if leg.actions]
    flights = [{"obstacles": leg.world.to_json()["obstacles"], "track": leg.track} for leg in legs]
    return {"size": case.size, "period": PERIOD, "flights": flights}


def measure_peer(case: Case, recording: Recording, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, float]:
    """Let the peer fly a recording once, check that it was the same work, and give its seconds a step.

    Raises:
        AssertionError: it had other obstacles, touched or hardly saw them, gave a frame twice, or its clock or ours
            went another way than a `PERIOD` a step.
    """
    told, steps = ask(write_request(case, recording)), recording.num_steps
    assert told["steps"] == steps, told
    for whose, simulated in (("PyFlyt's", told["simulated_s"]), ("our", recording.simulated_s)):
        assert math.isclose(simulated, steps * PERIOD, rel_tol=1e-9), f"{whose} clock: {simulated / steps} s a step"
    legs = [leg for leg in recording.legs if leg.actions]
    assert told["obstacles"] == NUM_OBSTACLES * len(legs), told
    assert told["obstacle_pixels"] >= LEAST_OBSTACLES * steps, told
    assert told["distinct"] >= LEAST_DISTINCT * steps, told
    assert told["touches"] == 0, told
    return {
        "whole": told["cpu_s"] / steps,
        "wall": told["wall_s"] / steps,
        "reset": told["reset_s"] / len(legs),
        "obstacles": told["obstacle_pixels"] / steps,
        "threads": told["threads"],
        "off track": told["off_track_m"],
    }


def measure_all(
    cases: Mapping[Case, Sequence[Recording]], repetitions: int, peer: PeerProcess | None
) -> dict[str, Samples]:
    """Fly all cases and the peer in turn, a repetition at a time, after one that isn't counted."""
    results: dict[str, Samples] = {}
    for repetition in range(repetitions + 1):
        for case, recordings in cases.items():
            samples = results.setdefault(case.name, Samples())
            measure_ours(case, recordings, samples)
            if peer is not None and case.beside_peer:
                for name, value in measure_peer(case, recordings[0], peer.ask).items():
                    samples.peer[name].append(value)
        if repetition == 0:
            results.clear()
    return results


def print_speeds(cases: Sequence[Case], results: Mapping[str, Samples]) -> bool:
    """Print how fast we are, and give whether all goals are met."""
    print("\nSteps of 0.1 s per CPU second, resets included\n")
    print_row("case", "goal", "reached", "reached / goal", "times real time")
    print_row(*["---"] * 5)
    met = True
    for case in cases:
        speed = 1 / results[case.name].take("whole")
        ratio = ""
        if case.goal is not None:
            met &= speed >= case.goal
            ratio = f"{speed / case.goal:.2f} ({'met' if speed >= case.goal else 'MISSED'})"
        print_row(
            case.name, "" if case.goal is None else f"{case.goal:.0f}", f"{speed:.0f}", ratio, f"{speed * PERIOD:.0f}"
        )
    return met


def print_parts(cases: Sequence[Case], results: Mapping[str, Samples]) -> None:
    """Print where the time goes."""
    print("\nCPU microseconds of a step; each part is measured by itself, the rest is what they leave\n")
    print_row("case", "whole", "physics", "depth", "new worlds", "rest")
    print_row(*["---"] * 6)
    for case in cases:
        samples = results[case.name]
        whole, parts = samples.take("whole"), [samples.take(name) for name in ("physics", "depth", "worlds")]
        shown = [f"{1e6 * part:.0f} ({part / whole:.0%})" for part in (*parts, whole - sum(parts))]
        print_row(case.name, f"{1e6 * whole:.0f}", *shown)


def print_comparison(cases: Sequence[Case], results: Mapping[str, Samples]) -> bool:
    """Print how fast the peer is beside us, and give whether the goal is met."""
    print("\nBeside PyFlyt, on the same flights: steps of 0.1 s per CPU second, and per second by the wall\n")
    print_row("frame", "PyFlyt", "ours", "ours / PyFlyt", "by the wall", "PyFlyt's reset", "off the track")
    print_row(*["---"] * 7)
    met = True
    for case in cases:
        if not case.beside_peer:
            continue
        samples = results[case.name]
        ratio = samples.take_peer("whole") / samples.take("whole")
        reached = f"{ratio:.1f}"
        if case.size == 64:
            met &= ratio >= PEER_GOAL
            reached += f" (goal {PEER_GOAL:.1f}: {'met' if ratio >= PEER_GOAL else 'MISSED'})"
        speeds = [f"{1 / seconds:.0f}" for seconds in (samples.take_peer("whole"), samples.take("whole"))]
        walls = " and ".join(f"{1 / seconds:.0f}" for seconds in (samples.take_peer("wall"), samples.take("wall")))
        reset, off = f"{1e3 * samples.take_peer('reset'):.0f} ms", f"{samples.take_peer('off track'):.1f} m"
        print_row(f"{case.size} px", *speeds, reached, walls, reset, off)
    return met


def describe_sight(case: Case, recording: Recording, samples: Samples) -> str:
    """Give what both sides saw, and on how many threads."""
    seen = [f"{share:.1%}" for share in (np.mean(recording.obstacle_pixels), samples.take_peer("obstacles"))]
    return (
        f"\nAt {case.size} px obstacles fill {seen[0]} of our frames and {seen[1]} of PyFlyt's, which runs on "
        f"{samples.take_peer('threads'):.0f} thread; of both, at least {LEAST_DISTINCT:.0%} differ from all others."
    )


def describe_conditions() -> str:
    """Give what numbers depend on beside the code."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "gymnasium", "mujoco"))
    return f"{describe_machine([])['cpu']}, {versions}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def read_words(words: Sequence[str] | None) -> tuple[argparse.Namespace, list[Case], Path | None]:
    """Give the arguments, the cases that they ask for, and the peer's Python unless it is to be left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.envs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--rows", type=int, default=600, help="steps of a repetition (default: 600)")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--alone", action="store_true", help="leave the peer out")
    args = parser.parse_args(words)
    cases = [case for case in CASES if args.only in case.name]
    if not cases:
        parser.error(f"--only {args.only!r} names none of: {'; '.join(case.name for case in CASES)}")
    python = None if args.alone else find_python(PEER_PINS, CACHE / "pyflyt")
    if python is None and not args.alone:
        parser.error("PyFlyt isn't there: python -m benchmarks.peers.make_venv pyflyt, or leave it out with --alone")
    return args, cases, python


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and give 0 if every goal was met."""
    args, cases, python = read_words(words)
    print(describe_conditions(), flush=True)
    # Sixteen worlds a row, yet long enough for each of them to end a flight.
    recordings = {case: record_case(case, args.rows if case.num_worlds == 1 else args.rows * 2 // 5) for case in cases}
    with ExitStack() as stack:
        peer = None if python is None else stack.enter_context(PeerProcess(python, PEER_SCRIPT))
        results = measure_all(recordings, args.repetitions, peer)
    met = [print_speeds(cases, results)]
    print_parts(cases, results)
    if peer is not None:
        met.append(print_comparison(cases, results))
        first = next((case for case in cases if case.beside_peer), None)
        if first is not None:
            print(describe_sight(first, recordings[first][0], results[first.name]))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
