"""The selective scan by mamba_ssm's kernel: float32 on CUDA. The package is imported only when this is asked for.

Its gradients are added up in no fixed order, so the same call may give other bits.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rl.scan.arguments import ScanArguments


def load_scan() -> Callable[[ScanArguments], Tensor]:
    """Give mamba_ssm's scan for arguments as they are here.

    Raises:
        ImportError: the package isn't there, or something that it needs isn't.
        OSError: it was built for another torch.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(arguments: ScanArguments) -> Tensor:
        u, delta, A, B, C, D, bias, softplus = arguments
        y: Tensor = selective_scan_fn(u, delta, A, B, C, D=D, delta_bias=bias, delta_softplus=softplus)
        return y

    return scan
