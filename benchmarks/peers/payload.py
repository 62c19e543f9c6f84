"""The work of a run of `benchmarks.launch`, for launchers of others: torch is imported, then 0.2 s are computed."""

from __future__ import annotations

import os
import time


def work(seed: int, truth: str, work_s: float) -> float:
    """Import torch, compute until `work_s` seconds of CPU time are gone, and give a number that depends on the seed.

    Args:
        seed: tells runs apart.
        truth: path of the log that START, STEP and END are appended to, each with its moment, seed and process.
        work_s: CPU seconds.
    """
    write(truth, "START", seed)
    import torch

    torch.manual_seed(seed)
    weights = torch.randn(64, 64)
    write(truth, "STEP", seed)
    until = time.process_time() + work_s
    while True:
        result = torch.tanh(weights @ weights.T + torch.linalg.solve(weights, weights))
        if time.process_time() >= until:
            break
    write(truth, "END", seed)
    return float(result.sum())


def write(truth: str, word: str, seed: int) -> None:
    """Append a line at once: others append to the same log."""
    log = os.open(truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{time.time():.6f} {word} {seed} {os.getpid()}\n".encode())
    os.close(log)
