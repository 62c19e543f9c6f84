from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import load_runs
from analysis.arms import compare_arms
from analysis.load import ExperimentError, canonical
from analysis.settings import tabulate_settings
from experiment.locks import acquire_lock


@pytest.fixture
def every_state(experiment: Any) -> Any:
    """One run in each state, and in each way to fail."""
    runs = {name: experiment.add({"seed": seed}) for seed, name in enumerate(["DONE", "PENDING", "LOST", "STOPPED"])}
    experiment.finish(runs["DONE"], -150.0)
    experiment.start(runs["LOST"], attempts=2)
    experiment.start(runs["STOPPED"])
    experiment.end(runs["STOPPED"], 1, "requeue", 75)
    for seed, reason in enumerate(["error", "oom", "timeout", "signal", "config", "health"], start=10):
        experiment.fail(experiment.add({"seed": seed}), reason)
    return experiment


def test_states_and_reasons_are_derived(every_state: Any) -> None:
    runs = load_runs(every_state.folder).runs
    assert runs["state"].tolist() == ["DONE", "PENDING", "LOST", "STOPPED"] + ["FAILED"] * 6
    assert runs["reason"].dropna().tolist() == ["error", "oom", "timeout", "signal", "config", "health"]
    assert runs["attempt"].tolist() == [1, 0, 2, 1] + [1] * 6


def test_a_held_lock_means_running(experiment: Any, request: pytest.FixtureRequest) -> None:
    run = experiment.add({"seed": 1})
    experiment.start(run)
    descriptor = acquire_lock(run.lock_path)
    assert descriptor is not None
    request.addfinalizer(lambda: os.close(descriptor))
    assert load_runs(experiment.folder).runs["state"].tolist() == ["RUNNING"]


def test_a_finished_run_has_what_its_summary_says(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1, "learning_rate": 1e-3}), -160.5, train=-170.0)
    row = load_runs(str(experiment.folder)).runs.iloc[0]
    assert (row["final_mean"], row["final_std"], row["final_episodes"]) == (-160.5, 10.0, 4)
    assert (row["best_mean"], row["best_step"], row["train_return"]) == (-150.0, 1000, -170.0)
    assert (row["parameters"], row["parameters/actor"], row["parameters/critic"]) == (9282, 4609, 4673)
    assert (row["peak_rss_bytes"], row["replay_bytes"]) == (412_000_000, 2_800_000)
    assert pd.isna(row["peak_gpu_bytes"])
    assert (row["wall_s"], row["env_steps_per_s"], row["attempts"]) == (60.1, 166.0, 1)
    assert (row["resume"], row["guard"], row["used_device"], row["code_version"]) == ("exact", "healthy", "cpu", "c0de")


