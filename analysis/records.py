"""One run's files as a flat record and as rows of numbers, read so that a half-written file harms nothing."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiment.files import read_json
from experiment.loader import load_yaml
from experiment.problems import SpecError
from experiment.run import Run, State

FIXED_COLUMNS: dict[str, str] = {
    "id": "str",
    "label": "str",
    "folder": "str",  # name of the run's folder, also of one that isn't there yet
    "state": "str",  # of experiment.run.State
    "reason": "str",  # of FAILED, else missing
    "attempt": "int64",  # number of the last attempt, 0 for none
    "started": "str",  # ISO time at which the last attempt started
    "code_version": "str",  # that finished the run, else that started its last attempt
    "code_versions": "str",  # all that attempts of it started under, separated by blanks
    "used_device": "str",
    # All below are there for DONE runs alone.
    "final_mean": "float64",  # mean return over the report seeds; may be NaN or infinite: see final_problem
    "final_std": "float64",  # over the report seeds
    "final_episodes": "Int64",
    "final_score": "float64",  # normalised score of final_mean, where the run's data set has references
    "reference_random": "float64",  # the return that is scored 0
    "reference_expert": "float64",  # the return that is scored 100
    "final_problem": "str",  # why final_mean can't enter a statistic, else missing
    "best_mean": "float64",  # of the best evaluation on the selection seeds
    "best_step": "Int64",
    "train_return": "float64",  # rollout/ep_rew_mean of the last row that has it; may be NaN or infinite
    "train_problem": "str",  # why train_return can't be averaged, else missing
    "parameters": "Int64",  # learnable, over all components
    "peak_rss_bytes": "Int64",
    "peak_gpu_bytes": "Int64",
    "replay_bytes": "Int64",
    "wall_s": "float64",
    "cpu_s": "float64",
    "env_steps_per_s": "float64",
    "updates_per_s": "float64",
    "steps": "Int64",
    "env_steps": "Int64",
    "updates": "Int64",
    "attempts": "Int64",
    "resume": "str",  # exact or episode
    "guard": "str",  # verdict of the training-health guard
    "repaired": "bool",  # True where the guard repaired a DONE run: it trained under settings that aren't the plan's
    "counted": "bool",  # True where the row may enter a statistic: DONE, and not repaired unless that was asked for
    "used_threads": "Int64",
    "state_hash": "str",
    "metrics_hash": "str",  # of all metric rows without what depends on the machine; missing where there are none
}
"""The columns of `ExperimentData.runs` that don't depend on the spec, with their types."""

METRIC_KEYS = ("id", "step", "env_step", "wall_time", "not_finite")
"""The columns of `ExperimentData.metrics` that aren't metrics."""
TRAIN_RETURN = "rollout/ep_rew_mean"
NO_SUMMARY = "no summary.json"
NO_FINAL_EVAL = "no final evaluation in summary.json"
NO_TRAIN_RETURN = f"no {TRAIN_RETURN} in metrics.jsonl"
NOT_THERE = (NO_SUMMARY, NO_FINAL_EVAL, NO_TRAIN_RETURN)
"""Problems of a number that is missing, as against one that isn't finite."""
_TEXTS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class MetricLog:
    """The rows of a `metrics.jsonl`, numbers alone, each with `not_finite`; what was odd; a hash of what they say."""

    rows: tuple[dict[str, Any], ...]
    warning: str
    fingerprint: str | None


def read_metrics(run: Run) -> MetricLog:
    """Read the metric rows of a run. A last line that was cut while being written is left out, as a resume would."""
    try:
        lines = run.metrics_path.read_bytes().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return MetricLog((), "", None)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
    rows = []
    unreadable = []
    digest = hashlib.blake2b(digest_size=16)
    for number, line in enumerate(lines, start=1):
        row = _read_row(line)
        if row is None:
            unreadable.append(number)
            continue
        rows.append(row)
        digest.update(_encode_results(row))
    warning = ""
    if unreadable:
        shown = ", ".join(str(number) for number in unreadable[:5])
        warning = f"metrics.jsonl has {len(unreadable)} unreadable line(s), left out: {shown}"
    return MetricLog(tuple(rows), warning, digest.hexdigest() if rows else None)


