"""What a run takes of memory, by arithmetic, and how it is refused."""

from __future__ import annotations

import pytest

from experiment.memory import MemoryRoom
from training.config import TrainerConfig
from training.memory_need import MemoryNeed, find_shortage, need_networks

MIB = 2**20
KEYS = {"update": ("batch_size",), "replay": ("buffer_size", "max_timesteps"), "networks": ("hidden_dims",)}


def test_a_gpu_takes_over_all_but_the_replay_the_checkpoint_and_the_program() -> None:
    parts = {"networks": 5, "checkpoint": 7, "update": 11, "recorded": 13, "replay": 17, "program": 19}
    on_cpu, on_gpu = MemoryNeed(False, **parts), MemoryNeed(True, **parts)
    assert (on_cpu.host_bytes, on_cpu.gpu_bytes) == (5 + 7 + 11 + 13 + 17 + 19, None)
    assert (on_gpu.host_bytes, on_gpu.gpu_bytes) == (7 + 17 + 19, 5 + 11 + 13)


def test_networks_are_counted_with_gradients_moments_slow_copies_and_the_bytes_of_a_checkpoint() -> None:
    need = need_networks({"actor": 100, "critic": 150}, on_gpu=False)
    assert (need.networks, need.checkpoint) == (250 * 4 * 5, 250 * 4 * 4)
    assert need_networks({"actor": 250}, on_gpu=True).checkpoint == 2 * need.checkpoint  # beside its copy from there


@pytest.mark.parametrize(
    ("part", "key"), [("update", "batch_size"), ("replay", "buffer_size"), ("networks", "hidden_dims")]
)
def test_what_is_too_large_is_refused_at_the_setting_that_decides_most_of_it(part: str, key: str) -> None:
    need = MemoryNeed(False, **{"update": MIB, "replay": MIB, "networks": MIB, "program": MIB, part: 9 * MIB})
    assert find_shortage(need, MemoryRoom(12 * MIB), KEYS) == []
    (fault,) = find_shortage(need, MemoryRoom(12 * MIB - 1), KEYS)
    assert fault.keys == KEYS[part]
    assert fault.message.startswith(f"{key}: training is estimated to take")
    assert f"choose a smaller {key}" in fault.message


def test_a_gpu_is_held_against_what_lies_on_it_and_the_computer_against_the_rest() -> None:
    need = MemoryNeed(True, networks=2 * MIB, update=3 * MIB, replay=100 * MIB, program=0)
    assert find_shortage(need, MemoryRoom(100 * MIB, 5 * MIB), KEYS) == []
    (fault,) = find_shortage(need, MemoryRoom(100 * MIB, 5 * MIB - 1), KEYS)
    assert fault.keys == ("batch_size",)
    assert "the GPU has" in fault.message
    (fault,) = find_shortage(need, MemoryRoom(100 * MIB - 1, 5 * MIB), KEYS)
    assert fault.keys == ("buffer_size", "max_timesteps")


def test_a_trainer_that_says_nothing_of_memory_is_predicted_by_its_networks() -> None:
    config = TrainerConfig.from_settings({"algorithm_name": "any", "env_name": "any"})
    need = config.predict_memory({"net": 10**9}, on_gpu=False)
    assert need.networks == 20 * 10**9
    assert config.find_memory_faults(MemoryRoom(2**40), {"net": 10**9}) == []
    (fault,) = config.find_memory_faults(MemoryRoom(2**30), {"net": 10**9})
    assert "networks 18.6 GiB" in fault.message
    assert config.find_memory_faults(MemoryRoom(2**30)) == []  # nobody has counted them


def test_a_file_that_is_read_as_it_is_used_is_seen_and_stands_in_no_runs_way() -> None:
    need = MemoryNeed(False, replay=3 * MIB, mapped=900 * MIB, program=MIB)
    assert need.host_bytes == 904 * MIB
    assert find_shortage(need, MemoryRoom(4 * MIB), KEYS) == []
    (fault,) = find_shortage(need, MemoryRoom(4 * MIB - 1), KEYS)
    assert "training is estimated to take 4 MiB (" in fault.message
