"""The selective scan there and back on one CPU thread: a naive loop, plain torch, and C, in one process, in turn.

python -m benchmarks.scan                      everything (a minute)
python -m benchmarks.scan --repetitions 3      sooner, and less exact
python -m benchmarks.scan --only "stage 3"     the cases whose name has this in it

The naive loop is what one writes first: it indexes the time axis and leaves the gradients to autograd. Cases are the
stages of a light encoder and what else scans in it. A state update is one state of one channel at one step. The
yardstick is two exponentials for each by torch, in the cache and with nothing around them: every way that doesn't keep
all states needs as many. Numbers are medians of CPU time over the repetitions; docs/benchmarks.md says what was
measured. With a CUDA device its backends follow, and how much of the memory's bandwidth they use.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.ddpg import describe_goal, time_calls
from benchmarks.tables import print_row
from experiment.provenance import describe_machine
from rl.scan.arguments import ScanArguments
from rl.scan.backends import BackendName, ScanBackendError, describe_backend
from rl.scan.selective import selective_scan

LEAST_UPDATES = 300e6
"""Of the C library, a second, forward and backward."""
WAYS: tuple[BackendName, ...] = ("torch", "c")
GPU_WAYS: tuple[BackendName, ...] = ("torch", "triton", "mamba_ssm")


@dataclass(frozen=True)
class Case:
    """One size of a scan. Goals are how many times as fast as the naive loop a backend has to be.

    Attributes:
        channels: of all four groups.
        counted: the goal for updates a second holds.
    """

    name: str
    batch: int
    channels: int
    steps: int
    states: int = 16
    torch_goal: float | None = None
    c_goal: float | None = None
    counted: bool = True

    @property
    def title(self) -> str:
        """What the tables call it."""
        return f"{self.name}: {self.batch} x {self.channels} x {self.steps} x {self.states}"

    @property
    def updates(self) -> int:
        """How many state updates a scan is."""
        return self.batch * self.channels * self.steps * self.states

    def draw(self, device: torch.device) -> ScanArguments:
        """Give arguments as a new layer has them: A from -1 to -N, steps from 0.001 to 0.1 by their bias."""
        generator = torch.Generator().manual_seed(0)
        shapes = 2 * [(self.batch, self.channels, self.steps)] + 2 * [(self.batch, 4, self.states, self.steps)]
        u, delta, B, C = (torch.randn(shape, generator=generator) for shape in shapes)
        A = -torch.arange(1.0, self.states + 1).repeat(self.channels, 1)
        low, high = math.log(0.001), math.log(0.1)
        sizes = torch.exp(low + (high - low) * torch.rand(self.channels, generator=generator))
        bias = sizes + torch.log(-torch.expm1(-sizes))
        tensors = (u, delta / 2, A, B, C, torch.ones(self.channels), bias)
        u, delta, A, B, C, D, bias = (tensor.to(device).requires_grad_() for tensor in tensors)
        return ScanArguments(u, delta, A, B, C, D, bias, delta_softplus=True)


CASES = (
    Case("stage 1", 2, 512, 256, torch_goal=8, c_goal=60),
    Case("stage 2", 4, 1024, 64),
    Case("stage 3", 8, 2048, 16, c_goal=15),
    Case("stage 4", 16, 4096, 4),
    Case("stage 1 with one state", 8, 512, 256, states=1, counted=False),
    Case("stage 1 at 84 pixels", 1, 512, 441),
    Case("four frames", 32, 2048, 4),
)


def scan_naively(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, delta_softplus: bool
) -> Tensor:
    """Give y by a loop that indexes the time axis: each index's gradient is a tensor of zeros as large as the whole."""
    delta = functional.softplus(delta + delta_bias[:, None]) if delta_softplus else delta + delta_bias[:, None]
    share = u.shape[1] // B.shape[1]
    B, C = (tensor.repeat_interleave(share, 1) for tensor in (B, C))
    decay = torch.exp(delta[..., None] * A[:, None])
    drive = (delta * u)[..., None] * B.transpose(2, 3)
    state, ys = torch.zeros_like(decay[:, :, 0]), []
    for step in range(u.shape[2]):
        state = decay[:, :, step] * state + drive[:, :, step]
        ys.append((state * C[..., step]).sum(-1))
    return torch.stack(ys, -1) + D[:, None] * u


def run_both_ways(scan: Callable[..., Tensor], arguments: ScanArguments, slope: Tensor) -> None:
    """Scan, and find all gradients."""
    torch.autograd.grad(scan(*arguments), [tensor for tensor in arguments.tensors if tensor is not None], slope)


def run_forward(scan: Callable[..., Tensor], arguments: ScanArguments) -> None:
    """Scan as one acts: without gradients."""
    with torch.no_grad():
        scan(*arguments)


