"""The variables that processes are started with."""

from __future__ import annotations

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def make_base_environment(threads: int) -> dict[str, str]:
    """Give the variables that are the same for all runs with so many threads."""
    return (
        os.environ
        | {name: str(threads) for name in THREAD_VARIABLES}
        | {
            "PYTHONUNBUFFERED": "1",
            # The order of sets of text follows it: two attempts of one run have to agree.
            "PYTHONHASHSEED": "0",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            # Without it cuBLAS may sum in another order each time.
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
    )
