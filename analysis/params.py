"""An agent's parameters, claimed and counted: `python -m analysis.params --algorithm vmamba_td3`.

Counting is arithmetic; with `--measure` processes of their own say how long an update of VMamba-TD3 takes. TD-MPC2's
tables are in `analysis.params_tdmpc2`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis import dims_tdmpc2, params_tdmpc2
from analysis.sizing import ACTION_DIM, STATE_DIM, Measurement, make_parser, measure, read_size, write_tables
from analysis.tables import DASH, Cell, Table, show_count, show_number
from rl.vmamba_td3.counting import (
    count_classifier,
    count_parameters,
    count_rl_encoder,
    count_trunk,
    count_visual_encoder,
    sum_with_targets,
)
from rl.vmamba_td3.presets import PRESETS, PUBLISHED_MODELS, Preset

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "patch 16, LayerScale (defaults)": {},
    "patch 4, no LayerScale": {"patch_size": 4, "layer_scale_init": None},
}
"""Of a preset's trunk, as changes to it."""
NAMES = {"vanilla_tiny": "VMambaT", "vanilla_small": "VMambaS", "vanilla_base": "VMambaB"}
"""The published models that the documents name, by their names there."""
CLASSES = 1_000
SMALLEST: Mapping[str, Any] = {
    "patch_size": 4,
    "mlp_ratio": 0.0,
    "ssm_d_state": 1,
    "ssm_ratio": 1.0,
    "layer_scale_init": None,
    "gate": False,
    "downsample": "v2",
}
"""The trunk whose encoders come closest to what the documents claim of presets."""


@dataclass(frozen=True)
class Size:
    """One configuration: what is claimed of it and what is counted. None where there is nothing of the kind."""

    model: str
    configuration: str
    claimed: int
    encoder: int
    agent: int | None = None
    targets: int | None = None
    settings: Mapping[str, Any] | None = None


def list_sizes(frame: tuple[int, int] = (64, 64)) -> list[Size]:
    """Give every preset in every variant, then the published models with and without their heads."""
    sizes = [
        _count_preset(name, preset, variant, changes, frame)
        for name, preset in PRESETS.items()
        for variant, changes in VARIANTS.items()
    ]
    for name, model in ((name, PUBLISHED_MODELS[name]) for name in NAMES):
        assert model.documents_millions is not None
        claimed = model.documents_millions * 10**6
        with_head = count_classifier(model.trunk, CLASSES)
        sizes.append(Size(NAMES[name], f"head of {CLASSES:,} classes", claimed, with_head))
        sizes.append(Size(NAMES[name], "no head", claimed, count_trunk(model.trunk, channels=3)))
    return sizes


def _count_preset(name: str, preset: Preset, variant: str, changes: Mapping[str, Any], frame: tuple[int, int]) -> Size:
    changed = replace(preset, trunk=replace(preset.trunk, **changes))
    stream = changed.plan_stream((1, *frame), STATE_DIM)
    counts = count_parameters(stream, ACTION_DIM)
    return Size(
        name,
        variant,
        preset.claimed_parameters,
        count_visual_encoder(stream),
        sum(counts.values()),
        sum_with_targets(counts),
        changed.list_settings(),
    )


def tabulate_sizes(sizes: Sequence[Size], measured: Mapping[int, Measurement] | None, batch: int) -> Table:
    """Give the table of claimed and counted parameters.

    Args:
        sizes: a row each.
        measured: by their places; None where nothing was to be measured.
        batch: windows of a batch that was measured.
    """
    columns = ["Model", "Configuration", "Claimed", "Visual encoder", "Agent", "With targets"]
    rows, frame = [], []
    for number, size in enumerate(sizes):
        counts = (size.encoder, size.agent, size.targets)
        row = [Cell(size.model, code=True), Cell(size.configuration), Cell(_show_millions(size.claimed))]
        row += [Cell(show_count(count)) for count in counts]
        record: dict[str, Any] = {"model": size.model, "configuration": size.configuration, "claimed": size.claimed}
        record |= dict(zip(("visual_encoder", "agent", "with_targets"), counts, strict=True))
        if measured is not None:
            found = measured.get(number, Measurement())
            row.append(Cell(show_number(found.ms_per_update, 0)))
            record |= {"ms_per_update": found.ms_per_update, "measured_batch_size": batch}
        rows.append(tuple(row))
        frame.append(record)
    notes = [
        "Counted for one stream's visual encoder, for an agent that learns (two streams, actor, two critics; states "
        f"of {STATE_DIM} numbers, actions of {ACTION_DIM}), and for that with its targets."
    ]
    if measured is not None:
        columns.append("ms per update")
        notes.append(
            f"ms per update: CPU time of one thread, measured now, for batches of {batch} windows of the preset's "
            "length; every second update moves the actor too."
        )
        notes += [
            f"Not measured: {sizes[place].model}, {sizes[place].configuration}: {found.reason}."
            for place, found in measured.items()
            if found.reason
        ]
    frame_of_rows = pd.DataFrame(frame).astype({"agent": "Int64", "with_targets": "Int64"})
    return Table(
        "parameters", "Parameters, claimed and counted", tuple(columns), tuple(rows), frame_of_rows, tuple(notes)
    )


