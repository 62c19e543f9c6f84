"""Which backend is taken, and what is said where one can't be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rl.scan.backends import ScanBackendError, describe_backend

CPU = torch.device("cpu")


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    unknown: Any = "cuda"
    with pytest.raises(ScanBackendError, match="no scan backend 'cuda'; there are auto, torch"):
        describe_backend(CPU, unknown)


def test_a_run_can_note_what_its_scans_are_done_by() -> None:
    assert describe_backend(CPU, "torch") == {"backend": "torch", "details": f"torch {torch.__version__}"}
