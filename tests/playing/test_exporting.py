"""Exported files: read again and held against the policy before they get their name."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from playing.endings import ExportError
from playing.exporting import TOLERANCE, write_checked
from playing.formats import FORMATS, quiet_torch

BOUNDS = np.array([[-2.0, 0.5], [6.0, 0.75]], dtype=np.float32)
HALF = np.array([4.0, 0.125], dtype=np.float32)


class Bounded(nn.Module):
    """Gives actions by a product and a bound, in float64 on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 1.0]]))
        self.register_buffer("top", torch.tensor([1.5, 0.7]))
        self.eval()

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.minimum((obs @ self.weight).to(torch.float64), self.top).to(torch.float32)


@pytest.fixture(params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    return name


def observe() -> tuple[Any, Any]:
    """Give observations, and what the module does at them."""
    observed = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    return {"obs": observed}, Bounded()(torch.from_numpy(observed)).numpy()


def test_a_file_acts_as_the_module_on_any_number_of_observations(format_name: str, tmp_path: Path) -> None:
    observed, acted = observe()
    path = tmp_path / "policy"
    assert write_checked(Bounded(), format_name, path, observed, acted, BOUNDS) < TOLERANCE
    assert list(tmp_path.iterdir()) == [path]
    act = FORMATS[format_name].load(path)
    for count in (1, 2, 300):
        action = act({"obs": observed["obs"][:count]})
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, acted[:count], atol=1e-6)


@pytest.mark.parametrize(("share", "kept"), [(0.5, True), (2.0, False)])
@pytest.mark.parametrize("column", [0, 1])
def test_differences_count_in_units_of_each_actions_range(
    tmp_path: Path, share: float, kept: bool, column: int
) -> None:
    observed, acted = observe()
    acted = acted.astype(np.float64)
    acted[17, column] += share * TOLERANCE * HALF[column]
    path = tmp_path / "policy.pt"
    path.write_bytes(b"older")
    if kept:
        difference = write_checked(Bounded(), "torchscript", path, observed, acted, BOUNDS)
        assert difference == pytest.approx(share * TOLERANCE, rel=0.2)
    else:
        with pytest.raises(ExportError, match=r"acts differently from the policy, by 2\.\de-05 of half .* not kept"):
            write_checked(Bounded(), "torchscript", path, observed, acted, BOUNDS)
        assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_number_is_a_difference(tmp_path: Path) -> None:
    observed, acted = observe()
    acted[3] = np.nan
    with pytest.raises(ExportError, match="by nan"):
        write_checked(Bounded(), "torchscript", tmp_path / "policy.pt", observed, acted, BOUNDS)
    assert list(tmp_path.iterdir()) == []


def test_only_what_torch_says_of_its_own_formats_is_kept_quiet(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    with quiet_torch():
        warnings.warn("`torch.jit.trace` is deprecated. Please switch.", DeprecationWarning, stacklevel=1)
        log.warning("torchvision is not installed. Skipping torchvision::nms")
        log.warning("an operator is missing")
        with pytest.raises(DeprecationWarning, match="something else"):
            warnings.warn("something else is deprecated", DeprecationWarning, stacklevel=1)
    log.warning("torchvision again")
    assert [record.getMessage() for record in caplog.records] == ["an operator is missing", "torchvision again"]
