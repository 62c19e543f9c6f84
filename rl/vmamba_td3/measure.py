"""What an update takes, measured in a process that does nothing else: one JSON object in, one out.

    python -m rl.vmamba_td3.measure < FILE

`analysis.params` and `analysis.memory`, which load no torch, start it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiment.problems import SettingsError
from rl.vmamba_td3.agent import VMambaTD3
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.frames import LEVELS, Windows
from rl.vmamba_td3.spaces import WindowSizes, plan_stream


def measure_updates(
    config: VMambaTD3Config, windows: WindowSizes, device: torch.device, cycles: int = 1
) -> dict[str, float | int]:
    """Build an agent, have it learn from made-up windows, and give what that took.

    Args:
        config: its settings.
        windows: sizes of what it looks at.
        device: where it learns.
        cycles: how many times `policy_freq` updates are timed, after as many that are not.

    Returns:
        `ms_per_update`: CPU time of this process on the CPU, wall time on CUDA; the actor's part in it.
        `peak_bytes`: the most memory there was beyond what the process had before: of its own on the CPU, of torch's on
        CUDA.
    """
    before = _read_status("VmRSS") if device.type == "cpu" else 0
    agent = VMambaTD3(config, plan_stream(config, windows), windows.action_dim, device, windows.privileged_dim)
    generator = np.random.default_rng(0)
    took = 0.0
    for number in range((1 + cycles) * config.policy_freq):
        made_up = make_windows(config.batch_size, windows, generator)
        start = _read_clock(device)
        agent.update(agent.load_batch(made_up))
        if number >= config.policy_freq:
            took += _read_clock(device) - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _read_status("VmHWM") - before
    return {"ms_per_update": 1e3 * took / (cycles * config.policy_freq), "peak_bytes": peak}


def make_windows(batch_size: int, sizes: WindowSizes, generator: np.random.Generator) -> Windows:
    """Give a batch of noise."""
    steps, base_dim, action_dim = sizes.steps, sizes.base_dim, sizes.action_dim
    depth = (batch_size, steps, *sizes.frame_shape)
    base, next_base = generator.standard_normal((2, batch_size, steps, base_dim), np.float32)
    frames, next_frames = (generator.integers(0, LEVELS, depth, np.uint8, endpoint=True) for _ in range(2))
    action = generator.uniform(-1, 1, (batch_size, action_dim)).astype(np.float32)
    reward, ones = generator.standard_normal((batch_size, 1), np.float32), np.ones((batch_size, 1), np.float32)
    known, next_known = generator.standard_normal((2, batch_size, sizes.privileged_dim), np.float32)
    return Windows(
        base=base,
        depth=frames,
        action=action,
        reward=reward,
        next_base=next_base,
        next_depth=next_frames,
        terminated=0 * ones,
        discount=0.99 * ones,
        privileged=known,
        next_privileged=next_known,
    )


def _read_clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _read_status(name: str) -> int:
    """Give a number of `/proc/self/status` in bytes.

    The process's `ru_maxrss` would not do: it begins with what its parent had.
    """
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


def read_request(request: Mapping[str, Any]) -> tuple[VMambaTD3Config, WindowSizes, torch.device]:
    """Give what a request asks to measure.

    Args:
        request: `settings`, `frame_shape`, `state_dim`, `action_dim`, `privileged_dim` and `device`.

    Raises:
        SettingsError: a setting is wrong.
    """
    config = VMambaTD3Config.from_settings({"algorithm_name": "vmamba_td3"} | request["settings"])
    channels, height, width = request["frame_shape"]
    sizes = WindowSizes(
        config.seq_len,
        request["state_dim"],
        (channels, height, width),
        request["action_dim"],
        depth_scale=1.0,
        privileged_dim=request["privileged_dim"],
    )
    return config, sizes, torch.device(request["device"])


def main() -> int:
    """Answer the request on standard input; give the exit code: 0, or 2 where its settings are wrong."""
    try:
        config, sizes, device = read_request(json.load(sys.stdin))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(measure_updates(config, sizes, device)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
