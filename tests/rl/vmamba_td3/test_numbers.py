"""What the agent's numbers are made with, and that they stay numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.scan.backends import choose_backend
from rl.vmamba_td3.trainer import VMambaTD3Trainer
from training.facts import find_backends

Build = Callable[..., VMambaTD3Trainer]


def list_tensors(state: Any) -> list[Tensor]:
    """Give all tensors in a state, however deep."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in list_tensors(value)]


def test_500_updates_with_products_in_16_bits_leave_every_number_finite(small_vmamba: Build) -> None:
    """Without the first factors of 1e-6 on what blocks add, which would hide what they are made of."""
    trainer = small_vmamba(use_amp=True, max_timesteps=600, buffer_size=600, vmamba_layer_scale_init=None)
    updates = 0
    while updates < 500:
        result = trainer.train_step()
        updates += result.updates
        broken = {key: float(value) for key, value in result.metrics.items() if not torch.as_tensor(value).isfinite()}
        assert not broken, (updates, broken)
    tensors = list_tensors(trainer.agent.state_dict())
    assert len(tensors) > 200
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_the_backend_of_its_scans_is_told(small_vmamba: Build) -> None:
    chosen = choose_backend("auto", "cpu", torch.float32)
    assert find_backends(small_vmamba()) == {"selective_scan": f"{chosen.name} ({chosen.details})"}


def test_without_a_compiler_it_is_told_that_scans_are_torchs(
    small_vmamba: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_vmamba()
    for _ in range(8):  # the environment has its own say about compilers
        trainer.train_step()
    monkeypatch.setenv("CC", "no-such-compiler")
    choose_backend.cache_clear()
    try:
        with pytest.warns(UserWarning, match="are done by torch, several times slower") as caught:
            found, result = find_backends(trainer), trainer.train_step()
        assert result.updates == 1
        assert found == {"selective_scan": f"torch (torch {torch.__version__})"}
        assert len(caught) == 1
    finally:
        choose_backend.cache_clear()
