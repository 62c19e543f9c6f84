"""What runs have cost, and what that says of those to come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiment.dry_run import Survey, make_row
from experiment.files import dump_settings
from experiment.grid import Combination
from experiment.history import Estimate, History, find_makespan, read_cost, show_duration
from experiment.identity import CheckedConfig
from experiment.plan import Planned
from experiment.preflight import Footprint, shape_key
from experiment.run import Run
from train import build_config

DDPG = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "max_timesteps": 10_000, "hidden_dims": [64, 64]}
MIB = 2**20


def make_config(**settings: Any) -> CheckedConfig:
    return build_config(DDPG | settings)


def begin_run(folder: Path, device: str = "cpu", **settings: Any) -> tuple[Run, CheckedConfig]:
    config = make_config(**settings)
    run = Run.create_path(folder, "x", config.run_id())
    run.attempt_dir(1).mkdir(parents=True)
    run.config_path.write_text(dump_settings(config.resolved(), "# settings"))
    (run.attempt_dir(1) / "start.json").write_text(json.dumps({"attempt": 1, "device": device}))
    return run, config


def finish_run(
    folder: Path, wall_s: float, peak: int = 300 * MIB, device: str = "cpu", **settings: Any
) -> tuple[Run, CheckedConfig]:
    run, config = begin_run(folder, device, **settings)
    memory = {"peak_rss_bytes": peak, "peak_gpu_bytes": None if device == "cpu" else 2 * peak, "replay_bytes": 1}
    run.summary_path.write_text(json.dumps({"time": {"wall_s": wall_s}, "memory": memory, "device": device}))
    run.exit_path.write_text("{}")
    return run, config


def write_rows(run: Run, rows: list[dict[str, Any]]) -> None:
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')


def test_runs_that_differ_in_seed_and_end_alone_tell_exactly_and_in_proportion(tmp_path: Path) -> None:
    history = History("cpu")
    history.add(*finish_run(tmp_path, 40.0, seed=1))
    history.add(*finish_run(tmp_path, 60.0, seed=2))
    assert history.estimate(make_config(seed=3)) == Estimate(50.0, is_near=False)
    assert history.estimate(make_config(seed=3, max_timesteps=40_000)) == Estimate(200.0, is_near=False)


def test_the_nearest_run_of_a_shape_stands_in_and_none_of_another_shape_does(tmp_path: Path) -> None:
    history = History("cpu")
    assert history.estimate(make_config()) is None
    history.add(*finish_run(tmp_path, 40.0, batch_size=128, tau=0.1))
    history.add(*finish_run(tmp_path, 80.0, batch_size=512, tau=0.1, normalize_obs=True, noise_std=0.3))
    assert history.estimate(make_config(batch_size=256)) == Estimate(40.0, is_near=True)
    near_the_other = make_config(batch_size=256, tau=0.1, normalize_obs=True, noise_std=0.3)
    assert history.estimate(near_the_other) == Estimate(80.0, is_near=True)
    assert history.estimate(make_config(batch_size=256, max_timesteps=5_000)) == Estimate(20.0, is_near=True)
    assert history.estimate(make_config(hidden_dims=[32])) is None


def test_a_run_that_ends_by_the_clock_takes_as_long_whatever_its_steps(tmp_path: Path) -> None:
    history = History("cpu")
    limited = {"schedule": "fixed_wall", "wall_budget_s": 30.0}
    history.add(*finish_run(tmp_path, 33.0, **limited))
    assert history.estimate(make_config(max_timesteps=20_000, **limited)) == Estimate(33.0, is_near=False)


def test_a_run_under_way_tells_by_its_last_rows_in_which_networks_learned(tmp_path: Path) -> None:
    run, config = begin_run(tmp_path)
    learning = {"train/n_updates": 5, "time/fps": 50.0}
    warm_up = [{"step": n, "wall_time": n / 1000, "train/n_updates": 0, "time/fps": 1000.0} for n in (100, 200)]
    write_rows(run, warm_up)
    assert read_cost(run, config) is None
    rows = [*warm_up, {"step": 300, "wall_time": 2.0} | learning, {"step": 300, "wall_time": 3.0, "eval/x": 1.0}]
    write_rows(run, [*rows, {"step": 400, "wall_time": 4.0} | learning, {"step": 450, "wall_time": 5.0} | learning])
    cost = read_cost(run, config)
    assert cost is not None
    assert (cost.spent_s, cost.whole_s, cost.memory) == (5.0, 10_000 / 50.0, None)
    history = History("cpu")
    history.add(run, config)
    assert history.estimate(make_config(seed=5)) == Estimate(200.0, is_near=False)


def test_what_a_run_measured_counts_for_its_footprint_on_its_kind_of_device(tmp_path: Path) -> None:
    history, on_gpu = History("cpu"), History("cuda")
    runs = [finish_run(tmp_path, 40.0, peak * MIB, seed=peak) for peak in (300, 310)]
    runs.append(finish_run(tmp_path, 4.0, 900 * MIB, device="cuda", seed=3))
    for known in (history, on_gpu):
        for run, config in runs:
            known.add(run, config)
    footprint = shape_key(make_config(learning_rate=0.5).footprint_settings())
    assert history.find_memory(footprint) == Footprint(310 * MIB, None)
    assert on_gpu.find_memory(footprint) == Footprint(900 * MIB, 1800 * MIB)
    assert history.find_memory(shape_key(make_config(batch_size=8).footprint_settings())) is None
    assert on_gpu.estimate(make_config()) == Estimate(4.0, is_near=False)


def test_runs_that_the_plan_has_left_behind_tell_by_what_they_wrote_of_their_settings(tmp_path: Path) -> None:
    known, _ = finish_run(tmp_path, 40.0)
    broken, _ = finish_run(tmp_path, 1.0, seed=4)
    broken.config_path.write_text("algorithm_name: something_else\n")
    gone, _ = finish_run(tmp_path, 1.0, seed=5)
    gone.config_path.unlink()
    empty, _ = finish_run(tmp_path, 1.0, seed=6)
    empty.config_path.write_text("")
    foreign, _ = finish_run(tmp_path, 1.0, seed=7)
    foreign.summary_path.write_text('{"accuracy": 0.9}')
    history = History("cpu")
    history.add_folder([known, broken, gone, empty, foreign], build_config)
    assert history.estimate(make_config(seed=9)) == Estimate(40.0, is_near=False)


@pytest.mark.parametrize(
    ("seconds", "jobs", "over"),
    [([4, 4, 4, 4], 2, 8), ([9, 1, 1, 1], 2, 9), ([3], 5, 3), ([], 2, 0), ([1, 2, 3], 1, 6)],
)
def test_a_sweep_is_over_when_its_last_place_is(seconds: list[float], jobs: int, over: float) -> None:
    assert find_makespan(seconds, jobs) == over


def test_durations_are_written_as_people_say_them() -> None:
    assert [show_duration(seconds) for seconds in (3.4, 89, 600, 5399, 9000)] == [
        "3 s",
        "89 s",
        "10 min",
        "90 min",
        "2.5 h",
    ]


def test_what_a_run_goes_on_from_was_spent_before_and_is_not_left(tmp_path: Path) -> None:
    history = History("cpu")
    parent, config = finish_run(tmp_path, 40.0)
    history.add(parent, config)
    for key, left in (("init_from", 80.0), ("init_weights_from", 120.0)):
        child = make_config(max_timesteps=30_000, **{key: parent.id})
        planned = Planned(child.run_id(), "x", Combination({}, ()), child)
        row = make_row(planned, None, Survey(3, (), {}, history))
        assert row.estimate == Estimate(120.0, is_near=False)
        assert row.left_s == left
