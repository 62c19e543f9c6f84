"""Products by either library, and the layers whose gradients are made of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import products
from training.products import Linear, find_weight_gradient, is_for_onednn, multiply

IN, OUT = 24, 80
LARGE = 1024  # rows: with these sizes a product is oneDNN's
SMALL = 8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def operands(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Both operands of each product that a layer asks for."""
    seen = list[Tensor]()

    def note(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.extend((left, right))
        return multiply(left, right, bias)

    monkeypatch.setattr(products, "multiply", note)
    return seen


def draw(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def build_layer(in_dim: int = IN, out_dim: int = OUT, bias: bool = True) -> Linear:
    layer = Linear(in_dim, out_dim, bias=bias)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number + 1) * 0.1)
    return layer


def build_plain(layer: Linear) -> nn.Linear:
    """Torch's own layer with the same numbers, in float64."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    return plain


@pytest.mark.parametrize("rows", [8, 8192], ids=["small", "large"])
@pytest.mark.parametrize("relu", [False, True])
def test_a_product_has_bias_and_relu_whichever_library_does_it(rows: int, relu: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, 16, generator=generator), torch.randn(12, 16, generator=generator)
    bias = torch.randn(12, generator=generator)
    expected = left.double() @ right.double().t() + bias.double()
    expected = expected.clamp(min=0) if relu else expected
    torch.testing.assert_close(multiply(left, right, bias, relu=relu).double(), expected, rtol=1e-4, atol=1e-5)
    transposed = multiply(left.t().contiguous().t(), right.t().contiguous().t())
    torch.testing.assert_close(transposed.double(), left.double() @ right.double().t(), rtol=1e-4, atol=1e-5)


def test_which_library_is_asked_follows_from_size_number_type_and_device() -> None:
    weight = draw(OUT, IN)
    assert is_for_onednn(draw(LARGE, IN), weight) == torch._C._has_mkldnn
    assert is_for_onednn(draw(4, LARGE // 4, IN), weight) == torch._C._has_mkldnn
    assert not is_for_onednn(draw(SMALL, IN), weight)
    assert not is_for_onednn(draw(LARGE, IN).double(), weight.double())
    assert not is_for_onednn(draw(LARGE, IN, device="meta"), weight.to("meta"))


@pytest.mark.parametrize("in_dim", [IN, 2 * OUT], ids=["narrow", "wide"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("shape", [(SMALL,), (LARGE,), (4, LARGE // 8, 2)], ids=["small", "large", "axes"])
def test_a_layer_and_its_gradients_are_those_of_torchs(shape: tuple[int, ...], bias: bool, in_dim: int) -> None:
    layer = build_layer(in_dim, bias=bias)
    plain = build_plain(layer)
    features, slope = draw(*shape, in_dim, seed=3).requires_grad_(), draw(*shape, OUT, seed=4)
    exact = features.detach().double().requires_grad_()
    out, expected = layer(features), plain(exact)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(out, [features, *layer.parameters()], slope)
    wanted = torch.autograd.grad(expected, [exact, *plain.parameters()], slope.double())
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.is_contiguous()
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_dim", [2, 7], ids=["narrow", "wide"])
def test_gradients_are_the_derivatives(in_dim: int) -> None:
    parts = [
        draw(*shape, seed=seed, dtype=torch.float64).requires_grad_()
        for seed, shape in enumerate([(3, in_dim), (5, in_dim), (5,)])
    ]
    assert torch.autograd.gradcheck(products.apply_linear, parts)
    assert torch.autograd.gradcheck(partial(products.apply_linear, bias=None), parts[:2])


def test_no_gradient_is_computed_that_nobody_needs(operands: list[Tensor]) -> None:
    layer = build_layer()
    features, slope = draw(LARGE, IN), draw(LARGE, OUT)

    def count(out: Tensor, wanted: list[Tensor]) -> int:
        before = len(operands)
        torch.autograd.grad(out, wanted, slope)
        return (len(operands) - before) // 2

    assert count(layer(features), list(layer.parameters())) == 1
    leaf = features.clone().requires_grad_()
    assert count(layer(leaf), [leaf]) == 1 + 1  # autograd.grad doesn't tell a function which of its inputs are wanted
    layer.requires_grad_(False)
    assert count(layer(leaf), [leaf]) == 1
    layer.bias.requires_grad_(True)
    assert count(layer(features), [layer.bias]) == 0


def test_no_operand_has_gaps(operands: list[Tensor]) -> None:
    """oneDNN takes a hundred times as long for them, and gives the same numbers."""
    layer = build_layer()
    gaps = draw(LARGE, 2 * IN)[:, :IN].requires_grad_()
    layer(gaps).sum().backward()  # the slope is one number, spread
    layer(draw(LARGE, IN, 2).transpose(1, 2)).square().mean().backward()
    assert len(operands) == 2 * (3 + 2)
    assert all(operand.is_contiguous() or operand.t().is_contiguous() for operand in operands)


def test_without_gradient_nothing_is_recorded_and_the_numbers_are_the_same() -> None:
    layer, features = build_layer(), draw(LARGE, IN)
    with torch.no_grad():
        out = layer(features)
    assert out.grad_fn is None
    assert torch.equal(out, layer(features))
    assert not layer.requires_grad_(False)(features).requires_grad


def test_small_products_can_be_differentiated_twice_and_large_ones_say_that_they_can_not() -> None:
    layer = build_layer()

    def differentiate_twice(rows: int) -> Tensor | None:
        features = draw(rows, IN).requires_grad_()
        (slope,) = torch.autograd.grad(layer(features).square().sum(), features, create_graph=True)
        slope.square().sum().backward()
        return features.grad

    assert differentiate_twice(SMALL) is not None
    if torch._C._has_mkldnn:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            differentiate_twice(LARGE)


def test_under_autocast_torch_chooses_the_precision() -> None:
    layer, features = build_layer(), draw(LARGE, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(features).dtype == torch.bfloat16
        assert torch.equal(layer(features), build_plain(layer).float()(features))
    assert layer(features).dtype == torch.float32


def test_a_layer_is_copied_counted_converted_and_hooked_as_torchs() -> None:
    layer = build_layer()
    features = draw(LARGE, IN)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(copy.deepcopy(layer)(features), layer(features))
    assert layer.to("meta")(features.to("meta")).shape == (LARGE, OUT)
    layer = build_layer().double()
    assert torch.equal(layer(features.double()), build_plain(build_layer())(features.double()))
    passes = list[Tensor]()
    hook = layer.register_forward_hook(lambda _, given, out: passes.append(out))
    layer(features.double())
    hook.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("in_dim", [IN, OUT], ids=["narrow", "wide"])
def test_a_weights_gradient_is_the_sum_of_outer_products(in_dim: int) -> None:
    slope, features = draw(LARGE, OUT), draw(LARGE, in_dim, seed=1)
    expected = torch.einsum("ro,ri->oi", slope.double(), features.double())
    torch.testing.assert_close(find_weight_gradient(slope, features).double(), expected, rtol=1e-4, atol=1e-3)
