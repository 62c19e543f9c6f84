"""The C library's own promises: threads, widths of registers, memory; and that it is asked for nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from native.build import NativeError, find_compiler
from rl.scan import by_c
from rl.scan.arguments import ScanArguments
from rl.scan.by_c import CompiledScan

ROOT = Path(__file__).parents[3]

Tools = Any
NOTHING: dict[str, Any] = {"D": None, "delta_bias": None}


@pytest.fixture(scope="module")
def compiled() -> CompiledScan:
    try:
        return CompiledScan()
    except NativeError as error:
        pytest.skip(str(error))


@pytest.fixture
def _several_threads_also_for_small_scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(by_c, "UPDATES_FOR_A_THREAD", 1)
    yield
    torch.set_num_threads(before)


def scan(compiled: CompiledScan, **arguments: Any) -> torch.Tensor:
    return compiled.scan(ScanArguments(**arguments))


@pytest.mark.usefixtures("_several_threads_also_for_small_scans")
@pytest.mark.parametrize("shape", [(1, 1, 40, 5, 50), (7, 3, 20, 16, 33), (40, 1, 3, 2, 17)])
def test_the_number_of_threads_changes_no_bit(tools: Tools, compiled: CompiledScan, shape: tuple[int, ...]) -> None:
    arguments = tools.draw_arguments(*shape)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(tools.find_y_and_gradients(partial(scan, compiled), arguments))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.usefixtures("_several_threads_also_for_small_scans")
@pytest.mark.parametrize("shape", [(2, 2, 37, 5, 45), (3, 4, 32, 16, 16), (2, 1, 16, 3, 4), (2, 1, 3, 1, 2)])
def test_channels_last_in_memory_give_the_same_bits_laid_out_like_them(
    tools: Tools, compiled: CompiledScan, shape: tuple[int, ...]
) -> None:
    arguments = tools.draw_arguments(*shape)
    turned = arguments | {
        name: arguments[name].movedim(-1, 1).contiguous().movedim(1, -1) for name in ("u", "delta", "B", "C")
    }
    assert not turned["u"].is_contiguous()
    one, other = (tools.find_y_and_gradients(partial(scan, compiled), which) for which in (arguments, turned))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("y", "u", "delta"):
        assert other[name].transpose(1, 2).is_contiguous(), name
    # Whatever the others are laid out like, u decides.
    mixed = tools.find_y_and_gradients(partial(scan, compiled), arguments | {"u": turned["u"]})
    assert all(torch.equal(one[name], mixed[name]) for name in one)


def test_small_scans_start_no_thread(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    small, large = (tools.draw_arguments(1, 1, 16, 4, steps).values() for steps in (10, 2**13))
    assert by_c._describe(list(small)[:7], softplus=True).threads == 1
    assert by_c._describe(list(large)[:7], softplus=True).threads == 3


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_registers_of_every_width_give_the_recurrence(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: CompiledScan, lanes: int
) -> None:
    command = " ".join(find_compiler().command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", f"{command} -DLANES={lanes} -Wno-psabi")
    narrow = CompiledScan()
    assert narrow.num_lanes == lanes
    for shape in [(2, 2, 37, 5, 45), (1, 4, 16, 16, 32), (3, 1, 5, 1, 3)]:
        y, *gradients = tools.find_errors(partial(scan, narrow), tools.draw_arguments(*shape)).values()
        assert y <= 1e-5
        assert max(gradients) <= 1e-4


def test_softplus_and_exponentials_are_as_exact_as_they_say(compiled: CompiledScan) -> None:
    """A scan of one step of size x gives x; of two, the second without input, what is left of the first."""
    ones = torch.ones(1, 1, 1, 1)
    x = torch.linspace(-80, 80, 2**14)[None, :, None]
    A = -torch.ones(x.shape[1], 1)
    y = scan(compiled, u=torch.ones_like(x), delta=x, A=A, B=ones, C=ones, **NOTHING, delta_softplus=True)
    truth = torch.log1p(torch.exp(-x.double().abs())) + x.double().clamp(min=0)
    assert (((y - truth) / truth).abs() <= 4e-7 + 8e-8 * x.abs()).all()

    sizes = torch.linspace(0, 1, x.numel())[None, :, None]
    delta, u = torch.cat([torch.ones_like(x), sizes], 2), torch.cat([torch.ones_like(x), torch.zeros_like(x)], 2)
    two = ones.expand(1, 1, 1, 2)
    y = scan(compiled, u=u, delta=delta, A=A, B=two, C=two, **NOTHING, delta_softplus=False)[..., 1:]
    assert (y / torch.exp(-sizes.double()) - 1).abs().max() <= 3e-7


def test_what_is_not_a_number_is_not_hidden(tools: Tools, compiled: CompiledScan) -> None:
    arguments = tools.draw_arguments(1, 2, 20, 4, 20)
    for name in ("u", "delta", "A", "B", "C", "D", "delta_bias"):
        others = slice(20, 40) if name in "BC" else slice(1, 40)
        for sign in (1, -1):  # as a function makes it, and negated
            broken = arguments[name].clone()
            broken.view(-1)[0] = sign * torch.tensor(float("nan"))
            y = scan(compiled, **arguments | {name: broken})
            assert y[0, 0].isnan().any(), name
            assert not y[0, others].isnan().any(), name


def test_what_is_too_large_becomes_infinite(tools: Tools, compiled: CompiledScan) -> None:
    arguments = tools.draw_arguments(1, 1, 20, 4, 40)
    arguments["A"] = -10 * arguments["A"]
    arguments["delta_bias"] = arguments["delta_bias"] + 20
    assert not scan(compiled, **arguments)[..., -1].isfinite().any()


MEASURE_MEMORY = """
import resource, torch
from rl.scan.arguments import ScanArguments
from rl.scan.by_c import CompiledScan

def read_peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def draw_arguments(batch):
    shapes = 2 * [(batch, {dim}, {steps})] + [({dim}, 16)] + 2 * [(batch, 4, 16, {steps})] + 2 * [({dim},)]
    return ScanArguments(*(torch.rand(shape).requires_grad_() for shape in shapes), delta_softplus=True)

def scan_both_ways(arguments, slope):
    y = compiled.scan(arguments)
    return [y, *torch.autograd.grad(y, arguments.tensors, slope)]

torch.set_num_threads(2)
compiled = CompiledScan()
scan_both_ways(draw_arguments(1), torch.rand(1, {dim}, {steps}))  # claims what the first call needs
arguments, slope = draw_arguments(64), torch.rand(64, {dim}, {steps})
before = read_peak()
results = scan_both_ways(arguments, slope)
held = read_peak() - before - 4 * sum(tensor.numel() for tensor in results)
print(held / (4 * 16 * slope.numel()))
"""


def test_memory_beside_arguments_and_results_is_under_an_eighth_of_all_states(compiled: CompiledScan) -> None:
    code = MEASURE_MEMORY.format(dim=256, steps=256)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1 / 8


def test_no_memory_left_is_told(tools: Tools, compiled: CompiledScan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_forward", lambda *addresses: 1)
    with pytest.raises(MemoryError, match="take smaller batches"):
        scan(compiled, **tools.draw_arguments(1, 1, 2, 2, 3))
