"""Experiment folders made by hand, exactly as docs/run_folder.md says, so that no training is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiment.run import Run


@dataclass
class FakeExperiment:
    """Writes runs in any state below `folder`. Numbers that aren't given follow from the seed."""

    folder: Path
    combinations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, settings: Mapping[str, Any], label: str | None = None, run_id: str | None = None) -> Run:
        """Put a combination into the plan, without a folder: a PENDING run."""
        label = label or ",".join(f"{key}={value}" for key, value in settings.items() if key != "algorithm_name")
        run_id = run_id or hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.combinations.append({"id": run_id, "label": label, "settings": dict(settings)})
        lines = "".join(json.dumps(row) + "\n" for row in self.combinations)
        (self.folder / "plan.jsonl").write_text(lines)
        return Run.create_path(self.folder, label, run_id)

    def start(self, run: Run, attempts: int = 1, code_version: str = "c0de", log: str = "") -> None:
        """Give a run attempts without an ending: LOST."""
        for attempt in range(1, attempts + 1):
            run.attempt_dir(attempt).mkdir(parents=True)
            start = {
                "attempt": attempt,
                "id": run.id,
                "label": run.label,
                "host": "here",
                "device": "cpu",
                "threads": 1,
                "code_version": code_version,
                "command": ["python", "train.py"],
                "started": f"2026-01-02T03:04:{attempt:02d}.000+00:00",
            }
            (run.attempt_dir(attempt) / "start.json").write_text(json.dumps(start))
            run.console_path(attempt).write_text(log)
            if attempt < attempts:
                self.end(run, attempt, "requeue", 75)
        run.lock_path.touch()
        (run.folder / "config.yaml").write_text("algorithm_name: ddpg\n")

    def end(self, run: Run, attempt: int, reason: str, returncode: int) -> None:
        """Give an attempt its ending; with reason `ok` the run is DONE."""
        ending = {"ok": reason == "ok", "returncode": returncode, "reason": reason, "attempt": attempt}
        used = {"wall_s": 1.0, "cpu_s": 1.0, "peak_rss_bytes": 1}
        (run.attempt_dir(attempt) / "exit.json").write_text(json.dumps(ending | used))
        if reason == "ok":
            run.exit_path.write_text(json.dumps(ending))

    def fail(self, run: Run, reason: str = "error", log: str = "") -> None:
        """Give a run that started once and failed."""
        self.start(run, log=log)
        self.end(run, 1, reason, 1)

    def finish(
        self,
        run: Run,
        final: float | str = -200.0,
        curve: Sequence[float | str] = (-900.0, -400.0),
        train: float | str = -300.0,
        attempts: int = 1,
        machine: float = 1.0,
        code_version: str = "c0de",
        acts: bool = True,
        references: tuple[float, float] | None = None,
        **summary: Any,
    ) -> None:
        """Give a run that is DONE. `machine` changes only what depends on the machine; offline ones never act.

        `references` are random's and the expert's return.
        """
        self.start(run, attempts, code_version)
        self.write_metrics(run, curve, train, machine, acts)
        whole = {
            "final_eval": {
                "mean": final,
                "std": 10.0,
                "returns": [final] * 4,
                "lengths": [200] * 4,
                "seeds": [1, 2, 3, 4],
            },
            "best_eval": {"step": 1000, "mean": -150.0},
            "parameters": {"actor": 4609, "critic": 4673},
            "memory": {"peak_rss_bytes": 412_000_000, "peak_gpu_bytes": None, "replay_bytes": 2_800_000},
            "time": {"wall_s": 60.1 * machine, "cpu_s": 59.0 * machine},
            "throughput": {"env_steps_per_s": 166.0 / machine, "updates_per_s": 150.0 / machine},
            "steps": 2000,
            "env_steps": 2000,
            "updates": 1900,
            "attempts": attempts,
            "resume": "exact",
            "guard": {"verdict": "healthy", "events": 0},
            "device": "cpu",
            "threads": 1,
            "code_version": code_version,
            "state_hash": hashlib.sha256(run.id.encode()).hexdigest(),
        }
        if references is not None:
            random, expert = references
            score = 100 * (final - random) / (expert - random) if isinstance(final, float) else final
            scored = {"normalized_score": score, "references": {"random": random, "expert": expert}}
            whole["final_eval"] = {**whole["final_eval"], **scored}  # type: ignore[dict-item]
        run.summary_path.write_text(json.dumps(whole | summary))
        self.end(run, attempts, "ok", 0)

    def write_metrics(
        self,
        run: Run,
        curve: Sequence[float | str],
        train: float | str = -300.0,
        machine: float = 1.0,
        acts: bool = True,
    ) -> None:
        """Write a training row and an evaluation row for each value of a curve, 1,000 steps apart."""
        rows: list[dict[str, Any]] = []
        for number, value in enumerate(curve, start=1):
            place = {"step": 1000 * number, "env_step": 1000 * number * acts, "wall_time": 3.5 * number * machine}
            rows.append(place | {"train/critic_loss": 0.5, "rollout/ep_rew_mean": train, "time/fps": 300.0 * machine})
            rows.append(place | {"eval/mean_reward": value, "eval/std_reward": 80.0, "eval/mean_ep_length": 200.0})
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def experiment(tmp_path: Path) -> FakeExperiment:
    """An experiment folder that is filled by the test."""
    return FakeExperiment(tmp_path / "logs" / "sweep")


@pytest.fixture
def make_sweep() -> Callable[..., list[Run]]:
    """Give a function that makes the newcomer's sweep, all runs finished: the higher the rate, the better."""

    def make(
        folder: Path, rates: Sequence[float] = (1e-4, 3e-4, 1e-3), seeds: Sequence[int] = (100, 200, 300), **more: Any
    ) -> list[Run]:
        experiment = FakeExperiment(folder)
        runs = []
        for rate in rates:
            for seed in seeds:
                run = experiment.add({"algorithm_name": "ddpg", "seed": seed, "learning_rate": rate})
                final = -1000.0 + 4e5 * rate + seed / 10
                experiment.finish(run, final, curve=(final - 300, final - 100, final), train=final - 50, **more)
                runs.append(run)
        return runs

    return make


@pytest.fixture
def finished_sweep(tmp_path: Path, make_sweep: Callable[..., list[Run]]) -> Path:
    """Give the folder of a sweep of three rates and three seeds in which every run is DONE."""
    folder = tmp_path / "logs" / "finished"
    make_sweep(folder)
    return folder
