"""Which backend is taken, and what is said where one can't be had."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.scan.backends import ScanBackendError, choose_backend, describe_backend
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


def test_a_backend_of_another_device_is_refused() -> None:
    with pytest.raises(ScanBackendError, match="'c' works on the CPU, and the tensors are on meta; take auto"):
        choose_backend("c", "meta", torch.float32)


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    unknown: Any = "cuda"
    with pytest.raises(ScanBackendError, match="no scan backend 'cuda'; there are auto, torch, c"):
        describe_backend(CPU, unknown)
