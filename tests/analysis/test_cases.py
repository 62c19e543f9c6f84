"""How the report names points of `cases`: by what sets them apart, and never two alike."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import load_runs
from analysis.arms import BASE, CASE, Comparison, compare_arms
from analysis.contents import answer_in_short, compose_report
from analysis.costs import tabulate_memory, tabulate_parameters
from analysis.figures import draw_figures
from analysis.returns import tabulate_returns

WEIGHTS = {"vae_weight": 1.0, "kl_weight": 0.001, "entropy_weight": 0.01}


def fill(
    experiment: Any, cases: Sequence[dict[str, Any]], constants: dict[str, Any], rates: Sequence[float] = ()
) -> Path:
    """Finish two seeds of each case, the later the better; with rates, of each case with each rate."""
    for case, rate, seed in itertools.product(cases, rates or [None], (1, 2)):
        settings = constants | case | {"seed": seed} | ({} if rate is None else {"rate": rate})
        experiment.finish(experiment.add(settings), 10.0 * cases.index(case) + seed)
    (experiment.folder / "spec.yaml").write_text(json.dumps({"constants": constants, "cases": cases}))
    folder: Path = experiment.folder
    return folder


def compare(folder: Path, number: int = 0) -> Comparison:
    return compare_arms(load_runs(folder))[number]


def name_arms(comparison: Comparison) -> list[str]:
    return [comparison.describe(result.arm) for result in comparison.results]


def test_a_case_is_named_by_what_sets_it_apart_from_most(experiment: Any) -> None:
    cases = [{"vae_weight": 1.0}, {"vae_weight": 0.0}, {"kl_weight": 0.0}, {"entropy_weight": 0.0}]
    comparison = compare(fill(experiment, cases, WEIGHTS))
    assert name_arms(comparison) == [BASE, "vae_weight=0.0", "kl_weight=0.0", "entropy_weight=0.0"]
    table = tabulate_returns(comparison)
    assert table.columns[:2] == (CASE, "Finished")
    assert [row[0].text for row in table.rows] == name_arms(comparison)
    assert "what isn't named is vae_weight=1.0, kl_weight=0.001, entropy_weight=0.01." in " ".join(table.notes)
    assert table.frame[list(WEIGHTS)].astype(float).to_numpy()[1].tolist() == [0.0, 0.001, 0.01]


def test_tables_of_cost_figures_and_the_answer_use_the_same_names(experiment: Any) -> None:
    cases = [{"vae_weight": 1.0}, {"vae_weight": 0.0}, {"kl_weight": 0.0}, {"entropy_weight": 0.0}]
    folder = fill(experiment, cases, WEIGHTS)
    data, comparison = load_runs(folder), compare(folder)
    assert [row[0].text for row in tabulate_memory(comparison).rows] == name_arms(comparison)
    assert "Best: entropy_weight=0.0, IQM" in answer_in_short(data, comparison)
    with_names, _ = draw_figures(data, [comparison])
    assert len(with_names) == 2
    assert compose_report(data).tables[0].rows == tabulate_returns(comparison).rows


def test_a_default_goes_without_saying_where_no_value_is_the_rule(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [{"algorithm": "bc"}, {"algorithm": "td3_bc"}, {"algorithm": "iql", "beta": 0.1}]
    names = name_arms(compare(fill(experiment, cases, {})))
    assert names == ["algorithm=bc", "algorithm=td3_bc", "algorithm=iql, beta=0.1"]


def test_a_value_of_just_half_of_the_arms_is_named(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2}, {"a": 3}]
    names = name_arms(compare(fill(experiment, cases, {})))
    assert names == ["a=1, b=1", "a=1, b=2", "a=2", "a=3"]


def test_a_default_that_few_leave_a_key_to_is_named(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 1, "c": 5}, {"a": 2}]
    names = name_arms(compare(fill(experiment, cases, {})))
    assert names == ["a=1", BASE, "c=5", "b=(default)"]


def test_no_two_cases_have_one_name(experiment: Any, tmp_path: Path) -> None:
    points: list[dict[str, Any]] = [
        {key: value for key, value in zip("ab", pair, strict=True) if value is not None}
        for pair in itertools.product((None, 1, 2), repeat=2)
    ]
    for number, cases in enumerate(itertools.combinations(points, 4)):
        experiment.folder = tmp_path / str(number)
        experiment.combinations = []
        names = name_arms(compare(fill(experiment, cases, {"c": 1})))
        assert len(set(names)) == len(names), cases


def test_other_swept_keys_keep_their_columns(experiment: Any) -> None:
    cases = [{"vae_weight": 1.0}, {"vae_weight": 0.0}, {"kl_weight": 0.0}]
    folder = fill(experiment, cases, WEIGHTS, rates=(0.1, 0.2))
    assert compare(folder).heads == ("rate", CASE)
    assert name_arms(compare(folder))[:2] == [f"rate=0.1, {BASE}", f"rate=0.2, {BASE}"]
    by_rate, by_case = sorted((compare(folder, number) for number in (1, 2)), key=lambda found: len(found.keys))
    assert by_rate.heads == ("rate",)
    assert by_case.heads == (CASE,)
    assert name_arms(by_case) == [BASE, "vae_weight=0.0", "kl_weight=0.0"]


def test_cases_of_a_single_key_keep_its_column(experiment: Any) -> None:
    comparison = compare(fill(experiment, [{"size": 1}, {"size": 2}, {"size": 2, "same": 1}][:2], {"same": 1}))
    assert comparison.heads == ("size",)
    assert name_arms(comparison) == ["size=1", "size=2"]


def test_shapes_that_no_key_tells_apart_are_named_by_their_arms(experiment: Any) -> None:
    cases: list[dict[str, Any]] = [{"online": False}, {"value": False}, {"entropy": 0.1}, {"entropy": 0.0}]
    constants = {"online": True, "value": True, "entropy": 0.0}
    for case in cases:
        small = {} if case.get("online", True) and case.get("value", True) else {"parameters": {"actor": 5}}
        experiment.finish(experiment.add(constants | case | {"seed": 1}), **small)
    (experiment.folder / "spec.yaml").write_text(json.dumps({"constants": constants, "cases": cases}))
    data = load_runs(experiment.folder)
    table = tabulate_parameters(data, compare_arms(data)[0])
    assert [row[0].text for row in table.rows] == ["online=false or value=false", f"entropy=0.1 or {BASE}"]
