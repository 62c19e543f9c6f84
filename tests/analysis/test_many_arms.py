"""What a report shows of more arms than anybody reads: the best and the worst, maps, searches, and how many."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import load_runs
from analysis.arms import Comparison, compare_arms
from analysis.axes import find_axes
from analysis.checks import find_warnings
from analysis.contents import SHOWN_ARMS, SHOWN_WARNINGS, compose_report
from analysis.extremes import MANY_ARMS, select_extremes, sort_by_return
from analysis.figures import CUT_DOTS, MAX_ARMS, MAX_DOTS, draw_figures
from analysis.page import render_page
from analysis.random_variables import correlate_ranks, draw_random, find_trend, find_variables, tabulate_random
from analysis.report import write_report
from analysis.returns import tabulate_returns
from analysis.returns_map import draw_maps, find_range

MANY = MANY_ARMS + 5
RANDOM = """
meta_data: {samples: 45}
variables:
  rate: {log_uniform: [1e-5, 1e-1]}
  size: {int_uniform: [1, 999]}
  noise: {choice: [ou, gaussian]}
"""


def compare(folder: Path) -> Comparison:
    return compare_arms(load_runs(folder))[0]


def add_arms(experiment: Any, count: int = MANY) -> None:
    """Fill an experiment with arms of one seed, the best in the middle; the first isn't finite, the last has failed."""
    for number in range(count):
        run = experiment.add({"rate": number, "seed": 1})
        if number == count - 1:
            experiment.fail(run)
        else:
            final: float | str = "nan" if number == 0 else -abs(number - count / 2.5)
            experiment.finish(run, final, curve=(-9.0, -8.0 - number))


def search(experiment: Any) -> None:
    """Fill an experiment with the points of a search in which the rate alone matters: the higher, the better."""
    for number in range(45):
        settings = {
            "rate": 10 ** (-5 + 4 * number / 44),
            "size": 7 * number % 45 + 1,
            "noise": ["ou", "gaussian"][number % 2],
        }
        for seed in (1, 2):
            experiment.finish(experiment.add(settings | {"seed": seed}), -1000.0 + number + seed)
    (experiment.folder / "spec.yaml").write_text(RANDOM)


def test_of_many_arms_the_best_and_the_worst_are_drawn_and_a_sentence_says_so(experiment: Any) -> None:
    add_arms(experiment)
    data = load_runs(experiment.folder)
    comparisons = compare_arms(data)
    pictures, left_out = draw_figures(data, comparisons)
    assert left_out == []
    assert [picture.name for picture in pictures] == ["learning_curves", "final_returns"]
    assert [len(picture.runs) for picture in pictures] == [MAX_ARMS, CUT_DOTS]
    said = f"Of {MANY} arms, the 8 best and the 4 worst by their final returns, best first."
    assert f"{said} 2 that can't be ranked are left out. All are in returns.csv." in pictures[0].notes
    ranked = sort_by_return(comparisons[0].results)[: MANY - 2]
    shown = [result.arm.counted["id"].iloc[0] for result in (*ranked[:8], *ranked[-4:])]
    assert list(pictures[0].runs) == shown


def test_as_many_arms_as_a_figure_holds_come_as_they_are(experiment: Any) -> None:
    add_arms(experiment, MAX_ARMS)
    results = compare(experiment.folder).results
    selection = select_extremes(results, MAX_ARMS, MAX_ARMS, "returns")
    assert (selection.results, selection.sentence) == (results, "")


def test_where_few_of_many_arms_can_be_ranked_all_of_these_are_drawn(experiment: Any) -> None:
    for rate in range(MAX_DOTS + 1):
        run = experiment.add({"rate": rate, "seed": 1})
        experiment.finish(run, float(rate)) if rate < 5 else experiment.fail(run)
    data = load_runs(experiment.folder)
    curves, finals = draw_figures(data, compare_arms(data))[0]
    assert [len(curves.runs), len(finals.runs)] == [5, 5]
    assert f"Of {MAX_DOTS + 1} arms, the 5 that can be ranked, best first." in " ".join(finals.notes)


def test_where_none_of_many_arms_can_be_ranked_no_curve_is_drawn_and_it_is_said(experiment: Any) -> None:
    for rate in range(MAX_ARMS + 1):
        experiment.finish(experiment.add({"rate": rate, "seed": 1}), "nan")
    data = load_runs(experiment.folder)
    pictures, left_out = draw_figures(data, compare_arms(data))
    assert pictures == []
    assert left_out == ["Learning curves by rate: none of 13 arms can be ranked."]


