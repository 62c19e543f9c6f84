"""A window into one vector: fusion, attention, and all together."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from rl.vmamba_td3.architecture import StreamConfig, TrunkConfig
from rl.vmamba_td3.counting import count_attention, count_fusion, count_stream
from rl.vmamba_td3.encoders import build_visual_encoder
from rl.vmamba_td3.sequence import CrossAttention, FusionMLP, MambaSequenceEncoder, build_sequence_encoder

STREAM = StreamConfig(
    (1, 32, 32),
    state_dim=5,
    trunk=TrunkConfig(8, (1, 1, 1, 1), ssm_d_state=2),
    feature_dim=12,
    state_feature_dim=10,
    hidden_dim=16,
    temporal_layers=2,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_torchs_with_the_last_step_asking(steps: int, num_heads: int) -> None:
    attention = CrossAttention(16, num_heads)
    peer = nn.MultiheadAttention(16, num_heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_bias.copy_(draw(48))
        attention.out_proj.bias.copy_(draw(16))
    peer.load_state_dict(attention.state_dict())
    sequence = draw(3, steps, 16)
    expected, weights = peer(sequence[:, -1:], sequence, sequence, average_attn_weights=False)
    torch.testing.assert_close(attention(sequence), expected.squeeze(1))
    torch.testing.assert_close(attention.get_attention_weights(sequence), weights.squeeze(2))
    assert count(attention) == count_attention(16)


def test_the_weights_of_each_head_sum_to_one() -> None:
    weights = CrossAttention(16).get_attention_weights(draw(3, 5, 16))
    assert weights.shape == (3, 4, 5)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4))


def test_attention_alone_does_not_know_the_order_of_earlier_steps() -> None:
    attention, sequence = CrossAttention(16), draw(2, 4, 16)
    torch.testing.assert_close(attention(sequence[:, [2, 0, 1, 3]]), attention(sequence))
    assert not torch.allclose(attention(sequence[:, [3, 0, 1, 2]]), attention(sequence))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vmamba_num_heads is 3, which does not divide hidden_dim 16"):
        CrossAttention(16, 3)
    with pytest.raises(ValueError, match="vmamba_num_heads is 5"):
        MambaSequenceEncoder(12, 10, 16, num_heads=5)


def test_fusion_reads_both_features_of_its_own_step_alone() -> None:
    fusion = FusionMLP(12, 10, 16)
    visual, state = draw(2, 4, 12), draw(2, 4, 10, seed=1)
    fused = fusion(visual, state)
    assert fused.shape == (2, 4, 16)
    assert fused.min() >= 0
    assert count(fusion) == count_fusion(22, 16)
    for part in (visual, state):
        part[:, 2] += 1
        changed = (fusion(visual, state) != fused).any(-1)
        assert changed.nonzero()[:, 1].unique().tolist() == [2]
        part[:, 2] -= 1


@pytest.mark.parametrize("scan", ["cross", "causal"])
def test_a_window_becomes_one_vector_with_a_gradient_for_every_number(scan: Literal["cross", "causal"]) -> None:
    encoder = build_sequence_encoder(replace(STREAM, temporal_scan=scan))
    encoder.initialise(torch.Generator().manual_seed(0))
    context = encoder(draw(3, 4, 12), draw(3, 4, 10, seed=1))
    assert context.shape == (3, 16)
    context.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
    assert count(encoder) == count_stream(replace(STREAM, temporal_scan=scan))["mamba"]


def test_it_is_fusion_scan_and_attention_as_the_documents_take_it_apart() -> None:
    encoder, visual = build_sequence_encoder(STREAM), build_visual_encoder(STREAM)
    depth, state = draw(1, 4, 1, 32, 32).abs(), draw(1, 4, 10, seed=1)
    features = visual(depth.view(-1, *depth.shape[2:])).view(1, -1, 12)
    sequence = encoder.temporal(encoder.fusion(features, state))
    torch.testing.assert_close(encoder(features, state), encoder.cross_attn(sequence))
    assert encoder.cross_attn.get_attention_weights(sequence).squeeze().shape == (4, 4)


def test_earlier_frames_and_their_order_count() -> None:
    encoder = build_sequence_encoder(STREAM)
    visual, state = draw(2, 4, 12), draw(2, 4, 10, seed=1)
    context = encoder(visual, state)
    swapped = visual[:, [1, 0, 2, 3]]
    assert not torch.allclose(encoder(swapped, state), context, rtol=0, atol=1e-6)


def test_with_use_amp_the_vector_has_32_bits_and_is_about_the_same() -> None:
    encoder = build_sequence_encoder(STREAM)
    visual, state = draw(2, 4, 12), draw(2, 4, 10, seed=1)
    plain = encoder(visual, state)
    encoder.use_amp = True
    amp = encoder(visual, state)
    assert amp.dtype == torch.float32
    assert not torch.equal(amp, plain)
    torch.testing.assert_close(amp, plain, rtol=0, atol=0.05 * plain.abs().max().item())


def test_first_weights_follow_the_generator_alone() -> None:
    encoders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoders.append(build_sequence_encoder(STREAM))
        encoders[-1].initialise(torch.Generator().manual_seed(5))
    for one, other in zip(*(encoder.parameters() for encoder in encoders), strict=True):
        assert torch.equal(one, other)
