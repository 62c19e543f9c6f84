"""Launchers of others with the runs of `benchmarks.launch`: two at a time, on as many cores, with one thread each.

They are anchors, without goals: none keeps runs as far apart as ours, and what they write of a run is less.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.launch_clock import RUNS, SLOTS, WORK_S, keep_to_slots, measure_gap
from benchmarks.lending import lend
from benchmarks.peers.make_venv import CACHE, PINS, VenvError, make_venv
from benchmarks.peers.process import THREADS, PeerError
from benchmarks.process_tree import run_watched
from benchmarks.tables import print_row

ROOT = Path(__file__).parents[1]
LIMIT_S = 900.0
"""After this a peer is killed and counts as one that failed."""


@dataclass(frozen=True)
class Peer:
    """A launcher of others.

    Attributes:
        pins: which list of versions its virtual environment is made of.
        words: what follows `python -m`.
        keeps: what it writes of a run, and whether it goes on with one.
    """

    name: str
    pins: str
    words: tuple[str, ...]
    keeps: str


HYDRA = (
    "benchmarks.peers.launch_hydra",
    "--multirun",
    "hydra/launcher=joblib",
    f"hydra.launcher.n_jobs={SLOTS}",
    f"seed=range(0,{RUNS})",
    "truth=truth.log",
    f"work_s={WORK_S}",
)
RAY = ("benchmarks.peers.launch_ray", f"--runs={RUNS}", f"--slots={SLOTS}", f"--work-s={WORK_S}")
PEERS = (
    Peer("Hydra, joblib launcher", "hydra", HYDRA, "config and log written, no resume"),
    Peer("Ray tasks", "ray", RAY, "nothing written, no resume"),
    Peer("Ray tasks, max_calls=1", "ray", (*RAY, "--max-calls=1"), "nothing written, no resume"),
)


@dataclass(frozen=True)
class PeerLaunch:
    """What a peer's sweep took; see `launch.Launch`.

    Attributes:
        cpu_s: of all processes, those included that it leaves to themselves.
        processes: that runs were done in; fewer than runs where one does many.
        load: of the machine as it began.
    """

    name: str
    keeps: str
    processes: int
    wall_s: float
    cpu_s: float
    gap_ms: float
    gap_step_ms: float
    load: float


def measure_peers(folder: Path) -> list[dict[str, Any]]:
    """Make the peers' virtual environments where they aren't there, and let each launch the runs.

    Args:
        folder: for what they write.

    Returns:
        For each what `PeerLaunch` names, or its name and why it is `missing`.
    """
    lent = folder / "lent"
    lend("torch", lent)
    rows = []
    for index, peer in enumerate(PEERS):
        try:
            python = make_venv(PINS / f"{peer.pins}.txt", CACHE / peer.pins)
            rows.append(asdict(launch_peer(peer, python, folder / str(index), lent)))
        except (VenvError, PeerError) as error:
            rows.append({"name": peer.name, "missing": str(error)})
    return rows


def launch_peer(peer: Peer, python: Path, folder: Path, lent: Path) -> PeerLaunch:
    """Let a peer launch the runs in an empty folder.

    Raises:
        PeerError: it failed, hung, or left out runs.
    """
    folder.mkdir()
    env = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": f"{lent}{os.pathsep}{ROOT}"}
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile(mode="w+") as said:
        try:
            taken = run_watched((str(python), "-m", *peer.words), folder, env, said, keep_to_slots, LIMIT_S)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{peer.name} was not done after {LIMIT_S:g} s") from None
        if taken.code:
            said.seek(0)
            raise PeerError(f"{peer.name} ended with {taken.code}. It said:\n{said.read()[-2_000:].strip()}")
    processes = check_truth(peer.name, folder / "truth.log")
    gaps = measure_gap(folder, "START"), measure_gap(folder, "STEP")
    return PeerLaunch(peer.name, peer.keeps, processes, taken.wall_s, taken.cpu_s, *gaps, load)


def check_truth(name: str, truth: Path) -> int:
    """Give how many processes did the runs, by their log.

    Raises:
        PeerError: a run was left out, or done more than once.
    """
    lines = [line.split() for line in truth.read_text().splitlines()] if truth.exists() else []
    begun, ended = ([int(seed) for _, said, seed, _ in lines if said == word] for word in ("START", "END"))
    if not sorted(begun) == sorted(ended) == list(range(RUNS)):
        raise PeerError(
            f"{name} was to do each of {RUNS} runs once. It began {len(begun)} and ended {len(ended)}, "
            f"{len(set(ended))} of them different"
        )
    return len({pid for _, _, _, pid in lines})


def print_launchers(row: Mapping[str, Any]) -> None:
    """Print ours and theirs as a table, and below it whoever is missing.

    Args:
        row: what `launch.compare` gives, with `peers`.
    """
    print("\nAnchors: they keep runs less apart than ours, and less of them\n")
    print_row(
        "launcher", "processes for runs", "a run", "wall s", "CPU s", "END to START, ms", "END to STEP, ms", "load"
    )
    print_row(*["---"] * 8)
    for name in ("fresh", "warm"):
        ours = {key: row[f"{name}_{key}"] for key in ("wall_s", "cpu_s", "gap_ms", "gap_step_ms")}
        whole = {"name": f"ours, {name}", "processes": row["runs"], "keeps": "isolated, all written, resumes"}
        print_launch(whole | ours | {"load": row["load"]}, row["runs"])
    for peer in row["peers"]:
        if "missing" not in peer:
            print_launch(peer, row["runs"])
    for peer in row["peers"]:
        if "missing" in peer:
            print(f"\n{peer['name']} is missing: {peer['missing']}")


def print_launch(told: Mapping[str, Any], runs: int) -> None:
    """Print one of them."""
    numbers = [f"{told[key]:.1f}" for key in ("wall_s", "cpu_s", "gap_ms", "gap_step_ms", "load")]
    print_row(told["name"], f"{told['processes']} for {runs}", told["keeps"], *numbers)
