"""DDPG's speed on one CPU thread: the same work done by us and by stable-baselines3, in one process, in turn.

python -m benchmarks.ddpg                         everything (some five minutes)
python -m benchmarks.ddpg --repetitions 3         sooner, and less exact
python -m benchmarks.ddpg --only Pendulum-v1      the cases whose name has this in it

The loop is the whole of it: environment, noise, buffer, one update a step; with our metric rows, TensorBoard and guard
on, and theirs off. The update alone is held against a floor: the matrix products that it needs, in turn, and nothing
else. Numbers are medians of CPU time over the repetitions; docs/benchmarks.md says what was measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from benchmarks.tables import print_row
from experiment.provenance import describe_machine
from experiment.run import Run
from rl import fast_ddpg
from rl.buffers import Batch
from rl.ddpg import DDPGAgent, build_agent
from rl.ddpg_config import DDPGConfig
from rl.off_policy import OffPolicyTrainer
from training.loop import fit
from training.products import multiply
from training.session import Attempt

LEARNING_STARTS = 1_100
"""Random steps before the first update: as many as the largest batch, and a few more."""
WARM_STEPS = 30
"""Steps with an update before the clock is looked at."""
LOG_FREQ = 50
"""A metric row every so many steps: four times as often as a run of 20,000 steps does by default."""
SILENT = 10**9
"""Episodes between stable-baselines3's own metric rows: none."""
PRODUCTS = ("products in turn", "products by torch.mm", "products in the cache")


@dataclass(frozen=True)
class Case:
    """One size of the job. Goals are ratios: of our speed to stable-baselines3's, and of the floor to the update."""

    env_name: str
    hidden_dims: tuple[int, ...]
    batch_size: int
    loop_goal: float | None = None
    floor_goal: float | None = None

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.env_name}, {'/'.join(map(str, self.hidden_dims))}, batch {self.batch_size}"

    def build_config(self) -> DDPGConfig:
        """Give our settings; their counterparts are in `build_peer`."""
        settings = {
            "algorithm_name": "ddpg",
            "env_name": self.env_name,
            "hidden_dims": list(self.hidden_dims),
            "batch_size": self.batch_size,
            "learning_starts": LEARNING_STARTS,
            "max_timesteps": 20_000,
            "log_freq": LOG_FREQ,
            "eval_freq": 0,
            "save_freq": 0,
        }
        return DDPGConfig.from_settings(settings)


CASES = (
    Case("HalfCheetah-v5", (256, 256), 256, loop_goal=1.5, floor_goal=0.72),
    Case("HalfCheetah-v5", (256, 256), 1024, loop_goal=1.15, floor_goal=0.85),
    Case("HalfCheetah-v5", (400, 300), 256, loop_goal=1.25),
    Case("Pendulum-v1", (64, 64), 128),
)


@contextmanager
def as_train_does() -> Iterator[None]:
    """Let torch refuse what isn't deterministic, as every run of ours has it; theirs is measured without."""
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")


AGENTS = {"autograd": DDPGAgent, "by hand": build_agent}


class Stopwatch:
    """Asked by the loop before each step whether to stop: it starts its clock at one step and ends at another."""

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._last, self._asked = first, first + steps, 0
        self._started = self.seconds = 0.0

    def should_stop(self) -> bool:
        """Count a step; True after the last one."""
        if self._asked == self._first:
            self._started = time.process_time()
        elif self._asked == self._last:
            self.seconds = time.process_time() - self._started
        self._asked += 1
        return self._asked > self._last


def time_our_loop(case: Case, steps: int, agent: str) -> float:
    """Give CPU seconds a step of a run of its own, through the loop that every run goes through."""
    config, stopwatch = case.build_config(), Stopwatch(LEARNING_STARTS + WARM_STEPS, steps)
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder, as_train_does():
        run = Run.create_path(Path(folder), "ddpg", config.run_id())
        run.folder.mkdir()
        trainer = OffPolicyTrainer(config, torch.device("cpu"), AGENTS[agent])
        attempt = Attempt(1, "cpu", 1, "benchmark")
        fit(trainer, run, config, attempt, should_stop=stopwatch.should_stop, say=lambda line: None)
        trainer.close()
    return stopwatch.seconds / steps


