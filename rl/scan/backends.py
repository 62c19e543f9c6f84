"""Which ways there are to compute a selective scan, and which of them is taken where."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from native.build import NativeError, find_compiler
from rl.scan.arguments import ScanArguments
from rl.scan.by_c import CompiledScan
from rl.scan.by_torch import scan_by_torch

BackendName = Literal["auto", "torch", "c"]


class ScanBackendError(ValueError):
    """A backend can't be had here. The message says why and what to do."""


@dataclass(frozen=True)
class Backend:
    """One way to compute a scan.

    Attributes:
        name: as it is asked for.
        details: what its numbers and its speed depend on beside the code, for people.
        keeps_double: float64 is computed in float64; where not, and for all other types, in float32.
        scan: gives y for arguments of one type.
    """

    name: str
    details: str
    keeps_double: bool
    scan: Callable[[ScanArguments], Tensor]

    def choose_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Give the type that arguments of a type are computed in."""
        return torch.float64 if self.keeps_double and dtype == torch.float64 else torch.float32


def describe_backend(device: torch.device, backend: BackendName = "auto") -> dict[str, str]:
    """Give the name and the details of what scans of float32 on a device are done by, for a run's summary.

    Raises:
        ScanBackendError: see `choose_backend`.
    """
    chosen = choose_backend(backend, device.type, torch.float32)
    return {"backend": chosen.name, "details": chosen.details}


@cache
def choose_backend(name: BackendName, device_type: str, dtype: torch.dtype) -> Backend:
    """Give the backend of that name, or the fastest there is for "auto".

    Raises:
        ScanBackendError: it can't be had, or not on this kind of device; or there is none of that name.
    """
    return _choose_automatically(device_type, dtype) if name == "auto" else _get_builder(name)(device_type)


def _choose_automatically(device_type: str, dtype: torch.dtype) -> Backend:
    """Give the fastest backend that keeps float64; once a process it is said if a faster one can't be had."""
    fastest = _FASTEST.get(device_type, "torch")
    if dtype == torch.float64 or fastest == "torch":
        return _build_torch(device_type)
    try:
        return _BUILDERS[fastest](device_type)
    except ScanBackendError as error:
        warnings.warn(f"selective scans are done by torch, several times slower: {error}", stacklevel=2)
        return _build_torch(device_type)


def _get_builder(name: str) -> Callable[[str], Backend]:
    if name not in _BUILDERS:
        raise ScanBackendError(f"there is no scan backend {name!r}; there are auto, {', '.join(_BUILDERS)}")
    return _BUILDERS[name]


def _build_torch(device_type: str) -> Backend:
    return Backend("torch", f"torch {torch.__version__}", keeps_double=True, scan=scan_by_torch)


def _build_c(device_type: str) -> Backend:
    if device_type != "cpu":
        raise ScanBackendError(
            f"the scan backend 'c' works on the CPU, and the tensors are on {device_type}; take auto"
        )
    try:
        compiled, compiler = CompiledScan(), find_compiler()
    except NativeError as error:
        raise ScanBackendError(str(error)) from error
    details = f"{compiled.num_lanes} channels at a time; {compiler.version}"
    return Backend("c", details, keeps_double=False, scan=compiled.scan)


_FASTEST: Mapping[str, str] = {"cpu": "c"}
_BUILDERS: Mapping[str, Callable[[str], Backend]] = {"torch": _build_torch, "c": _build_c}