def test_a_summary_counts_only_once_the_run_is_done(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.finish(run, -1.0)
    run.exit_path.unlink()
    (run.attempt_dir(1) / "exit.json").unlink()
    row = load_runs(experiment.folder).runs.iloc[0]
    assert row["state"] == "LOST"
    assert row[["final_mean", "train_return", "parameters", "wall_s", "state_hash"]].isna().all()


@pytest.mark.parametrize(
    ("summary", "problem"),
    [
        (None, "no summary.json"),
        ({}, "no final evaluation in summary.json"),
        ({"final_eval": 3}, "no final evaluation"),
    ],
)
def test_a_finished_run_without_an_evaluation_says_so(experiment: Any, summary: object, problem: str) -> None:
    run = experiment.add({"seed": 1})
    experiment.finish(run)
    run.summary_path.unlink() if summary is None else run.summary_path.write_text(json.dumps(summary))
    row = load_runs(experiment.folder).runs.iloc[0]
    assert math.isnan(row["final_mean"])
    assert row["final_problem"].startswith(problem)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_texts_for_numbers_that_are_not_finite_are_read(experiment: Any, text: str) -> None:
    experiment.finish(experiment.add({"seed": 1}), text, curve=[text], train=text)
    data = load_runs(experiment.folder)
    assert str(data.runs.iloc[0]["final_mean"]) == text
    assert data.runs.iloc[0]["final_problem"] == f"final evaluation is {text}"
    assert str(data.metrics["eval/mean_reward"].iloc[1]) == text
    assert data.metrics["not_finite"].tolist() == ["rollout/ep_rew_mean", "eval/mean_reward"]


def test_metrics_are_tidy(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.finish(run, curve=[-900.0, -400.0])
    metrics = load_runs(experiment.folder).metrics
    assert metrics[["id", "env_step"]].drop_duplicates().to_numpy().tolist() == [[run.id, 1000], [run.id, 2000]]
    assert metrics["eval/mean_reward"].dropna().tolist() == [-900.0, -400.0]
    assert metrics.dtypes[["step", "env_step", "wall_time"]].astype(str).tolist() == ["int64", "int64", "float64"]


def test_a_torn_last_line_is_left_out_in_silence_and_a_broken_one_before_it_with_a_warning(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.finish(run, curve=[-900.0])
    whole = run.metrics_path.read_text()
    run.metrics_path.write_text(whole + whole.splitlines()[0][:30])
    data = load_runs(experiment.folder)
    assert len(data.metrics) == 2
    assert data.warnings == ()
    run.metrics_path.write_text("{broken}\n" + whole)
    data = load_runs(experiment.folder)
    assert len(data.metrics) == 2
    assert data.warnings == (f"run {run.id}: metrics.jsonl has 1 unreadable line(s), left out: 1",)


def test_combinations_that_share_an_id_share_a_run(experiment: Any) -> None:
    run = experiment.add({"seed": 1, "ou_theta": 0.1}, run_id="a" * 16)
    experiment.add({"seed": 1, "ou_theta": 0.2}, run_id="a" * 16)
    experiment.finish(run, -7.0)
    data = load_runs(experiment.folder)
    assert data.runs["final_mean"].tolist() == [-7.0, -7.0]
    assert len(data.unique_runs) == 1
    assert len(data.metrics) == 4


def test_runs_are_found_by_id_whatever_label_their_folder_has(experiment: Any) -> None:
    run = experiment.add({"seed": 1}, label="seed=1,learning_rate=0.1")
    experiment.finish(run, -7.0)
    run.folder.rename(experiment.folder / f"seed=1__{run.id}")
    data = load_runs(experiment.folder)
    assert data.runs["state"].tolist() == ["DONE"]
    assert data.run(run.id).summary_path.exists()


def test_a_second_folder_of_a_run_is_warned_of_and_the_finished_one_is_read(experiment: Any) -> None:
    run = experiment.add({"seed": 1}, label="z")
    experiment.finish(run, -7.0)
    (experiment.folder / f"a__{run.id}").mkdir()
    data = load_runs(experiment.folder)
    assert data.runs["state"].tolist() == ["DONE"]
    assert "2 folders" in data.warnings[0]


def test_runs_outside_the_plan_are_stale_and_enter_nothing(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}))
    old = experiment.add({"seed": 2})
    experiment.finish(old)
    plan = experiment.folder / "plan.jsonl"
    plan.write_text(plan.read_text().splitlines(keepends=True)[0])
    data = load_runs(experiment.folder)
    assert data.stale[["id", "state"]].to_numpy().tolist() == [[old.id, "DONE"]]
    assert old.id not in set(data.runs["id"]) | set(data.metrics["id"])


def test_swept_keys_are_those_with_more_than_one_value(experiment: Any) -> None:
    experiment.add({"algorithm_name": "ddpg", "seed": 1, "tau": 1, "hidden_dims": [64]})
    experiment.add({"algorithm_name": "ddpg", "seed": 2, "tau": 1.0, "hidden_dims": [64]})
    experiment.add({"algorithm_name": "ddpg", "seed": 2, "tau": 1, "hidden_dims": [64, 64], "batch_size": 4})
    assert load_runs(experiment.folder).swept == ["seed", "hidden_dims", "batch_size"]


def test_the_run_that_each_one_goes_on_from_is_no_axis(experiment: Any) -> None:
    """Seeds stay seeds of one arm, and the parent of one of them, which isn't planned any more, isn't another."""
    parents = []
    for seed in (1, 2, 3):
        parents.append(experiment.add({"seed": seed, "max_timesteps": 10}))
        experiment.finish(parents[-1], 5.0)
    experiment.combinations.clear()
    for seed, parent in zip((1, 2, 3), [*parents[:2], None], strict=True):
        begun = {} if parent is None else {"init_from": parent.id}
        experiment.finish(experiment.add({"seed": seed, "max_timesteps": 20} | begun), 9.0 + seed)
    data = load_runs(experiment.folder)
    assert data.swept == ["seed"]
    (comparison,) = compare_arms(data)
    (result,) = comparison.results
    assert (result.planned, result.finished, result.mean) == (3, 3, 11.0)
    assert set(data.stale["id"]) == {parent.id for parent in parents}
    rows = {row[0].text: row[1].text for row in tabulate_settings(data).rows}
    assert (rows["init_from"], rows["max_timesteps"]) == ("of each run its own", "constant")


def test_runs_that_differ_in_nothing_but_what_they_begin_with_are_told_apart(experiment: Any) -> None:
    for key in ("init_from", "init_weights_from"):
        experiment.combinations.clear()
        for parent in ("a" * 16, "b" * 16):
            experiment.add({"seed": 1, key: parent})
        assert load_runs(experiment.folder).swept == [key]


def test_columns_of_settings_have_sane_types(experiment: Any) -> None:
    experiment.add({"seed": 1, "rate": 1e-4, "name": "a", "flag": True, "dims": [1], "batch_size": 4, "state": "x"})
    experiment.add({"seed": 2, "rate": 1e-3, "name": "b", "dims": [2], "state": "y"})
    runs = load_runs(experiment.folder).runs
    types = runs[["seed", "rate", "name", "flag", "dims", "batch_size"]].dtypes.astype(str).tolist()
    assert types == ["int64", "float64", "str", "boolean", "object", "Int64"]
    assert runs["settings.state"].tolist() == ["x", "y"]
    assert runs["state"].tolist() == ["PENDING", "PENDING"]


def test_an_experiment_before_its_first_run_can_be_read(experiment: Any) -> None:
    experiment.add({"seed": 1})
    data = load_runs(experiment.folder)
    assert data.runs["state"].tolist() == ["PENDING"]
    assert list(data.metrics.columns) == ["id", "step", "env_step", "wall_time", "not_finite"]
    assert data.metrics.empty


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"nothing is not there; `python run_experiment.py -e .* makes one"):
        load_runs(tmp_path / "nothing")


