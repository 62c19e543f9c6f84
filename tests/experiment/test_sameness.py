"""The first thing that differs between two trainings is named."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiment.run import Run
from experiment.sameness import compare_runs, find_difference
from experiment.views import ViewError

NAMES = ("straight", "killed")
ROWS = [{"step": step, "wall_time": 0.1 * step, "time/fps": 9.0, "loss": 0.1 + step} for step in (10, 20, 30)]
SUMMARY = {"state_hash": "ab", "final_eval": {"mean": 1.5, "returns": [1.0, 2.0]}, "time": {"wall_s": 1.0}}


def write_run(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, **summary: object) -> Run:
    run = Run(folder, "0" * 16, "one")
    folder.mkdir()
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.summary_path.write_text(json.dumps(SUMMARY | summary))
    return run


def test_clocks_are_not_compared(tmp_path: Path) -> None:
    later = [row | {"wall_time": 7.0, "time/fps": 1.0} for row in ROWS]
    first, second = write_run(tmp_path / "1"), write_run(tmp_path / "2", later, time={"wall_s": 2.0})
    comparison = compare_runs(first, second, NAMES)
    assert comparison.differences == ()
    assert (comparison.rows, comparison.step) == (3, None)


def test_the_first_row_and_metric_that_differ_are_named(tmp_path: Path) -> None:
    other = [ROWS[0], ROWS[1] | {"loss": 20.100000000000001}, ROWS[2] | {"loss": "nan"}]
    assert other[1] == ROWS[1], "the same number, written in another way"
    comparison = compare_runs(write_run(tmp_path / "1"), write_run(tmp_path / "2", other), NAMES)
    text = 'metrics.jsonl: row 3, step 30: loss is 30.1 in the straight run and "nan" in the killed one'
    assert comparison.differences == (text,)
    assert (comparison.rows, comparison.step) == (2, 30)


def test_rows_that_are_missing_or_new_are_told(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "1"), write_run(tmp_path / "2", [*ROWS, {"step": 40}])
    comparison = compare_runs(first, second, NAMES)
    assert comparison.step == 40
    assert "3 rows of the straight run and 4 of the killed one" in comparison.differences[0]
    assert compare_runs(second, first, NAMES).step == 40


def test_each_part_of_the_summary_that_differs_is_named(tmp_path: Path) -> None:
    second = write_run(tmp_path / "2", state_hash="cd", final_eval={"mean": 1.5, "returns": [1.0, 3.0]})
    assert compare_runs(write_run(tmp_path / "1"), second, NAMES).differences == (
        "summary.json: final_eval.returns[1] is 2.0 in the straight run and 3.0 in the killed one",
        'summary.json: state_hash is "ab" in the straight run and "cd" in the killed one',
    )


def test_a_last_digit_makes_a_difference() -> None:
    assert find_difference({"a": [0.1 + 0.2]}, {"a": [0.3]}) == ("a[0]", 0.1 + 0.2, 0.3)
    assert find_difference({"a": {}}, {"a": {"b": 1}}) == ("a.b", None, 1)
    assert find_difference([1, 2], [1]) == ("", [1, 2], [1])


def test_metrics_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "1"), write_run(tmp_path / "2")
    second.metrics_path.write_text('{"step": 1}\n[]\n')
    with pytest.raises(ViewError, match=r"2/metrics.jsonl:2: this is no metric row"):
        compare_runs(first, second, NAMES)
