"""In bfloat16 the library gives what it gives in float32, rounded; what needs gradients is torch's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from native.build import NativeError, find_compiler
from rl.tdmpc2 import kernels
from rl.tdmpc2.kernels import MISH, CompiledKernels, norm_by_torch, norm_mish, norm_mish_stacked, norm_simnorm
from tests.rl.tdmpc2.test_kernels import GROUPS, draw_shapes, run_layer
from tests.rl.tdmpc2.test_kernels import draw as draw_floats

LEAST = 2.0**-126
"""Below it numbers may be 0: some processors' own rounding makes them so."""
SIZES = [(512, 512), (1, 512), (24, 256), (5, 4096), (3, 2, 96), (64,)]
BFLOAT16_MAX = 3.3895e38


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
def library_alone(compiled: CompiledKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to torch."""
    monkeypatch.delattr(kernels, "norm_by_torch")


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library isn't asked for."""
    monkeypatch.delattr(kernels, "load_kernels")


def draw(*shape: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Give x of shape (..., dim) with a weight and a bias, in bfloat16."""
    x, weight, bias = draw_floats(*shape, dim=dim, seed=seed)
    return x.bfloat16(), weight.bfloat16(), bias.bfloat16()


def assert_rounded(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> None:
    """Hold y against that of the same numbers in float32, rounded: every bit, and NaN where it is."""
    y = run_layer(x, weight, bias, group)
    expected = run_layer(x.float(), weight.float(), bias.float(), group).bfloat16()
    torch.testing.assert_close(y, expected, rtol=0, atol=LEAST, equal_nan=True)


def assert_ties_go_to_the_even_number() -> None:
    """Between 256 and 512 every other whole number is a bfloat16; a power of two as deviation makes h exactly 1."""
    odd = torch.arange(1.0, 255.0, 2.0)
    x = torch.tensor([-(2.0**14), 2.0**14]).repeat(len(odd)).bfloat16()
    weight, bias = torch.full_like(x, 256.0), odd.repeat_interleave(2).bfloat16()
    floats = norm_mish(x.float(), weight.float(), bias.float())[1::2]
    assert torch.equal(floats, 256 + odd)
    found = norm_mish(x, weight, bias)[1::2].float()
    assert torch.equal(found, 4 * ((256 + odd) / 4).round())


@settings(max_examples=150, deadline=None)
@given(shape=draw_shapes(), seed=st.integers(0, 1000))
def test_every_bit_is_that_of_float32_rounded(
    compiled: CompiledKernels, shape: tuple[int, int, int], seed: int
) -> None:
    rows, dim, group = shape
    assert_rounded(*draw(rows, dim=dim, seed=seed), group=group)


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("group", [MISH, 8, 32])
@pytest.mark.parametrize("shape", SIZES)
def test_it_is_so_at_the_sizes_of_networks(shape: tuple[int, ...], group: int) -> None:
    assert_rounded(*draw(*shape[:-1], dim=shape[-1]), group=group)


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("rows", [0, 1, 6, 8])
@pytest.mark.parametrize("dim", [64, 75])
def test_a_stack_gives_its_members_bits(rows: int, dim: int) -> None:
    members = [draw(rows, dim=dim, seed=seed) for seed in range(3)]
    y = norm_mish_stacked(*(torch.stack(tensors) for tensors in zip(*members, strict=True)))
    for number, tensors in enumerate(members):
        assert torch.equal(y[number], norm_mish(*tensors))
        assert_rounded(*tensors, group=MISH)


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_there_may_be_no_row_or_just_one_without_an_axis(shape: tuple[int, ...], group: int) -> None:
    tensors = draw(*shape, dim=80)
    assert run_layer(*tensors, group).shape == (*shape, 80)
    assert_rounded(*tensors, group=group)


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("group", GROUPS)
def test_arguments_may_be_views(group: int) -> None:
    x, weight, bias = draw(6, dim=80)
    views = x.t().contiguous().t(), weight.repeat_interleave(2)[::2], torch.stack([bias, bias], 1)[:, 0]
    assert not any(view.is_contiguous() for view in views)
    assert torch.equal(run_layer(*views, group), run_layer(x, weight, bias, group))
    # Contiguous, but not where processors like numbers to begin.
    room = torch.empty(1 + x.numel(), dtype=torch.bfloat16)
    shifted = room[1:].view(x.shape).copy_(x)
    assert torch.equal(run_layer(shifted, weight, bias, group), run_layer(x, weight, bias, group))


def test_ties_go_to_the_even_number(compiled: CompiledKernels) -> None:
    assert_ties_go_to_the_even_number()


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("group", [MISH, 2, 8])
def test_a_network_may_have_any_number_of_features_and_nothing_is_written_beyond(
    monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    for dim in range(max(group, 1), 70, max(group, 1)):
        x, weight, bias = draw(3, dim=dim)
        room = torch.full((x.numel() + 128,), 7.0, dtype=torch.bfloat16)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", lambda like, room=room: room[64:-64].view(like.shape))
            run_layer(x, weight, bias, group)
        assert torch.equal(room[:64], torch.full_like(room[:64], 7.0))
        assert torch.equal(room[-64:], room[:64])
        assert_rounded(x, weight, bias, group)


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("group", GROUPS)
def test_what_is_not_a_number_stays_so_and_stays_in_its_row(group: int, bad: float) -> None:
    x, weight, bias = draw(6, dim=80)
    good = run_layer(x, weight, bias, group)
    x[2, 7] = bad
    y = run_layer(x, weight, bias, group)
    others = [row for row in range(6) if row != 2]
    assert y[2].isnan().all() or group == 1
    assert torch.equal(y[others], good[others])


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("bits", [0x7F81, 0x7FC0, 0x7FFF, -1, -0x7F])
@pytest.mark.parametrize("group", GROUPS)
def test_every_kind_of_nan_is_one_in_a_weight_too(group: int, bits: int) -> None:
    """Rounding by adding would make some infinite, or 0."""
    bad = torch.tensor([bits], dtype=torch.int16).view(torch.bfloat16)
    assert bad.isnan().all()
    x, weight, bias = draw(6, dim=80)
    for tensor in (weight, bias):
        before = tensor[7].clone()
        tensor[7] = bad[0]
        assert run_layer(x, weight, bias, group)[:, 7].isnan().all()
        assert_rounded(x, weight, bias, group)
        tensor[7] = before


@pytest.mark.usefixtures("library_alone")
def test_what_is_too_large_is_infinite_as_in_float32() -> None:
    x, _, _ = draw(6, dim=80)
    weight = torch.linspace(-1, 1, 80).mul(BFLOAT16_MAX).bfloat16()
    bias = torch.linspace(1, -1, 80).mul(BFLOAT16_MAX).bfloat16()
    assert norm_mish(x, weight, bias).isinf().any()
    assert_rounded(x, weight, bias, MISH)
    assert_rounded(x, torch.zeros_like(weight), bias, MISH)


@pytest.mark.usefixtures("library_alone")
@pytest.mark.parametrize("group", [1, 2, 8, 16, 40])
def test_softmaxes_of_far_apart_numbers_stay_finite(group: int) -> None:
    x, weight, bias = draw(5, dim=80)
    for each in (x, x * 1e30):
        assert run_layer(each, 1e3 * weight, 1e6 * bias, group).isfinite().all()
        assert_rounded(each, 1e3 * weight, 1e6 * bias, group)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("lanes", "flags"), [(4, ""), (8, ""), (16, "-U__AVX512BF16__")])
def test_registers_of_every_width_round_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, flags: str
) -> None:
    """Without AVX512_BF16 rounding is our own."""
    command = " ".join(find_compiler().command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", f"{command} -DLANES={lanes} {flags} -Wno-psabi")
    assert kernels.describe_kernels(torch.device("cpu")).startswith(f"c ({lanes} lanes; ")
    for group in GROUPS:
        assert_rounded(*draw(6, dim=80), group=group)
    for dim in (1, 3, 17, 33):
        assert_rounded(*draw(5, dim=dim), group=MISH)
    assert_ties_go_to_the_even_number()
    x, weight, bias = draw(6, dim=80)
    bias[7] = torch.tensor([0x7FFF], dtype=torch.int16).view(torch.bfloat16)[0]
    assert norm_mish(x, weight, bias)[:, 7].isnan().all()
    assert_rounded(x, weight, bias, MISH)


@pytest.mark.usefixtures("torch_alone")
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("group", [MISH, 8])
def test_what_needs_gradients_is_torchs(group: int, place: int) -> None:
    tensors = draw(6, dim=80)
    leaf = tensors[place].requires_grad_()
    y = run_layer(*tensors, group)
    assert torch.equal(y, norm_by_torch(*tensors, group))
    (gradient,) = torch.autograd.grad(y.float().square().sum(), leaf)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("library_alone")
def test_parameters_are_the_librarys_where_no_gradient_is_recorded() -> None:
    x, weight, bias = draw(6, dim=80)
    y = norm_simnorm(x, weight, bias, 8)
    with torch.no_grad():
        assert torch.equal(norm_simnorm(x, weight.requires_grad_(), bias.requires_grad_(), 8), y)
    assert y.grad_fn is None


@pytest.mark.usefixtures("torch_alone")
@pytest.mark.parametrize("group", [MISH, 8])
def test_types_that_are_mixed_are_torchs(group: int) -> None:
    x, weight, bias = draw(6, dim=80)
    y = run_layer(x, weight.float(), bias.float(), group)
    assert torch.equal(y, norm_by_torch(x, weight.float(), bias.float(), group))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("group", [MISH, 8])
def test_torchs_compiler_gets_torchs_operations(group: int) -> None:
    tensors = draw(3, dim=16)
    found = torch.compile(run_layer, backend="eager", fullgraph=True)(*tensors, group)
    assert torch.equal(found, norm_by_torch(*tensors, group))


def test_the_library_is_nearer_to_the_truth_than_torchs_operations(compiled: CompiledKernels) -> None:
    """Torch rounds between norm and activation, the library once at the end."""
    x, weight, bias = draw(64, dim=512)
    truth = norm_by_torch(x.double(), weight.double(), bias.double(), MISH)
    ours, torchs = (
        (layer(x, weight, bias, MISH).double() - truth).square().mean() for layer in (run_layer, norm_by_torch)
    )
    assert ours < torchs


def test_without_a_compiler_it_is_torch_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    tensors = draw(6, dim=80)
    with pytest.warns(UserWarning, match="are done by torch, several times slower: there is no C compiler") as caught:
        run_layer(*tensors, MISH)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for group in GROUPS:
            assert torch.equal(run_layer(*tensors, group), norm_by_torch(*tensors, group))


def test_no_memory_left_is_told(compiled: CompiledKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_forward_halves", lambda *addresses: 1)
    monkeypatch.setattr(kernels, "load_kernels", lambda: compiled)
    with pytest.raises(MemoryError, match="no memory left"):
        norm_mish(*draw(6, dim=80))
