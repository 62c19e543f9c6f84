"""The benchmark of drones, without its peer: what is flown is what was recorded, and other work is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import envs
from benchmarks.envs import CASES, Case, main, measure_peer, write_request
from benchmarks.flights import Recording, fly_alone, fly_together, measure_floors, record
from benchmarks.peers import make_venv
from benchmarks.peers.make_venv import CACHE, PINS, VenvError, find_python, run_step
from benchmarks.peers.process import PeerError, PeerProcess
from envs.drone.flight import PERIOD

SMALL: dict[str, Any] = {
    "caster": "numpy",
    "field": [15, 10],
    "num_obstacles": 3,
    "height": 8,
    "width": 12,
    "seq_len": 2,
}
ROWS = 90
"""Enough for the end of a flight of some twelve metres, and a few steps of the next."""


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return [record("DepthNav-v0", SMALL, seed, ROWS) for seed in range(2)]


@pytest.fixture(scope="module")
def full() -> Recording:
    """Give the first rows among thirty obstacles, as the peer gets them."""
    return record("DepthNav-v0", {"caster": "numpy", "height": 8, "width": 8}, 0, 4)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Give what a peer says that did all that it was asked for."""
    steps = sum(len(flight["track"]) - 1 for flight in request["flights"])
    return {
        "steps": steps,
        "cpu_s": 0.01 * steps,
        "wall_s": 0.02 * steps,
        "reset_s": 0.05,
        "simulated_s": request["period"] * steps,
        "obstacles": sum(len(flight["obstacles"]) for flight in request["flights"]),
        "obstacle_pixels": 0.2 * steps,
        "distinct": steps,
        "touches": 0,
        "off_track_m": 0.5,
        "threads": 1,
    }


def test_recordings_go_through_resets_and_fly_again_to_the_bit(recordings: list[Recording]) -> None:
    for recording in recordings:
        assert any(recording.begins)
        assert len(recording.legs) == 1 + sum(recording.begins)
        timing = fly_alone("DepthNav-v0", SMALL, recording)
        assert timing.steps == recording.num_steps == ROWS - sum(recording.begins)
        assert 0.9 * timing.steps < timing.distinct <= timing.steps
        assert timing.cpu_s > 0


def test_worlds_side_by_side_see_what_each_saw_alone(recordings: list[Recording]) -> None:
    timing = fly_together("DepthNav-v0", SMALL, recordings)
    assert timing.steps == sum(recording.num_steps for recording in recordings)
    assert timing.distinct > 0.9 * timing.steps


def test_flat_vectors_are_recorded_too() -> None:
    flat = {key: value for key, value in SMALL.items() if key not in ("height", "width", "seq_len")}
    recording = record("DepthNavState-v0", flat, 0, 5)
    assert fly_alone("DepthNavState-v0", flat, recording).distinct == 5
    assert measure_floors("DepthNavState-v0", flat, [recording]).depth_s > 0


def test_a_flight_that_goes_another_way_is_noticed(recordings: list[Recording]) -> None:
    with pytest.raises(AssertionError, match="seed 5 flew another way"):
        fly_alone("DepthNav-v0", SMALL, replace(recordings[0], seed=5))


def test_physics_rays_and_new_worlds_are_timed_by_themselves(recordings: list[Recording]) -> None:
    floors = measure_floors("DepthNav-v0", SMALL, recordings)
    assert min(floors.physics_s, floors.depth_s, floors.worlds_s) > 0
    only_start = measure_floors("DepthNav-v0", SMALL, [record("DepthNav-v0", SMALL, 0, 2)])
    assert only_start.worlds_s == 0  # its only world was there before the clock started


def test_recordings_keep_their_own_clock_and_what_can_be_seen_of_obstacles(full: Recording) -> None:
    assert full.simulated_s == pytest.approx(4 * PERIOD)
    bare = record("DepthNav-v0", SMALL | {"num_obstacles": 0}, 0, 2)
    assert np.mean(full.obstacle_pixels) > 0.02
    assert bare.obstacle_pixels == [0, 0]


def test_a_peer_gets_the_worlds_and_the_places_of_each_flight(recordings: list[Recording]) -> None:
    request = write_request(Case("small", env_kwargs=SMALL), recordings[0])
    assert request["size"] == SMALL["width"]
    assert [len(flight["obstacles"]) for flight in request["flights"]] == [3] * len(request["flights"])
    assert sum(len(flight["track"]) - 1 for flight in request["flights"]) == recordings[0].num_steps
    assert request["flights"][0]["track"][0][:3] == recordings[0].legs[0].world.start


def test_a_peers_seconds_are_by_the_step(full: Recording) -> None:
    told = measure_peer(CASES[0], full, answer)
    assert told["whole"] == pytest.approx(0.01)
    assert told["wall"] == pytest.approx(0.02)
    assert told["obstacles"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("simulated_s", 4 * 0.05),
        ("steps", 3),
        ("obstacles", 29),
        ("obstacle_pixels", 0.0),
        ("distinct", 2),
        ("touches", 1),
    ],
)
def test_a_peer_that_did_less_or_other_work_is_refused(full: Recording, key: str, value: float) -> None:
    with pytest.raises(AssertionError):
        measure_peer(CASES[0], full, lambda request: answer(request) | {key: value})


