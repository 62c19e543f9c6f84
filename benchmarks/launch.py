"""What starting a run costs: 24 runs that import torch and work 0.2 s, two at a time, forked and as fresh processes.

python -m benchmarks.launch                 both, one after the other, with the goals
python -m benchmarks.launch --json          the same as one JSON object
python -m benchmarks.launch --peers         beside them Hydra's joblib launcher and Ray's tasks, as anchors

Everything is as users have it: `run_experiment.py`, `train.py`, run folders, checkpoints, summaries. The trainer is one
of a user's own: a step that computes until 0.2 s of CPU time are gone. It writes down when its module is imported,
which is the first thing that a training does with it, when it takes its step, and when it is closed, which is the last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.launch_clock import RUNS, SLOTS, WORK_S, keep_to_slots, measure_gap
from benchmarks.launch_peers import measure_peers, print_launchers

ROOT = Path(__file__).parents[1]
WALL_GOAL, CPU_GOAL, GAP_GOAL_MS = 2.5, 4.0, 20.0

TRAINER = """
import os, time

def write(word):
    if "GRIDPILOT_RUN_DIR" in os.environ:
        line = f"{time.time():.6f} {word} {os.environ['GRIDPILOT_RUN_DIR']}\\n"
        log = os.open("truth.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, line.encode())
        os.close(log)

write("START")

from typing import Literal
from training.config import TrainerConfig
from training.trainers import TrainerEntry

TRAINERS = {"work": TrainerEntry("work:Config", "work:build_trainer", "work:count_parameters")}


class Config(TrainerConfig):
    algorithm_name: Literal["work"]


def count_parameters(config):
    return {}


def build_trainer(config, device):
    import torch
    from training.protocol import StepResult

    class Worker:
        references = None
        resume_mode = "exact"
        resume_reason = None

        def __init__(self):
            self.weights = torch.randn(64, 64)

        def train_step(self):
            write("STEP")
            weights, until = self.weights, time.process_time() + WORK_S
            while True:
                self.weights = torch.tanh(weights @ weights.T + torch.linalg.solve(weights, weights))
                if time.process_time() >= until:
                    return StepResult({"train/trace": self.weights.trace()}, updates=1)

        def components(self):
            return {}

        def state_dict(self):
            return {"weights": self.weights}

        def load_state_dict(self, state):
            self.weights = state["weights"]

        def treat(self, treatment):
            pass

        def redraw(self, number):
            pass

        def close(self):
            write("END")

    return Worker()
"""

SPEC = """\
meta_data: {exp_name: launches, imports: [work], num_workers: SLOTS}
constants:
  algorithm_name: work
  env_name: none
  max_timesteps: 1
  learning_starts: 0
  eval_freq: 0
  num_final_eval: 0
variables:
  seed: SEEDS
"""


@dataclass(frozen=True)
class Launch:
    """What one sweep took.

    Attributes:
        wall_s: from typing the command to its end, the report left out.
        cpu_s: of the runner and everything that it started.
        gap_ms: median from the END of a run to the START of the next in its place.
        gap_step_ms: the same to the next run's first step.
        results: for each seed the hash of the run's final state, and its metrics but for times.
    """

    wall_s: float
    cpu_s: float
    gap_ms: float
    gap_step_ms: float
    results: dict[int, Any]


def launch(folder: Path, words: Sequence[str]) -> Launch:
    """Run the sweep in an empty folder.

    Raises:
        CalledProcessError: a run failed.
    """
    folder.mkdir()
    (folder / "work.py").write_text(TRAINER.replace("WORK_S", str(WORK_S)))
    spec = SPEC.replace("SLOTS", str(SLOTS)).replace("SEEDS", str(list(range(RUNS))))
    (folder / "launches.yaml").write_text(spec)
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", "launches.yaml", "-g", "cpu", "--plain"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, "--no-report", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        check=True,
        preexec_fn=keep_to_slots,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Launch(wall, cpu, measure_gap(folder, "START"), measure_gap(folder, "STEP"), read_results(folder))


def read_results(folder: Path) -> dict[int, Any]:
    """Give what must be the same however a run was started, by seed."""
    results = {}
    for summary in folder.glob("logs/launches/*/summary.json"):
        rows = [json.loads(line) for line in (summary.parent / "metrics.jsonl").read_text().splitlines()]
        kept = [
            {name: row[name] for name in row if name != "wall_time" and not name.startswith("time/")} for row in rows
        ]
        seed = int(summary.parent.name.split("__")[0].partition("=")[2])
        results[seed] = [json.loads(summary.read_text())["state_hash"], kept]
    assert len(results) == RUNS, f"{len(results)} of {RUNS} runs are done"
    return results


def compare(folder: Path) -> dict[str, Any]:
    """Run the sweep both ways and give what was seen."""
    load = os.getloadavg()[0]
    fresh = launch(folder / "fresh", ["--no-warm"])
    warm = launch(folder / "warm", [])
    row: dict[str, Any] = {"runs": RUNS, "slots": SLOTS, "work_s": WORK_S, "load": load}
    for name, seen in (("fresh", fresh), ("warm", warm)):
        row |= {f"{name}_{key}": value for key, value in asdict(seen).items() if key != "results"}
    row["wall_ratio"] = fresh.wall_s / warm.wall_s
    row["cpu_ratio"] = fresh.cpu_s / warm.cpu_s
    row["same_results"] = fresh.results == warm.results
    return row


def main() -> int:
    """Run the benchmark; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--peers", action="store_true", help="Hydra's joblib launcher and Ray's tasks too, installed once"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = compare(Path(folder))
        if args.peers:
            row["peers"] = measure_peers(Path(folder))
    if args.json:
        print(json.dumps(row))
    else:
        for key, value in row.items():
            if key != "peers":
                print(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}")
        if args.peers:
            print_launchers(row)
    met = row["wall_ratio"] >= WALL_GOAL and row["cpu_ratio"] >= CPU_GOAL and row["warm_gap_ms"] < GAP_GOAL_MS
    return 0 if met and row["same_results"] else 1


if __name__ == "__main__":
    sys.exit(main())
