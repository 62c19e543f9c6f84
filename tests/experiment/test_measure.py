"""What runs take, by real processes and by files made by hand."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from experiment.files import append_event
from experiment.grid import Combination
from experiment.measure import (
    CONTEXT,
    Shape,
    find_shape,
    has_cycled,
    measure_held,
    predict_growth,
    read_trees,
    recall_shapes,
)
from experiment.packing import Peak
from experiment.plan import Planned
from experiment.run import Run
from experiment.stored import find_saved_step
from run_experiment import build_config

MIB = 2**20
SETTINGS: dict[str, Any] = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "buffer_size": 20_000}
# A grandchild takes 64 MiB for good; the child took 96 MiB and gave it back.
FAMILY = """
import subprocess, sys
bytearray(b"x" * 96 * 2**20)
code = "held = bytearray(b'x' * 64 * 2**20); print(flush=True); input()"
words = [sys.executable, "-IS", "-c", code]
child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(flush=True)
input()
child.communicate()
"""


@pytest.fixture
def family() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-IS", "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    yield process.pid
    process.communicate()


def test_a_tree_is_measured_with_all_its_descendants_now_and_at_its_peak(family: int) -> None:
    tree = read_trees([family])[family]
    assert len(tree.pids) == 2
    assert 64 * MIB < tree.now_bytes < 64 * MIB + 60 * MIB
    assert tree.peak_bytes > (64 + 96) * MIB


def test_a_process_that_is_gone_takes_nothing() -> None:
    with subprocess.Popen([sys.executable, "-IS", "-c", "0"]) as process:
        process.wait()
    tree = read_trees([process.pid])[process.pid]
    assert (tree.now_bytes, tree.peak_bytes) == (0, 0)


def plan(**settings: object) -> Planned:
    flat = SETTINGS | settings
    config = build_config(flat)
    return Planned(config.run_id(), "x", Combination(flat, ()), config)


def test_runs_that_differ_in_seed_and_real_numbers_have_one_shape() -> None:
    shape = find_shape(plan())
    assert find_shape(plan(seed=7, actor_learning_rate=0.01, tau=0.1, save_freq=100)).key == shape.key
    extended = [find_shape(plan(init_from=16 * digit)).key for digit in "ab"]
    assert extended[0] == extended[1] != shape.key
    for setting in ({"hidden_dims": [8, 8]}, {"batch_size": 32}, {"buffer_size": 500}, {"num_envs": 2}):
        assert find_shape(plan(**setting)).key != shape.key


def test_a_shape_tells_how_much_is_remembered_and_what_a_run_goes_through() -> None:
    assert find_shape(plan(max_timesteps=5000)) == Shape(
        find_shape(plan(max_timesteps=5000)).key, 5000, 5000, True, True
    )
    quiet = find_shape(plan(eval_freq=0, save_freq=0))
    assert (quiet.steps, quiet.remembered, quiet.evaluates, quiet.saves) == (100_000, 20_000, False, False)


def test_of_a_script_that_is_not_ours_only_its_settings_are_known() -> None:
    settings = {"seed": 1, "layers": 3, "rate": 0.1}
    shape = find_shape(Planned("0" * 16, "x", Combination(settings, ()), None))
    assert (shape.key, shape.steps, shape.saves) == ('{"layers": 3}', None, False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create_path(tmp_path, "x", "0123456789abcdef")
    run.checkpoints_dir.mkdir(parents=True)
    return run


def save(run: Run, step: int) -> None:
    (run.checkpoints_dir / f"step_{step:08d}.pt").touch()
    (run.checkpoints_dir / f"step_{step:08d}.json").touch()


def log(run: Run, *rows: Mapping[str, float]) -> None:
    with run.metrics_path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


CYCLING = Shape("s", 1000, 500, evaluates=True, saves=True)


def test_a_run_has_been_through_everything_once_it_has_saved_and_evaluated(run: Run) -> None:
    assert not has_cycled(run, CYCLING, 0)
    save(run, 100)
    log(run, {"step": 100, "train/loss": 1.0})
    assert not has_cycled(run, CYCLING, 0)
    assert has_cycled(run, Shape("s", 1000, 500, evaluates=False, saves=True), 0)
    log(run, {"step": 100, "eval/mean_reward": 1.0})
    assert has_cycled(run, CYCLING, 0)


def test_what_a_run_did_in_an_attempt_before_does_not_count(run: Run) -> None:
    save(run, 100)
    log(run, {"step": 100, "eval/mean_reward": 1.0})
    assert find_saved_step(run.checkpoints_dir) == 100
    assert not has_cycled(run, CYCLING, 100)
    save(run, 200)
    assert not has_cycled(run, CYCLING, 100)
    log(run, {"step": 200, "eval/mean_reward": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 210, "eval/me')
    assert has_cycled(run, CYCLING, 100)


def test_a_run_that_saves_only_at_its_end_is_measured_there(run: Run) -> None:
    save(run, 1000)
    assert not has_cycled(run, Shape("s", 1000, 500, evaluates=False, saves=False), 0)


def test_a_replay_buffer_grows_in_proportion_until_it_is_full(run: Run) -> None:
    assert predict_growth(run, CYCLING) == 0
    log(run, {"step": 100, "env_step": 100})
    assert predict_growth(run, CYCLING) == 0
    (run.checkpoints_dir / "replay").mkdir()
    (run.checkpoints_dir / "replay/a.bin").write_bytes(b"x" * 3000)
    assert predict_growth(run, CYCLING) == 12_000
    log(run, {"step": 500, "env_step": 500})
    assert predict_growth(run, CYCLING) == 0


def finish(folder: Path, number: int, device: str, rss: int, gpu: int | None) -> Run:
    """A run that is done in its second attempt, the first having taken twice as much RAM."""
    run = Run.create_path(folder, f"seed={number}", f"{number:016x}")
    for attempt, peak in ((1, 2 * rss), (2, rss)):
        run.attempt_dir(attempt).mkdir(parents=True)
        (run.attempt_dir(attempt) / "start.json").write_text(json.dumps({"device": device}))
        (run.attempt_dir(attempt) / "exit.json").write_text(json.dumps({"peak_rss_bytes": peak}))
    memory = {"peak_rss_bytes": rss, "peak_gpu_bytes": gpu}
    run.summary_path.write_text(json.dumps({"memory": memory, "time": {"wall_s": 60.0}}))
    run.exit_path.write_text("{}")
    return run


def test_finished_runs_tell_what_their_shapes_take(tmp_path: Path) -> None:
    runs = [finish(tmp_path, 0, "cpu", 100, None), finish(tmp_path, 1, "cpu", 150, None)]
    runs.append(finish(tmp_path, 2, "0", 1000, 5000))
    runs.append(Run.create_path(tmp_path, "seed=3", f"{3:016x}"))
    shapes = {run.id: Shape("a") for run in runs}
    known, seconds = recall_shapes(runs, shapes, tmp_path / "events.jsonl", on_gpu=False)
    assert (known["a"].high, known["a"].low, known["a"].runs) == (Peak(0, 300), Peak(0, 200), 2)
    assert seconds == {"a": 60.0}
    known, _ = recall_shapes(runs, shapes, tmp_path / "events.jsonl", on_gpu=True)
    assert known["a"].high == Peak(6000 + CONTEXT, 2000)


def test_what_the_runner_saw_of_a_run_counts_where_it_is_more(tmp_path: Path) -> None:
    runs = [finish(tmp_path, 0, "cpu", 100, None), finish(tmp_path, 1, "cpu", 100, None)]
    shapes = {run.id: Shape(f"s{number}") for number, run in enumerate(runs)}
    events = tmp_path / "events.jsonl"
    append_event(events, "ended", runs[0].id, reason="ok", peak_ram_bytes=900)
    append_event(events, "ended", runs[1].id, reason="oom", peak_ram_bytes=900)
    known, _ = recall_shapes(runs, shapes, events, on_gpu=False)
    assert [known[f"s{number}"].high.ram_bytes for number in range(2)] == [900, 200]


HOLDER = """
import sys
from pathlib import Path
from experiment.locks import acquire_lock
lock, held = acquire_lock(Path(sys.argv[1])), bytearray(b"x" * 64 * 2**20)
print(flush=True)
input()
"""


def test_what_runs_that_are_going_on_have_is_measured_and_nothing_of_others(tmp_path: Path) -> None:
    going, pending = (Run.create_path(tmp_path, "x", 16 * digit) for digit in "ab")
    going.folder.mkdir()
    assert measure_held([going, pending]) == 0
    words = [sys.executable, "-c", HOLDER, str(going.lock_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        assert 64 * MIB < measure_held([going, pending]) < 64 * MIB + 60 * MIB
        holder.communicate(b"\n")
    assert measure_held([going, pending]) == 0
