from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import load_runs
from analysis.arms import NOT_COMPARABLE, ArmResult, compare_arms, find_task_keys, group_arms
from analysis.checks import find_axes_without_effect, find_warnings
from analysis.contents import answer_in_short
from analysis.returns import tabulate_returns, tabulate_runs
from analysis.statistics import stratified_bootstrap_interval
from analysis.tables import render_text, to_csv
from experiment.locks import acquire_lock
from experiment.run import Run


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
        "6 of 6 runs finished. Best: rate=0.2, IQM of the final evaluation returns 4.0, 95 % interval "
        "[2.0, 6.0] over 2 seeds. Not distinguishable from it: rate=0.1."
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


def test_a_fault_of_many_runs_is_counted_and_of_few_is_named(experiment: Any) -> None:
    for rate, count in (("few", 2), ("many", 4)):
        for seed in range(count):
            run = experiment.add({"rate": rate, "seed": seed}, run_id=f"{rate == 'many':d}{seed:015x}")
            experiment.finish(run, "nan")
    few, many = (result.problem for result in results_of(experiment.folder).values())
    assert few == f"final evaluation is nan in runs {0:016x} and {1:016x}"
    assert many == "final evaluation is nan in 4 runs"


def test_single_seeds_are_ranked_but_told_apart_from_nothing(experiment: Any) -> None:
    experiment.finish(experiment.add({"rate": 0.1}), -1.0)
    experiment.finish(experiment.add({"rate": 0.2}), -2.0)
    results = results_of(experiment.folder)
    assert results["rate=0.1"].is_best
    assert results["rate=0.2"].verdict.startswith("can't be told from the best")
    assert any(warning.startswith("One seed per setting") for warning in warnings_of(experiment.folder))


def test_the_answer_has_the_decimals_of_the_table(experiment: Any) -> None:
    for rate, finals in ((0.1, [-1624.26, -1509.21]), (0.2, [-190.26, -141.51])):
        for seed, final in enumerate(finals):
            experiment.finish(experiment.add({"rate": rate, "seed": seed}), final)
    data = load_runs(experiment.folder)
    comparison = compare_arms(data)[0]
    shown = next(row[2].text for row in tabulate_returns(comparison).rows if row[0].strong)
    assert shown == "-166 [-190, -142]"
    assert "returns -166, 95 % interval [-190, -142] over" in answer_in_short(data, comparison)


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


def fill_incomplete_grid(experiment: Any, seeds: int = 3) -> None:
    """Rate a is better wherever both were run, but b alone was run in the easy setting."""
    for rate, size, final in (("a", 64, -998.0), ("b", 64, -1048.0), ("b", 256, -48.0)):
        for seed in range(seeds):
            experiment.finish(experiment.add({"rate": rate, "size": size, "seed": seed}), final + seed)


def test_arms_over_different_other_settings_are_not_ranked_against_each_other(experiment: Any) -> None:
    fill_incomplete_grid(experiment)
    for number, names in ((1, ["rate=a", "rate=b"]), (2, ["size=64", "size=256"])):
        results = results_of(experiment.folder, number)
        assert {name: result.verdict for name, result in results.items()} == dict.fromkeys(names, NOT_COMPARABLE)
        assert not any(result.is_best for result in results.values())
    whole = results_of(experiment.folder)
    assert [name for name, result in whole.items() if result.is_best] == ["rate=b, size=256"]
    data = load_runs(experiment.folder)
    comparisons = compare_arms(data)
    assert answer_in_short(data, comparisons[0]).startswith("9 of 9 runs finished. Best: rate=b, size=256, IQM")
    notes = [" ".join(tabulate_returns(comparison).notes) for comparison in comparisons]
    assert ["are not ranked: those alone" in note for note in notes] == [False, True, True]


def test_an_arm_with_other_seeds_in_each_setting_is_not_comparable(experiment: Any) -> None:
    # Both rates were run in both settings and are equal there; b has more of the easy one.
    counts = {("a", 64): 3, ("a", 256): 1, ("b", 64): 1, ("b", 256): 3}
    for (rate, size), count in counts.items():
        for seed in range(count):
            experiment.finish(experiment.add({"rate": rate, "size": size, "seed": seed}), float(size))
    assert [result.verdict for result in results_of(experiment.folder, 1).values()] == [NOT_COMPARABLE] * 2


def test_more_seeds_in_every_setting_leave_arms_comparable(experiment: Any) -> None:
    for rate, seeds in (("a", 2), ("b", 4)):
        for size in (64, 256):
            for seed in range(seeds):
                experiment.finish(experiment.add({"rate": rate, "size": size, "seed": seed}), size + seed / 10)
    assert [result.verdict for result in results_of(experiment.folder, 1).values()] == [
        "not distinguishable from the best",
        "best",
    ]


def test_a_run_shared_by_the_values_of_another_key_leaves_arms_comparable(experiment: Any) -> None:
    for noise in ("gaussian", "ou"):
        for theta in (0.1, 0.2):
            settings = {"noise": noise, "theta": theta, "seed": 1}
            experiment.add(settings, run_id="a" * 16 if noise == "gaussian" else None)
    for run in load_runs(experiment.folder).unique_runs.itertuples():
        experiment.finish(Run(experiment.folder / str(run.folder), str(run.id), str(run.label)))
    results = results_of(experiment.folder, 1)
    assert results["noise=gaussian"].planned == 1
    assert NOT_COMPARABLE not in [result.verdict for result in results.values()]


