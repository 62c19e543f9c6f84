"""What runs take, as the kernel and their own files tell.

What a shape takes is remembered nowhere but in the folders of the runs that are done, and in the events of their ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.files import read_events, read_json
from experiment.identity import PARENT_KEYS
from experiment.locks import list_holders
from experiment.packing import MIB, Peak, Record
from experiment.plan import Planned
from experiment.preflight import Footprint
from experiment.progress import read_progress
from experiment.run import Run, State
from experiment.stored import find_saved_step, replay_dir
from experiment.supervise import read_parent

PROC = Path("/proc")
HARMLESS = frozenset(
    {"seed", "eval_freq", "save_freq", "log_freq", "keep_last", "keep_replay", "continue_training", "device", "guard"}
)
"""Settings that are no real numbers and yet don't change what a run takes."""
ALLOCATOR_SHARE, CONTEXT = 0.2, 700 * MIB
"""What CUDA and torch's allocator take beside the tensors that torch counts, where NVML was not asked."""


@dataclass(frozen=True)
class Tree:
    """The memory of a process and all its descendants, in bytes: now, and the sum of their peaks."""

    now_bytes: int
    peak_bytes: int
    pids: frozenset[int]


@dataclass(frozen=True)
class Shape:
    """What has to be known of a run to measure it.

    Attributes:
        key: the same for runs that take the same memory.
        steps: environment steps in all; None for a script that isn't ours.
        remembered: of these, how many its replay buffer holds in the end.
        evaluates: whether it is evaluated on the way.
        saves: whether it writes checkpoints on the way.
    """

    key: str
    steps: int | None = None
    remembered: int = 0
    evaluates: bool = False
    saves: bool = False


def find_shape(planned: Planned) -> Shape:
    """Give the shape of a run.

    Real numbers, a learning rate say, change no sizes; unless its config says that they do, runs that differ in these
    and in what is `HARMLESS` alone have one shape. All other settings count: better a canary too many.
    """
    settings = planned.settings if planned.config is None else planned.config.resolved()
    sizes = _leave_out_reals({key: value for key, value in settings.items() if key not in HARMLESS})
    if planned.config is not None:
        # That it begins from another run may count; from which, doesn't.
        sizes |= {key: True for key in PARENT_KEYS if key in sizes}
    else:
        return Shape(json.dumps(sizes, sort_keys=True, default=str))
    key = json.dumps([sizes, planned.config.shape_settings()], sort_keys=True, default=str)
    steps = int(settings["max_timesteps"])
    remembered = min(steps, int(settings["buffer_size"]))
    return Shape(key, steps, remembered, evaluates=settings["eval_freq"] != 0, saves=settings["save_freq"] != 0)


