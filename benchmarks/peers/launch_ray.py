"""A Ray of its own, which does each run's work as a task; runs inside a virtual environment of its own."""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or Ray leaves one in the home folder

import ray

from benchmarks.peers.payload import work


def main() -> None:
    """Start Ray, do the tasks, whose log is in the working folder, and end it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.launch_ray", description=__doc__)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--work-s", type=float, required=True)
    parser.add_argument("--max-calls", type=int, default=0, help="tasks of a process before it ends; 0: any number")
    args = parser.parse_args()
    truth = str(Path("truth.log").absolute())
    # A folder with a short name, as Ray's sockets are below it, and may have no more than 107 letters with it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ray.init(num_cpus=args.slots, include_dashboard=False, _temp_dir=scratch, _node_ip_address="127.0.0.1")
        task = ray.remote(max_calls=args.max_calls)(work)
        ray.get([task.remote(seed, truth, args.work_s) for seed in range(args.runs)])
        ray.shutdown()


if __name__ == "__main__":
    main()
