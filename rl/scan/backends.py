"""Which ways there are to compute a selective scan, and which of them is taken where."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

from native.build import NativeError, find_compiler
from rl.scan.arguments import ScanArguments
from rl.scan.by_c import CompiledScan
from rl.scan.by_torch import scan_by_torch

BackendName = Literal["auto", "torch", "c", "triton", "mamba_ssm"]


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
    """Give the backend of that name, or for "auto" the fastest for a type of numbers that needs no other package.

    Where the fastest can't be had "auto" is torch, and it is said once a process why.

    Raises:
        ScanBackendError: it can't be had, or not for this kind of device; or there is none of that name.
    """
    if name != "auto":
        return _build(name, device_type)
    fastest = _FASTEST.get(device_type, "torch")
    if dtype == torch.float64 or fastest == "torch":
        return _build_torch()
    try:
        return _build(fastest, device_type)
    except ScanBackendError as error:
        warnings.warn(f"selective scans are done by torch, several times slower: {error}", stacklevel=2)
        return _build_torch()


def _build(name: str, device_type: str) -> Backend:
    if name not in _BUILDERS:
        raise ScanBackendError(f"there is no scan backend {name!r}; there are auto, {', '.join(_BUILDERS)}")
    build, needed = _BUILDERS[name]
    if needed is not None and device_type != needed:
        raise ScanBackendError(f"the scan backend {name!r} is for {needed}, and the device is {device_type}; take auto")
    return build()


def _build_torch() -> Backend:
    return Backend("torch", f"torch {torch.__version__}", keeps_double=True, scan=scan_by_torch)


def _build_c() -> Backend:
    try:
        compiled, compiler = CompiledScan(), find_compiler()
    except NativeError as error:
        raise ScanBackendError(str(error)) from error
    details = f"{compiled.num_lanes} channels at a time; {compiler.version}"
    return Backend("c", details, keeps_double=False, scan=compiled.scan)


def _build_triton() -> Backend:
    try:
        import triton

        from rl.scan.by_triton import scan_by_triton
    except ImportError as error:
        raise ScanBackendError(f"{error}; Triton comes with torch for CUDA, or by pip install triton") from error
    return Backend("triton", f"triton {triton.__version__}", keeps_double=False, scan=scan_by_triton)


def _build_mamba_ssm() -> Backend:
    from rl.scan.by_mamba_ssm import load_scan

    try:
        scan = load_scan()
    except (ImportError, OSError) as error:
        advice = "pip install --no-build-isolation '.[mamba]' builds it for the torch that is here"
        raise ScanBackendError(f"mamba_ssm can't be loaded: {error}; {advice}") from error
    return Backend("mamba_ssm", f"mamba-ssm {version('mamba-ssm')}", keeps_double=False, scan=scan)


_FASTEST: Mapping[str, str] = {"cpu": "c", "cuda": "triton"}
_BUILDERS: Mapping[str, tuple[Callable[[], Backend], str | None]] = {
    "torch": (_build_torch, None),
    "c": (_build_c, "cpu"),
    "triton": (_build_triton, "cuda"),
    "mamba_ssm": (_build_mamba_ssm, "cuda"),
}
"""How to have each, and the only kind of device that it is for."""
