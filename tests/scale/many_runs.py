"""Experiments of a thousand runs, as training leaves them, in a second: `python -m tests.scale.many_runs FOLDER`.

The specs are real and planned by our own code, so that ids, labels and `config.yaml` are those of a launch. The rest,
curves, endings, checkpoints, is written as docs/run_folder.md says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment.files import CONFIG_HEADING, dump_settings
from experiment.locks import acquire_lock
from experiment.plan import Planned, plan_runs, write_plan
from experiment.run import Run, State
from experiment.spec import load_spec
from experiment.stored import replay_dir, seal_manifest
from train import build_config

STEPS, EVALUATIONS, ROWS_BETWEEN = 100_000, 10, 10
CURVES = 8
VERSION = "c0de" * 4
GRID = """
meta_data: {exp_name: grid, description: A hundred arms of ten seeds.}
constants: {algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 100000, hidden_dims: [64, 64]}
variables:
  learning_rate: [1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2]
  batch_size: [16, 32, 64, 96, 128, 192, 256, 384, 512, 1024]
  seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""
RANDOM = """
meta_data: {exp_name: random, description: Two hundred points drawn of five seeds each., samples: 200}
constants: {algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 100000, hidden_dims: [64, 64]}
variables:
  learning_rate: {log_uniform: [1e-5, 3e-2]}
  batch_size: {int_uniform: [16, 1024]}
  tau: {uniform: [0.001, 0.1]}
  noise_type: {choice: [ou, gaussian]}
  seed: [0, 1, 2, 3, 4]
"""
"""As GRID, a thousand combinations."""


