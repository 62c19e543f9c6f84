"""Layer norms with their activations are what the formulas give in float64, by the library and by torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from native.build import NativeError, find_compiler
from rl.tdmpc2 import kernels
from rl.tdmpc2.kernels import MISH, CompiledKernels, norm_by_torch, norm_mish, norm_mish_stacked, norm_simnorm

CPU = torch.device("cpu")
GROUPS = [MISH, 1, 2, 4, 5, 8, 16, 40]
"""Sizes of groups that divide 80 features, or Mish."""
NAMES = ("y", "x", "weight", "bias")

Layer = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@pytest.fixture(autouse=True)
def _nothing_loaded_yet() -> Iterator[None]:
    kernels.load_kernels.cache_clear()
    yield
    kernels.load_kernels.cache_clear()


@pytest.fixture(scope="module")
def compiled() -> CompiledKernels:
    try:
        return CompiledKernels()
    except NativeError as error:
        pytest.skip(str(error))


@pytest.fixture
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


def run_layer(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    if weight.dim() == 2:
        return norm_mish_stacked(x, weight, bias)
    return norm_mish(x, weight, bias) if group == MISH else norm_simnorm(x, weight, bias, group)


def compute_by_formula(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Give y of one member by the definitions."""
    distance = x - x.mean(-1, keepdim=True)
    z = weight * distance / torch.sqrt(distance.square().mean(-1, keepdim=True) + 1e-5) + bias
    if group == MISH:
        return z * torch.tanh(functional.softplus(z))
    return torch.cat([torch.softmax(part, -1) for part in torch.split(z, group, -1)], -1)


def draw(*shape: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Give x of shape (..., dim) with a weight and a bias, in float32; rows differ in place and in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, dim, generator=generator) * torch.exp(torch.randn(*shape, 1, generator=generator))
    x = x + torch.randn(*shape, 1, generator=generator)
    return x, torch.randn(dim, generator=generator), torch.randn(dim, generator=generator)


def find_y_and_gradients(layer: Layer, *tensors: Tensor, group: int) -> dict[str, Tensor]:
    """Give y, and the gradients where a fixed random slope comes in."""
    x, weight, bias = (tensor.detach().requires_grad_() for tensor in tensors)
    y = layer(x, weight, bias, group)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, (x, weight, bias), slope.to(y))), strict=True))


def assert_right(layer: Layer, *tensors: Tensor, group: int) -> None:
    """Hold y and gradients against the formulas in float64.

    A gradient may be a small difference of large terms: of two features, or where all softmaxes are 1. So its error
    is measured by the largest gradient or a tenth of what a term may be, whichever is larger.
    """
    doubles = [tensor.double() for tensor in tensors]
    truth = find_y_and_gradients(compute_by_formula, *doubles, group=group)
    found = find_y_and_gradients(layer, *tensors, group=group)
    torch.testing.assert_close(found["y"].double(), truth["y"], rtol=1e-5, atol=1e-5)
    steepest = torch.rsqrt(doubles[0].var(-1, correction=0) + 1e-5).flatten().amax().item() if found["y"].numel() else 1
    for name, term in (("x", steepest), ("weight", 1), ("bias", 1)):
        assert found[name].shape == truth[name].shape
        if truth[name].numel():
            scale = max(term / 10, truth[name].abs().max().item())
            assert (found[name].double() - truth[name]).abs().max() <= 1e-4 * scale, name


@st.composite
def draw_shapes(draw_one: st.DrawFn) -> tuple[int, int, int]:
    """Give rows, dim, and a group that divides it, or 0 for Mish."""
    dim = draw_one(st.integers(1, 300))
    divisors = [size for size in range(1, dim + 1) if dim % size == 0]
    return draw_one(st.integers(1, 70)), dim, draw_one(st.sampled_from([MISH, *divisors]))


@settings(max_examples=150, deadline=None)
@given(shape=draw_shapes(), seed=st.integers(0, 1000))
def test_y_and_gradients_are_those_of_the_formulas(
    compiled: CompiledKernels, shape: tuple[int, int, int], seed: int
) -> None:
    rows, dim, group = shape
    assert_right(run_layer, *draw(rows, dim=dim, seed=seed), group=group)


