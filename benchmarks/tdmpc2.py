"""How fast TD-MPC2 learns and acts on one CPU thread: ours beside the algorithm as the paper reads.

OMP_NUM_THREADS=1 python -m benchmarks.tdmpc2                everything (some two minutes)
OMP_NUM_THREADS=1 python -m benchmarks.tdmpc2 --quick        sooner, and less exact
OMP_NUM_THREADS=1 python -m benchmarks.tdmpc2 --json FILE    the numbers to a file too

Size 5 on what dm_control's walker-walk shows and takes: 24 and 6 numbers. An update is of 256 sequences of 3 steps; to
act is to plan one action for one environment, in 6 rounds of 512 futures. The plain version is
`benchmarks.plain_tdmpc2`, and has to be a good one: it must use 55 % of what square matrix products by torch.mm reach
in the same run. Everything is done in turn, in one process; numbers are medians of CPU time, ratios those of what was
measured side by side. How far plans in bfloat16 agree with those in float32 is asked of a model that has learned a
little. docs/benchmarks.md says what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ddpg import as_train_does, describe_goal
from benchmarks.peaks import LIBRARIES, Library, Work, find_peaks, list_peak_works, measure, name_peak
from benchmarks.plain_tdmpc2 import PlainTDMPC2, draw_update_noise
from benchmarks.plan_agreement import Agreement, average, compare_rounds
from benchmarks.tables import print_row
from experiment.provenance import describe_machine
from rl.tdmpc2.acting import Pilot
from rl.tdmpc2.agent import TDMPC2, Batch
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.kernels import describe_kernels
from rl.tdmpc2.planner import draw_noise, shift_plan
from rl.tdmpc2.sizes import count_plan_flops, count_update_flops
from rl.tdmpc2.spaces import Spaces, plan_sizes

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"algorithm_name": "tdmpc2", "env_name": "dm_control/walker-walk-v0", "model_size": 5}
"""No environment is made: names and numbers are enough here."""
SPACES = Spaces((24,), np.dtype(np.float32), 6, discrete=False, num_tasks=0, episode_lengths=(500,))
PLAIN_SHARE = 0.55
"""Of torch.mm's peak that the plain version has to reach, to be worth comparing with."""
RATIOS = {"update": 1.5, "act": 1.5, "act, planning in bf16": 2.2}
"""How many times as fast as the plain version each has to be."""
LEAST_OVERLAP, LEAST_CORRELATION = 0.9, 0.99
"""Of elites and of values, of plans in bfloat16 with those in float32."""
LEARNED_UPDATES, QUICK_LEARNED_UPDATES = 800, 500
"""Before plans are compared: at first all values are 0, and after 200 none depends on actions yet."""
LEARNED_BATCH = 64
"""Sequences in each of them; some hundred updates do more than as many sequences in fewer."""
NUM_SITUATIONS = 8
"""That plans are compared in."""
REPETITIONS, QUICK_REPETITIONS = 15, 5


class Goal(NamedTuple):
    """What was reached, and what had to be."""

    name: str
    reached: float
    least: float

    @property
    def is_met(self) -> bool:
        """Whether it was."""
        return self.reached >= self.least


@dataclass(frozen=True)
class Result:
    """What came of one contestant at one task.

    Attributes:
        ms: CPU milliseconds.
        gflop: of its own matrix products, 10^9 floating-point operations.
        gflop_per_s: of them, a CPU second.
        shares: of each library's peak at the same precision.
        floors_ms: what its products would take at these peaks.
        ratio: the plain version's time over this one.
    """

    ms: float
    gflop: float
    gflop_per_s: float
    shares: Mapping[Library, float]
    floors_ms: Mapping[Library, float]
    ratio: float


