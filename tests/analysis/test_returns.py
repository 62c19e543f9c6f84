from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import load_runs
from analysis.arms import ArmResult, compare_arms
from analysis.checks import find_axes_without_effect, find_warnings
from analysis.contents import answer_in_short
from analysis.returns import tabulate_returns, tabulate_runs
from analysis.tables import render_text, to_csv
from experiment.locks import acquire_lock


def results_of(folder: Path, number: int = 0) -> dict[str, ArmResult]:
    comparison = compare_arms(load_runs(folder))[number]
    return {comparison.describe(result.arm): result for result in comparison.results}


def warnings_of(folder: Path) -> list[str]:
    data = load_runs(folder)
    return find_warnings(data, compare_arms(data)[0])


def test_arms_are_in_the_order_of_the_spec_and_the_best_is_marked(finished_sweep: Path) -> None:
    results = results_of(finished_sweep)
    assert list(results) == ["learning_rate=0.0001", "learning_rate=0.0003", "learning_rate=0.001"]
    assert [result.is_best for result in results.values()] == [False, False, True]
    assert [result.verdict for result in results.values()] == ["below the best", "below the best", "best"]
    best = results["learning_rate=0.001"]
    assert (best.iqm, best.mean, best.sd) == (pytest.approx(-580.0), pytest.approx(-580.0), pytest.approx(10.0))
    assert (best.interval.low, best.interval.high) == (pytest.approx(-590.0), pytest.approx(-570.0))
    assert best.train_mean == pytest.approx(-630.0)


def test_arms_whose_intervals_overlap_are_not_told_apart(experiment: Any) -> None:
    for rate, finals in ((0.1, [1.0, 5.0]), (0.2, [2.0, 6.0]), (0.3, [-9.0, -8.0])):
        for seed, final in enumerate(finals):
            experiment.finish(experiment.add({"rate": rate, "seed": seed}), final)
    verdicts = {name: result.verdict for name, result in results_of(experiment.folder).items()}
    assert verdicts["rate=0.1"] == "not distinguishable from the best"
    assert verdicts["rate=0.2"] == "best"
    assert verdicts["rate=0.3"] == "below the best"
    data = load_runs(experiment.folder)
    assert answer_in_short(data, compare_arms(data)[0]) == (
        "6 of 6 runs finished. Best: rate=0.2, IQM of the final evaluation returns 4.000, 95 % interval "
        "[2.000, 6.000] over 2 seeds. Not distinguishable from it: rate=0.1."
    )


def test_an_arm_with_an_unfinished_run_is_never_ranked_however_good(experiment: Any) -> None:
    for seed in range(3):
        experiment.finish(experiment.add({"rate": 0.1, "seed": seed}), -500.0 - seed)
    for seed in range(2):
        experiment.finish(experiment.add({"rate": 0.2, "seed": seed}), -1.0)
    experiment.fail(experiment.add({"rate": 0.2, "seed": 2}), "health")
    results = results_of(experiment.folder)
    assert results["rate=0.1"].is_best
    assert results["rate=0.2"].verdict == "not ranked: 2 of 3 finished, 1 FAILED (health)"
    assert results["rate=0.2"].mean == -1.0
    assert "rate=0.2: 2 of 3 finished, 1 FAILED (health)." in warnings_of(experiment.folder)


def test_an_arm_without_a_finished_run_is_a_dash_with_the_reason(experiment: Any) -> None:
    experiment.finish(experiment.add({"rate": 0.1, "seed": 1}), -500.0)
    experiment.fail(experiment.add({"rate": 0.2, "seed": 1}), "oom")
    experiment.add({"rate": 0.3, "seed": 1})
    table = tabulate_returns(compare_arms(load_runs(experiment.folder))[0])
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[1] == ["0.2", "0 of 1", "–", "–", "–", "–", "not ranked: 0 of 1 finished, 1 FAILED (oom)", ""]  # noqa: RUF001
    assert texts[2][-2] == "not ranked: 0 of 1 finished, 1 PENDING"


