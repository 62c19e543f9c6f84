"""Layers against torch's own ones in a row, and the ensemble against as many single networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.tdmpc2.layers import (
    FIRST_DEVIATION,
    Ensemble,
    Head,
    NormedLinear,
    PixelEncoder,
    SimNorm,
    build_mlp,
    draw_network,
    drop_out,
)
from rl.tdmpc2.sizes import find_pixel_map
from training.products import ONEDNN_FROM, Linear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


@torch.no_grad()
def scramble(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter numbers of its own, norms included, so that none can be left out unnoticed."""
    generator = seeded(seed)
    for parameter in module.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))


def apply_plainly(layer: NormedLinear, features: Tensor) -> Tensor:
    """Give a layer's output by torch's layers, one after the other."""
    normed: Tensor = layer.norm(functional.linear(features, layer.weight, layer.bias))
    if layer.activation == "mish":
        return functional.mish(normed)
    groups = normed.view(*normed.shape[:-1], -1, layer.group).exp()
    return (groups / groups.sum(-1, keepdim=True)).view(normed.shape)


@pytest.mark.parametrize("activation", ["mish", "simnorm"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_a_normed_layer_is_its_parts_in_a_row_with_their_gradients(
    activation: Literal["mish", "simnorm"], shape: tuple[int, ...]
) -> None:
    layer = NormedLinear(5, 12, activation, group=4)
    scramble(layer)
    features, slope = draw(*shape).requires_grad_(), draw(*shape[:-1], 12, seed=1)
    wanted = [features, *layer.parameters()]
    found, expected = layer(features), apply_plainly(layer, features)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, wanted, slope), torch.autograd.grad(expected, wanted, slope), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_large_normed_layer_is_its_parts_in_a_row_too() -> None:
    """Its product goes to another library."""
    layer = NormedLinear(128, 256)
    scramble(layer)
    features = draw(64, 128)
    assert features.numel() * 256 >= ONEDNN_FROM
    torch.testing.assert_close(layer(features), apply_plainly(layer, features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_dropout_keeps_the_mean_and_leaves_out_its_share(share: float) -> None:
    dropped = drop_out(torch.ones(400_000), share, seeded())
    deviation = math.sqrt(share * (1 - share) / dropped.numel())
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=5 * deviation)
    assert dropped.mean().item() == pytest.approx(1.0, abs=5 * deviation / (1 - share))
    assert dropped.max().item() == pytest.approx(1 / (1 - share))


def test_gradients_go_through_what_dropout_keeps() -> None:
    features = draw(50).requires_grad_()
    dropped = drop_out(features, 0.4, seeded())
    (slope,) = torch.autograd.grad(dropped.sum(), features)
    torch.testing.assert_close(slope, (dropped != 0) / 0.6)


def test_dropout_is_drawn_by_the_generator_alone() -> None:
    before = torch.get_rng_state()
    features = draw(1_000)
    assert torch.equal(drop_out(features, 0.5, seeded(3)), drop_out(features, 0.5, seeded(3)))
    assert not torch.equal(drop_out(features, 0.5, seeded(3)), drop_out(features, 0.5, seeded(4)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_groups_of_numbers_add_up_to_one(group: int) -> None:
    features = 50 * draw(3, 7, 24)
    found = SimNorm(group)(features)
    assert found.shape == features.shape
    torch.testing.assert_close(found.view(3, 7, -1, group).sum(-1), torch.ones(3, 7, 24 // group))
    assert found.min() >= 0
    first = features[..., :group].softmax(-1)
    torch.testing.assert_close(found[..., :group], first)


@pytest.mark.parametrize("dims", [[3, 4], [3, 6, 4], [3, 6, 7, 4]])
def test_the_last_layer_is_bare_or_ends_in_groups(dims: list[int]) -> None:
    bare, grouped = build_mlp(dims), build_mlp(dims, "simnorm", 2)
    for network in (bare, grouped):
        layers = [layer for layer in network.children() if isinstance(layer, Linear)]
        assert [(layer.in_features, layer.out_features) for layer in layers] == list(itertools.pairwise(dims))
        assert all(isinstance(layer, NormedLinear) and layer.activation == "mish" for layer in layers[:-1])
    assert type(bare[-1]) is Head
    torch.testing.assert_close(grouped(draw(5, 3)).view(5, -1, 2).sum(-1), torch.ones(5, dims[-1] // 2))


def build_ensemble(members: int = 5, dropout: float = 0.2) -> Ensemble:
    ensemble = Ensemble(members, in_dim=6, hidden_dim=9, out_dim=4, dropout=dropout)
    scramble(ensemble)
    return ensemble


def take_member(ensemble: Ensemble, member: int) -> nn.Sequential:
    """Give one member as a network of torch's own layers."""
    parts: list[nn.Module] = []
    for layer, (weights, biases) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        linear = nn.Linear(weights.shape[2], weights.shape[1])
        linear.load_state_dict({"weight": weights[member], "bias": biases[member]})
        parts.append(linear)
        if layer < 2:
            norm = nn.LayerNorm(weights.shape[1])
            norm.load_state_dict(
                {"weight": ensemble.norm_weights[layer][member], "bias": ensemble.norm_biases[layer][member]}
            )
            parts += [norm, nn.Mish()]
    return nn.Sequential(*parts)


def find_gradients(ensemble: Ensemble, out: Tensor, joint: Tensor) -> list[Tensor]:
    slope = draw(*out.shape, seed=7)
    return list(torch.autograd.grad(out, [joint, *ensemble.parameters()], slope))


def test_an_ensemble_is_as_many_single_networks_with_their_gradients() -> None:
    ensemble = build_ensemble().eval()
    joint = draw(11, 6).requires_grad_()
    out = ensemble(joint)
    singles = [take_member(ensemble, member) for member in range(5)]
    torch.testing.assert_close(out, torch.stack([single(joint) for single in singles]))
    slope, *_ = find_gradients(ensemble, out, joint)
    plain = torch.stack([single(joint) for single in singles])
    (expected,) = torch.autograd.grad(plain, [joint], draw(*out.shape, seed=7))
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_an_ensembles_weights_are_those_of_its_members() -> None:
    ensemble = build_ensemble(3).eval()
    joint = draw(11, 6)
    out = ensemble(joint)
    found = torch.autograd.grad(out, list(ensemble.weights), draw(*out.shape, seed=7))
    for member in range(3):
        single = take_member(ensemble, member)
        weights = [layer.weight for layer in single.children() if isinstance(layer, nn.Linear)]
        expected = torch.autograd.grad(single(joint), weights, draw(*out.shape, seed=7)[member])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[member], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [[0, 1], [4, 2], [3], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_members_chosen_first_are_those_picked_from_all(chosen: Sequence[int]) -> None:
    ensemble = build_ensemble().eval()
    joint = draw(11, 6).requires_grad_()
    first, picked = ensemble(joint, chosen), ensemble(joint)[list(chosen)]
    torch.testing.assert_close(first, picked)
    for one, other in zip(find_gradients(ensemble, first, joint), find_gradients(ensemble, picked, joint), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_members_that_are_not_chosen_get_gradients_of_zero() -> None:
    ensemble = build_ensemble().eval()
    out = ensemble(draw(11, 6), [1, 3])
    for gradient in torch.autograd.grad(out.square().sum(), list(ensemble.parameters())):
        assert torch.equal(gradient.flatten(1).abs().sum(1) > 0, torch.tensor([False, True, False, True, False]))


@pytest.mark.parametrize("chosen", [None, [0, 2]])
def test_a_frozen_ensemble_lets_gradients_through_to_what_goes_in_alone(chosen: list[int] | None) -> None:
    ensemble = build_ensemble().eval()
    joint = draw(11, 6).requires_grad_()
    moving, frozen = ensemble(joint, chosen), ensemble(joint, chosen, frozen=True)
    torch.testing.assert_close(frozen, moving)
    slope = draw(*moving.shape, seed=7)
    (expected,) = torch.autograd.grad(moving, [joint], slope)
    (found,) = torch.autograd.grad(frozen, [joint], slope, retain_graph=True)
    torch.testing.assert_close(found, expected)
    assert set(torch.autograd.grad(frozen, list(ensemble.parameters()), slope, allow_unused=True)) == {None}
    assert not ensemble(draw(11, 6), chosen, frozen=True).requires_grad
    assert all(parameter.requires_grad for parameter in ensemble.parameters())


def test_dropout_in_an_ensemble_is_of_the_first_layer_in_training_and_drawn_by_the_generator() -> None:
    ensemble = build_ensemble(2, dropout=0.5)
    joint = draw(11, 6)
    assert torch.equal(ensemble(joint, None, seeded(3)), ensemble(joint, None, seeded(3)))
    assert not torch.equal(ensemble(joint, None, seeded(3)), ensemble(joint, None, seeded(4)))
    member = take_member(ensemble, 1)
    linear = member[0](joint)
    kept = torch.rand(linear.shape, generator=seeded(3)) >= 0.5
    torch.testing.assert_close(ensemble(joint, [1], seeded(3))[0], member[1:](torch.where(kept, 2 * linear, 0)))
    assert torch.equal(ensemble.eval()(joint, None, seeded(3)), ensemble(joint))
    without = build_ensemble(2, dropout=0.0)
    assert torch.equal(without(joint), without.eval()(joint))


def test_what_an_ensemble_drops_differs_between_its_members() -> None:
    ensemble = Ensemble(3, in_dim=4, hidden_dim=64, out_dim=2, dropout=0.5)
    scramble(ensemble)
    with torch.no_grad():
        for part in ensemble.parameters():
            part[1:] = part[0]
    first, *others = ensemble(draw(9, 4), None, seeded())
    assert all(not torch.equal(first, other) for other in others)
    first, *others = ensemble.eval()(draw(9, 4))
    assert all(torch.equal(first, other) for other in others)


def test_a_new_ensemble_gives_zero_and_its_members_differ() -> None:
    ensemble = build_ensemble()
    ensemble.initialise(seeded())
    assert ensemble.eval()(draw(11, 6)).abs().max() == 0
    for weight in ensemble.weights[:-1]:
        assert len({member.flatten()[0].item() for member in weight}) == 5
    again, other = build_ensemble(), build_ensemble()
    again.initialise(seeded())
    other.initialise(seeded(1))
    for left, equal in zip(ensemble.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, equal)
    assert not torch.equal(ensemble.weights[0], other.weights[0])


def test_first_weights_are_drawn_as_published_and_norms_begin_as_none() -> None:
    first, convolution, last = NormedLinear(200, 300), nn.Conv2d(3, 5, 7), Linear(300, 40)
    network = nn.Sequential(first, convolution, last)
    scramble(network)
    draw_network(network, seeded())
    for layer in (first, last):
        assert layer.weight.std().item() == pytest.approx(FIRST_DEVIATION, rel=0.03)
        assert layer.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
        assert layer.bias.abs().max() == 0
    assert torch.equal(first.norm.weight, torch.ones(300))
    assert torch.equal(first.norm.bias, torch.zeros(300))
    bound = 1 / math.sqrt(3 * 7 * 7)
    assert 0.95 * bound < convolution.weight.abs().max() <= bound
    assert convolution.bias is not None
    assert 0 < convolution.bias.abs().max() <= bound


def test_drawing_follows_the_generator_and_nothing_global() -> None:
    networks = [nn.Sequential(NormedLinear(4, 6), nn.Conv2d(1, 2, 3)) for _ in range(3)]
    before = torch.get_rng_state()
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        draw_network(network, seeded(seed))
    assert torch.equal(before, torch.get_rng_state())
    first, same, other = (nn.utils.parameters_to_vector(network.parameters()) for network in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rows", [(2,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("size", [(64, 64), (41, 57)])
def test_pixels_become_groups_that_add_up_to_one(rows: tuple[int, ...], size: tuple[int, int]) -> None:
    encoder = PixelEncoder(channels=3, num_channels=4, group=2)
    images = torch.randint(0, 256, (*rows, 3, *size), generator=seeded(), dtype=torch.uint8)
    latent = encoder(images)
    channels, height, width = find_pixel_map((3, *size), 4)
    assert latent.shape == (*rows, channels * height * width)
    torch.testing.assert_close(latent.unflatten(-1, (-1, 2)).sum(-1), torch.ones(*rows, latent.shape[-1] // 2))
    flat = encoder(images.flatten(0, -4))
    torch.testing.assert_close(latent.flatten(0, -2), flat)


def test_pixels_go_through_four_convolutions_with_relu_between_them() -> None:
    encoder = PixelEncoder(channels=2, num_channels=4, group=4)
    images = torch.randint(0, 256, (3, 2, 45, 45), generator=seeded(), dtype=torch.uint8)
    features = images.double() / 255 - 0.5
    layers = [layer.double() for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in layers] == [7, 5, 3, 3]
    assert [layer.stride[0] for layer in layers] == [2, 2, 2, 1]
    features = layers[0](features)
    for layer in layers[1:]:
        features = layer(features.clamp(min=0))
    expected = features.flatten(1).unflatten(-1, (-1, 4)).softmax(-1).flatten(-2).float()
    torch.testing.assert_close(encoder.float()(images), expected, rtol=1e-4, atol=1e-6)