def test_a_misspelt_folder_gets_a_suggestion(finished_sweep: Path) -> None:
    with pytest.raises(ExperimentError, match="did you mean 'finished'"):
        load_runs(finished_sweep.parent / "finishd")


def test_the_folder_above_gets_a_suggestion(finished_sweep: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no plan.jsonl.*did you mean .*logs/finished\?"):
        load_runs(finished_sweep.parent)


@pytest.mark.parametrize("line", ["{broken", '{"id": "x", "label": "y"}', "[]", '{"id": 1, "label": 2, "settings": 3}'])
def test_a_broken_plan_names_its_line(experiment: Any, line: str) -> None:
    experiment.add({"seed": 1})
    plan = experiment.folder / "plan.jsonl"
    plan.write_text(plan.read_text() + line + "\n")
    with pytest.raises(ExperimentError, match=r"plan.jsonl:2: not a line of a plan"):
        load_runs(experiment.folder)


def test_an_empty_plan_is_an_error(experiment: Any) -> None:
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "plan.jsonl").touch()
    with pytest.raises(ExperimentError, match="no combinations"):
        load_runs(experiment.folder)


def test_the_description_is_read_from_the_spec_without_building_anything(experiment: Any) -> None:
    experiment.add({"seed": 1})
    spec = experiment.folder / "spec.yaml"
    spec.write_text(
        "meta_data:\n  description: rates at 1e-4\nconstants: {a: !!python/object/apply:os.system [exit]}\n"
    )
    assert load_runs(experiment.folder).description == "rates at 1e-4"
    spec.write_text("meta_data: [broken")
    assert load_runs(experiment.folder).description == ""


def test_values_that_mean_the_same_are_the_same() -> None:
    assert canonical({"b": [1.0, 2], "a": True}) == canonical({"a": True, "b": [1, 2.0]})
    assert canonical(True) != canonical(1)
    assert canonical("1") != canonical(1)