@pytest.mark.parametrize("state", ["LOST", "STOPPED", "FAILED", "RUNNING"])
def test_no_number_of_an_unfinished_run_enters_a_statistic(
    experiment: Any, state: str, request: pytest.FixtureRequest
) -> None:
    for seed in range(3):
        experiment.finish(experiment.add({"rate": 0.1, "seed": seed}), -500.0)
    run = experiment.add({"rate": 0.1, "seed": 3})
    experiment.finish(run, 1e9)
    run.exit_path.unlink()
    endings = {"STOPPED": ("requeue", 75), "FAILED": ("signal", -9)}
    (run.attempt_dir(1) / "exit.json").unlink()
    if state in endings:
        experiment.end(run, 1, *endings[state])
    if state == "RUNNING":
        descriptor = acquire_lock(run.lock_path)
        assert descriptor is not None
        request.addfinalizer(lambda: os.close(descriptor))
    assert load_runs(experiment.folder).runs["state"].tolist() == ["DONE"] * 3 + [state]
    result = results_of(experiment.folder)["all runs"]
    assert (result.finished, result.planned, result.iqm, result.train_mean) == (3, 4, -500.0, -300.0)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_final_return_that_is_not_finite_is_shown_and_not_ranked(experiment: Any, text: str) -> None:
    for seed, final in enumerate([-1.0, text]):
        experiment.finish(experiment.add({"rate": 0.1, "seed": seed}), final)
        experiment.finish(experiment.add({"rate": 0.2, "seed": seed}), -500.0)
    results = results_of(experiment.folder)
    faulty = results["rate=0.1"]
    assert str(faulty.iqm) == text
    assert not faulty.interval.exists
    assert f"final evaluation is {text} in run" in faulty.verdict
    assert results["rate=0.2"].is_best
    shown = render_text(tabulate_runs(load_runs(experiment.folder)))
    assert f"  {text}  " in shown