class Contest:
    """Both versions with the same weights, a batch and an observation.

    Args:
        settings: of the run.
        spaces: what is observed and acted.
        updates: that ours learns for beforehand.

    Attributes:
        agent: ours.
    """

    def __init__(self, settings: Mapping[str, Any], spaces: Spaces, updates: int) -> None:
        self.config = TDMPC2Config.from_settings(settings)
        rounded = TDMPC2Config.from_settings({**settings, "plan_bf16": True})
        self._spaces, self._sizes = spaces, plan_sizes(self.config, spaces)
        self._generator = torch.Generator().manual_seed(1)
        self.agent = TDMPC2(self.config, self._sizes, CPU)
        for _ in range(updates):
            self.agent.update(self._draw_batch(LEARNED_BATCH))
        self._batch = self._draw_batch(self.config.batch_size)
        self._obs = self._batch.obs[0, 0].numpy()
        actions = gym.spaces.Box(-1, 1, (spaces.action_dim,))
        self._pilot, self._rounded = (
            Pilot(self.agent, config, spaces, actions, CPU) for config in (self.config, rounded)
        )
        self._plain = PlainTDMPC2(self.config, self._sizes, self._discount)
        self._plain.model.copy_weights(self.agent.model)

    @property
    def _discount(self) -> float:
        return self.config.find_discount(self._spaces.episode_lengths[0])

    def _draw_batch(self, count: int) -> Batch:
        """Draw sequences of a point that actions pull about; it costs to be far from 0 along its first axes."""
        steps, action_dim = self.config.horizon, self._spaces.action_dim
        (obs_dim,) = self._spaces.obs_shape
        pull = torch.randn(action_dim, obs_dim, generator=torch.Generator().manual_seed(0)) / action_dim**0.5
        action = 2 * torch.rand(steps, count, action_dim, generator=self._generator) - 1
        obs = [torch.randn(count, obs_dim, generator=self._generator)]
        for each in action:
            obs.append(0.9 * obs[-1] + 0.7 * each @ pull)
        reward = -6 * torch.stack(obs[1:])[..., :4].square().mean(-1, keepdim=True)
        zeros = torch.zeros_like(reward)
        return Batch(torch.stack(obs), action, reward, zeros, 1 - zeros, torch.full((count, 1), self._discount))

    def list_works(self) -> dict[str, Work]:
        """Give what is timed, by its name.

        An update comes before the plan in bfloat16, which so has to round the parameters again, as in training.
        """
        config, sizes = self.config, self._sizes
        update = count_update_flops(sizes, config.batch_size, config.horizon)
        iterations = config.find_iterations(sizes.action_dim)
        plan = count_plan_flops(sizes, config.horizon, config.num_samples, iterations, config.num_pi_trajs)
        plain = {"update": self._update_plainly, "act": self._begin_acting_plainly()}
        ours = {
            "update": Work(partial(self.agent.update, self._batch), update),
            "act": Work(partial(self._pilot.begin_acting(), self._obs), plan),
            "act, planning in bf16": Work(partial(self._rounded.begin_acting(), self._obs), plan, torch.bfloat16),
        }
        return {
            **{name_plain(name): Work(call, count_flops(call)) for name, call in plain.items()},
            **{name: work._replace(call=as_train_does()(work.call)) for name, work in ours.items()},
        }

    def _update_plainly(self) -> None:
        noise = draw_update_noise(self._batch, self._sizes.num_q, self._generator)
        self._plain.update(self._batch, noise)

    def _begin_acting_plainly(self) -> Callable[[], None]:
        """Give what plans an action, and remembers its last plan."""
        obs, settings, sizes = torch.from_numpy(self._obs), self._pilot.settings, self._sizes
        mean = torch.zeros(self.config.horizon, sizes.action_dim)

        def act() -> None:
            nonlocal mean
            noise = draw_noise(
                1, settings, sizes.action_dim, sizes.num_q, discrete=False, device=CPU, generator=self._generator
            )
            _, found = self._plain.plan(obs, mean, noise)
            mean = shift_plan(found)

        return act

    def compare_plans(self) -> list[Agreement]:
        """Give how far plans agree in each of their rounds, in the mean over several observations."""
        observations = self._batch.obs[0, :NUM_SITUATIONS].numpy()
        plans = [
            compare_rounds(self._pilot.begin_acting(), self._rounded.begin_acting(), obs, self.config.num_elites)
            for obs in observations
        ]
        return [average(rounds) for rounds in zip(*plans, strict=True)]


def name_plain(name: str) -> str:
    """Give what the plain version of a task is called, of any way to do it."""
    return f"{name.partition(',')[0]}, plain"