def test_worlds_with_fewer_obstacles_are_refused(recordings: list[Recording]) -> None:
    with pytest.raises(AssertionError):
        measure_peer(CASES[0], recordings[0], answer)


def test_our_own_clock_is_held_to_the_period_too(full: Recording) -> None:
    with pytest.raises(AssertionError, match="our clock"):
        measure_peer(CASES[0], replace(full, simulated_s=1.0), answer)


def test_tables_without_a_peer_are_printed_with_goals(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--alone", "--only", "NumPy", "--rows", "3", "--repetitions", "1"])
    printed = capsys.readouterr().out
    assert code in (0, 1)
    assert ("MISSED" in printed) == (code == 1)
    assert "| one world, NumPy | 800 |" in printed
    assert "PyFlyt" not in printed


def test_a_goal_that_is_missed_ends_with_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for goal, code, verdict in ((1e-3, 0, "met"), (1e9, 1, "MISSED")):
        monkeypatch.setattr(envs, "CASES", (Case("one", goal, env_kwargs={"caster": "numpy"}),))
        assert main(["--alone", "--rows", "2", "--repetitions", "1"]) == code
        assert verdict in capsys.readouterr().out


class StandIn:
    """Answers at once, in place of a process."""

    def __init__(self, *_: object) -> None:
        pass

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return answer(request) | {"cpu_s": 1e3 * len(request["flights"])}

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_the_comparison_is_printed_with_what_both_sides_saw(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "PeerProcess", StandIn)
    monkeypatch.setattr(envs, "find_python", lambda pins, folder: Path(sys.executable))
    monkeypatch.setattr(envs, "CASES", (Case("64", env_kwargs={"caster": "numpy"}, beside_peer=True),))
    assert main(["--rows", "3", "--repetitions", "1"]) == 0
    printed = capsys.readouterr().out
    assert "(goal 5.0: met)" in printed
    assert "of our frames and 20.0% of PyFlyt's" in printed


def test_a_peer_that_is_not_there_ends_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "find_python", lambda pins, folder: None)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "python -m benchmarks.peers.make_venv pyflyt" in capsys.readouterr().err


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[PeerProcess]:
    script = tmp_path / "echo.py"
    script.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    request = json.loads(line)\n"
        "    if request == {}:\n"
        "        sys.exit('there was nothing to do')\n"
        "    print(json.dumps(request | {'twice': 2 * request['once']}), flush=True)\n"
    )
    with PeerProcess(Path(sys.executable), script) as peer:
        yield peer


def test_a_peers_process_answers_line_by_line(echo: PeerProcess) -> None:
    assert echo.ask({"once": 2}) == {"once": 2, "twice": 4}
    assert echo.ask({"once": 3})["twice"] == 6


def test_a_peer_that_ends_is_an_error_with_its_last_words(echo: PeerProcess) -> None:
    with pytest.raises(PeerError, match=r"ended with 1. It said:\nthere was nothing to do"):
        echo.ask({})
    with pytest.raises(PeerError, match="there was nothing to do"):
        echo.ask({"once": 2})


def test_a_virtual_environment_is_made_once_for_each_list_of_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, ...]] = []

    def note(*words: str) -> None:
        steps.append(words)
        (tmp_path / "venv").mkdir(exist_ok=True)

    monkeypatch.setattr(make_venv, "run_step", note)
    pins, folder = tmp_path / "pins.txt", tmp_path / "venv"
    pins.write_text("one==1\n")
    assert find_python(pins, folder) is None
    assert make_venv.make_venv(pins, folder) == folder / "bin" / "python" == find_python(pins, folder)
    assert steps[1][-2:] == ("--requirement", str(pins))
    count = len(steps)
    make_venv.make_venv(pins, folder)
    assert len(steps) == count
    pins.write_text("one==2\n")
    assert find_python(pins, folder) is None
    make_venv.make_venv(pins, folder)
    assert len(steps) == 2 * count


def test_one_that_is_not_finished_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: str) -> None:
        (tmp_path / "venv").mkdir(exist_ok=True)
        raise VenvError("no room")

    monkeypatch.setattr(make_venv, "run_step", fail)
    pins = tmp_path / "pins.txt"
    pins.write_text("one==1\n")
    with pytest.raises(VenvError):
        make_venv.make_venv(pins, tmp_path / "venv")
    assert find_python(pins, tmp_path / "venv") is None


def test_a_step_that_fails_is_an_error_with_what_it_said() -> None:
    with pytest.raises(VenvError, match=r"ended with 3. It said:\nno such version"):
        run_step(sys.executable, "-c", "print('no such version'); raise SystemExit(3)")


@pytest.mark.slow
def test_pyflyt_flies_what_we_flew() -> None:
    python = find_python(PINS / "pyflyt.txt", CACHE / "pyflyt")
    if python is None:
        pytest.skip("PyFlyt isn't there: python -m benchmarks.peers.make_venv pyflyt")
    recording = record("DepthNav-v0", {}, 0, 60)
    with PeerProcess(python, envs.PEER_SCRIPT) as peer:
        told = measure_peer(CASES[0], recording, peer.ask)
    assert told["off track"] < 1.5
    assert told["obstacles"] == pytest.approx(np.mean(recording.obstacle_pixels), abs=0.03)
