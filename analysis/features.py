"""`python -m analysis.features`: what a policy's features hold."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.features_figure import draw_features
from analysis.inside import Findings, build_parser, run_analysis
from analysis.readout import LEAST_EPISODES, read_out
from analysis.spectra import Shape, find_shape
from analysis.tables import Cell, Table, show_number
from analysis.traces import LEVELS, Trace, TraceError

Values = NDArray[np.float64]

NAME = "features"
NEAREST = "nearest depth"
BANDS = 8
"""Columns of a frame whose nearest depths are targets."""
GRID = 8
"""Rows and columns of the small picture whose numbers are read out of beside the features."""
PIXELS = f"{GRID} x {GRID} pixels"
_DECIMALS = 3


def analyse(trace: Trace, colour: str = NEAREST) -> Findings:
    """Give what the features hold.

    Args:
        trace: of one episode or more; read-outs need `LEAST_EPISODES`.
        colour: the quantity that colours the picture.

    Raises:
        TraceError: there is no such quantity.
    """
    quantities, inputs = list_quantities(trace), list_inputs(trace)
    if colour not in quantities:
        raise TraceError(f"--colour {colour!r}: there is no such quantity; there are: {', '.join(quantities)}")
    episodes = trace.list_episodes()
    shapes = {name: find_shape(features, episodes) for name, features in inputs.items()}
    tables = [tabulate_shapes(shapes)]
    sentences = [f"{len(episodes)} episodes, {sum(trace.lengths):,} steps; of a step the newest frame and state."]
    found: dict[str, list[float | None]] = {}
    if len(episodes) < LEAST_EPISODES:
        sentences.append(f"Nothing is read out: that takes {LEAST_EPISODES} episodes or more.")
    else:
        targets = np.stack(list(quantities.values()), axis=1)
        found = {name: read_out(features, targets, episodes) for name, features in inputs.items()}
        tables.append(tabulate_readouts(list(quantities), found))
    png, pdf = draw_features(inputs, found, list(quantities), (colour, quantities[colour]), trace.name)
    pictures = {f"{NAME}.png": png, f"{NAME}.pdf": pdf}
    return Findings(NAME, f"Features of {trace.name}", tuple(sentences), tuple(tables), pictures)


def list_inputs(trace: Trace) -> dict[str, Values]:
    """Give what is looked into, (steps, dim) each by its name: features, and a small picture to compare them with."""
    features = {name: getattr(trace, name).astype(np.float64) for name in ("visual", "state", "context")}
    return features | {PIXELS: shrink_frames(trace.depth)}


def shrink_frames(depth: NDArray[np.uint8]) -> Values:
    """Give frames, (steps, height, width), as means over the cells of a grid, (steps, cells), in [0, 1]."""
    rows = np.array_split(np.arange(depth.shape[1]), min(GRID, depth.shape[1]))
    columns = np.array_split(np.arange(depth.shape[2]), min(GRID, depth.shape[2]))
    # Row by row, so that no copy of all frames in 64 bits is ever there.
    cells = [depth[:, row][:, :, column].mean((1, 2), dtype=np.float64) for row in rows for column in columns]
    return np.stack(cells, axis=1) / LEVELS


def list_quantities(trace: Trace) -> dict[str, Values]:
    """Give what is known of each step, (steps,) each by its name: the state's numbers, and how near things are."""
    known = {name: trace.base[:, number].astype(np.float64) for number, name in enumerate(trace.header["base_names"])}
    nearest = trace.depth.min(1).astype(np.float64) / LEVELS
    known[NEAREST] = nearest.min(1)
    bands = np.array_split(nearest, min(BANDS, nearest.shape[1]), axis=1)
    return known | {f"{NEAREST}, band {number}": band.min(1) for number, band in enumerate(bands)}


def tabulate_shapes(shapes: Mapping[str, Shape]) -> Table:
    """Give a row for each kind of features."""
    rows, plain = [], []
    for name, shape in shapes.items():
        percent = [Cell(f"{100 * part:.1f} %") for part in (shape.constant, shape.dormant)]
        rank = Cell(show_number(shape.effective_rank, 1))
        rows.append((Cell(name), Cell(str(shape.dim)), rank, *percent, Cell(show_number(shape.persistence, _DECIMALS))))
        values = (shape.dim, shape.effective_rank, shape.constant, shape.dormant, shape.persistence)
        plain.append((name, *values))
    columns = ("Features", "Numbers", "Effective rank", "Constant", "Dormant", "Like the step before")
    frame = pd.DataFrame(plain, columns=["features", "dim", "effective_rank", "constant", "dormant", "persistence"])
    notes = (
        "Effective rank: exp of the entropy of the singular values about the mean (Roy and Vetterli 2007). Dormant: "
        "mean size at most 2.5 % of the mean of all (Sokar et al. 2023). Like the step before: correlation with it.",
    )
    return Table("shape", "How many directions are used", columns, tuple(rows), frame, notes)


def tabulate_readouts(quantities: Sequence[str], found: Mapping[str, Sequence[float | None]]) -> Table:
    """Give a row for each quantity: R^2 of its read-out of each kind of features."""
    rows, plain = [], []
    for number, quantity in enumerate(quantities):
        values = [found[name][number] for name in found]
        rows.append((Cell(quantity), *(Cell(show_number(value, 2)) for value in values)))
        plain.append((quantity, *values))
    frame = pd.DataFrame(plain, columns=["quantity", *found])
    notes = (
        "R^2 of ridge regressions on episodes that they have not learned from: 1 is all of the variance, 0 none; below "
        "0 is worse than the mean. A dash: the quantity never changed. Bands go from left to right.",
    )
    return Table("readout", "What can be read out of them", ("Quantity", *found), tuple(rows), frame, notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what features hold, and print it. Gives the exit code; see `run_analysis`."""
    parser = build_parser(NAME, "What a policy's features hold: directions, idle ones, and what can be read out.")
    told = f"quantity that colours the picture, as the table calls it (default: {NEAREST})"
    parser.add_argument("--colour", default=NEAREST, metavar="NAME", help=told)
    args = parser.parse_args(arguments)
    return run_analysis(args, lambda trace: analyse(trace, args.colour))


if __name__ == "__main__":
    sys.exit(main())