def tabulate_claims(sizes: Iterable[Size]) -> Table:
    """Give, for each claim, the configurations that it could be of: those that count so much when rounded."""
    by_model: dict[str, list[Size]] = {}
    for size in sizes:
        by_model.setdefault(size.model, []).append(size)
    rows, frame = [], []
    for model, found in by_model.items():
        matching = [size.configuration for size in found if _agrees(size)]
        closest, count = _find_closest(model, found)
        could = ", ".join(matching) or "none"
        rows.append(
            (
                Cell(model, code=True),
                Cell(_show_millions(found[0].claimed)),
                Cell(could),
                Cell(closest),
                Cell(show_count(count)),
            )
        )
        frame.append(
            {"model": model, "claimed": found[0].claimed, "could_be": could, "closest": closest, "closest_count": count}
        )
    columns = ("Model", "Claimed", "Counts so, rounded", "Closest that was tried", "Counts")
    notes = (
        "Claims of presets grow as 1 : 4 : 16 : 40, and no way of building the encoders was found that does. The "
        "smallest that was tried has no MLP, gate or LayerScale, one number of state, no more channels inside scans "
        "than outside, 2x2 convolutions between stages and patches of 4.",
    )
    return Table("claims", "What claims could be of", columns, tuple(rows), pd.DataFrame(frame), notes)


def _find_closest(model: str, found: Sequence[Size]) -> tuple[str, int]:
    tried = {size.configuration: size.encoder for size in found}
    if model in PRESETS:
        preset = PRESETS[model]
        smallest = replace(preset.trunk, **SMALLEST)
        tried["smallest encoder"] = count_rl_encoder(smallest, 1, preset.feature_dim, use_input_adapter=False)
    closest = min(tried, key=lambda name: abs(tried[name] - found[0].claimed))
    return closest, tried[closest]


def _agrees(size: Size) -> bool:
    """Tell whether a count is what is claimed, to as many digits as the claim has."""
    unit = 10**5 if size.claimed % 10**6 else 10**6
    return any(round(count / unit) * unit == size.claimed for count in (size.encoder, size.agent) if count is not None)


def _show_millions(count: int) -> str:
    return f"{count / 1e6:g}M" if count else DASH


def list_tables(options: Mapping[str, Any]) -> list[Table]:
    """Give VMamba-TD3's tables.

    Args:
        options: `frame`, `measure` and `batch`, as on the command line.
    """
    height, width = options["frame"]
    sizes = list_sizes((height, width))
    measured = None
    if options["measure"]:
        measured = {
            number: measure("vmamba_td3", {**size.settings, "batch_size": options["batch"]}, (height, width))
            for number, size in enumerate(sizes)
            if size.settings is not None
        }
    return [tabulate_sizes(sizes, measured, options["batch"]), tabulate_claims(sizes)]


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "vmamba_td3": {"frame": (64, 64), "measure": False, "batch": 8},
    "tdmpc2": dict.fromkeys(dims_tdmpc2.OPTIONS),
}
"""What each agent has options for, with their defaults."""
LISTERS = {"vmamba_td3": list_tables, "tdmpc2": params_tdmpc2.list_tables}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Gives the exit code: 0, 1 a file was not written, 2 usage."""
    parser = make_parser(
        "analysis.params", "Count an agent's parameters, beside what is claimed of it.", tuple(OPTIONS)
    )
    vmamba = parser.add_argument_group("vmamba_td3", "--frame is for it alone, too")
    vmamba.add_argument("--measure", action="store_true", help="time updates of the presets too, which takes minutes")
    vmamba.add_argument("--batch", type=read_size, help="windows of a batch that is timed (default: 8)")
    params_tdmpc2.add_options(parser)
    # None tells what wasn't typed from what was: another agent's option is refused, and not passed over.
    parser.set_defaults(**{name: None for options in OPTIONS.values() for name in options})
    chosen = parser.parse_args(arguments)
    typed = {name: value for name, value in vars(chosen).items() if value is not None}
    for algorithm, options in OPTIONS.items():
        strange = [f"--{name.replace('_', '-')}" for name in options if name in typed]
        if strange and algorithm != chosen.algorithm:
            parser.error(f"{', '.join(strange)}: only for --algorithm {algorithm}")
    tables = LISTERS[chosen.algorithm]({**OPTIONS[chosen.algorithm], **typed})
    return write_tables(tables, chosen.algorithm, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