@pytest.mark.parametrize("group", [MISH, 8])
@pytest.mark.parametrize("shape", [(5, 4096), (1030, 512), (3, 2, 96), (64,)])
def test_they_are_so_at_the_sizes_of_networks(compiled: CompiledKernels, shape: tuple[int, ...], group: int) -> None:
    assert_right(run_layer, *draw(*shape[:-1], dim=shape[-1]), group=group)


@pytest.mark.parametrize("group", GROUPS)
def test_torch_gives_the_same(group: int) -> None:
    assert_right(norm_by_torch, *draw(7, dim=80), group=group)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_registers_of_every_width_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: CompiledKernels, lanes: int
) -> None:
    command = " ".join(find_compiler().command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", f"{command} -DLANES={lanes} -Wno-psabi")
    assert kernels.describe_kernels(CPU).startswith(f"c ({lanes} lanes; ")
    for group in GROUPS:
        assert_right(run_layer, *draw(6, dim=80), group=group)
    for dim in (1, 3, 17, 33):
        assert_right(run_layer, *draw(5, dim=dim), group=MISH)


def test_mish_and_its_slope_are_exact_wherever_they_are_curved_or_straight(compiled: CompiledKernels) -> None:
    """A weight of 0 leaves the bias alone."""
    z = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([-1e30, -1e4, 1e4, 1e20])])
    bias = z.clone().requires_grad_()
    y = norm_mish(torch.zeros(1, z.numel()), torch.zeros(z.numel()), bias)
    (slope,) = torch.autograd.grad(y.sum(), bias)
    truth = z.double().requires_grad_()
    expected = functional.mish(truth)
    torch.testing.assert_close(y[0].double(), expected.detach(), rtol=3e-6, atol=1e-7)
    (true_slope,) = torch.autograd.grad(expected.sum(), truth)
    torch.testing.assert_close(slope.double(), true_slope, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -1e4, 1e12])
@pytest.mark.parametrize("group", [MISH, 8])
def test_rows_of_one_number_leave_the_bias(compiled: CompiledKernels, value: float, group: int) -> None:
    _, weight, bias = draw(1, dim=72)
    found = run_layer(torch.full((3, 72), value), weight, bias, group)
    expected = norm_by_torch(torch.zeros(3, 72), weight, bias, group)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group", [MISH, 8])
def test_large_numbers_that_differ_little_are_normed_by_what_they_differ_by(
    compiled: CompiledKernels, group: int
) -> None:
    x, weight, bias = draw(9, dim=200)
    assert_right(run_layer, x.sign() * 1e4, weight, bias, group=group)
    assert_right(run_layer, 1e4 + x, weight, bias, group=group)
    assert_right(run_layer, -1e4 + x / 8, weight, bias, group=group)


@pytest.mark.parametrize("group", [1, 2, 8, 16, 40])
def test_softmaxes_of_far_apart_numbers_stay_finite(compiled: CompiledKernels, group: int) -> None:
    x, weight, bias = draw(5, dim=80)
    assert_right(run_layer, x, 1e3 * weight, bias, group=group)
    x, weight, bias = draw(5, dim=80)
    found = find_y_and_gradients(run_layer, x, weight, 1e6 * bias, group=group)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("group", GROUPS)
def test_what_is_not_a_number_stays_so_and_stays_in_its_row(compiled: CompiledKernels, group: int, bad: float) -> None:
    x, weight, bias = draw(6, dim=80)
    good = run_layer(x, weight, bias, group)
    x[2, 7] = bad
    found = find_y_and_gradients(run_layer, x, weight, bias, group=group)
    others = [row for row in range(6) if row != 2]
    assert found["y"][2].isnan().all() or group == 1
    assert torch.equal(found["y"][others], good[others])
    assert found["x"][2].isnan().all()
    assert found["x"][others].isfinite().all()
    assert found["weight"].isnan().all()


@pytest.mark.parametrize("group", GROUPS)
def test_a_weight_that_is_not_a_number_spoils_its_features(compiled: CompiledKernels, group: int) -> None:
    x, weight, bias = draw(6, dim=80)
    good = run_layer(x, weight, bias, group)
    first = 0 if group == MISH else 7 // group * group
    spoilt = [7] if group == MISH else list(range(first, first + group))
    others = [feature for feature in range(80) if feature not in spoilt]
    for tensor in (weight, bias):
        before = tensor[7].item()
        tensor[7] = float("nan")
        y = run_layer(x, weight, bias, group)
        assert y[:, spoilt].isnan().all()
        assert torch.equal(y[:, others], good[:, others])
        tensor[7] = before


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_there_may_be_no_row_or_just_one_without_an_axis(
    compiled: CompiledKernels, shape: tuple[int, ...], group: int
) -> None:
    assert_right(run_layer, *draw(*shape, dim=80), group=group)