def build_peer(case: Case) -> Any:
    """Give stable-baselines3's DDPG with the same sizes, its buffer filled and its first updates done.

    Raises:
        ImportError: it isn't installed.
    """
    from stable_baselines3 import DDPG
    from stable_baselines3.common.noise import NormalActionNoise

    env, config = gym.make(case.env_name), case.build_config()
    assert isinstance(env.action_space, gym.spaces.Box)
    (action_dim,) = env.action_space.shape
    peer = DDPG(
        "MlpPolicy",
        env,
        learning_rate=config.learning_rate,
        buffer_size=config.max_timesteps,
        learning_starts=LEARNING_STARTS,
        batch_size=case.batch_size,
        tau=config.tau,
        gamma=config.discount,
        train_freq=1,
        gradient_steps=1,
        action_noise=NormalActionNoise(np.zeros(action_dim), np.full(action_dim, config.noise_std)),
        policy_kwargs={"net_arch": list(case.hidden_dims)},
        device="cpu",
        seed=0,
    )
    peer.learn(LEARNING_STARTS + WARM_STEPS, log_interval=SILENT)
    return peer


def time_peer_loop(peer: Any, steps: int) -> float:
    """Give CPU seconds a step of stable-baselines3, going on where it was."""
    started = time.process_time()
    peer.learn(steps, log_interval=SILENT, reset_num_timesteps=False)
    return (time.process_time() - started) / steps


