"""Whether networks are being written into a file, which holds torch's own operations and nothing else."""

from __future__ import annotations

import torch


def is_written_down() -> bool:
    """Tell whether what is computed now is traced or exported: no code of ours may be in it then, however fast."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