def measure_case(case: Case, repetitions: int, times: int) -> dict[str, float]:
    """Give CPU milliseconds of each way there and back, and of the fastest there alone: medians in turn."""
    arguments = case.draw(torch.device("cpu"))
    slope = torch.randn(case.batch, case.channels, case.steps, generator=torch.Generator().manual_seed(1))
    calls: dict[str, tuple[Callable[[], object], int]] = {
        name: (partial(run_both_ways, partial(selective_scan, backend=name), arguments, slope), times) for name in WAYS
    }
    calls["naive"] = (partial(run_both_ways, scan_naively, arguments, slope), 1)
    calls["c forward"] = (partial(run_forward, partial(selective_scan, backend="c"), arguments), times)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for name, (call, count) in calls.items():
            started = time.process_time()
            if name == "naive":
                call()
                seconds[name].append(time.process_time() - started)
            else:
                seconds[name].append(time_calls(call, count))
        seconds["yardstick"].append(time_exponentials(case.updates, times))
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def time_exponentials(updates: int, times: int) -> float:
    """Give CPU seconds of two exponentials for each of so many state updates, in the cache."""
    numbers, out = -torch.rand(2**12), torch.empty(2**12)
    return time_calls(partial(torch.exp, numbers, out=out), 64 * times) / len(numbers) * 2 * updates


def print_case(case: Case, took: Mapping[str, float]) -> bool:
    """Print the row of a case, and give whether its goals are met."""
    by_torch, by_c = took["naive"] / took["torch"], took["naive"] / took["c"]
    speed = 1e3 * case.updates / took["c"]
    goal = LEAST_UPDATES if case.counted else None
    print_row(
        case.title,
        *(f"{took[name]:.2f}" for name in ("naive", "torch", "c")),
        describe_goal(by_torch, case.torch_goal),
        describe_goal(by_c, case.c_goal),
        describe_goal(speed / 1e6, None if goal is None else goal / 1e6),
        f"{case.updates / took['c forward'] / 1e3:.0f}",
        f"{took['yardstick']:.2f}",
    )
    reached = ((by_torch, case.torch_goal), (by_c, case.c_goal), (speed, goal))
    return all(least is None or value >= least for value, least in reached)


def measure_gpu(case: Case, backend: BackendName, times: int) -> float:
    """Give milliseconds of a scan there and back on the CUDA device.

    Raises:
        ScanBackendError: the backend can't be had.
    """
    device = torch.device("cuda")
    describe_backend(device, backend)
    arguments = case.draw(device)
    call = partial(run_both_ways, partial(selective_scan, backend=backend), arguments, torch.randn_like(arguments.u))
    return 1e3 * time_on_gpu(call, times)


def time_on_gpu(call: Callable[[], object], times: int) -> float:
    """Give seconds of one call, after three that aren't counted."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def count_bytes(case: Case) -> int:
    """Give what a scan there and back has to move: arguments twice, the slope, results, and a gradient for each."""
    channels, shared = case.batch * case.channels * case.steps, case.batch * 4 * case.states * case.steps
    return 4 * (8 * channels + 6 * shared)


def print_gpu(cases: Sequence[Case], times: int) -> bool:
    """Print the table of a CUDA device, and give whether Triton is as fast as mamba_ssm where both are."""
    block = torch.empty(2**28, device="cuda")
    bandwidth = 2 * block.nbytes / time_on_gpu(partial(torch.clone, block), 20)
    del block
    print(f"\n{torch.cuda.get_device_name()}, copies at {bandwidth / 1e9:.0f} GB/s: milliseconds there and back\n")
    print_row("case", *GPU_WAYS, "Triton's share of the bandwidth", "mamba_ssm / Triton")
    print_row(*["---"] * (len(GPU_WAYS) + 3))
    met = True
    for case in cases:
        larger = Case(case.name, 64 * case.batch, case.channels, case.steps, case.states)
        took = {}
        for backend in GPU_WAYS:
            try:
                took[backend] = measure_gpu(larger, backend, times)
            except ScanBackendError as error:
                took[backend] = math.nan
                print(error, file=sys.stderr)
        share = count_bytes(larger) / (took["triton"] / 1e3) / bandwidth
        ratio = took["mamba_ssm"] / took["triton"]
        met &= math.isnan(ratio) or ratio >= 1
        print_row(larger.title, *(f"{took[name]:.2f}" for name in GPU_WAYS), f"{share:.2f}", describe_goal(ratio, 1.0))
    return met


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and give 0 if every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument(
        "--times", type=int, default=10, help="calls in a repetition; the naive loop has one (default: 10)"
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    args = parser.parse_args(words)
    cases = [case for case in CASES if args.only in case.title]
    if not cases:
        parser.error(f"--only {args.only!r} names none of: {'; '.join(case.title for case in CASES)}")
    torch.set_num_threads(1)
    backends = "; ".join(": ".join(describe_backend(torch.device("cpu"), name).values()) for name in WAYS)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{describe_machine([])['cpu']}, {load}; {backends}")
    print("\nimages x channels x steps x states: CPU milliseconds forward and backward\n")
    ratios = ("naive / torch", "naive / c", "M updates/s by c", "forward alone", "two torch.exp")
    print_row("case", "naive", *WAYS, *ratios)
    print_row(*["---"] * 9)
    met = [print_case(case, measure_case(case, args.repetitions, args.times)) for case in cases]
    if torch.cuda.is_available():
        met.append(print_gpu(cases, args.times))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