def _leave_out_reals(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _leave_out_reals(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value is not None and not isinstance(value, float)
    }


def read_trees(roots: Sequence[int], proc: Path = PROC) -> dict[int, Tree]:
    """Give the memory of each process and its descendants; one that is gone takes nothing.

    Pages that processes share count in each: the sum is never too small.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir(proc):
        if name.isdigit() and (parent := read_parent(int(name), proc)) is not None:
            children.setdefault(parent, []).append(int(name))
    return {root: _sum_tree(root, children, proc) for root in roots}


def _sum_tree(root: int, children: Mapping[int, Sequence[int]], proc: Path) -> Tree:
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    sizes = [_read_sizes(proc / str(pid) / "status") for pid in pids]
    return Tree(sum(now for now, _ in sizes), sum(peak for _, peak in sizes), frozenset(pids))


def _read_sizes(path: Path) -> tuple[int, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    return int(sizes.get("VmRSS", 0)) * 1024, int(sizes.get("VmHWM", 0)) * 1024


def measure_held(runs: Iterable[Run]) -> int:
    """Give the bytes that those of some runs have which are going on, on this machine."""
    going = [run for run in runs if run.status().state is State.RUNNING]
    holders = [list_holders(run.lock_path) for run in going]
    trees = read_trees([pid for pids in holders for pid in pids]) if going else {}
    # Of a run's holders one, its supervisor, is the root of the others.
    return sum(max((trees[pid].now_bytes for pid in pids), default=0) for pids in holders)


def has_cycled(run: Run, shape: Shape, since: int) -> bool:
    """Tell whether a run has been through everything once: trained, saved and, where it does that, evaluated.

    Args:
        run: that is in progress.
        shape: its own.
        since: the step that its attempt started from.
    """
    if not shape.saves or find_saved_step(run.checkpoints_dir) <= since:
        return False
    return not shape.evaluates or _has_evaluated(run, since)


def _has_evaluated(run: Run, since: int) -> bool:
    try:
        lines = run.metrics_path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    for line in reversed(lines):
        if '"eval/' in line:
            try:
                return int(json.loads(line)["step"]) > since
            except (ValueError, KeyError, TypeError):  # being written
                continue
    return False


def predict_growth(run: Run, shape: Shape) -> int:
    """Give the bytes that a run's replay buffer has yet to grow by, from what it has saved of it; 0 without one."""
    step = read_progress(run).step
    if not step or step >= shape.remembered:
        return 0
    try:
        saved = sum(path.stat().st_size for path in replay_dir(run.checkpoints_dir).iterdir())
    except OSError:
        return 0
    return int(saved * (shape.remembered / step - 1))


def recall_shapes(
    runs: Iterable[Run], shapes: Mapping[str, Shape], events: Path, *, on_gpu: bool
) -> tuple[dict[str, Record], dict[str, float]]:
    """Give what is known of each shape by the runs that are done: peaks, and seconds that a run takes.

    Args:
        runs: of the experiment, done or not.
        shapes: by run id.
        events: the experiment's `events.jsonl`.
        on_gpu: whether this is about runs on GPUs, or those on the CPU.
    """
    measured: dict[str, Peak] = {}
    for event in read_events(events):
        if event["event"] == "ended" and event.get("reason") == "ok" and "peak_ram_bytes" in event:
            measured[str(event["run"])] = Peak(int(event.get("peak_gpu_bytes", 0)), int(event["peak_ram_bytes"]))
    records: dict[str, Record] = {}
    seconds: dict[str, float] = {}
    for run in runs:
        if run.is_done() and (run.read_start(run.last_attempt()).get("device") != "cpu") == on_gpu:
            key = shapes[run.id].key
            peak = read_peak(run)
            peak = peak.join(measured[run.id]) if run.id in measured else peak
            if peak.ram_bytes and bool(peak.gpu_bytes) == on_gpu:
                records[key] = records[key].add(peak) if key in records else Record(peak, peak, 1)
            if wall := (read_json(run.summary_path) or {}).get("time", {}).get("wall_s"):
                seconds[key] = float(wall)
    return records, seconds


def read_peak(run: Run) -> Peak:
    """Give a finished run's peak by its own files, over all its attempts; 0 for what they don't tell."""
    memory = (read_json(run.summary_path) or {}).get("memory", {})
    endings = [run.read_exit(attempt) or {} for attempt in range(1, run.last_attempt() + 1)]
    ram = max([memory.get("peak_rss_bytes") or 0, *(ending.get("peak_rss_bytes", 0) for ending in endings)])
    tensors = memory.get("peak_gpu_bytes") or 0
    return Peak(int(tensors * (1 + ALLOCATOR_SHARE)) + CONTEXT if tensors else 0, int(ram))


def predict_peak(footprint: Footprint) -> Peak:
    """Give what a run may take by what was predicted of it, on a GPU with CUDA's own share."""
    gpu = footprint.gpu_bytes
    return Peak(0 if gpu is None else int(gpu * (1 + ALLOCATOR_SHARE)) + CONTEXT, footprint.host_bytes)