def test_an_unfinished_arm_over_other_settings_keeps_the_others_from_being_ranked(experiment: Any) -> None:
    for rate in ("a", "b", "c"):
        for size in (64, 256) if rate != "c" else (64,):
            run = experiment.add({"rate": rate, "size": size, "seed": 1})
            experiment.finish(run) if rate != "c" else experiment.fail(run)
    verdicts = [result.verdict for result in results_of(experiment.folder, 1).values()]
    assert verdicts == [NOT_COMPARABLE, NOT_COMPARABLE, "not ranked: 0 of 1 finished, 1 FAILED (error)"]


def test_only_the_environment_with_a_gap_is_left_unranked(experiment: Any) -> None:
    for env in ("whole", "gap"):
        for rate, size in itertools.product(("a", "b"), (64, 256)):
            if (env, rate, size) != ("gap", "a", 256):
                run = experiment.add({"env_name": env, "rate": rate, "size": size, "seed": 1})
                experiment.finish(run, float(size + (rate == "b")))
    results = results_of(experiment.folder, 1)
    assert [name for name, result in results.items() if result.is_best] == ["env_name=whole, rate=b"]
    assert results["env_name=gap, rate=b"].verdict == NOT_COMPARABLE


def write_cases(experiment: Any, cases: list[dict[str, Any]]) -> None:
    (experiment.folder / "spec.yaml").write_text(json.dumps({"constants": {"size": 256}, "cases": cases}))


def test_the_keys_of_cases_are_compared_as_one(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [{"rate": "a", "size": 64}, {"rate": "b", "size": 64}, {"rate": "b"}]
    for tau in (0.1, 0.2):
        for number, case in enumerate(cases):
            for seed in range(2):
                settings = {"size": 256, "seed": seed, "tau": tau} | case
                experiment.finish(experiment.add(settings), [-998.0, -1048.0, -48.0][number] + seed)
    write_cases(experiment, cases)
    comparisons = compare_arms(load_runs(experiment.folder))
    assert [comparison.name for comparison in comparisons] == ["returns", "returns_by_size_and_rate", "returns_by_tau"]
    assert comparisons[1].title == "Returns by size and rate"
    by_case = results_of(experiment.folder, 1)
    assert [result.is_best for result in by_case.values()] == [False, False, True]
    assert NOT_COMPARABLE not in [result.verdict for result in results_of(experiment.folder, 2).values()]


def test_cases_alone_are_one_table(experiment: Any) -> None:
    fill_incomplete_grid(experiment)
    write_cases(experiment, [{"rate": "a", "size": 64}, {"rate": "b", "size": 64}, {"rate": "b"}])
    assert [comparison.name for comparison in compare_arms(load_runs(experiment.folder))] == ["returns"]


def test_the_environment_is_no_stratum(experiment: Any) -> None:
    for env, gravity in (("A", 1), ("B", 2)):
        for rate in (0.1, 0.2):
            settings = {"env_name": env, "env_kwargs.g": gravity, "rate": rate, "size": 64 * gravity, "seed": 1}
            experiment.add(settings)
    arms = group_arms(load_runs(experiment.folder), ("env_name", "env_kwargs.g"), ("rate",))
    assert [arm.strata for arm in arms] == [("64",), ("64",), ("128",), ("128",)]
    assert compare_arms(load_runs(experiment.folder))[0].task_keys == ("env_name", "env_kwargs.g")
    assert find_task_keys(["seed", "eval_env_kwargs.g", "eval_env", "eval_freq"]) == ("eval_env_kwargs.g",)


def test_the_interval_of_an_arm_is_drawn_from_ten_thousand_resamples(experiment: Any) -> None:
    finals = [-500.0, -320.0, -310.5, -100.0, -90.0, -7.0, 3.0]
    for seed, final in enumerate(finals):
        experiment.finish(experiment.add({"seed": seed}), final)
    expected = stratified_bootstrap_interval([finals], resamples=10_000)
    assert results_of(experiment.folder)["all runs"].interval == expected
    assert expected != stratified_bootstrap_interval([finals], resamples=9_000)


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


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_every_value_of_an_axis_has_to_be_without_effect(experiment: Any, odd: int) -> None:
    for number in range(3):
        run = experiment.add({"rate": 0.1 * (1 + number), "seed": 0})
        experiment.finish(run, state_hash="other" if number == odd else "same")
    assert find_axes_without_effect(load_runs(experiment.folder)) == []


def test_keys_that_vary_together_are_reported_as_one_axis(experiment: Any) -> None:
    for size, tau in ((64, 0.1), (128, 0.2), (256, 0.3)):
        for seed in range(2):
            run = experiment.add({"size": size, "tau": tau, "seed": seed})
            experiment.finish(run, curve=[-5.0 - seed], state_hash=f"same{seed}")
    assert find_axes_without_effect(load_runs(experiment.folder)) == [
        "size and tau, which vary together, had no effect: their runs are identical for the same seed."
    ]


def test_cases_are_one_axis_even_where_single_keys_repeat_values(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [
        {"size": 64, "tau": 0.1, "noise": "ou"},
        {"size": 64, "tau": 0.2},
        {"size": 128, "tau": 0.2},
    ]
    for case in cases:
        experiment.finish(experiment.add({"seed": 1} | case), state_hash="same")
    write_cases(experiment, cases)
    assert find_axes_without_effect(load_runs(experiment.folder)) == [
        "size, tau and noise, which vary together, had no effect: their runs are identical for the same seed."
    ]


def test_one_key_of_cases_is_judged_where_it_alone_differs(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [{"size": 64, "tau": 0.1}, {"size": 64, "tau": 0.2}, {"size": 128, "tau": 0.2}]
    for case in cases:
        experiment.finish(experiment.add({"seed": 1} | case), state_hash=f"size {case['size']}")
    write_cases(experiment, cases)
    assert find_axes_without_effect(load_runs(experiment.folder)) == [
        "tau, where it alone differs, had no effect: its runs are identical for the same seed."
    ]


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