def _read_row(line: bytes) -> dict[str, Any] | None:
    """Give one row with floats for values, None where the line isn't a row of the contract."""
    try:
        raw = json.loads(line)
        step, env_step, wall_time = int(raw["step"]), int(raw["env_step"]), float(raw["wall_time"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    row: dict[str, Any] = {"step": step, "env_step": env_step, "wall_time": wall_time}
    not_finite = []
    for name, value in raw.items():
        if name in row or name == "not_finite":
            continue
        number = value if type(value) is float else read_number(value)
        if number is None:
            return None
        # Each row has brought texts of its own for the same names: of a hundred thousand rows, most of the memory.
        row[sys.intern(name)] = number
        if not math.isfinite(number):
            not_finite.append(name)
    row["not_finite"] = " ".join(not_finite)
    return row


def _encode_results(row: Mapping[str, Any]) -> bytes:
    """Give what a row says but for what depends on the machine, in a form that is equal for equal rows alone."""
    names = sorted(name for name in row if name not in METRIC_KEYS and not name.startswith("time/"))
    heading = json.dumps([row["step"], row["env_step"], *names])
    return heading.encode() + array("d", [row[name] for name in names]).tobytes()


def read_number(value: object) -> float | None:
    """Give a number of a metric row or a summary, `nan`, `inf` and `-inf` read from their texts; None for no number."""
    if isinstance(value, str):
        return _TEXTS.get(value)
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # a whole number that no float can hold
        return None


def read_config(run: Run) -> tuple[dict[str, Any], str]:
    """Give a run's resolved settings by dotted key, none where it has no `config.yaml`, and what was wrong with it."""
    if not run.config_path.exists():
        return {}, ""
    try:
        data = load_yaml(run.config_path).data
    except SpecError as error:
        return {}, f"its settings are left out: {error.problems[0]}"
    return dict(flatten_settings(data)) if isinstance(data, dict) else {}, ""


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give nested values by dotted key; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_run(run: Run) -> tuple[dict[str, Any], MetricLog]:
    """Give a run's part of `FIXED_COLUMNS` with `parameters/<component>`, and its metric rows.

    The status is asked first: a run that is DONE by then has written all of its rows.
    """
    status = run.status()
    log = read_metrics(run)
    done = status.state == State.DONE
    starts = [run.read_start(attempt) for attempt in range(1, status.attempt + 1)]
    versions = [read_text(start.get("code_version")) for start in starts]
    last = starts[-1] if starts else {}
    record = {
        "folder": run.folder.name,
        "state": str(status.state),
        "reason": status.reason,
        "attempt": status.attempt,
        "started": max((text for start in starts if (text := read_text(start.get("started")))), default=None),
        "code_version": next((version for version in reversed(versions) if version), None),
        "code_versions": " ".join(dict.fromkeys(version for version in versions if version)) or None,
        "used_device": read_text(last.get("device")),
    }
    return (record | _read_ending(run, log) if done else record), log


def _read_ending(run: Run, log: MetricLog) -> dict[str, Any]:
    """Give what a finished run reports about itself."""
    summary = read_json(run.summary_path)
    record: dict[str, Any] = {"metrics_hash": log.fingerprint} | _read_training(log)
    if summary is None:
        return record | {"final_problem": NO_SUMMARY}
    record |= _read_final(_part(summary, "final_eval")) | _read_parameters(_part(summary, "parameters"))
    best, memory = _part(summary, "best_eval"), _part(summary, "memory")
    time, throughput = _part(summary, "time"), _part(summary, "throughput")
    record |= {"best_mean": read_number(best.get("mean")), "best_step": _whole(best.get("step"))}
    record |= {name: _whole(memory.get(name)) for name in ("peak_rss_bytes", "peak_gpu_bytes", "replay_bytes")}
    record |= {name: read_number(time.get(name)) for name in ("wall_s", "cpu_s")}
    record |= {name: read_number(throughput.get(name)) for name in ("env_steps_per_s", "updates_per_s")}
    record |= {name: _whole(summary.get(name)) for name in ("steps", "env_steps", "updates", "attempts")}
    record |= {"resume": read_text(summary.get("resume")), "guard": read_text(_part(summary, "guard").get("verdict"))}
    record |= {"used_threads": _whole(summary.get("threads")), "state_hash": read_text(summary.get("state_hash"))}
    named = {"code_version": read_text(summary.get("code_version")), "used_device": read_text(summary.get("device"))}
    return record | {name: value for name, value in named.items() if value}


def _read_training(log: MetricLog) -> dict[str, Any]:
    value = next((row[TRAIN_RETURN] for row in reversed(log.rows) if TRAIN_RETURN in row), None)
    return {"train_return": value, "train_problem": _find_problem(value, NO_TRAIN_RETURN, "training return")}


def _read_final(final: Mapping[str, Any]) -> dict[str, Any]:
    mean = read_number(final.get("mean"))
    returns, references = final.get("returns"), _part(final, "references")
    return {
        "final_score": read_number(final.get("normalized_score")),
        "reference_random": read_number(references.get("random")),
        "reference_expert": read_number(references.get("expert")),
        "final_mean": mean,
        "final_std": read_number(final.get("std")),
        "final_episodes": len(returns) if isinstance(returns, list) else None,
        "final_problem": _find_problem(mean, NO_FINAL_EVAL, "final evaluation"),
    }


def _find_problem(value: float | None, missing: str, name: str) -> str | None:
    if value is None:
        return missing
    return None if math.isfinite(value) else f"{name} is {value}"


def _read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    counts = dict(_whole_items(parameters))
    named: dict[str, Any] = {f"parameters/{name}": count for name, count in counts.items()}
    return named | {"parameters": sum(counts.values()) if counts else None}


def _whole_items(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        whole = _whole(value)
        if whole is not None:
            yield name, whole


def _part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    number = read_number(value)
    return None if number is None or not math.isfinite(number) else int(number)


def read_text(value: object) -> str | None:
    """Give a text that can be written to a file; None for none and an empty one."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and value else None
