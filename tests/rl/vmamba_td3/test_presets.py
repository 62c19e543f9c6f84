"""Counted sizes against published and hand-counted ones, and the sizes that are refused. Nothing here needs torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from rl.vmamba_td3.architecture import StreamConfig, TrunkConfig
from rl.vmamba_td3.counting import (
    count_classifier,
    count_parameters,
    count_rl_encoder,
    count_stream,
    count_temporal_layer,
    count_trunk,
    count_visual_encoder,
    sum_with_targets,
)
from rl.vmamba_td3.presets import PRESETS, PUBLISHED_MODELS

NAMES = ("ultra_light", "light", "standard", "heavy")

PUBLISHED = {
    "vanilla_tiny": 22_893_448,
    "vanilla_small": 44_417_416,
    "vanilla_base": 76_254_056,
    "s2l5_tiny": 30_705_832,
    "s2l15_small": 50_147_752,
    "s2l15_base": 88_557_800,
    "s1l8_tiny": 30_249_064,
    "s1l20_small": 49_012_840,
    "s1l20_base": 86_614_504,
}

ENCODERS = {
    2: (3_432_480, 15_082_048, 37_947_040, 79_245_184),
    4: (3_432_864, 15_082_816, 37_948_192, 79_246_720),
    8: (3_434_400, 15_085_888, 37_952_800, 79_252_864),
    16: (3_440_544, 15_098_176, 37_971_232, 79_277_440),
}
"""Without factors on what blocks add, by patch size."""

DEFAULT_ENCODERS = (3_442_464, 15_103_040, 37_980_064, 79_292_288)


def plan(name: str, patch_size: int = 16, layer_scale_init: float | None = 1e-6, **changes: Any) -> StreamConfig:
    preset = PRESETS[name]
    trunk = replace(preset.trunk, patch_size=patch_size, layer_scale_init=layer_scale_init)
    return replace(preset.plan_stream((1, 64, 64), state_dim=10), trunk=trunk, **changes)


def test_there_are_four_presets_and_nine_published_models() -> None:
    assert tuple(PRESETS) == NAMES
    assert set(PUBLISHED_MODELS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_counts_what_it_should_and_rounds_to_what_its_authors_say(name: str) -> None:
    model = PUBLISHED_MODELS[name]
    count = count_classifier(model.trunk, num_classes=1000)
    assert count == PUBLISHED[name]
    assert round(count / 1e6) == model.published_millions


def test_the_documents_22_44_and_75_million_are_the_first_models_without_their_heads() -> None:
    for name in ("vanilla_tiny", "vanilla_small", "vanilla_base"):
        model = PUBLISHED_MODELS[name]
        assert round(count_trunk(model.trunk, channels=3) / 1e6) == model.documents_millions


@pytest.mark.parametrize("patch_size", ENCODERS)
def test_the_encoders_of_the_presets_count_what_they_should_at_each_patch_size(patch_size: int) -> None:
    counts = tuple(count_visual_encoder(plan(name, patch_size, None)) for name in NAMES)
    assert counts == ENCODERS[patch_size]


def test_the_encoders_count_what_they_should_as_the_documents_have_them() -> None:
    assert tuple(count_visual_encoder(plan(name)) for name in NAMES) == DEFAULT_ENCODERS


@pytest.mark.parametrize("name", NAMES)
def test_factors_on_blocks_and_an_input_adapter_add_what_arithmetic_says(name: str) -> None:
    trunk = PRESETS[name].trunk
    factors = sum(2 * depth * dim for depth, dim in zip(trunk.num_vss_blocks, trunk.dims, strict=True))
    assert count_visual_encoder(plan(name)) - count_visual_encoder(plan(name, layer_scale_init=None)) == factors
    adapted = count_visual_encoder(plan(name, 4, use_input_adapter=True))
    assert adapted - count_visual_encoder(plan(name, 4)) == 6 + 2 * 4**2 * trunk.hidden_dim


def test_each_part_of_an_agent_counts_what_it_should() -> None:
    expected = {
        "ultra_light": (4_864, 16_768 + 169_472 + 66_048, 34_179, 68_622, 7_482_833),
        "light": (17_920, 66_304 + 568_320 + 263_168, 133_891, 268_302, 32_399_249),
        "standard": (68_608, 263_680 + 2_054_144 + 1_050_624, 529_923, 1_060_878, 84_361_297),
        "heavy": (268_288, 1_051_648 + 15_556_608 + 4_198_400, 2_108_419, 4_218_894, 206_970_641),
    }
    for name in NAMES:
        counts = count_parameters(plan(name, 4, None), action_dim=3)
        state, sequence, actor, critic, total = expected[name]
        assert counts["actor_state_encoder"] == counts["critic_state_encoder"] == state
        assert counts["actor_mamba"] == counts["critic_mamba"] == sequence
        assert (counts["actor"], counts["critic"]) == (actor, critic)
        assert sum(counts.values()) == total
        assert sum_with_targets(counts) == 2 * total


def test_a_shared_encoder_leaves_the_actor_without_a_stream() -> None:
    separate, shared = (count_parameters(plan("light"), 3, kind) for kind in ("separate", "shared"))
    assert set(separate) - set(shared) == {"actor_visual_encoder", "actor_state_encoder", "actor_mamba"}
    assert sum(separate.values()) - sum(shared.values()) == sum(count_stream(plan("light")).values())


def test_an_asymmetric_critic_has_two_layers_in_its_streams_place() -> None:
    symmetric, asymmetric = (count_parameters(plan("light"), 3, privileged_dim=dim) for dim in (0, 90))
    assert set(symmetric) - set(asymmetric) == {"critic_visual_encoder", "critic_mamba"}
    assert asymmetric["critic_state_encoder"] == (10 + 90 + 1) * 256 + (256 + 1) * 256
    same = set(asymmetric) - {"critic_state_encoder"}
    assert {name: asymmetric[name] for name in same} == {name: symmetric[name] for name in same}


def test_a_causal_scan_has_one_path_and_three_taps_for_each_channel() -> None:
    trunk = TrunkConfig()
    cross, causal = (count_temporal_layer(128, trunk, kind) for kind in ("cross", "causal"))
    inner, rank, states = 256, 8, 16
    assert cross - causal == 6 * inner + 3 * inner * ((rank + 2 * states) + rank + 1 + states + 1)


def test_the_cnn_has_28_thousand_weights_before_its_linear_layer() -> None:
    config = StreamConfig((1, 84, 84), state_dim=10, encoder="cnn", feature_dim=50)
    last = 32 * 35 * 35 * 50 + 50 + 2 * 50
    assert count_visual_encoder(config) - last == 28_064
    assert count_rl_encoder(config.trunk, 1, 50, use_input_adapter=False) != count_visual_encoder(config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_vss_blocks": (2, 2, 4)}, r"vmamba_num_vss_blocks is \[2, 2, 4\]: it must be four numbers"),
        ({"num_vss_blocks": (2, 2, 0, 2)}, r"vmamba_num_vss_blocks is \[2, 2, 0, 2\]"),
        ({"hidden_dim": 0}, "vmamba_hidden_dim is 0"),
        ({"patch_size": 0}, "vmamba_patch_size is 0"),
        ({"ssm_d_state": -1}, "vmamba_ssm_d_state is -1"),
        ({"ssm_ratio": 0.01}, "vmamba_ssm_ratio is 0.01 with vmamba_hidden_dim 64: that leaves the scan no channel"),
        ({"mlp_ratio": -1.0}, "vmamba_mlp_ratio is -1.0"),
        ({"mlp_ratio": 0.001}, "vmamba_mlp_ratio is 0.001"),
        ({"drop_path_rate": 1.0}, r"vmamba_drop_path_rate is 1.0: it must be in \[0, 1\)"),
        ({"stem": "v2"}, "a stem v2 has a patch size of 4"),
    ],
)
def test_a_trunk_that_cannot_be_built_is_refused_by_its_key(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrunkConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frame_shape": (1, 64, 15)}, "frames of 64x15 pixels are smaller than one patch of vmamba_patch_size 16"),
        ({"frame_shape": (1, 14, 64), "encoder": "cnn"}, "frames of 14x64 pixels are too small for encoder: cnn"),
        ({"num_heads": 3}, r"vmamba_num_heads is 3, which does not divide hidden_dim 256; \[1, 2, 4, 8, 16\] do"),
        ({"num_heads": 0}, "vmamba_num_heads is 0"),
        ({"state_dim": 0}, "state_dim is 0"),
        ({"feature_dim": 0}, "feature_dim is 0"),
        ({"temporal_layers": 0}, "vmamba_temporal_layers is 0"),
    ],
)
def test_a_stream_that_cannot_be_built_is_refused_by_its_key(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StreamConfig(**({"frame_shape": (1, 64, 64), "state_dim": 10} | changes))


def test_sides_are_rounded_up_at_each_stage() -> None:
    assert TrunkConfig(patch_size=16).find_sides(128, 64) == [(8, 4), (4, 2), (2, 1), (1, 1)]
    assert TrunkConfig(patch_size=16).find_sides(84, 84) == [(6, 6), (3, 3), (2, 2), (1, 1)]
    assert TrunkConfig(patch_size=4).find_sides(84, 84) == [(21, 21), (11, 11), (6, 6), (3, 3)]


def test_sizes_are_counted_without_torch() -> None:
    code = "import sys, rl.vmamba_td3.presets, rl.vmamba_td3.counting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
