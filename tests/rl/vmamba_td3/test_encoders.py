"""Frames and states into features: sizes, precision, gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl.vmamba_td3.architecture import StreamConfig, TrunkConfig
from rl.vmamba_td3.counting import count_classifier, count_state_mlp, count_visual_encoder
from rl.vmamba_td3.encoders import (
    CNNVisualEncoder,
    StateMLP,
    VMamba,
    VMambaB,
    VMambaRLTiny,
    VMambaS,
    VMambaT,
    VMambaVisualEncoder,
    build_visual_encoder,
)
from rl.vmamba_td3.presets import PRESETS, PUBLISHED_MODELS

TRUNK = TrunkConfig(8, (1, 1, 1, 1), patch_size=8, ssm_d_state=2)
STREAM = StreamConfig((1, 32, 40), state_dim=5, trunk=TRUNK, feature_dim=12)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(**options: Any) -> VMambaVisualEncoder | CNNVisualEncoder:
    changes = {key: options.pop(key) for key in ("encoder", "use_input_adapter") if key in options}
    encoder = build_visual_encoder(replace(STREAM, **changes), **options)
    encoder.initialise(torch.Generator().manual_seed(0))
    return encoder


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_a_published_model_is_as_large_as_counted(name: str) -> None:
    trunk = PUBLISHED_MODELS[name].trunk
    with torch.device("meta"):
        assert count(VMamba(trunk)) == count_classifier(trunk, num_classes=1000)


def test_the_documents_three_classifiers_are_the_first_published_ones() -> None:
    with torch.device("meta"):
        assert [count(model()) for model in (VMambaT, VMambaS, VMambaB)] == [22_893_448, 44_417_416, 76_254_056]


def test_a_classifier_gives_a_number_for_each_class() -> None:
    assert VMamba(TRUNK, num_classes=7)(draw(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("changes", [{}, {"use_input_adapter": True}, {"encoder": "cnn"}])
def test_an_encoder_is_as_large_as_counted(name: str, changes: dict[str, Any]) -> None:
    stream = replace(PRESETS[name].plan_stream((1, 84, 84), state_dim=10), **changes)
    with torch.device("meta"):
        assert count(build_visual_encoder(stream)) == count_visual_encoder(stream)


def test_the_documents_encoders_have_their_exact_sizes() -> None:
    with torch.device("meta"):
        encoders = [build_visual_encoder(preset.plan_stream((1, 64, 64), 10)) for preset in PRESETS.values()]
    assert [count(encoder) for encoder in encoders] == [3_442_464, 15_103_040, 37_980_064, 79_292_288]


@pytest.mark.parametrize("encoder", ["vmamba", "cnn"])
def test_frames_become_features_one_by_one(encoder: str) -> None:
    network = build(encoder=encoder).eval()
    frames = draw(5, 1, 32, 40)
    features = network(frames)
    assert features.shape == (5, 12)
    for frame, feature in zip(frames, features, strict=True):
        torch.testing.assert_close(network(frame[None])[0], feature, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"encoder": "cnn"}, {"use_input_adapter": True}, {"use_checkpointing": True}])
def test_every_number_has_a_gradient_and_a_step_along_it_lowers_a_loss(options: dict[str, Any]) -> None:
    network, frames = build(**options), draw(5, 1, 32, 40)

    def find_loss() -> Tensor:
        return (network(frames, torch.Generator().manual_seed(1)) - 1).square().mean()

    first = find_loss()
    gradients = torch.autograd.grad(first, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient
    assert find_loss() < first


@pytest.mark.parametrize("encoder", ["vmamba", "cnn"])
def test_with_use_amp_products_take_16_bits_and_features_have_32(encoder: str) -> None:
    plain, amp = build(encoder=encoder).eval(), build(encoder=encoder, use_amp=True).eval()
    seen = list[torch.dtype]()
    for module in amp.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    frames = draw(5, 1, 32, 40)
    features = amp(frames)
    assert seen
    assert set(seen) == {torch.bfloat16}
    assert features.dtype == torch.float32
    assert not torch.equal(features, plain(frames))
    torch.testing.assert_close(features, plain(frames), rtol=0, atol=0.03 * plain(frames).abs().max().item())
    features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in amp.parameters())


def test_with_use_amp_too_blocks_that_run_again_give_the_same_gradients() -> None:
    frames, gradients = draw(5, 1, 32, 40), []
    for use_checkpointing in (False, True):
        network = build(use_amp=True, use_checkpointing=use_checkpointing)
        loss = network(frames, torch.Generator().manual_seed(1)).square().sum()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_blocks_that_run_again_keep_a_small_part_of_what_others_keep() -> None:
    kept = []
    for use_checkpointing in (False, True):
        sizes = dict[int, int]()

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        network = build(use_checkpointing=use_checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(draw(50, 1, 32, 40)).sum().backward()
        kept.append(sum(sizes.values()) - sum(4 * parameter.numel() for parameter in network.parameters()))
    assert 0 < kept[1] < kept[0] / 4


@pytest.mark.parametrize("encoder", ["vmamba", "cnn"])
def test_first_weights_follow_the_generator_alone(encoder: str) -> None:
    torch.manual_seed(0)
    one = build(encoder=encoder)
    torch.manual_seed(1)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), build(encoder=encoder).parameters(), strict=True))


def test_frames_too_small_are_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="smaller than one patch of vmamba_patch_size 8"):
        VMambaVisualEncoder((1, 7, 32), TRUNK, 12)
    with pytest.raises(ValueError, match="too small for encoder: cnn"):
        CNNVisualEncoder((1, 32, 14), 12)


@pytest.mark.parametrize("size", [(8, 8), (9, 31)])
def test_any_frame_not_smaller_than_a_patch_will_do(size: tuple[int, int]) -> None:
    encoder = VMambaVisualEncoder((2, *size), TRUNK, 12)
    assert encoder(draw(3, 2, *size)).isfinite().all()


def test_the_smallest_frame_leaves_the_cnn_one_position() -> None:
    encoder = CNNVisualEncoder((1, 15, 15), 12)
    assert encoder.linear.in_features == 32
    assert encoder(draw(2, 1, 15, 15)).abs().max() <= 1


def test_an_input_adapter_makes_three_channels_of_any() -> None:
    network = VMambaRLTiny(TRUNK, 5, 12, use_input_adapter=True)
    assert network.adapter is not None
    assert network.trunk.stem.proj.in_channels == 3  # type: ignore[union-attr]
    assert network(draw(2, 5, 32, 32)).shape == (2, 12)


def test_states_become_features_whatever_their_leading_axes() -> None:
    network = StateMLP(5, 12)
    network.initialise(torch.Generator().manual_seed(0))
    states = draw(3, 4, 5)
    assert count(network) == count_state_mlp(5, 12)
    assert network(states).shape == (3, 4, 12)
    torch.testing.assert_close(network(states)[1, 2], network(states[1, 2]))
