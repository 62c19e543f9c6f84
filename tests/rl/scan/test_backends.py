"""Which backend is taken, and what is said where one can't be had."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.scan import backends
from rl.scan.arguments import ScanArguments
from rl.scan.backends import Backend, ScanBackendError, choose_backend, describe_backend
from rl.scan.selective import selective_scan

CPU = torch.device("cpu")

Tools = Any


@pytest.fixture(autouse=True)
def _nothing_chosen_yet() -> Iterator[None]:
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


@pytest.fixture
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


@pytest.fixture
def _a_compiler() -> None:
    try:
        choose_backend("c", "cpu", torch.float32)
    except ScanBackendError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_a_compiler")
def test_the_cpu_gets_the_compiled_one_and_a_run_can_note_it() -> None:
    found = describe_backend(CPU)
    assert found == describe_backend(CPU, "c")
    assert found["backend"] == "c"
    lanes, compiler = found["details"].split(" channels at a time; ")
    assert lanes in {"4", "8", "16"}
    assert compiler


def test_torch_can_be_asked_for_and_noted() -> None:
    assert describe_backend(CPU, "torch") == {"backend": "torch", "details": f"torch {torch.__version__}"}


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_it_is_torch_and_said_once(tools: Tools) -> None:
    arguments = tools.draw_arguments(1, 1, 2, 2, 3)
    with pytest.warns(UserWarning, match="are done by torch, several times slower: there is no C compiler") as caught:
        y = selective_scan(**arguments)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(selective_scan(**arguments), y)
        assert torch.equal(selective_scan(**arguments, backend="torch"), y)
    assert describe_backend(CPU)["backend"] == "torch"


@pytest.mark.usefixtures("_no_compiler")
def test_who_asks_for_the_compiled_one_never_gets_another(tools: Tools) -> None:
    arguments = tools.draw_arguments(1, 1, 2, 2, 3)
    for _ in range(2):
        with pytest.raises(ScanBackendError, match=r"there is no C compiler .*; install one"):
            selective_scan(**arguments, backend="c")


@pytest.mark.usefixtures("_no_compiler")
def test_float64_is_torchs_without_a_word(tools: Tools) -> None:
    y = selective_scan(**tools.draw_arguments(1, 1, 2, 2, 3, dtype=torch.float64))
    assert y.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("c", "cuda", "'c' is for cpu, and the device is cuda; take auto"),
        ("triton", "cpu", "'triton' is for cuda, and the device is cpu; take auto"),
        ("mamba_ssm", "cpu", "'mamba_ssm' is for cuda, and the device is cpu; take auto"),
    ],
)
def test_a_backend_for_another_device_is_refused(name: Any, device: str, message: str) -> None:
    with pytest.raises(ScanBackendError, match=message):
        choose_backend(name, device, torch.float32)


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    unknown: Any = "cuda"
    with pytest.raises(ScanBackendError, match="no scan backend 'cuda'; there are auto, torch, c, triton, mamba_ssm"):
        describe_backend(CPU, unknown)


def test_without_triton_cuda_gets_torch_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(UserWarning, match="are done by torch, .*triton.*; Triton comes with torch for CUDA"):
        assert choose_backend("auto", "cuda", torch.float32).name == "torch"
    with pytest.raises(ScanBackendError, match="Triton comes with torch for CUDA"):
        choose_backend("triton", "cuda", torch.float32)


def test_a_broken_mamba_ssm_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ScanBackendError, match=r"mamba_ssm can't be loaded: .*; pip install .*\[mamba\]"):
        choose_backend("mamba_ssm", "cuda", torch.float32)


def test_mamba_ssm_gets_our_arguments_as_they_are(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan_as_they_do(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
    ) -> Tensor:
        assert z is None
        y: Tensor = tools.scan_step_by_step(u, delta, A, B, C, D, delta_bias, delta_softplus)
        return y

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = scan_as_they_do  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setattr(backends, "version", {"mamba-ssm": "9.9"}.__getitem__)
    found = choose_backend("mamba_ssm", "cuda", torch.float32)
    assert found.details == "mamba-ssm 9.9"
    arguments = tools.draw_arguments(2, 2, 3, 2, 5)
    assert torch.equal(found.scan(ScanArguments(**arguments)), tools.scan_step_by_step(**arguments))


def test_half_numbers_are_computed_in_float32_by_every_backend() -> None:
    for keeps_double, expected in ((True, torch.float64), (False, torch.float32)):
        backend = Backend("name", "details", keeps_double, lambda arguments: arguments.u)
        assert backend.choose_dtype(torch.float64) == expected
        assert {backend.choose_dtype(dtype) for dtype in (torch.bfloat16, torch.float16)} == {torch.float32}