def test_many_arms_are_listed_best_first_and_in_the_file_as_in_the_spec(experiment: Any) -> None:
    add_arms(experiment)
    paths = write_report(experiment.folder)
    with (paths.folder / "returns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rate"] for row in rows] == [str(number) for number in range(MANY)]
    finite = [float(row["iqm"]) for row in rows[1:-1]]
    table = tabulate_returns(compare(experiment.folder))
    rates = [row[0].text for row in table.rows]
    assert rates[0] == str(1 + int(np.argmax(finite)))
    assert rates[-2:] == ["0", str(MANY - 1)]
    assert "Best first" in table.notes[0]
    assert f"... and {MANY - SHOWN_ARMS} more rows" in paths.text


def test_few_arms_stay_in_the_order_of_the_spec(experiment: Any) -> None:
    for rate in range(MANY_ARMS):
        experiment.finish(experiment.add({"rate": rate, "seed": 1}), float(rate))
    table = tabulate_returns(compare(experiment.folder))
    assert [row[0].text for row in table.rows] == [str(rate) for rate in range(MANY_ARMS)]
    assert "more rows" not in write_report(experiment.folder).text


def test_many_arms_that_can_not_be_ranked_are_one_warning(experiment: Any) -> None:
    for rate in range(9):
        experiment.finish(experiment.add({"rate": rate, "seed": 1}))
        experiment.fail(experiment.add({"rate": rate, "seed": 2}))
    data = load_runs(experiment.folder)
    (warning,) = [text for text in find_warnings(data, compare_arms(data)[0]) if "ranked" in text]
    assert warning.startswith("9 of 9 arms can't be ranked. Not finished: 9 FAILED (error). rate=0: 1 of 2 finished")
    assert warning.endswith("3 more, in returns.csv under compared.")


def test_warnings_of_single_runs_are_cut_where_a_table_has_them(experiment: Any) -> None:
    for seed in range(9):
        sick = {"guard": {"verdict": "unhealthy"}, "code_version": "new"}
        experiment.finish(experiment.add({"seed": seed}), attempts=2, **sick)
    data = load_runs(experiment.folder)
    warnings = find_warnings(data, compare_arms(data)[0])
    assert sum("the training-health guard says unhealthy" in warning for warning in warnings) == 6
    assert "3 more runs like these: see guard in runs.csv." in warnings


def test_many_warnings_fold_away_and_none_is_lost(experiment: Any) -> None:
    for seed in range(30):
        run = experiment.add({"seed": seed})
        experiment.finish(run)
        run.config_path.write_text("a: [\n")
    paths = write_report(experiment.folder)
    assert paths.text.count("its settings are left out") == SHOWN_WARNINGS
    assert f"{30 - SHOWN_WARNINGS} more warnings are in the report" in paths.text
    page = paths.html.read_text()
    assert f"<details><summary>{30 - SHOWN_WARNINGS} more</summary>" in page
    assert page.count("its settings are left out") == 30


def test_a_choice_among_many_arms_is_warned_of(experiment: Any) -> None:
    add_arms(experiment)
    data = load_runs(experiment.folder)
    warnings = find_warnings(data, compare_arms(data)[0])
    assert any(warning.startswith(f"The best of {MANY - 2} arms was chosen by the very runs") for warning in warnings)


def test_long_tables_of_cost_and_endings_fold_away(experiment: Any) -> None:
    for rate in range(MANY):
        experiment.finish(experiment.add({"rate": rate, "seed": 1}))
        experiment.fail(experiment.add({"rate": rate, "seed": 2}))
    report = compose_report(load_runs(experiment.folder))
    folded = {table.name for table in report.tables if table.folded}
    assert {"memory", "time", "unfinished"} <= folded
    assert f"<summary>Runs that are not done ({MANY})</summary>" in render_page(report)


def test_a_grid_of_two_settings_has_a_map(experiment: Any) -> None:
    for rate, size in itertools.product(range(4), range(5)):
        run = experiment.add({"rate": rate, "size": size, "seed": 1})
        if (rate, size) == (3, 4):
            experiment.fail(run)
        else:
            experiment.finish(run, "nan" if rate + size == 0 else float(rate + size))
    (picture,) = draw_maps(compare(experiment.folder))
    assert picture.name == "returns_map"
    assert picture.title == "Map of returns by rate and size"
    assert len(picture.runs) == 19
    assert "In brackets: an arm that is not ranked." in picture.notes
    assert (experiment.folder / "report").exists() is False
    assert "returns_map.png" in {path.name for path in write_report(experiment.folder).figures}


