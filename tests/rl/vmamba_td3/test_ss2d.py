"""SS2D against a loop in float64, its symmetries, and what it does on a single position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.vmamba_td3 import ss2d
from rl.vmamba_td3.ss2d import SS2D, SelectiveSpace

SWAPPED_BY_TRANSPOSING = [1, 0, 3, 2]
SWAPPED_BY_TURNING_ROUND = [2, 3, 0, 1]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(dim: int = 8, d_state: int = 3, ratio: float = 2.0, gate: bool = True, conv_bias: bool = True) -> SS2D:
    """One in float64 whose every parameter has a say."""
    layer = SS2D(dim, d_state, ratio, gate=gate, conv_bias=conv_bias).double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter += 0.3 * draw(*parameter.shape, seed=number)
    return layer


def find_paths(height: int, width: int) -> Iterator[list[tuple[int, int]]]:
    by_rows = [(row, column) for row in range(height) for column in range(width)]
    by_columns = [(row, column) for column in range(width) for row in range(height)]
    yield from (by_rows, by_columns, by_rows[::-1], by_columns[::-1])


def scan_slowly(layer: SS2D, features: Tensor) -> Tensor:
    """The layer as its paper has it, one image, path, step after the other."""
    batch, height, width, _ = features.shape
    inner, rank, states = layer.d_inner, layer.dt_rank, layer.d_state
    seen = features @ layer.in_proj.weight.T
    seen, gate = seen[..., :inner], seen[..., inner:]
    seen = functional.silu(
        functional.conv2d(
            seen.permute(0, 3, 1, 2), layer.conv2d.weight, layer.conv2d.bias, padding=1, groups=inner
        ).permute(0, 2, 3, 1)
    )
    total = torch.zeros(batch, height, width, inner, dtype=torch.float64)
    decays = -torch.exp(layer.A_logs).view(4, inner, states)
    for path, positions in enumerate(find_paths(height, width)):
        memory = torch.zeros(batch, inner, states, dtype=torch.float64)
        for row, column in positions:
            read = seen[:, row, column]
            parts = read @ layer.x_proj_weight[path].T
            step = functional.softplus(parts[:, :rank] @ layer.dt_projs_weight[path].T + layer.dt_projs_bias[path])
            inputs, outputs = parts[:, None, rank : rank + states], parts[:, None, rank + states :]
            memory = torch.exp(step[..., None] * decays[path]) * memory + (step * read)[..., None] * inputs
            total[:, row, column] += (memory * outputs).sum(-1) + layer.Ds.view(4, inner)[path] * read
    normed = functional.layer_norm(total, (inner,), layer.out_norm.weight, layer.out_norm.bias)
    gated = normed * functional.silu(gate) if gate.shape[-1] else normed
    return gated @ layer.out_proj.weight.T


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 1), (3, 3)])
@pytest.mark.parametrize("gate", [True, False])
def test_it_is_the_recurrence_of_its_paper_with_all_gradients(size: tuple[int, int], gate: bool) -> None:
    layer = build(gate=gate, conv_bias=gate)
    features = draw(2, *size, 8, seed=99).requires_grad_()
    slope = draw(2, *size, 8, seed=98)
    wanted = [features, *layer.parameters()]
    found = torch.autograd.grad((layer(features) * slope).sum(), wanted)
    expected = torch.autograd.grad((scan_slowly(layer, features) * slope).sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(layer(features), scan_slowly(layer, features), rtol=1e-9, atol=1e-10)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def permute_paths(layer: SS2D, order: list[int], turn_kernel: Callable[[Tensor], Tensor]) -> SS2D:
    """The layer with its paths' parameters exchanged and its kernel turned."""
    other = build()
    state = dict(layer.state_dict())
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
        state[name] = state[name][order]
    for name in ("A_logs", "Ds"):
        state[name] = state[name].view(4, layer.d_inner, -1)[order].reshape(state[name].shape)
    state["conv2d.weight"] = turn_kernel(state["conv2d.weight"])
    other.load_state_dict(state)
    return other


def test_transposing_a_map_transposes_the_result_when_rows_and_columns_change_places() -> None:
    layer, features = build(), draw(2, 3, 5, 8, seed=99)
    other = permute_paths(layer, SWAPPED_BY_TRANSPOSING, lambda kernel: kernel.transpose(2, 3))
    torch.testing.assert_close(other(features.transpose(1, 2)), layer(features).transpose(1, 2))
    assert not torch.allclose(layer(features.transpose(1, 2)), layer(features).transpose(1, 2))


