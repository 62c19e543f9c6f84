"""Scans over time: which steps know of which, and step by step like at once."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rl.vmamba_td3.architecture import TrunkConfig
from rl.vmamba_td3.counting import count_temporal_layer
from rl.vmamba_td3.temporal import CausalScan, TemporalMamba

STEPS = 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(scan: Literal["cross", "causal"], num_layers: int = 2, dim: int = 8) -> TemporalMamba:
    """One in float64 whose every parameter has a say."""
    network = TemporalMamba(dim, num_layers, scan, d_state=3).double()
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter += 0.3 * draw(*parameter.shape, seed=number)
    return network


def find_changes(network: TemporalMamba, step: int) -> Tensor:
    """How much each step's features change when one step's do."""
    sequence = draw(2, STEPS, 8, seed=99)
    moved = sequence.clone()
    moved[:, step] += draw(8, seed=98)  # not the same for all channels, which a norm would take away
    return (network(moved) - network(sequence)).abs().amax((0, 2))


@pytest.mark.parametrize("step", range(STEPS))
def test_a_causal_scan_never_looks_ahead(step: int) -> None:
    changes = find_changes(build("causal"), step)
    assert not changes[:step].any()
    assert changes[step:].all()


def test_a_cross_scan_looks_both_ways() -> None:
    assert find_changes(build("cross"), STEPS - 1).all()
    assert find_changes(build("cross"), 0).all()


def test_a_causal_scan_is_the_same_step_by_step() -> None:
    network, sequence = build("causal"), draw(3, STEPS, 8)
    states, outs = network.begin(3), []
    for features in sequence.unbind(1):
        out, states = network.step(features, states)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, dim=1), network(sequence), rtol=1e-10, atol=1e-10)


def test_a_causal_scan_in_32_bits_is_the_same_step_by_step_to_five_digits() -> None:
    network, sequence = build("causal").float(), draw(3, STEPS, 8).float()
    states, outs = network.begin(3), []
    for features in sequence.unbind(1):
        out, states = network.step(features, states)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, dim=1), network(sequence), rtol=1e-5, atol=1e-5)


def test_a_cross_scan_does_not_go_step_by_step() -> None:
    network = build("cross")
    with pytest.raises(ValueError, match="temporal_scan is cross, which needs the whole window"):
        network.begin(1)
    with pytest.raises(ValueError, match="only causal goes step by step"):
        network.step(draw(1, 8), build("causal").begin(1))


def test_a_causal_scan_is_the_recurrence_of_its_paper() -> None:
    layer = CausalScan(8, d_state=3).double()
    sequence = draw(2, STEPS, 8)
    inner, gate = (sequence @ layer.in_proj.weight.T).chunk(2, dim=-1)
    padded = functional.pad(inner.transpose(1, 2), (2, 0))
    seen = functional.silu(functional.conv1d(padded, layer.conv1d.weight, layer.conv1d.bias, groups=16)).transpose(1, 2)
    memory, reads = torch.zeros(2, 16, 3, dtype=torch.float64), []
    for read in seen.unbind(1):
        rank, inputs, outputs = (read @ layer.x_proj_weight[0].T).split([1, 3, 3], dim=-1)
        step = functional.softplus(rank @ layer.dt_projs_weight[0].T + layer.dt_projs_bias[0])
        memory = torch.exp(-step[..., None] * layer.A_logs.exp()) * memory + (step * read)[..., None] * inputs[:, None]
        reads.append((memory * outputs[:, None]).sum(-1) + layer.Ds * read)
    normed = functional.layer_norm(torch.stack(reads, dim=1), (16,), layer.out_norm.weight, layer.out_norm.bias)
    expected = (normed * functional.silu(gate)) @ layer.out_proj.weight.T
    torch.testing.assert_close(layer(sequence), expected, rtol=1e-9, atol=1e-10)


def test_on_a_map_one_position_wide_six_of_nine_taps_have_no_say() -> None:
    network = build("cross", num_layers=1)
    network(draw(2, STEPS, 8)).square().sum().backward()
    slope = network.get_parameter("blocks.0.op.conv2d.weight").grad
    assert slope is not None
    assert not slope[..., [0, 2]].any()
    assert slope[..., 1].abs().sum((0, 1)).all()


@pytest.mark.parametrize("scan", ["cross", "causal"])
def test_a_layer_is_as_large_as_counted(scan: Literal["cross", "causal"]) -> None:
    network = TemporalMamba(24, 3, scan, d_state=5, ratio=1.5)
    layer = count_temporal_layer(24, TrunkConfig(ssm_d_state=5, ssm_ratio=1.5), scan)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3 * layer


@pytest.mark.parametrize("scan", ["cross", "causal"])
def test_a_window_of_one_frame_will_do(scan: Literal["cross", "causal"]) -> None:
    network = build(scan)
    network(draw(2, 1, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
