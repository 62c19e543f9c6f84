"""Stems, blocks and the trunk: sides, factors, dropped paths, and blocks that run twice."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.vmamba_td3.architecture import TrunkConfig
from rl.vmamba_td3.counting import count_block, count_trunk
from rl.vmamba_td3.stems import DownsampleV1, DownsampleV2, DownsampleV3, PatchPartition
from rl.vmamba_td3.vssm import VSSM, VSSBlock, draw_weights
from training import products
from training.products import multiply

TINY = TrunkConfig(8, (1, 2, 1, 1), patch_size=4, ssm_d_state=2, layer_scale_init=0.5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(config: TrunkConfig = TINY, channels: int = 1, **options: bool) -> VSSM:
    trunk = VSSM(config, channels, **options)
    draw_weights(trunk, torch.Generator().manual_seed(0))
    return trunk


def find_stage_sides(trunk: VSSM, height: int, width: int) -> list[tuple[int, int]]:
    sides = list[tuple[int, int]]()
    for blocks in trunk.stages:
        first = blocks[0]  # type: ignore[index]
        first.register_forward_pre_hook(lambda _, inputs: sides.append(tuple(inputs[0].shape[1:3])))
    with torch.no_grad():
        trunk(torch.zeros(1, 1, height, width))
    return sides


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
@pytest.mark.parametrize("size", [(64, 64), (84, 84), (128, 128), (100, 75)])
def test_sides_are_what_the_config_says(size: tuple[int, int], patch_size: int) -> None:
    config = replace(TINY, patch_size=patch_size)
    assert find_stage_sides(build(config), *size) == config.find_sides(*size)


@pytest.mark.parametrize("downsample", ["v1", "v2", "v3"])
def test_every_way_to_fewer_positions_rounds_sides_up(downsample: Literal["v1", "v2", "v3"]) -> None:
    config = replace(TINY, patch_size=4, downsample=downsample)
    assert find_stage_sides(build(config), 36, 52) == config.find_sides(36, 52) == [(9, 13), (5, 7), (3, 4), (2, 2)]


def test_the_overlapping_stem_has_the_sides_of_patches_of_four() -> None:
    config = replace(TINY, stem="v2")
    assert find_stage_sides(build(config), 33, 64) == config.find_sides(33, 64)


def test_frames_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="frames of 3x64 pixels are smaller than a patch of 4x4"):
        build()(torch.zeros(1, 1, 3, 64))


@pytest.mark.parametrize("size", [(16, 24), (15, 21)])
def test_patches_are_a_convolution_over_frames_filled_up_with_zeros(size: tuple[int, int]) -> None:
    stem = PatchPartition(3, 8, 4)
    frames = draw(2, 3, *size)
    filled = functional.pad(frames, (0, -size[1] % 4, 0, -size[0] % 4))
    torch.testing.assert_close(stem(frames), stem.norm(stem.proj(filled).permute(0, 2, 3, 1)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 3), (4, 5)])
def test_the_third_way_to_fewer_positions_is_its_convolution_with_its_gradients(size: tuple[int, int]) -> None:
    down = DownsampleV3(6).double()
    features = draw(2, *size, 6).double().requires_grad_()
    plain = down.norm(down.conv(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    slope = draw(*plain.shape).double()
    wanted = [features, *down.parameters()]
    torch.testing.assert_close(down(features), plain)
    found = torch.autograd.grad((down(features) * slope).sum(), wanted)
    expected = torch.autograd.grad((plain * slope).sum(), wanted)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_other_ways_see_four_neighbours_columns_first_and_zeros_beyond_the_edge() -> None:
    features = draw(2, 3, 2, 4)
    filled = functional.pad(features, (0, 0, 0, 0, 0, 1))
    merge = DownsampleV1(4)
    neighbours = [filled[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    torch.testing.assert_close(merge(features), merge.reduction(merge.norm(torch.cat(neighbours, dim=-1))))
    convolve = DownsampleV2(4)
    plain = convolve.conv(filled.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(convolve(features), convolve.norm(plain))


@pytest.mark.parametrize("mlp_ratio", [0.0, 4.0])
@pytest.mark.parametrize("layer_scale_init", [None, 0.5])
def test_a_block_adds_a_scan_and_an_mlp_with_their_factors(mlp_ratio: float, layer_scale_init: float | None) -> None:
    config = replace(TINY, mlp_ratio=mlp_ratio, layer_scale_init=layer_scale_init)
    block, features = VSSBlock(8, config), draw(2, 3, 3, 8)
    assert sum(parameter.numel() for parameter in block.parameters()) == count_block(config, 8)
    factor = 1.0 if layer_scale_init is None else layer_scale_init
    expected = features + factor * block.op(block.norm(features))
    if mlp_ratio:
        assert block.mlp is not None
        assert block.norm2 is not None
        expected = expected + factor * block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(features), expected)


def test_a_block_with_the_documents_first_factors_changes_next_to_nothing_and_learns_them() -> None:
    block, features = VSSBlock(8, replace(TINY, layer_scale_init=1e-6)), draw(2, 3, 3, 8)
    out = block(features)
    assert 0 < (out - features).abs().max() < 1e-4
    out.square().sum().backward()
    for scale in (block.scale, block.scale2):
        assert scale is not None
        assert scale.gamma.grad is not None
        assert scale.gamma.grad.abs().min() > 0


def test_without_factors_a_block_has_none() -> None:
    names = [name for name, _ in build(replace(TINY, layer_scale_init=None)).named_parameters()]
    assert not [name for name in names if "scale" in name]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp_ratio": 0.0, "downsample": "v1", "layer_scale_init": None},
        {"gate": False, "conv_bias": False, "stem": "v2", "ssm_d_state": 1, "ssm_ratio": 1.0, "downsample": "v2"},
    ],
)
def test_a_trunk_has_as_many_numbers_as_are_counted_and_a_gradient_for_each(changes: dict[str, Any]) -> None:
    config = replace(TINY, **changes)
    trunk = build(config, channels=2)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == count_trunk(config, 2)
    trunk(draw(2, 2, 32, 32)).square().sum().backward()
    for name, parameter in trunk.named_parameters():
        assert parameter.grad is not None, name


def test_no_product_is_asked_of_a_tensor_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library behind large products would take a hundred times as long."""
    operands = list[Tensor]()

    def note(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        operands.extend((left, right))
        return multiply(left, right, bias)

    monkeypatch.setattr(products, "multiply", note)
    monkeypatch.setattr(products, "ONEDNN_FROM", 1)
    trunk = build()
    for side in (8, 16, 64):  # of one position, two and four at some stage
        trunk(draw(3, 1, side, side)).square().sum().backward()
    assert operands or not torch._C._has_mkldnn
    assert all(operand.is_contiguous() or operand.t().is_contiguous() for operand in operands)


class TestDroppedPaths:
    rate = 0.5
    config = replace(TINY, drop_path_rate=rate)

    def test_in_evaluation_nothing_is_dropped_or_drawn(self) -> None:
        trunk, frames = build(self.config).eval(), draw(2, 1, 16, 16)
        before = torch.get_rng_state()
        assert torch.equal(trunk(frames), trunk(frames))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(trunk(frames), build(replace(TINY, drop_path_rate=0.0))(frames))

    def test_a_generator_decides_what_is_dropped(self) -> None:
        trunk, frames = build(self.config), draw(4, 1, 16, 16)
        before = torch.get_rng_state()
        one, same, other = (trunk(frames, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(before, torch.get_rng_state())

    def test_later_blocks_are_left_out_more_often_and_what_is_kept_makes_up_for_it(self) -> None:
        trunk = build(self.config)
        kept = trunk._draw_kept(20_000, torch.Generator().manual_seed(0))
        for number, factors in enumerate(kept):
            assert factors is not None
            keep = 1 - self.rate * number / (len(kept) - 1)
            assert factors.shape == (2, 20_000)
            assert (factors > 0).float().mean().item() == pytest.approx(keep, abs=0.01)
            assert factors[factors > 0].unique().tolist() == pytest.approx([1 / keep])
            assert not torch.equal(factors[0], factors[1]) or keep == 1

    def test_a_dropped_path_leaves_an_images_map_as_it_was_and_no_other(self) -> None:
        block, features = VSSBlock(8, TINY), draw(3, 2, 2, 8)
        out = block(features, torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 0.0]]))
        assert torch.equal(out[0], features[0])
        torch.testing.assert_close(out[1], block(features)[1])
        scanned = block.op(block.norm(features))[2] * 0.5
        torch.testing.assert_close(out[2], features[2] + 2 * scanned)