def count_flops(call: Callable[[], object]) -> float:
    """Give the floating-point operations of the matrix products that torch is asked for in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def conclude(
    works: Mapping[str, Work], seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, float]
) -> dict[str, Result]:
    """Give what came of each contestant."""
    results = {}
    for name, work in works.items():
        took = statistics.median(seconds[name])
        own = {library: peaks[name_peak(library, work.dtype)] for library in LIBRARIES}
        plain = seconds[name_plain(name)]
        results[name] = Result(
            ms=1e3 * took,
            gflop=work.flops / 1e9,
            gflop_per_s=work.flops / took / 1e9,
            shares={library: work.flops / took / peak for library, peak in own.items()},
            floors_ms={library: 1e3 * work.flops / peak for library, peak in own.items()},
            ratio=statistics.median(theirs / mine for theirs, mine in zip(plain, seconds[name], strict=True)),
        )
    return results


def list_goals(results: Mapping[str, Result], agreements: Sequence[Agreement]) -> list[Goal]:
    """Give what has to be reached; of plans in bf16 in each of their rounds."""
    shares = [
        Goal(f"{name}: share of torch.mm's peak", results[name].shares["torch.mm"], PLAIN_SHARE)
        for name in map(name_plain, ("update", "act"))
    ]
    ratios = [Goal(f"{name}: plain / ours", results[name].ratio, least) for name, least in RATIOS.items()]
    return [
        *shares,
        *ratios,
        Goal("bf16: elites that both have, worst round", min(each.overlap for each in agreements), LEAST_OVERLAP),
        Goal("bf16: rank correlation, worst round", min(each.correlation for each in agreements), LEAST_CORRELATION),
    ]


def print_results(results: Mapping[str, Result], peaks: Mapping[str, float]) -> None:
    """Print the peaks and the table."""
    print(f"\nPeaks, GFLOP/s: {', '.join(f'{name} {peak / 1e9:.0f}' for name, peak in peaks.items())}\n")
    columns = [f"{what} {library}" for what in ("share of", "floor by") for library in LIBRARIES]
    print_row("what", "CPU ms", "GFLOP", "GFLOP/s", *columns, "plain / it")
    print_row(*["---"] * (5 + len(columns)))
    for name, found in results.items():
        print_row(
            name,
            f"{found.ms:.0f}",
            f"{found.gflop:.1f}",
            f"{found.gflop_per_s:.0f}",
            *(f"{share:.2f}" for share in found.shares.values()),
            *(f"{floor:.0f}" for floor in found.floors_ms.values()),
            f"{found.ratio:.2f}",
        )


def print_agreements(agreements: Sequence[Agreement]) -> None:
    """Print how plans in bf16 agree with those in float32."""
    print(f"\nPlans in bf16 beside those in float32, means over {NUM_SITUATIONS} observations\n")
    print_row("round", "elites that both have", "rank correlation", "deviation of values", "of their error", "lost")
    print_row(*["---"] * 6)
    for number, found in enumerate(agreements, 1):
        numbers = (found.correlation, found.spread, found.error, found.loss)
        print_row(number, f"{found.overlap:.2f}", *(f"{number:.4f}" for number in numbers))


def print_goals(goals: Sequence[Goal]) -> None:
    """Print what was to be reached, and what was."""
    print()
    print_row("goal", "reached")
    print_row("---", "---")
    for name, reached, wanted in goals:
        print_row(name, describe_goal(reached, wanted))


def describe_conditions() -> dict[str, Any]:
    """Give what numbers depend on beside the code."""
    return {
        "cpu": describe_machine([])["cpu"],
        "torch": version("torch"),
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "norms": describe_kernels(CPU),
    }


def write_numbers(
    path: Path,
    conditions: Mapping[str, object],
    peaks: Mapping[str, float],
    results: Mapping[str, Result],
    agreements: Sequence[Agreement],
    goals: Sequence[Goal],
) -> None:
    """Write all that was measured to a file of JSON."""
    numbers = {
        "conditions": conditions,
        "peaks_gflop_per_s": {name: peak / 1e9 for name, peak in peaks.items()},
        "results": {name: asdict(result) for name, result in results.items()},
        "agreements": [agreement._asdict() for agreement in agreements],
        "goals": [goal._asdict() | {"met": goal.is_met} for goal in goals],
    }
    path.write_text(json.dumps(numbers, indent=2) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and give 0 if every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tdmpc2", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--quick", action="store_true", help="5 repetitions rather than 15, and fewer updates to learn in"
    )
    parser.add_argument("--json", type=Path, help="a file that the numbers are written to")
    parser.add_argument("--device", default="cpu", help="where: cpu is all there is")
    args = parser.parse_args(words)
    if args.device != "cpu":
        parser.error(f"--device {args.device}: updates and plans as CUDA graphs aren't there; only the CPU is measured")
    torch.set_num_threads(1)
    repetitions = QUICK_REPETITIONS if args.quick else REPETITIONS
    conditions = describe_conditions() | {"repetitions": repetitions}
    print("{cpu}, torch {torch}, load {load:.1f} on {cores} cores; norms by {norms}".format(**conditions), flush=True)
    contest = Contest(SETTINGS, SPACES, QUICK_LEARNED_UPDATES if args.quick else LEARNED_UPDATES)
    agreements = contest.compare_plans()
    works, peak_works = contest.list_works(), list_peak_works()
    seconds = measure({**peak_works, **works}, repetitions)
    peaks = find_peaks(peak_works, seconds)
    results = conclude(works, seconds, peaks)
    print_results(results, peaks)
    goals = list_goals(results, agreements)
    print_agreements(agreements)
    print_goals(goals)
    conditions["load_at_end"] = os.getloadavg()[0]
    print("\nLoad at the end {load_at_end:.1f}".format(**conditions))
    if args.json is not None:
        write_numbers(args.json, conditions, peaks, results, agreements, goals)
    return 0 if all(goal.is_met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
