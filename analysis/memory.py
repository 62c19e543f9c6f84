"""The memory that training takes, claimed, predicted and measured: `python -m analysis.memory --algorithm vmamba_td3`.

Predicting is arithmetic; with `--measure` processes of their own train for a few updates where they fit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.sizing import ACTION_DIM, STATE_DIM, Measurement, make_parser, measure, read_size, write_tables
from analysis.tables import Cell, Table, show_bytes, show_number
from experiment.memory import read_free_memory
from rl.vmamba_td3.memory import MemoryEstimate, Workload, estimate_memory
from rl.vmamba_td3.presets import PRESETS

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "patch_4": {"vmamba_patch_size": 4},
    "checkpointing": {"use_checkpointing": True},
    "amp": {"use_amp": True},
    "shared": {"encoder_sharing": "shared"},
}
"""What is changed about a preset, as settings."""
SHOWN = {
    "defaults": "defaults (patch 16)",
    "patch_4": "vmamba_patch_size: 4",
    "checkpointing": "use_checkpointing: true",
    "amp": "use_amp: true",
    "shared": "encoder_sharing: shared",
}
GIGA = 10**9


@dataclass(frozen=True)
class Case:
    """One preset, changed in one way, at one batch size."""

    preset: str
    variant: str
    settings: Mapping[str, Any]
    claimed_gpu_gb: int
    estimate: MemoryEstimate

    @property
    def name(self) -> str:
        return f"{self.preset}, {SHOWN[self.variant]}, batch {self.settings['batch_size']}"


def list_cases(
    presets: Sequence[str], variants: Sequence[str], batches: Sequence[int], frame: tuple[int, int]
) -> Iterator[Case]:
    """Give every preset in every variant, at the documents' batch size unless others are given."""
    for name in presets:
        preset = PRESETS[name]
        for variant in variants:
            changes = VARIANTS[variant]
            patch = changes.get("vmamba_patch_size", preset.trunk.patch_size)
            changed = replace(preset, trunk=replace(preset.trunk, patch_size=patch))
            stream = changed.plan_stream((1, *frame), STATE_DIM)
            for batch in batches or (preset.batch_size,):
                work = Workload(
                    batch,
                    preset.seq_len,
                    use_amp=changes.get("use_amp", False),
                    use_checkpointing=changes.get("use_checkpointing", False),
                    encoder_sharing=changes.get("encoder_sharing", "separate"),
                )
                settings = {**preset.list_settings(), **changes, "batch_size": batch}
                estimate = estimate_memory(stream, ACTION_DIM, work)
                yield Case(name, variant, settings, preset.claimed_gpu_gb, estimate)


def measure_case(algorithm: str, case: Case, frame: tuple[int, int], device: str) -> Measurement:
    """Have a process train a few updates, if it is predicted to fit into the memory that is free."""
    if device == "cpu" and case.estimate.process > (free := read_free_memory()):
        return Measurement(reason=f"{case.estimate.process / GIGA:.1f} GB don't fit into the {free / GIGA:.1f} GB free")
    return measure(algorithm, case.settings, frame, device)


def tabulate_memory(
    cases: Sequence[Case], measured: Sequence[Measurement] | None, frame: tuple[int, int], device: str
) -> Table:
    """Give the table of claims and predictions, with what was measured, if anything was."""
    columns = [
        "Preset",
        "Settings",
        "Batch",
        "Claimed, GB",
        "Lasting, MiB",
        "Tensors at the peak, MiB",
        "On the CPU, MiB",
    ]
    rows, records = [], []
    for number, case in enumerate(cases):
        estimate = case.estimate
        predicted = estimate.process if device == "cpu" else estimate.peak
        record: dict[str, Any] = {
            "preset": case.preset,
            "variant": case.variant,
            "batch_size": case.settings["batch_size"],
            "claimed_gpu_bytes": case.claimed_gpu_gb * GIGA,
            "lasting_bytes": estimate.lasting,
            "tensors_bytes": estimate.peak,
            "cpu_bytes": estimate.process,
        }
        row = [Cell(case.preset, code=True), Cell(SHOWN[case.variant]), Cell(str(case.settings["batch_size"]))]
        row += [Cell(str(case.claimed_gpu_gb))]
        row += [Cell(show_bytes(size)) for size in (estimate.lasting, estimate.peak, estimate.process)]
        if measured is not None:
            found = measured[number].peak_bytes
            ratio = None if found is None else found / predicted
            row += [Cell(show_bytes(found)), Cell(show_number(ratio, 2))]
            record |= {"measured_bytes": found, "measured_device": device}
        rows.append(tuple(row))
        records.append(record)
    if measured is not None:
        columns += ["Measured, MiB", "Measured / predicted"]
    notes = _write_notes(cases, measured, frame, device)
    return Table("memory", "Memory of training", tuple(columns), tuple(rows), pd.DataFrame(records), notes)


def _write_notes(
    cases: Sequence[Case], measured: Sequence[Measurement] | None, frame: tuple[int, int], device: str
) -> tuple[str, ...]:
    notes = [
        f"For frames of {frame[0]}x{frame[1]} pixels, without the replay buffer. Lasting: networks, targets and Adam's "
        "moments. On the CPU: of a process beyond what loading its libraries took, with the holes in its heap. The "
        "claims are the documents', of GPU memory; for which frames, they don't say."
    ]
    if measured is not None:
        what = "peak of a process's own memory" if device == "cpu" else "peak of what torch had allocated"
        notes.append(f"Measured now, on one thread: {what} on {device}, over twice policy_freq updates.")
        notes += [
            f"Not measured: {case.name}: {found.reason}."
            for case, found in zip(cases, measured, strict=True)
            if found.reason
        ]
    return tuple(notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Gives the exit code: 0, 1 a file was not written, 2 usage."""
    parser = make_parser("analysis.memory", "Predict the memory of an agent's training, beside what is claimed of it.")
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=tuple(PRESETS))
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--batch", type=read_size, nargs="+", default=(), help="batch sizes (default: the documents')")
    parser.add_argument("--measure", action="store_true", help="measure too, which takes minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    chosen = parser.parse_args(arguments)
    height, width = chosen.frame
    cases = list(list_cases(chosen.presets, chosen.variants, chosen.batch, (height, width)))
    measured = None
    if chosen.measure:
        measured = [measure_case(chosen.algorithm, case, (height, width), chosen.device) for case in cases]
    table = tabulate_memory(cases, measured, (height, width), chosen.device)
    return write_tables([table], chosen.algorithm, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
