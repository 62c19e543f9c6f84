"""Mish with a derivative of its own, and the networks made with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffuser.models import layers
from diffuser.models.denoiser import MLPDenoiser, TemporalUNet
from diffuser.models.layers import MISH_FROM, MLP, draw_weights, mish


def differentiate(function: object, features: Tensor) -> Tensor:
    assert callable(function)
    leaf = features.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_mish_and_its_derivative_are_torchs_in_float64(dtype: torch.dtype) -> None:
    """Relative to their own size: mish(-80) is about -1e-33."""
    features = torch.linspace(-100, 100, 200_001, dtype=torch.float64).to(dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    expected, slope = functional.mish(features.double()), differentiate(functional.mish, features.double())
    least = 100 * torch.finfo(dtype).tiny  # below it numbers have fewer digits
    torch.testing.assert_close(mish(features).double(), expected, rtol=tolerance, atol=least)
    found = differentiate(mish, features).double()
    # Where the derivative crosses 0, at -1.19, it is a difference of numbers of size 0.2.
    torch.testing.assert_close(found, slope, rtol=100 * tolerance, atol=tolerance / 4)


def test_mish_is_the_same_to_the_bit_with_and_without_gradient() -> None:
    features = torch.randn(MISH_FROM, generator=torch.Generator().manual_seed(0)) * 10
    recorded = mish(features.clone().requires_grad_())
    assert recorded.grad_fn is not None
    assert torch.equal(recorded, mish(features))
    with torch.no_grad():
        assert mish(features.clone().requires_grad_()).grad_fn is None


def test_mish_leaves_its_argument_and_what_comes_back_as_they_were() -> None:
    features = torch.randn(64, MISH_FROM // 64, generator=torch.Generator().manual_seed(0))
    before, leaf, slope = features.clone(), features.requires_grad_(), torch.ones(64, MISH_FROM // 64)
    torch.autograd.grad(mish(leaf), leaf, slope)
    mish(features.detach())
    assert torch.equal(features, before)
    assert torch.equal(slope, torch.ones(64, MISH_FROM // 64))


def test_mishs_gradient_is_its_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MISH_FROM", 0)
    features = torch.linspace(-30, 30, 61, dtype=torch.float64).view(61, 1)
    assert torch.autograd.gradcheck(mish, features.requires_grad_())


def test_what_is_not_finite_stays_visible() -> None:
    features = torch.tensor([torch.nan, torch.inf]).repeat(MISH_FROM)
    assert mish(features).isnan()[:2].tolist() == [True, False]
    assert mish(features)[1] == torch.inf
    assert differentiate(mish, features)[0].isnan()


def test_few_elements_other_number_types_and_other_devices_take_torchs_mish() -> None:
    few = torch.linspace(-30, 30, 61)
    assert torch.equal(mish(few), functional.mish(few))
    features = torch.linspace(-30, 30, MISH_FROM)
    assert torch.equal(mish(features.bfloat16()), functional.mish(features.bfloat16()))
    assert mish(features.to("meta")).shape == features.shape


def test_an_mlps_large_batches_have_the_gradients_of_torchs_layers() -> None:
    mlp = MLP(20, [96, 96], 6)
    draw_weights(mlp, torch.Generator().manual_seed(0))
    plain = nn.Sequential(nn.Linear(20, 96), nn.Mish(), nn.Linear(96, 96), nn.Mish(), nn.Linear(96, 6)).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), mlp.state_dict().values(), strict=True)))
    features = torch.randn(32, 64, 20, generator=torch.Generator().manual_seed(1))
    found, expected = mlp(features), plain(features.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    slopes = torch.autograd.grad(found.square().mean(), list(mlp.parameters()))
    wanted = torch.autograd.grad(expected.square().mean(), list(plain.parameters()))
    for slope, want in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope.double(), want, rtol=1e-3, atol=1e-6)


def test_an_mlps_parameters_keep_their_names() -> None:
    names = [f"layers.{layer}.{part}" for layer in range(2) for part in ("weight", "bias")]
    assert list(MLP(3, [4], 2).state_dict()) == names


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_looking_ahead_changes_no_output(kind: str) -> None:
    denoiser = MLPDenoiser(12, 5, 9, [16, 16]) if kind == "mlp" else TemporalUNet(4, 5, 9, 32)
    draw_weights(denoiser, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    noisy, c = torch.randn(3, 3, 1, 4, generator=generator), torch.randn(3, 5, generator=generator)
    timesteps = torch.tensor([8, 4, 0])
    with torch.no_grad():
        denoise = denoiser.look_ahead(timesteps, c)
        for position, level in enumerate(timesteps):
            expected = denoiser(noisy, level.expand(3), c)
            torch.testing.assert_close(denoise(position, noisy), expected, rtol=1e-4, atol=1e-5)