@pytest.mark.parametrize("keys", [["rate"], ["rate", "size", "tau"]])
def test_other_grids_have_no_map(experiment: Any, keys: list[str]) -> None:
    for number in range(27):
        values = (number % 3, number // 3 % 3, number // 9) if len(keys) == 3 else (number,)
        experiment.finish(experiment.add(dict(zip(keys, values, strict=True)) | {"seed": 1}))
    assert draw_maps(compare(experiment.folder)) == []


def test_one_return_far_below_does_not_make_all_others_look_alike() -> None:
    returns = np.array([[-1e9, -4.0, -3.0], [-2.0, -1.0, np.nan]])
    low, high = find_range(returns)
    assert (-100 < low < -4, high) == (True, -1.0)
    assert find_range(returns[:, 1:]) == (-4.0, -1.0)


def test_random_variables_are_one_axis_with_one_table_of_returns(experiment: Any) -> None:
    search(experiment)
    data = load_runs(experiment.folder)
    assert find_axes(data) == [("rate", "size", "noise"), ("seed",)]
    assert [comparison.name for comparison in compare_arms(data)] == ["returns"]


def test_a_search_says_which_variables_matter_and_where_the_best_points_are(experiment: Any) -> None:
    search(experiment)
    paths = write_report(experiment.folder)
    with (paths.folder / "random_variables.csv").open() as file:
        rate, size, noise = csv.DictReader(file)
    assert (rate["variable"], rate["distribution"], rate["ranked_arms"]) == ("rate", "log_uniform [1e-05, 0.1]", "45")
    assert float(rate["rank_correlation"]) == pytest.approx(1.0)
    assert abs(float(size["rank_correlation"])) < 0.5
    assert noise["rank_correlation"] == ""
    assert rate["best_tenth"].endswith(" to 0.1")
    assert noise["best_tenth"] == "ou: 3 of 5, gaussian: 2 of 5"
    assert "random_variables.png" in {path.name for path in paths.figures}
    with (paths.folder / "settings.csv").open() as file:
        (values,) = [row["value"] for row in csv.DictReader(file) if row["key"] == "rate"]
    assert values.count(",") == 44
    assert "log_uniform [1e-05, 0.1], 45 different values drawn" in paths.markdown.read_text()


def test_each_environment_of_a_search_has_a_figure_and_rows_of_its_own(experiment: Any) -> None:
    for env, number in itertools.product(("Pendulum-v1", "Ant-v5"), range(3)):
        experiment.finish(experiment.add({"env_name": env, "rate": 10.0**-number}), -float(number))
    (experiment.folder / "spec.yaml").write_text("variables: {rate: {uniform: [0.001, 1]}}\n")
    data = load_runs(experiment.folder)
    comparison = compare_arms(data)[0]
    pictures = draw_random(comparison, data.random)
    assert [picture.name for picture in pictures] == ["random_variables_Pendulum-v1", "random_variables_Ant-v5"]
    table = tabulate_random(comparison, data.random)
    assert table.frame["env_name"].tolist() == ["Pendulum-v1", "Ant-v5"]
    assert table.frame["rank_correlation"].tolist() == ["", ""]


def test_values_that_were_not_drawn_from_the_distribution_are_left_alone(experiment: Any) -> None:
    for value in ("a", "b"):
        experiment.finish(experiment.add({"rate": value, "noise": value}))
    (experiment.folder / "spec.yaml").write_text("variables: {rate: {uniform: [0, 1]}, noise: {choice: [a, c]}}\n")
    data = load_runs(experiment.folder)
    comparison = compare_arms(data)[0]
    assert find_variables(comparison, data.random) == []
    assert draw_random(comparison, data.random) == []
    assert tabulate_random(comparison, data.random).rows == ()


def test_a_return_far_below_is_drawn_at_the_edge_and_counted(experiment: Any) -> None:
    search(experiment)
    experiment.finish(experiment.add({"rate": 0.05, "size": 3, "noise": "ou", "seed": 1}), -1e9)
    data = load_runs(experiment.folder)
    (picture,) = draw_random(compare_arms(data)[0], data.random)
    assert "1 arm is below the figure: a triangle at its edge." in " ".join(picture.notes)


def test_rank_correlations_share_ranks_and_are_not_made_up() -> None:
    values = np.arange(20.0)
    assert correlate_ranks(values, values**3) == pytest.approx(1.0)
    assert correlate_ranks(values, -np.exp(values)) == pytest.approx(-1.0)
    assert correlate_ranks(values[:19], values[:19]) is None
    assert correlate_ranks(np.zeros(20), values) is None
    tied = np.repeat([0.0, 1.0], 10)
    assert correlate_ranks(tied, tied) == pytest.approx(1.0)


def test_a_trend_is_of_medians_in_parts_of_equal_count() -> None:
    values = np.arange(40.0)[::-1]
    places, medians = find_trend(values, values * 2)
    assert places.tolist() == [4.5, 14.5, 24.5, 34.5]
    assert medians.tolist() == [9.0, 29.0, 49.0, 69.0]
    assert find_trend(values[:19], values[:19])[0].size == 0
