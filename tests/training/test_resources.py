"""Counting, measuring and hashing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training import resources
from training.resources import (
    Meter,
    count_parameters,
    hash_state,
    measure_replay_bytes,
    read_peak_gpu_bytes,
    read_peak_rss_bytes,
)
from training.rowlog import RowLog


def test_only_learnable_parameters_count() -> None:
    frozen = nn.Linear(3, 2)
    frozen.weight.requires_grad_(False)
    assert count_parameters({"actor": nn.Linear(3, 2), "encoder": frozen}) == {"actor": 8, "encoder": 2}


def test_a_parameter_shared_within_a_component_counts_once() -> None:
    layer = nn.Linear(3, 2)
    assert count_parameters({"both": nn.Sequential(layer, layer)}) == {"both": 8}


def test_peak_memory_is_in_bytes() -> None:
    assert 10 * 2**20 < read_peak_rss_bytes() < 2**40


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA may be in use")
def test_there_is_no_gpu_memory_without_a_gpu() -> None:
    assert read_peak_gpu_bytes() is None


def test_the_gpu_memory_of_a_process_is_that_of_its_fullest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {0: 5, 1: 9, 2: 3}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(peaks))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    assert read_peak_gpu_bytes() == 9
    meter = Meter()
    assert meter.peak_gpu_bytes() == 9
    meter.load_state_dict(meter.state_dict() | {"gpu_before": 4})
    assert meter.peak_gpu_bytes() == 9
    meter.load_state_dict(meter.state_dict() | {"gpu_before": 11})
    assert meter.peak_gpu_bytes() == 11


def test_the_memory_of_all_row_logs_is_summed() -> None:
    state = {"a": RowLog(np.zeros((10, 3), np.float32), 2), "b": [RowLog(np.zeros((5, 1), np.uint8), 9)]}
    assert measure_replay_bytes(state) == 125


def test_time_and_peaks_of_earlier_attempts_are_kept() -> None:
    meter = Meter()
    meter.load_state_dict({"wall_before": 100.0, "cpu_before": 50.0, "rss_before": 2**50, "gpu_before": 7})
    assert 100 < meter.wall_s() < 200
    assert 50 < meter.cpu_s() < 100
    assert meter.peak_rss_bytes() == 2**50
    assert meter.peak_gpu_bytes() == 7


DIFFERENT: list[Any] = [
    {"a": 1},
    {"a": True},
    {"a": 1.0},
    {"a": "1"},
    {"a": b"1"},
    {"a": None},
    {"b": 1},
    {0: 1},
    {"0": 1},
    [1, 2],
    (1, 2),
    [2, 1],
    [],
    (),
    {},
    0.0,
    -0.0,
    float("nan"),
    torch.tensor([1.0]),
    torch.tensor(1.0),
    torch.tensor([[1.0]]),
    torch.tensor([1.0], dtype=torch.float64),
    np.array([1.0]),
    np.array([1.0], np.float32),
    np.float64(1.0),
    RowLog(np.array([[1.0]]), 1),
    RowLog(np.array([[1.0]]), 2),
    RowLog(np.array([[1.0], [0.0]]), 1),
]


def test_states_that_differ_have_different_hashes() -> None:
    hashes = [hash_state(state) for state in DIFFERENT]
    same = [(DIFFERENT[i], DIFFERENT[j]) for i in range(len(hashes)) for j in range(i) if hashes[i] == hashes[j]]
    # A ring that isn't full is the same data in a smaller or a larger ring.
    assert len(same) == 1
    assert all(isinstance(state, RowLog) for state in same[0])


def test_the_order_of_keys_and_memory_does_not_matter() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert hash_state({"a": 1, "b": matrix}) == hash_state({"b": matrix.T.contiguous().T, "a": 1})


def test_only_rows_in_the_window_of_a_ring_matter() -> None:
    rows = np.arange(8.0).reshape(4, 2)
    other = rows.copy()
    other[3] = 99
    assert hash_state(RowLog(rows, 3)) == hash_state(RowLog(other, 3))
    assert hash_state(RowLog(rows, 4)) != hash_state(RowLog(other, 4))
    assert hash_state(RowLog(rows, 6)) != hash_state(RowLog(other, 6))


def test_what_cannot_stand_in_a_state_cannot_be_hashed() -> None:
    with pytest.raises(TypeError, match="object"):
        hash_state({"a": object()})


def test_utilisation_is_that_of_the_device_that_a_run_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(uuid: str) -> int | None:
        asked.append(uuid)
        return 37 if uuid == "GPU-ab" else None

    uuids = {"cuda": "ab", "cuda:1": "cd"}
    monkeypatch.setattr(resources, "read_utilisation", read)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: SimpleNamespace(uuid=uuids[name]))
    assert resources.read_gpu_utilisation("cuda") == {}, "nothing runs on a GPU"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert resources.read_gpu_utilisation("cpu") == {}
    assert asked == []
    assert resources.read_gpu_utilisation("cuda") == {"time/gpu_utilisation": 37.0}
    assert resources.read_gpu_utilisation("cuda:1") == {}
    assert asked == ["GPU-ab", "GPU-cd"]