@pytest.mark.parametrize("group", GROUPS)
def test_arguments_may_be_views(compiled: CompiledKernels, group: int) -> None:
    x, weight, bias = draw(6, dim=80)
    views = x.t().contiguous().t(), weight.repeat_interleave(2)[::2], torch.stack([bias, bias], 1)[:, 0]
    assert not any(view.is_contiguous() for view in views)
    one, other = (find_y_and_gradients(run_layer, *tensors, group=group) for tensors in ((x, weight, bias), views))
    assert all(torch.equal(one[name], other[name]) for name in NAMES)
    with torch.no_grad():
        assert torch.equal(run_layer(*views, group), one["y"])
    # One number, spread over all, as the gradient of a sum is.
    x.requires_grad_()
    y, slope = run_layer(x, weight, bias, group), torch.ones(()).expand(6, 80)
    spread, dense = (torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in (slope, slope.contiguous()))
    assert torch.equal(spread, dense)


@pytest.mark.parametrize("rows", [0, 1, 6, 8])
def test_a_stack_gives_its_members_bits(compiled: CompiledKernels, rows: int) -> None:
    members = [draw(rows, dim=75, seed=seed) for seed in range(3)]
    leaves = [torch.stack(tensors).requires_grad_() for tensors in zip(*members, strict=True)]
    y = norm_mish_stacked(*leaves)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    together = (y, *torch.autograd.grad(y, leaves, slope))
    for number, tensors in enumerate(members):
        own = [tensor.requires_grad_() for tensor in tensors]
        alone = norm_mish(*own)
        for one, all_of_them in zip((alone, *torch.autograd.grad(alone, own, slope[number])), together, strict=True):
            assert torch.equal(one, all_of_them[number])


def test_a_stack_by_torch_gives_what_its_members_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (torch.stack(tensors) for tensors in zip(*(draw(4, dim=20, seed=s) for s in (1, 2)), strict=True))
    monkeypatch.setattr(kernels, "load_kernels", lambda: None)
    expected = torch.stack([norm_by_torch(x[member], weight[member], bias[member], MISH) for member in range(2)])
    torch.testing.assert_close(norm_mish_stacked(x, weight, bias), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_the_same_call_gives_the_same_bits_on_any_number_of_threads(compiled: CompiledKernels, group: int) -> None:
    results = []
    for threads in (1, 1, 3):  # back to one after each test
        torch.set_num_threads(threads)
        results.append(find_y_and_gradients(run_layer, *draw(41, dim=80), group=group))
    assert all(torch.equal(one[name], other[name]) for one, other in pairwise(results) for name in NAMES)


@pytest.mark.parametrize("group", GROUPS)
def test_a_row_gives_the_same_bits_wherever_it_is(compiled: CompiledKernels, group: int) -> None:
    x, weight, bias = draw(7, dim=80)
    together = run_layer(x, weight, bias, group)
    assert all(torch.equal(run_layer(x[row], weight, bias, group), together[row]) for row in range(7))


def test_only_gradients_that_somebody_needs_are_given_and_else_there_is_no_graph(compiled: CompiledKernels) -> None:
    tensors = draw(6, dim=80)
    everything = find_y_and_gradients(run_layer, *tensors, group=8)
    slope = torch.randn(6, 80, generator=torch.Generator().manual_seed(9), dtype=torch.float64).float()
    for place, name in enumerate(NAMES[1:]):
        x, weight, bias = (tensor.clone().requires_grad_(number == place) for number, tensor in enumerate(tensors))
        y = norm_simnorm(x, weight, bias, 8)
        assert torch.equal(y, everything["y"])
        assert torch.equal(torch.autograd.grad(y, (x, weight, bias)[place], slope)[0], everything[name])
        with torch.no_grad():
            assert norm_simnorm(x, weight, bias, 8).grad_fn is None
    assert norm_simnorm(*tensors, 8).grad_fn is None


def test_gradients_cannot_be_differentiated_again(compiled: CompiledKernels) -> None:
    x, weight, bias = draw(3, dim=16)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(norm_mish(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_arguments_changed_before_the_gradients_are_found_out(compiled: CompiledKernels) -> None:
    x, weight, bias = draw(3, dim=16)
    weight.requires_grad_()
    y = norm_mish(x, weight, bias)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("group", [MISH, 8])
def test_other_types_are_torchs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, group: int) -> None:
    monkeypatch.delattr(kernels, "load_kernels")
    x, weight, bias = (tensor.to(dtype) for tensor in draw(6, dim=80))
    y = run_layer(x, weight, bias, group)
    assert y.dtype == dtype
    assert torch.equal(y, norm_by_torch(x, weight, bias, group))


def test_other_devices_are_torchs() -> None:
    tensors = [tensor.to("meta") for tensor in draw(6, dim=80)]
    assert norm_mish(*tensors).shape == (6, 80)
    assert kernels.describe_kernels(torch.device("cuda")) == "torch"


class Network(torch.nn.Module):
    """Both layers after each other."""

    def __init__(self) -> None:
        super().__init__()
        _, weight, bias = draw(1, dim=16)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return norm_simnorm(norm_mish(x, self.weight, self.bias), self.weight, self.bias, 8)


def test_files_get_torchs_operations(compiled: CompiledKernels) -> None:
    network, (x, _, _) = Network(), draw(3, dim=16)
    exported = torch.export.export(network, (x,))
    assert "ops.aten.mish" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), network(x))