def test_blocks_that_run_again_give_the_same_numbers_and_gradients_to_the_bit() -> None:
    plain = build(replace(TINY, drop_path_rate=0.5))
    thrifty = copy.deepcopy(plain)
    thrifty.use_checkpointing = True
    frames, runs = draw(3, 1, 24, 24), list[nn.Module]()
    for block in thrifty.stages[0]:  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda module, _: runs.append(module))
    outs = [trunk(frames, torch.Generator().manual_seed(7)) for trunk in (plain, thrifty)]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    assert len(runs) == 2
    for mine, theirs in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert mine.grad is not None
        assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]


def test_blocks_run_once_where_no_gradient_is_asked_for() -> None:
    trunk, runs = build(use_checkpointing=True), list[nn.Module]()
    trunk.stages[0][0].register_forward_pre_hook(lambda module, _: runs.append(module))  # type: ignore[index]
    with torch.no_grad():
        trunk(draw(1, 1, 16, 16))
    assert len(runs) == 1


def test_a_generator_decides_all_first_weights_but_the_factors_on_blocks() -> None:
    one, same, other = (VSSM(TINY, 1) for _ in range(3))
    for trunk, seed in ((one, 0), (same, 0), (other, 1)):
        draw_weights(trunk, torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    draw_weights(one, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name)), name
        constant = any(part in name for part in ("norm", "gamma", "A_logs", "Ds")) or name.endswith(
            ("fc1.bias", "fc2.bias")
        )
        assert torch.equal(parameter, other.get_parameter(name)) == constant, name


def test_first_linear_weights_are_normal_and_cut_at_two_deviations() -> None:
    layer = nn.Linear(400, 400)
    draw_weights(layer, torch.Generator().manual_seed(0))
    assert layer.weight.abs().max() <= 0.04
    assert layer.weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)  # of a normal cut at 2
    assert not layer.bias.any()
