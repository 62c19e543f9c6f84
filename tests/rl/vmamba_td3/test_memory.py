"""Predicted memory against what autograd keeps and against processes that train; and batches that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiment.memory import MemoryRoom
from experiment.problems import SettingsError
from rl.vmamba_td3.architecture import StreamConfig
from rl.vmamba_td3.buffer import SequenceReplayBuffer
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.fitting import find_largest_batch, find_memory_faults
from rl.vmamba_td3.measure import measure_updates, read_request
from rl.vmamba_td3.memory import MemoryEstimate, Span, Workload, estimate_memory, find_backward_peak, list_spans
from rl.vmamba_td3.presets import PRESETS
from rl.vmamba_td3.spaces import WindowSizes, plan_stream
from rl.vmamba_td3.stream import Stream
from rl.vmamba_td3.trainer import count_parameters
from tests.rl.vmamba_td3.conftest import SMALL
from train import build_config

ROOT = Path(__file__).parents[3]
GIB = 2**30
KNOWN = 7
"""Numbers that an asymmetric critic is told."""
ULTRA = {key: value for key, value in PRESETS["ultra_light"].list_settings().items() if key != "batch_size"}


def make_config(**settings: Any) -> VMambaTD3Config:
    return VMambaTD3Config.from_settings({"algorithm_name": "vmamba_td3"} | settings)


def plan(config: VMambaTD3Config, side: int = 64) -> tuple[StreamConfig, Workload]:
    stream = plan_stream(config, WindowSizes(config.seq_len, 10, (1, side, side), 3, 1.0))
    work = Workload(
        config.batch_size,
        config.seq_len,
        use_amp=config.use_amp,
        use_checkpointing=config.use_checkpointing,
        encoder_sharing=config.encoder_sharing,
        privileged_dim=KNOWN if config.asymmetric_critic else 0,
    )
    return stream, work


def count_kept(config: VMambaTD3Config, side: int) -> int:
    """Give the bytes of all memory that autograd holds after a forward pass, weights and frames left out."""
    sizes, work = plan(config, side)
    stream = Stream(sizes, use_amp=config.use_amp, use_checkpointing=config.use_checkpointing)
    depth, base = (
        torch.rand(work.batch_size, work.seq_len, 1, side, side),
        torch.rand(work.batch_size, work.seq_len, 10),
    )
    outside = {tensor.untyped_storage().data_ptr() for tensor in (*stream.parameters(), depth)}
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        stream(base, depth, torch.Generator().manual_seed(0))
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in outside)


@pytest.mark.parametrize(
    ("settings", "side", "tolerance"),
    [
        ({}, 64, 0.01),
        ({"vmamba_patch_size": 4, "vmamba_num_vss_blocks": [1, 2, 1, 1]}, 50, 0.01),
        ({"vmamba_layer_scale_init": None, "vmamba_mlp_ratio": 0.0, "vmamba_patch_size": 8}, 64, 0.01),
        ({"use_input_adapter": True, "vmamba_temporal_layers": 2, "vmamba_ssm_ratio": 1.0}, 64, 0.01),
        ({"use_checkpointing": True}, 64, 0.02),
        ({"temporal_scan": "causal", "seq_len": 6}, 64, 0.02),
        ({"seq_len": 1}, 64, 0.02),
        ({"encoder": "cnn"}, 64, 0.02),
        ({"use_amp": True, "vmamba_patch_size": 8}, 64, 0.1),
    ],
)
def test_what_is_kept_for_gradients_is_what_autograd_keeps(
    settings: dict[str, Any], side: int, tolerance: float
) -> None:
    config = make_config(**({"batch_size": 8, "vmamba_hidden_dim": 32} | settings))
    predicted = sum(span.kept for span in list_spans(*plan(config, side)))
    assert predicted == pytest.approx(count_kept(config, side), rel=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 64},
        {"batch_size": 16, "vmamba_patch_size": 8},
        {"batch_size": 64, "encoder": "cnn"},
        {"batch_size": 64, "asymmetric_critic": True},
        {"batch_size": 64, "vmamba_patch_size": 8, "use_checkpointing": True},
        {"batch_size": 64, "encoder_sharing": "shared", "use_amp": True, "vmamba_patch_size": 8},
    ],
)
def test_the_predicted_peak_is_within_a_quarter_of_a_process_that_trains(settings: dict[str, Any]) -> None:
    settings = ULTRA | settings
    request = {"settings": settings, "frame_shape": [1, 64, 64], "state_dim": 10, "action_dim": 3, "device": "cpu"} | {
        "privileged_dim": KNOWN if "asymmetric_critic" in settings else 0
    }
    command = [sys.executable, "-m", "rl.vmamba_td3.measure"]
    answer = subprocess.run(command, cwd=ROOT, input=json.dumps(request), capture_output=True, text=True, check=True)
    measured = json.loads(answer.stdout)
    stream, work = plan(make_config(**settings))
    assert estimate_memory(stream, 3, work).process == pytest.approx(measured["peak_bytes"], rel=0.25)
    assert measured["ms_per_update"] > 0


def test_settings_that_cannot_be_are_refused_by_the_process_that_measures() -> None:
    with pytest.raises(SettingsError, match="unknown key 'vmamba_hiden_dim'"):
        read_request(
            {
                "settings": {"vmamba_hiden_dim": 3},
                "frame_shape": [1, 8, 8],
                "state_dim": 3,
                "privileged_dim": 0,
                "action_dim": 1,
                "device": "cpu",
            }
        )


def test_measuring_in_this_process_gives_times() -> None:
    settings = {key: value for key, value in SMALL.items() if not key.startswith(("env", "algorithm"))}
    request = {
        "settings": settings,
        "frame_shape": [1, 8, 8],
        "state_dim": 3,
        "action_dim": 2,
        "device": "cpu",
        "privileged_dim": 0,
    }
    assert measure_updates(*read_request(request))["ms_per_update"] > 0


def test_the_peak_of_the_way_back_is_where_what_is_left_and_gradients_are_most() -> None:
    narrow, wide = Span(kept=100, weights=1, backward=50, forward=0), Span(kept=10, weights=70, backward=5, forward=0)
    assert find_backward_peak([wide, narrow]) == 10 + 100 + 1 + 50
    assert find_backward_peak([narrow, wide]) == 100 + 70 + 1 + 50


def test_networks_are_there_four_times_and_a_shared_encoder_leaves_one_out() -> None:
    stream, work = plan(make_config())
    separate = estimate_memory(stream, 3, work)
    assert separate.lasting == 4 * 4 * 32_439_697
    shared = estimate_memory(stream, 3, replace(work, encoder_sharing="shared"))
    assert shared.lasting < 0.51 * separate.lasting
    assert shared.actor < separate.actor / 100


@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_buffer_is_predicted_as_it_is_made(small_vmamba: Any, asymmetric: bool) -> None:
    trainer = small_vmamba(asymmetric_critic=asymmetric)
    trainer.train_step()
    assert isinstance(trainer.buffer, SequenceReplayBuffer)
    config = trainer.config
    windows = trainer._windows
    assert (windows.privileged_dim > 0) == asymmetric
    work = Workload(4, 2, privileged_dim=windows.privileged_dim)
    estimate = estimate_memory(plan_stream(config, windows), windows.action_dim, work, config.buffer_frames)
    assert estimate.lasting == 16 * sum(count_parameters(config).values())
    assert estimate.buffer == trainer.buffer.nbytes


@pytest.mark.parametrize("gpu", [False, True])
def test_the_batch_that_is_said_to_fit_does_and_one_more_does_not(gpu: bool) -> None:
    stream, work = plan(make_config(batch_size=5_000))

    def need(batch: int) -> int:
        estimate = estimate_memory(stream, 3, replace(work, batch_size=batch))
        return estimate.peak if gpu else estimate.process

    room = MemoryRoom(8 * GIB, 2 * GIB if gpu else None)
    (fault,) = find_memory_faults(stream, 3, work, 0, room)
    assert fault.keys == ("batch_size",)
    there = 2 * GIB if gpu else 8 * GIB
    largest = find_largest_batch(work, lambda smaller: need(smaller.batch_size) <= there)
    assert need(largest) <= there < need(largest + 1)
    assert f"batch_size {largest} fits" in fault.message
    assert f"estimated to take {need(5_000) / GIB:,.1f} GiB" in fault.message
    assert ("the GPU has 2.0 GiB" if gpu else "8.0 GiB of memory are free") in fault.message
    fitting = replace(work, batch_size=largest)
    assert find_memory_faults(stream, 3, fitting, 0, room) == []


def test_other_changes_are_named_where_the_whole_batch_fits_with_them() -> None:
    stream, work = plan(make_config(batch_size=128, vmamba_patch_size=4))
    (fault,) = find_memory_faults(stream, 3, work, 0, MemoryRoom(8 * GIB))
    for change in ("use_checkpointing: true", "vmamba_patch_size: 8", "seq_len: 2"):
        assert f"so does {change}" in fault.message
    (tight,) = find_memory_faults(stream, 3, work, 0, MemoryRoom(GIB))
    assert "use_checkpointing" not in tight.message
    assert "so does vmamba_patch_size: 64" in tight.message, "a single position is left"


def test_where_nothing_fits_smaller_networks_are_advised() -> None:
    stream, work = plan(make_config())
    (fault,) = find_memory_faults(stream, 3, work, 0, MemoryRoom(10**8))
    assert "not even batch_size 1 fits; take a smaller vmamba_hidden_dim" in fault.message


def test_a_buffer_is_held_against_the_computers_memory_also_where_a_gpu_trains() -> None:
    stream, work = plan(make_config(batch_size=2))
    frame = 64 * 64 + 4 * (10 + 3 + 2) + 16
    (fault,) = find_memory_faults(stream, 3, work, 10**6, MemoryRoom(GIB, 80 * GIB))
    assert fault.keys[0] == "buffer_size"
    assert f"at most {GIB // frame:,} frames fit" in fault.message
    (fault,) = find_memory_faults(stream, 3, work, GIB // frame, MemoryRoom(GIB))
    assert fault.keys == ("batch_size",), "what the buffer leaves is too little"


def test_a_trunk_that_is_no_agents_is_refused() -> None:
    stream, work = plan(make_config())
    with pytest.raises(ValueError, match="stem v1, downsample v2, gate True is no agent's"):
        list_spans(replace(stream, trunk=replace(stream.trunk, downsample="v2")), work)


def test_planning_refuses_no_batch_and_the_machine_that_trains_does(tmp_path: Path) -> None:
    """As a launch may be planned where another machine's memory isn't."""
    huge = {"batch_size": 10**7, "buffer_size": 10**7, "max_timesteps": 10**7}
    config = build_config(SMALL | huge)
    assert config.find_environment_faults() == []
    settings = {key: json.dumps(value) for key, value in (SMALL | huge).items()} | {
        "algorithm_name": "vmamba_td3",
        "env_name": "DepthNav-v0",
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}={value}",)]
    command = [sys.executable, str(ROOT / "train.py"), "-g", "cpu", "--log-root", str(tmp_path), *flags]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "batch_size (10000000): training is estimated to take" in answer.stderr
    assert "fits" in answer.stderr
    assert "Traceback" not in answer.stderr
    (ending,) = tmp_path.glob("*/*/attempts/001/exit.json")
    assert json.loads(ending.read_text())["reason"] == "config"
    assert not list(tmp_path.glob("*/*/metrics.jsonl"))


def test_an_estimate_names_the_holes_of_checkpointing() -> None:
    stream, work = plan(make_config())
    plain, again = (estimate_memory(stream, 3, replace(work, use_checkpointing=value)) for value in (False, True))
    assert isinstance(plain, MemoryEstimate)
    assert again.peak < plain.peak
    assert again.holes > plain.holes