@dataclass
class ManyRuns:
    """Writes the runs of a spec below `root`/logs.

    Attributes:
        root: where the command would be typed; the specs come to lie here.
        spares_disk: files that say the same are links to one, returns are rounded in curves so that many do, and one
            run of ten has checkpoints. Else all is written as training would.
        locks: what is held for runs that are RUNNING; `close` lets go of it.
    """

    root: Path
    spares_disk: bool = True
    locks: list[int] = field(default_factory=list)
    written: dict[str, Path] = field(default_factory=dict)

    def write(self, text: str, only_done: bool = False) -> Path:
        """Give the folder of an experiment, made of the spec with this text.

        Its runs are all DONE where that is asked for; else a few are in every other state, some held by this process.
        """
        path = self.root / "spec.yaml"
        path.write_text(text)
        spec = load_spec(path)
        path = path.rename(self.root / f"{spec.meta.exp_name}.yaml")
        plan = plan_runs(spec, self.root / "logs", build_config)
        folder = self.root / "logs" / spec.meta.exp_name
        folder.mkdir(parents=True)
        (folder / "spec.yaml").write_text(text)
        (folder / "env.json").write_text(json.dumps({"python": "3.11.7", "packages": {"torch": "2.13.0", "x": "1"}}))
        write_plan(folder / "plan.jsonl", spec, plan)
        curves = [list(_write_training(random.Random(number))) for number in range(CURVES)]
        events = [_write_event("launched", None, runs=len(plan.runs), jobs=2, code_version=VERSION)]
        for number, run in enumerate(plan.runs):
            state = State.DONE if only_done else _choose_state(number, len(plan.runs))
            if state is State.PENDING:
                continue
            run.attempt_dir(1).mkdir(parents=True)
            events.append(_write_event("started", run.id, attempt=1, device="cpu"))
            events.append(_write_event("ended", run.id, attempt=1, reason="ok", verdict="done"))
            self._write_run(run, plan.check_again(run.id), state, curves)
            if number % 10 == 0 or not self.spares_disk:
                _write_checkpoints(run, STEPS if state is State.DONE else STEPS // 2)
        (folder / "events.jsonl").write_text("".join(events))
        return folder

    def close(self) -> None:
        """Let the RUNNING runs end."""
        while self.locks:
            os.close(self.locks.pop())

    def _put(self, path: Path, text: str) -> None:
        if self.spares_disk and text in self.written:
            os.link(self.written[text], path)
        else:
            path.write_text(text)
            self.written[text] = path

    def _write_run(self, run: Run, planned: Planned, state: State, curves: list[list[str]]) -> None:
        settings = planned.resolved()
        run.config_path.write_text(dump_settings(settings, CONFIG_HEADING))
        run.lock_path.touch()
        if state is State.RUNNING:
            lock = acquire_lock(run.lock_path)
            assert lock is not None
            self.locks.append(lock)
        start = {
            "attempt": 1,
            "id": run.id,
            "label": run.label,
            "host": "here",
            "device": "cpu",
            "threads": 1,
            "code_version": VERSION,
            "command": ["python", "train.py", "-e", str(run.config_path)],
            "started": "2026-01-02T03:04:05.000+00:00",
        }
        (run.attempt_dir(1) / "start.json").write_text(json.dumps(start))
        final = _invent_return(settings)
        last = 20 * round(final / 20) if self.spares_disk else final
        kept = EVALUATIONS if state is State.DONE else EVALUATIONS // 2
        training = curves[round(-final / 20) % len(curves)][:kept]
        rows = [part + _write_evaluation(number, last - 900 / (2 + number)) for number, part in enumerate(training)]
        self._put(run.metrics_path, "".join(rows))
        self._put(run.console_path(1), _LOGS.get(state, ""))
        if state in _ENDINGS:
            reason, returncode = _ENDINGS[state]
            ending = {"ok": reason == "ok", "returncode": returncode, "reason": reason, "attempt": 1}
            used = {"wall_s": 251.5, "cpu_s": 249.0, "peak_rss_bytes": 291_254_272}
            self._put(run.attempt_dir(1) / "exit.json", json.dumps(ending | used))
            if state is State.DONE:
                run.summary_path.write_text(json.dumps(_summarise(run, final)))
                self._put(run.exit_path, json.dumps(ending))


_ENDINGS = {State.DONE: ("ok", 0), State.FAILED: ("error", 1), State.STOPPED: ("requeue", 75)}
_LOGS = {State.FAILED: 'Traceback (most recent call last):\n  File "train.py", line 1\nValueError: the loss is nan\n'}


def _choose_state(number: int, count: int) -> State:
    """Give the state of a run by its place: nine of ten are done, the last ones are held or haven't begun."""
    if number >= count - 20:
        return State.PENDING
    if number >= count - 24:
        return State.RUNNING
    return {17: State.FAILED, 41: State.STOPPED, 63: State.LOST}.get(number % 100, State.DONE)


def _invent_return(settings: dict[str, Any]) -> float:
    """Give a return that has a best learning rate and batch size, and depends on the seed a little."""
    rate = math.log10(settings["learning_rate"] / 1e-3)
    batch = math.log2(settings["batch_size"] / 192)
    return -150.0 - 180 * rate**2 - 25 * batch**2 - 20 * random.Random(str(settings)).random()


def _write_training(generator: random.Random) -> Iterator[str]:
    """Give the rows before each evaluation, of as many metrics as DDPG logs."""
    names = (
        *(f"train/{name}" for name in ("critic_loss", "q_mean", "target_std", "actor_loss", "noise_scale")),
        *(f"health/{name}_{network}" for name in ("weights", "gradient") for network in ("critic", "actor")),
        *(f"health/{name}" for name in ("bootstrap_gain", "stuck_actor", "critic_error", "value_bound")),
        *(f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean", "return_per_step")),
        "train/n_updates",
        "time/fps",
    )
    for evaluation in range(EVALUATIONS):
        rows = []
        for number in range(evaluation * ROWS_BETWEEN + 1, (evaluation + 1) * ROWS_BETWEEN + 1):
            row = {"step": number * 1000, "env_step": number * 1000, "wall_time": round(2.5 * number, 3)}
            rows.append(json.dumps(row | {name: generator.uniform(0, 100) for name in names}) + "\n")
        yield "".join(rows)


def _write_evaluation(number: int, episode_return: float) -> str:
    step = (number + 1) * STEPS // EVALUATIONS
    row = {"step": step, "env_step": step, "wall_time": step / 400, "eval/mean_reward": episode_return}
    return json.dumps(row | {"eval/std_reward": 44.118640709575146, "eval/mean_ep_length": 200.0}) + "\n"


def _write_event(event: str, run_id: str | None, **details: object) -> str:
    return json.dumps({"time": "2026-01-02T03:04:05.000+00:00", "event": event, "run": run_id} | details) + "\n"


def _write_checkpoints(run: Run, step: int) -> None:
    """Write the newest two and the best, each with its manifest; the replay data are dropped, as at the end."""
    replay_dir(run.checkpoints_dir).mkdir(parents=True)
    for name, at in ((f"step_{step - 1000:08d}", step - 1000), (f"step_{step:08d}", step), (f"best_{step:08d}", step)):
        weights = f"{run.id} {name}".encode()
        (run.checkpoints_dir / f"{name}.pt").write_bytes(weights)
        content: dict[str, Any] = {
            "format": 1,
            "step": at,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "replay": {},
            "replay_dropped": True,
            "facts": {"step": at, "env_step": at, "updates": at, "device": "cpu", "code_version": VERSION},
        }
        manifest = json.dumps({**content, "seal": seal_manifest(content)})
        (run.checkpoints_dir / f"{name}.json").write_text(manifest)


def _summarise(run: Run, final: float) -> dict[str, Any]:
    evaluation = {"returns": [final] * 50, "lengths": [200] * 50, "seeds": list(range(2_000_000, 2_000_050))}
    return {
        "final_eval": {"mean": final, "std": 93.152} | evaluation,
        "best_eval": {"step": STEPS, "mean": final},
        "parameters": {"actor": 67_073, "critic": 67_329},
        "memory": {"peak_rss_bytes": 291_254_272, "peak_gpu_bytes": None, "replay_bytes": 3_600_000},
        "time": {"wall_s": 251.1, "cpu_s": 248.9},
        "throughput": {"env_steps_per_s": 398.0, "updates_per_s": 390.0},
        "steps": STEPS,
        "env_steps": STEPS,
        "updates": STEPS - 1000,
        "attempts": 1,
        "resume": "exact",
        "resume_reason": None,
        "backends": {},
        "guard": {"mode": "warn", "verdict": "healthy", "events": 0, "repaired": False, "decisions": []},
        "device": "cpu",
        "threads": 1,
        "code_version": VERSION,
        "state_hash": hashlib.sha256(run.id.encode()).hexdigest(),
    }


if __name__ == "__main__":
    builder = ManyRuns(Path(sys.argv[1]), spares_disk=False)
    builder.root.mkdir(parents=True, exist_ok=True)
    for text in (GRID, RANDOM):
        print(builder.write(text))