def test_turning_a_map_round_turns_the_result_when_each_path_and_its_way_back_change_places() -> None:
    layer, features = build(), draw(2, 3, 5, 8, seed=99)
    other = permute_paths(layer, SWAPPED_BY_TURNING_ROUND, lambda kernel: kernel.flip(2, 3))
    torch.testing.assert_close(other(features.flip(1, 2)), layer(features).flip(1, 2))
    assert not torch.allclose(layer(features.flip(1, 2)), layer(features).flip(1, 2))


def test_a_single_position_is_read_as_a_scan_of_one_step_would() -> None:
    space = SelectiveSpace(8, 3, 2.0, num_paths=4).double()
    features = draw(5, 16)
    parts = space.project(features)
    scanned = space.scan(features[:, None, None].expand(5, 1, 4, 16), parts[:, None])
    torch.testing.assert_close(space.read_once(features, parts), scanned.sum((1, 2)))


def test_what_a_single_position_leaves_out_has_gradients_of_zero_rather_than_none() -> None:
    layer = build()
    layer(draw(2, 1, 1, 8)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
    assert not layer.A_logs.grad.any()  # type: ignore[union-attr]
    assert layer.Ds.grad.any()  # type: ignore[union-attr]


def test_its_parameters_are_called_and_shaped_as_in_vmambas_code() -> None:
    """For 96 channels and 16 states: an inner 192, a rank of 6."""
    shapes = {name: tuple(tensor.shape) for name, tensor in SS2D(96).state_dict().items()}
    assert shapes == {
        "x_proj_weight": (4, 38, 192),
        "dt_projs_weight": (4, 192, 6),
        "dt_projs_bias": (4, 192),
        "A_logs": (768, 16),
        "Ds": (768,),
        "in_proj.weight": (384, 96),
        "conv2d.weight": (192, 1, 3, 3),
        "conv2d.bias": (192,),
        "out_norm.weight": (192,),
        "out_norm.bias": (192,),
        "out_proj.weight": (96, 192),
    }


def test_first_steps_are_spread_by_their_logarithms_and_first_decays_are_1_to_n() -> None:
    layer = SS2D(256, d_state=5)
    layer.draw_space(torch.Generator().manual_seed(0))
    steps = functional.softplus(layer.dt_projs_bias.detach()).double()
    assert 1e-3 * 0.999 < steps.min() < 1.1e-3
    assert 0.097 < steps.max() < 0.1 * 1.001
    assert steps.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(0.1)) / 2, abs=0.1)
    decays = layer.A_logs.detach().exp()
    torch.testing.assert_close(decays, torch.arange(1.0, 6).expand_as(decays))
    assert torch.equal(layer.Ds, torch.ones_like(layer.Ds))
    bound = 1 / math.sqrt(layer.dt_rank)
    assert 0.95 * bound < layer.dt_projs_weight.abs().max() <= bound


def test_a_generator_decides_the_first_parameters_and_nothing_global_is_drawn() -> None:
    layer = SS2D(8)
    before = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        layer.draw_space(torch.Generator().manual_seed(seed))
        drawn.append(nn.utils.parameters_to_vector([layer.x_proj_weight, layer.dt_projs_weight, layer.dt_projs_bias]))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("size", [(1, 1), (2, 2)])
def test_scans_are_in_32_bits_while_products_around_take_16(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, features = SS2D(8), draw(2, *size, 8).float()
    precisions = list[torch.dtype]()
    scan, norm = ss2d.selective_scan, layer.out_norm

    def note(*arguments: Tensor, **options: bool) -> Tensor:
        precisions.extend(argument.dtype for argument in arguments)
        return scan(*arguments, **options)

    monkeypatch.setattr(ss2d, "selective_scan", note)
    norm.register_forward_pre_hook(lambda _, inputs: precisions.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.in_proj(features).dtype == torch.bfloat16
        out = layer(features)
    assert set(precisions) == {torch.float32}
    assert out.dtype == torch.bfloat16
    scale = layer(features).abs().max().item()
    torch.testing.assert_close(out.float(), layer(features), rtol=0, atol=0.05 * scale)