def test_torchs_compiler_gets_torchs_operations(compiled: CompiledKernels) -> None:
    tensors = draw(3, dim=16)
    found = torch.compile(norm_mish, backend="eager", fullgraph=True)(*tensors)
    assert torch.equal(found, norm_by_torch(*tensors, group=MISH))


def test_the_library_can_be_noted_by_a_run(compiled: CompiledKernels) -> None:
    found = re.fullmatch(r"c \((4|8|16) lanes; (.*)\)", kernels.describe_kernels(CPU))
    assert found is not None
    assert found[2] == find_compiler().version


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_it_is_torch_and_said_once() -> None:
    tensors = draw(6, dim=80)
    with pytest.warns(UserWarning, match="are done by torch, several times slower: there is no C compiler") as caught:
        y = norm_mish(*tensors)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(norm_mish(*tensors), y)
        for group in GROUPS:
            assert_right(run_layer, *tensors, group=group)
        assert kernels.describe_kernels(CPU) == "torch"


def test_no_memory_left_is_told(compiled: CompiledKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_forward", lambda *addresses: 1)
    monkeypatch.setattr(kernels, "load_kernels", lambda: compiled)
    with pytest.raises(MemoryError, match="no memory left"):
        norm_mish(*draw(6, dim=80))


X, ROW, STACK = torch.zeros(4, 6), torch.zeros(6), torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: norm_mish(X, torch.zeros(5), torch.zeros(5)),
            r"x \(4, 6\), weight \(5,\), .*: wanted x \(\.\.\., dim",
        ),
        (lambda: norm_mish(X, X, X), r"weight \(4, 6\).*: wanted x \(\.\.\., dim\), weight and bias \(dim,\)"),
        (lambda: norm_mish(X, ROW, torch.zeros(1)), r"bias \(1,\): wanted a bias for each weight"),
        (lambda: norm_mish(X[:, :0], ROW[:0], ROW[:0]), r"weight \(0,\).*: wanted .* some of both"),
        (lambda: norm_mish(torch.zeros(()), ROW, ROW), r"x \(\), weight \(6,\)"),
        (lambda: norm_simnorm(X, STACK, STACK, 2), r"weight \(2, 6\).*: wanted x \(\.\.\., dim\)"),
        (lambda: norm_simnorm(X, ROW, ROW, 4), "6 features can't be cut into groups of 4"),
        (lambda: norm_simnorm(X, ROW, ROW, 0), "6 features can't be cut into groups of 0"),
        (lambda: norm_mish_stacked(X, STACK, STACK), r"x \(4, 6\).*: wanted x \(members, rows, dim\)"),
        (lambda: norm_mish_stacked(torch.zeros(3, 4, 6), STACK, STACK), r"x \(3, 4, 6\), weight \(2, 6\)"),
        (lambda: norm_mish_stacked(torch.zeros(2, 4, 6), STACK, ROW), r"bias \(6,\): wanted a bias for each weight"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
