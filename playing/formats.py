"""File formats that a policy's module can be written in: how it is written, and how it acts once read again."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.jit._trace import TracerWarning

Observed: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Observations by the names of a module's inputs, in their order: (batch, ...) each."""
Act: TypeAlias = Callable[[Observed], NDArray[Any]]
"""From observations to actions, (batch, action_dim)."""
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Of one observation, by the names of a module's inputs."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: gives a file's content for a module and the shapes of its observations.
        load: gives what a file does.
    """

    write: Callable[[nn.Module, Shapes], bytes]
    load: Callable[[Path], Act]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep to itself what torch says of TorchScript's age, and of the inside of its ONNX exporter."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    hide = _HideTorchvision()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        # Shapes but for the batch's size are written down as they are, which is what is wanted.
        warnings.filterwarnings("ignore", category=TracerWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        # All inputs have one batch, and so one name for it.
        warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
        log.addFilter(hide)
        try:
            yield
        finally:
            log.removeFilter(hide)


class _HideTorchvision(logging.Filter):
    """Leaves out lines about torchvision, which no policy here needs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "torchvision" not in record.getMessage()


def make_examples(module: nn.Module, shapes: Shapes) -> tuple[torch.Tensor, ...]:
    """Give two observations that a module can be written by, once it has seen them.

    Tables that networks make on first use (where a scan's paths lead) are there then, and in the file as they are.
    """
    examples = tuple(torch.zeros(2, *shape) for shape in shapes.values())
    with torch.no_grad():
        module(*examples)
    return examples


def write_torchscript(module: nn.Module, shapes: Shapes) -> bytes:
    """Give a module as TorchScript, which `torch.jit.load` reads, in Python and in C++."""
    content, examples = io.BytesIO(), make_examples(module, shapes)
    with quiet_torch(), torch.no_grad():
        torch.jit.save(torch.jit.trace(module, examples), content)  # type: ignore[no-untyped-call]
    return content.getvalue()


def load_torchscript(path: Path) -> Act:
    """Give what a TorchScript file does, on the CPU."""
    with quiet_torch():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def act(observed: Observed) -> NDArray[Any]:
        with torch.no_grad():
            action: NDArray[Any] = module(*(torch.from_numpy(part) for part in observed.values())).numpy()
        return action

    return act


def write_onnx(module: nn.Module, shapes: Shapes) -> bytes:
    """Give a module as ONNX, its inputs by their names (`obs`), and an output `action`, of any number of rows."""
    examples, batch = make_examples(module, shapes), torch.export.Dim("batch")
    with quiet_torch(), torch.no_grad():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            input_names=list(shapes),
            output_names=["action"],
            dynamic_shapes={name: {0: batch} for name in shapes},
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

    def act(observed: Observed) -> NDArray[Any]:
        action: NDArray[Any] = session.run(["action"], dict(observed))[0]
        return action

    return act


FORMATS = {
    "torchscript": Format(write_torchscript, load_torchscript),
    "onnx": Format(write_onnx, load_onnx),
}
"""Formats by the name that `--format` takes."""