def test_a_finished_run_without_summary_leaves_its_arm_unranked(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.finish(run)
    run.summary_path.unlink()
    result = results_of(experiment.folder)["all runs"]
    assert result.iqm is None
    assert result.problem == f"no summary.json in run {run.id}"


def test_single_seeds_are_ranked_but_told_apart_from_nothing(experiment: Any) -> None:
    experiment.finish(experiment.add({"rate": 0.1}), -1.0)
    experiment.finish(experiment.add({"rate": 0.2}), -2.0)
    results = results_of(experiment.folder)
    assert results["rate=0.1"].is_best
    assert results["rate=0.2"].verdict.startswith("can't be told from the best")
    assert any(warning.startswith("One seed per setting") for warning in warnings_of(experiment.folder))


def test_few_seeds_are_warned_of_and_five_are_enough(
    tmp_path: Path, make_sweep: Callable[..., object], finished_sweep: Path
) -> None:
    make_sweep(tmp_path / "five", rates=(1e-4, 1e-3), seeds=(1, 2, 3, 4, 5))
    assert any("Fewer than 5 seeds (3 per setting)" in warning for warning in warnings_of(finished_sweep))
    assert warnings_of(tmp_path / "five") == []


def test_each_key_has_its_own_table_that_resamples_within_the_others(experiment: Any) -> None:
    for rate in (0.1, 0.2):
        for size, base in ((64, 0.0), (256, 1000.0)):
            for seed in range(3):
                experiment.finish(experiment.add({"rate": rate, "size": size, "seed": seed}), base + seed)
    comparisons = compare_arms(load_runs(experiment.folder))
    assert [comparison.name for comparison in comparisons] == ["returns", "returns_by_rate", "returns_by_size"]
    pooled = results_of(experiment.folder, 1)["rate=0.1"]
    assert pooled.planned == 6
    # Drawn from all six at once, the interval would reach from near 0 to near 1000.
    assert 499 < pooled.interval.low <= pooled.interval.high < 503


def test_a_run_that_combinations_share_counts_once_in_a_row(experiment: Any) -> None:
    for seed in range(3):
        run = experiment.add({"seed": seed, "theta": 0.1}, run_id=f"{seed:016x}")
        experiment.add({"seed": seed, "theta": 0.2}, run_id=f"{seed:016x}")
        experiment.finish(run, float(seed))
    data = load_runs(experiment.folder)
    assert answer_in_short(data, compare_arms(data)[0]).startswith("3 of 3 runs finished.")
    assert [result.planned for result in results_of(experiment.folder).values()] == [3, 3]
    assert find_axes_without_effect(data) == ["theta had no effect: its values mean the same and share their runs."]


def test_returns_are_never_pooled_or_ranked_across_environments(experiment: Any) -> None:
    for env, scale in (("Pendulum-v1", -1.0), ("HalfCheetah-v5", 1000.0)):
        for rate in (0.1, 0.2):
            for seed in range(2):
                run = experiment.add({"env_name": env, "rate": rate, "seed": seed})
                experiment.finish(run, scale * (1 + seed + 10 * rate))
    comparisons = compare_arms(load_runs(experiment.folder))
    assert [comparison.keys for comparison in comparisons] == [("rate",)]
    best = [name for name, result in results_of(experiment.folder).items() if result.is_best]
    assert best == ["env_name=Pendulum-v1, rate=0.1", "env_name=HalfCheetah-v5, rate=0.2"]


@pytest.mark.parametrize("state_hash", ["same", None])
def test_an_axis_that_changes_nothing_is_reported(experiment: Any, state_hash: str | None) -> None:
    for rate in (0.1, 0.2, 0.3):
        for seed in range(2):
            run = experiment.add({"rate": rate, "seed": seed})
            known = state_hash and f"{state_hash}{seed}"
            experiment.finish(run, -1.0 - seed, curve=[-5.0 - seed], machine=1.0 + rate, state_hash=known)
    assert find_axes_without_effect(load_runs(experiment.folder)) == [
        "rate had no effect: its runs are identical for the same seed."
    ]


def test_an_axis_that_only_changes_what_is_measured_is_reported_as_such(experiment: Any) -> None:
    for num_eval in (5, 10):
        experiment.finish(experiment.add({"num_eval": num_eval, "seed": 0}), curve=[num_eval], state_hash="same")
    assert find_axes_without_effect(load_runs(experiment.folder)) == [
        "num_eval had no effect on training: its runs end in the same state for the same seed."
    ]


def test_equal_metrics_prove_nothing_where_the_states_differ(experiment: Any) -> None:
    for rate in (0.1, 0.2):
        experiment.finish(experiment.add({"rate": rate, "seed": 0}), state_hash=f"state of {rate}")
    assert find_axes_without_effect(load_runs(experiment.folder)) == []


def test_a_seed_that_changes_nothing_is_reported(experiment: Any) -> None:
    for seed in range(2):
        experiment.finish(experiment.add({"seed": seed}), state_hash="same")
    assert find_axes_without_effect(load_runs(experiment.folder)) == [
        "seed had no effect: runs that differ in nothing else are identical."
    ]


def test_an_axis_with_an_effect_in_one_pair_is_not_reported(experiment: Any) -> None:
    for rate in (0.1, 0.2):
        for seed in range(2):
            curve = [-5.0 - seed - (rate if seed == 1 else 0)]
            experiment.finish(experiment.add({"rate": rate, "seed": seed}), curve=curve, state_hash=None)
    assert find_axes_without_effect(load_runs(experiment.folder)) == []


def test_unfinished_pairs_say_nothing_about_an_axis(experiment: Any) -> None:
    experiment.finish(experiment.add({"rate": 0.1, "seed": 0}))
    experiment.start(experiment.add({"rate": 0.2, "seed": 0}))
    assert find_axes_without_effect(load_runs(experiment.folder)) == []


def test_several_code_versions_are_warned_of(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}), code_version="old")
    run = experiment.add({"seed": 2})
    experiment.finish(run, code_version="new", attempts=2)
    start = run.attempt_dir(1) / "start.json"
    start.write_text(start.read_text().replace("new", "old"))
    found = "\n".join(warnings_of(experiment.folder))
    assert "The runs are of 2 code versions: old, new." in found
    assert f"seed=2 ({run.id}) was started under several code versions: old new." in found


def test_an_unhealthy_run_is_named(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}), guard={"verdict": "non-finite", "events": 2})
    assert any("guard says non-finite" in warning for warning in warnings_of(experiment.folder))


def test_the_table_of_returns_is_byte_equal_after_interruptions(
    tmp_path: Path, make_sweep: Callable[..., object]
) -> None:
    make_sweep(tmp_path / "straight")
    make_sweep(tmp_path / "resumed", attempts=3, machine=1.7)
    tables = [tabulate_returns(compare_arms(load_runs(tmp_path / name))[0]) for name in ("straight", "resumed")]
    assert to_csv(tables[0]) == to_csv(tables[1])
    assert render_text(tables[0]) == render_text(tables[1])
    assert (tables[0].rows, tables[0].notes) == (tables[1].rows, tables[1].notes)


def test_the_csv_reads_back_to_the_bit(experiment: Any) -> None:
    final = -160.1 / 3
    experiment.finish(experiment.add({"seed": 1}), final)
    line = to_csv(tabulate_returns(compare_arms(load_runs(experiment.folder))[0])).decode().splitlines()[1]
    assert float(line.split(",")[2]) == final
    assert line.split(",")[3:5] == ["", ""]
