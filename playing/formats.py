"""File formats that a policy's module can be written in: how it is written, and how it acts once read again."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Act = Callable[[NDArray[np.float32]], NDArray[Any]]
"""From observations, (batch, obs_dim), to actions, (batch, action_dim)."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: gives a file's content for a module and the length of its observations.
        load: gives what a file does.
    """

    write: Callable[[nn.Module, int], bytes]
    load: Callable[[Path], Act]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep to itself what torch says of TorchScript's age, and of the inside of its ONNX exporter."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    hide = _HideTorchvision()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        log.addFilter(hide)
        try:
            yield
        finally:
            log.removeFilter(hide)


class _HideTorchvision(logging.Filter):
    """Leaves out lines about torchvision, which no policy here needs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "torchvision" not in record.getMessage()


def write_torchscript(module: nn.Module, obs_dim: int) -> bytes:
    """Give a module as TorchScript, which `torch.jit.load` reads, in Python and in C++."""
    content = io.BytesIO()
    with quiet_torch():
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, obs_dim)), content)  # type: ignore[no-untyped-call]
    return content.getvalue()


def load_torchscript(path: Path) -> Act:
    """Give what a TorchScript file does, on the CPU."""
    with quiet_torch():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def act(obs: NDArray[np.float32]) -> NDArray[Any]:
        with torch.no_grad():
            action: NDArray[Any] = module(torch.from_numpy(obs)).numpy()
        return action

    return act


def write_onnx(module: nn.Module, obs_dim: int) -> bytes:
    """Give a module as ONNX, with an input `obs` and an output `action` of any number of rows."""
    with quiet_torch():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, obs_dim),),
            dynamo=True,
            input_names=["obs"],
            output_names=["action"],
            dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def load_onnx(path: Path) -> Act:
    """Give what an ONNX file does, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def act(obs: NDArray[np.float32]) -> NDArray[Any]:
        action: NDArray[Any] = session.run(["action"], {"obs": obs})[0]
        return action

    return act


FORMATS = {
    "torchscript": Format(write_torchscript, load_torchscript),
    "onnx": Format(write_onnx, load_onnx),
}
"""Formats by the name that `--format` takes."""
