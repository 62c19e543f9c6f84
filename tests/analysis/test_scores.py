"""Normalised scores in the report: beside the returns, and only where every run has references."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from analysis import load_runs
from analysis.arms import compare_arms
from analysis.returns import EVALUATION, SCORE, tabulate_returns, tabulate_runs
from analysis.tables import Table, render_text

REFERENCES = (-1200.0, -200.0)


def tabulate(experiment: Any) -> Table:
    return tabulate_returns(compare_arms(load_runs(experiment.folder))[0])


def add_arm(experiment: Any, rate: float, finals: list[float | str], references: tuple[float, float] | None) -> None:
    for seed, final in enumerate(finals):
        experiment.finish(experiment.add({"rate": rate, "seed": seed}), final, references=references)


def test_scores_stand_behind_the_returns_with_their_interval(experiment: Any) -> None:
    add_arm(experiment, 0.1, [-700.0, -600.0], REFERENCES)
    add_arm(experiment, 0.2, [-300.0, -200.0], REFERENCES)
    table = tabulate(experiment)
    assert table.columns.index(SCORE) > table.columns.index(EVALUATION)
    column = [row[table.columns.index(SCORE)].text for row in table.rows]
    assert column == ["55.0 [50.0, 60.0]", "95.0 [90.0, 100.0]"]
    assert "random -1200.0 and expert -200.0" in " ".join(table.notes)
    frame = table.frame[["iqm", "score", "score_low_95", "score_high_95"]].astype(float)
    assert frame.to_numpy().tolist() == [[-650.0, 55.0, 50.0, 60.0], [-250.0, 95.0, 90.0, 100.0]]
    runs = tabulate_runs(load_runs(experiment.folder)).frame
    assert runs["final_score"].tolist() == [50.0, 60.0, 90.0, 100.0]
    assert runs["reference_expert"].tolist() == [-200.0] * 4


def test_one_run_without_references_takes_the_column_away(experiment: Any) -> None:
    add_arm(experiment, 0.1, [-700.0, -600.0], REFERENCES)
    add_arm(experiment, 0.2, [-300.0], REFERENCES)
    experiment.finish(experiment.add({"rate": 0.2, "seed": 1}), -200.0)
    table = tabulate(experiment)
    assert SCORE not in table.columns
    assert not {"score", "score_low_95", "score_high_95"} & set(table.frame)
    assert "Normalised score" not in render_text(table) + " ".join(table.notes)


def test_without_any_references_neither_table_says_a_word_of_scores(experiment: Any) -> None:
    add_arm(experiment, 0.1, [-700.0, -600.0], None)
    assert SCORE not in tabulate(experiment).columns
    runs = tabulate_runs(load_runs(experiment.folder)).frame
    assert not {"final_score", "reference_random", "reference_expert"} & set(runs)


@pytest.mark.parametrize("text", ["nan", "-inf"])
def test_a_run_that_diverged_does_not_hide_the_scores_of_the_others(experiment: Any, text: str) -> None:
    add_arm(experiment, 0.1, [-700.0, text], REFERENCES)
    add_arm(experiment, 0.2, [-300.0, -200.0], REFERENCES)
    table = tabulate(experiment)
    column = [row[table.columns.index(SCORE)].text for row in table.rows]
    assert column == [text, "95.0 [90.0, 100.0]"]


def test_an_arm_without_a_finished_run_has_a_dash_for_a_score(experiment: Any) -> None:
    add_arm(experiment, 0.1, [-700.0], REFERENCES)
    experiment.fail(experiment.add({"rate": 0.2, "seed": 0}), "oom")
    table = tabulate(experiment)
    assert [row[table.columns.index(SCORE)].text for row in table.rows] == ["50.0", "–"]  # noqa: RUF001


def test_scores_by_different_references_are_said_to_be_on_different_scales(experiment: Any) -> None:
    add_arm(experiment, 0.1, [-700.0], REFERENCES)
    add_arm(experiment, 0.2, [-700.0], (-1000.0, 0.0))
    assert "are not on one scale" in " ".join(tabulate(experiment).notes)


def test_the_columns_of_runs_are_numbers(experiment: Any) -> None:
    add_arm(experiment, 0.1, [-700.0], REFERENCES)
    experiment.finish(experiment.add({"rate": 0.2, "seed": 0}), -200.0)
    runs = load_runs(experiment.folder).runs
    assert runs["final_score"].dtype == "float64"
    assert pd.isna(runs["final_score"][1])
