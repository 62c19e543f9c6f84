"""The benchmark of launches beside others: they do our work, all of it, in what time, and one that fails is named."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from benchmarks import launch, launch_peers
from benchmarks.launch_clock import RUNS, SLOTS, measure_gap
from benchmarks.launch_peers import PEERS, Peer, check_truth, launch_peer, measure_peers, print_launchers
from benchmarks.lending import lend
from benchmarks.peers import payload
from benchmarks.peers.make_venv import CACHE, PINS, VenvError, find_python
from benchmarks.peers.process import PeerError
from benchmarks.process_tree import ProcessTree, run_watched

ROOT = Path(__file__).parents[2]
OURS = {"runs": RUNS, "load": 1.5} | {
    f"{name}_{key}": value
    for name, value in (("fresh", 25.0), ("warm", 5.0))
    for key in ("wall_s", "cpu_s", "gap_ms", "gap_step_ms")
}
STAND_IN = """
import os, sys
for seed in range(int(sys.argv[1])):
    for moment, word in enumerate(("START", "STEP", "END")):
        with open("truth.log", "a") as log:
            print(f"{100 + seed + moment / 10:.6f} {word} {seed} {1 + seed % 2}", file=log)
print(os.environ["OMP_NUM_THREADS"], len(os.sched_getaffinity(0)), file=open("seen.txt", "w"))
"""


def write_log(path: Path, *seeds: int) -> None:
    """Write the log of runs that each take 0.2 s, two at a time, 0.05 s apart, imports taking 0.1 s of them."""
    for place, seed in enumerate(seeds):
        begun = 100 + 0.25 * (place // SLOTS)
        for later, word in ((0, "START"), (0.1, "STEP"), (0.2, "END")):
            with path.open("a") as log:
                print(f"{begun + later:.6f} {word} {seed} {4_000 + place % SLOTS}", file=log)


def lend_program(folder: Path, text: str) -> Path:
    """Write a program that `python -m stand_in` runs where the folder is lent."""
    folder.mkdir()
    (folder / "stand_in.py").write_text(text)
    return folder


def stand_in(*words: str) -> Peer:
    """Give a peer that is that program."""
    return Peer("Stand-in", "none", ("stand_in", *words), "nothing kept")


def test_peers_compute_what_ours_do() -> None:
    line = r"torch\.tanh\(.*\)\n"
    [ours], [theirs] = re.findall(line, launch.TRAINER), re.findall(line, Path(payload.__file__).read_text())
    assert ours == theirs


def test_a_run_of_a_peer_says_when_it_began_stepped_and_ended(tmp_path: Path) -> None:
    truth = tmp_path / "truth.log"
    results = [payload.work(seed, str(truth), 0.01) for seed in (0, 1, 0)]
    assert results[0] == results[2] != results[1]
    words = [line.split()[1:] for line in truth.read_text().splitlines()]
    assert words[:4] == [[word, "0", str(os.getpid())] for word in ("START", "STEP", "END")] + [
        ["START", "1", str(os.getpid())]
    ]


def test_a_gap_is_from_an_end_to_the_next_start_in_its_place(tmp_path: Path) -> None:
    write_log(tmp_path / "truth.log", *range(6))
    assert measure_gap(tmp_path, "START") == pytest.approx(50)
    assert measure_gap(tmp_path, "STEP") == pytest.approx(150)


def test_a_log_tells_how_many_processes_did_the_runs(tmp_path: Path) -> None:
    write_log(tmp_path / "truth.log", *range(RUNS))
    assert check_truth("Stand-in", tmp_path / "truth.log") == SLOTS


@pytest.mark.parametrize("seeds", [range(RUNS - 1), [*range(RUNS), 0], []])
def test_a_peer_that_leaves_out_a_run_or_does_one_twice_has_failed(tmp_path: Path, seeds: Any) -> None:
    write_log(tmp_path / "truth.log", *seeds)
    with pytest.raises(PeerError, match=f"Stand-in was to do each of {RUNS} runs once"):
        check_truth("Stand-in", tmp_path / "truth.log")


def test_a_peer_is_started_on_as_many_cores_as_slots_and_with_one_thread(tmp_path: Path) -> None:
    lent = lend_program(tmp_path / "lent", STAND_IN)
    told = launch_peer(stand_in(str(RUNS)), Path(sys.executable), tmp_path / "0", lent)
    assert told.processes == 2
    assert told.wall_s > 0
    assert told.gap_step_ms - told.gap_ms == pytest.approx(100)
    threads, cores = (tmp_path / "0" / "seen.txt").read_text().split()
    assert threads == "1"
    assert int(cores) <= SLOTS


def test_a_peer_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    lent = lend_program(tmp_path / "lent", "raise SystemExit('no room')")
    with pytest.raises(PeerError, match=r"Stand-in ended with 1. It said:\nno room"):
        launch_peer(stand_in(), Path(sys.executable), tmp_path / "0", lent)


def test_a_peer_that_writes_no_log_has_done_nothing(tmp_path: Path) -> None:
    lent = lend_program(tmp_path / "lent", "")
    with pytest.raises(PeerError, match="began 0 and ended 0"):
        launch_peer(stand_in(), Path(sys.executable), tmp_path / "0", lent)


def test_a_peer_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = lend_program(tmp_path / "lent", "import time; time.sleep(300)")
    monkeypatch.setattr(launch_peers, "LIMIT_S", 0.3)
    with pytest.raises(PeerError, match=r"Stand-in was not done after 0\.3 s"):
        launch_peer(stand_in(), Path(sys.executable), tmp_path / "0", lent)


def test_what_a_process_started_is_killed_with_it_whatever_session_it_is_in() -> None:
    program = """