def record_products(update: Callable[[Batch], object], batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Give the operands of every matrix product that one update by hand asks for."""
    products: list[tuple[Tensor, Tensor]] = []

    def note(left: Tensor, right: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
        products.append((left.detach(), right.detach()))
        return multiply(left, right, bias, relu=relu)

    with mock.patch.object(fast_ddpg, "multiply", note):
        update(batch)
    return products


def count_products(case: Case) -> int:
    """Give how many products an update needs, counted from the algorithm, to hold `record_products` against.

    Five forward passes; two weight gradients a layer; what is passed back below each layer but the first, by the
    critic's loss, and by the actor's through the critic and, but for the critic's action columns, through the actor.
    """
    layers = len(case.hidden_dims) + 1
    return 5 * layers + 2 * layers + 2 * (layers - 1) + layers


def time_products(products: Sequence[tuple[Tensor, Tensor]], times: int) -> dict[str, float]:
    """Give CPU seconds of the products of one update, with nothing between them.

    `in turn` does them in the update's order by the update's libraries, `torch.mm` by that one alone. `cached` repeats
    each of them until its operands lie in the processor's caches, where an update rarely finds them.
    """

    def run(product: Callable[[Tensor, Tensor], Tensor]) -> None:
        for left, right in products:
            product(left, right)  # kept, the results would make each call claim new pages: twice the time

    return {
        "in turn": time_calls(partial(run, multiply), times),
        "torch.mm": time_calls(partial(run, lambda left, right: torch.mm(left, right.t())), times),
        "cached": sum(time_calls(partial(multiply, left, right), times) for left, right in products),
    }


def time_calls(call: Callable[[], object], times: int) -> float:
    """Give CPU seconds of one call, after one that isn't counted."""
    call()
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def measure_loops(case: Case, repetitions: int, steps: int) -> dict[str, float]:
    """Give CPU milliseconds a step of each contestant: medians over repetitions in turn."""
    peer = build_peer(case)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        times["peer"].append(time_peer_loop(peer, steps))
        for agent in AGENTS:
            times[agent].append(time_our_loop(case, steps, agent))
    peer.env.close()
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def measure_updates(case: Case, repetitions: int, times: int) -> dict[str, float]:
    """Give CPU milliseconds of an update by autograd and by hand, and of its products."""
    agents, batches = {}, {}
    for name, build in AGENTS.items():
        trainer = OffPolicyTrainer(case.build_config(), torch.device("cpu"), build)
        for _ in range(LEARNING_STARTS):
            trainer.train_step()
        agents[name], batches[name] = trainer.agent, trainer._buffer.sample(case.batch_size)
        trainer.close()
    batch = batches["by hand"]
    products = record_products(agents["by hand"].update, batch)
    assert len(products) == count_products(case), len(products)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for name, agent in agents.items():
            with as_train_does():
                seconds[name].append(time_calls(partial(agent.update, batch), times))
        for name, value in time_products(products, times).items():
            seconds[name].append(value)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def describe_goal(ratio: float, goal: float | None) -> str:
    """Give a ratio, and whether it reaches its goal."""
    if goal is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (goal {goal:.2f}: {'met' if ratio >= goal else 'MISSED'})"


def print_loops(cases: Sequence[Case], repetitions: int, steps: int | None) -> bool:
    """Print the table of whole loops as it comes about, and give whether all goals are met."""
    print("\nWhole loop: steps per CPU second\n")
    print_row("case", "stable-baselines3", "by autograd", "by hand", "by hand / stable-baselines3")
    print_row(*["---"] * 5)
    met = True
    for case in cases:
        took = measure_loops(case, repetitions, steps or choose_times(case))
        ratio = took["peer"] / took["by hand"]
        met &= case.loop_goal is None or ratio >= case.loop_goal
        speeds = [f"{1e3 / took[name]:.0f}" for name in ("peer", "autograd", "by hand")]
        print_row(case.name, *speeds, describe_goal(ratio, case.loop_goal))
    return met


def print_updates(cases: Sequence[Case], repetitions: int, steps: int | None) -> bool:
    """Print the table of updates as it comes about, and give whether all goals are met."""
    print("\nUpdate alone, and the matrix products that it needs: CPU milliseconds\n")
    print_row("case", "by autograd", "by hand", *PRODUCTS, "products in turn / by hand")
    print_row(*["---"] * 7)
    met = True
    for case in cases:
        took = measure_updates(case, repetitions, steps or choose_times(case))
        ratio = took["in turn"] / took["by hand"]
        met &= case.floor_goal is None or ratio >= case.floor_goal
        numbers = [f"{took[name]:.3f}" for name in ("autograd", "by hand", "in turn", "torch.mm", "cached")]
        print_row(case.name, *numbers, describe_goal(ratio, case.floor_goal))
    return met


def choose_times(case: Case) -> int:
    """Give how many steps a repetition has: about a second's worth for the slowest contestant."""
    return 50 if case.batch_size > 512 else 150


def describe_conditions() -> str:
    """Give what numbers depend on beside the code."""
    packages = ("torch", "numpy", "gymnasium", "mujoco", "stable-baselines3")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{describe_machine([])['cpu']}, {versions}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and give 0 if every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ddpg", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repetitions", type=int, default=7, help="of each measurement (default: 7)")
    parser.add_argument("--steps", type=int, help="a repetition (default: 150, or 50 for the largest batch)")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    args = parser.parse_args(words)
    cases = [case for case in CASES if args.only in case.name]
    if not cases:
        parser.error(f"--only {args.only!r} names none of: {'; '.join(case.name for case in CASES)}")
    try:
        import stable_baselines3  # noqa: F401
    except ImportError:
        parser.error("stable-baselines3 is not installed: pip install -e '.[bench]' -c constraints.txt")
    torch.set_num_threads(1)
    print(describe_conditions())
    met = [print_updates(cases, args.repetitions, args.steps), print_loops(cases, args.repetitions, args.steps)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
