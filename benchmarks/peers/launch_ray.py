"""A Ray of its own, which does each run's work as a task; runs inside a virtual environment of its own."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or Ray leaves one in the home folder

import ray

from benchmarks.peers.payload import work


def main() -> None:
    """Start Ray in the working folder, do the tasks, and end it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.launch_ray", description=__doc__)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--work-s", type=float, required=True)
    parser.add_argument("--max-calls", type=int, default=0, help="tasks of a process before it ends; 0: any number")
    args = parser.parse_args()
    truth, scratch = str(Path("truth.log").absolute()), str(Path("r").absolute())  # short: sockets are below it
    ray.init(num_cpus=args.slots, include_dashboard=False, _temp_dir=scratch, _node_ip_address="127.0.0.1")
    task = ray.remote(max_calls=args.max_calls)(work)
    ray.get([task.remote(seed, truth, args.work_s) for seed in range(args.runs)])
    ray.shutdown()


if __name__ == "__main__":
    main()