import subprocess, sys
sleep = "print(flush=True); import time; time.sleep(300)"
child = subprocess.Popen([sys.executable, "-S", "-c", sleep], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        tree = ProcessTree(process.pid)
        tree.look()
        tree.kill()
        assert process.wait() == -signal.SIGKILL
    until = time.monotonic() + 60
    while is_asleep(child):
        assert time.monotonic() < until


def is_asleep(pid: int) -> bool:
    """Tell whether the process that sleeps is there; one that has ended has no command line."""
    try:
        return b"sleep(300)" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_time_of_processes_that_nobody_waits_for_is_counted(tmp_path: Path) -> None:
    program = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
burn = "import time\\nwhile time.process_time() < 1: pass"
subprocess.Popen([sys.executable, "-S", "-c", burn], stdout=subprocess.PIPE).stdout.read()
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (tmp_path / "said.txt").open("w") as said:
        taken = run_watched((sys.executable, "-S", "-c", program), tmp_path, os.environ, said, lambda: None, 100.0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert taken.code == 0
    assert after.ru_utime - before.ru_utime < 0.5 < taken.cpu_s < 1.5
    assert taken.wall_s > 0.9


def test_lent_packages_come_with_what_they_need_and_without_anything_else(tmp_path: Path) -> None:
    lend("jinja2", tmp_path / "lent")
    said = subprocess.run(
        [sys.executable, "-S", "-c", "import importlib.util, jinja2; print(importlib.util.find_spec('torch'))"],
        env={"PYTHONPATH": str(tmp_path / "lent")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "None\n"
    assert (tmp_path / "lent" / "markupsafe").is_symlink()


def test_a_package_that_is_not_there_is_not_lent(tmp_path: Path) -> None:
    with pytest.raises(PackageNotFoundError):
        lend("gridpilot-of-another-world", tmp_path / "lent")


def test_peers_that_cannot_be_installed_are_named_with_the_reason_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_venv(pins: Path, folder: Path) -> Path:
        if pins.stem == "hydra":
            raise VenvError("pip ended with 1. It said:\nno such version")
        return Path(sys.executable)

    def give_stand_in(peer: Peer, python: Path, folder: Path, lent: Path) -> Any:
        return launch_peers.PeerLaunch(peer.name, peer.keeps, 24, 60.0, 59.0, 900.0, 950.0, 0.25)

    monkeypatch.setattr(launch_peers, "make_venv", make_venv)
    monkeypatch.setattr(launch_peers, "launch_peer", give_stand_in)
    peers = measure_peers(tmp_path)
    assert [peer["name"] for peer in peers] == [peer.name for peer in PEERS]
    assert ["missing" in peer for peer in peers] == [True, False, False]
    print_launchers(OURS | {"peers": peers})
    printed = capsys.readouterr().out
    assert "| ours, warm | 24 for 24 | isolated, all written, resumes | 5.0 | 5.0 | 5.0 | 5.0 | 1.5 |" in printed
    assert "| Ray tasks | 24 for 24 | nothing written, no resume | 60.0 | 59.0 | 900.0 | 950.0 | 0.2 |" in printed
    assert printed.endswith("\nHydra, joblib launcher is missing: pip ended with 1. It said:\nno such version\n")


@pytest.mark.parametrize("words", [["--json"], ["--json", "--peers"], ["--peers"], []])
def test_peers_are_asked_for_with_peers_and_go_into_the_json(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = OURS | {"wall_ratio": 5.0, "cpu_ratio": 5.0, "same_results": True}
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    monkeypatch.setattr(launch, "compare", lambda folder: dict(row))
    monkeypatch.setattr(launch, "measure_peers", lambda folder: [{"name": "Stand-in", "missing": "no room"}])
    assert launch.main() == 0
    printed = capsys.readouterr().out
    assert ("Stand-in" in printed) == ("--peers" in words)
    if "--json" in words:
        assert json.loads(printed).get("peers", []) == [{"name": "Stand-in", "missing": "no room"}] * (len(words) - 1)
    else:
        assert ("Stand-in is missing: no room" in printed) == bool(words)


@pytest.mark.parametrize("pins", sorted({peer.pins for peer in PEERS}))
def test_peers_have_our_numpy_and_no_torch_of_their_own(pins: str) -> None:
    ours = set((ROOT / "constraints.txt").read_text().splitlines())
    lines = (PINS / f"{pins}.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith(("numpy", "torch"))] == [
        line for line in ours if line.startswith("numpy==")
    ]
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS[:2], ids=lambda peer: peer.pins)
def test_a_peer_does_every_run_once(peer: Peer, tmp_path: Path) -> None:
    python = find_python(PINS / f"{peer.pins}.txt", CACHE / peer.pins)
    if python is None:
        pytest.skip(f"{peer.name} isn't there: python -m benchmarks.peers.make_venv {peer.pins}")
    lend("torch", tmp_path / "lent")
    told = launch_peer(peer, python, tmp_path / "0", tmp_path / "lent")
    assert told.processes == SLOTS
    assert told.cpu_s > RUNS * launch_peers.WORK_S
