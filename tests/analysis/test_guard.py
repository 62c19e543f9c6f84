"""What the guard did is listed, and what it repaired enters no statistic unasked. Every folder's truth is planted."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import load_runs
from analysis.arms import compare_arms
from analysis.batch_size import main as report_ladder
from analysis.batch_size import write_ladder_report
from analysis.contents import Section, compose_report
from analysis.figures import align_curve, collect_points
from analysis.guard_table import MAX_ROWS, tabulate_guard
from analysis.ladder_advice import recommend
from analysis.ladder_claims import judge_claims
from analysis.ladder_rungs import build_ladder
from analysis.report import main, write_report
from analysis.returns import tabulate_runs
from experiment.files import append_event
from experiment.run import Run


def decide(action: str = "roll_back", **more: Any) -> dict[str, Any]:
    """Give a decision as the guard writes it."""
    decision = {"verdict": "critic-error", "metric": "train/critic_loss", "value": 4.5e3, "limit": 100.0}
    return decision | {"step": 1200, "updates": 200, "action": action} | more


def judge(*decisions: Any, repaired: bool | None = None, mode: str = "repair") -> dict[str, Any]:
    """Give the `guard` of a summary: one that repaired whatever it saw, unless it is said otherwise."""
    verdict = decisions[0]["verdict"] if decisions else "healthy"
    return {
        "mode": mode,
        "verdict": verdict,
        "events": len(decisions),
        "repaired": bool(decisions) if repaired is None else repaired,
        "decisions": list(decisions),
    }


def add_arm(experiment: Any, rate: float, finals: Sequence[float], repaired: Sequence[int] = ()) -> list[Run]:
    """Add finished runs of one rate, seeds counting from 0; those seeds that are named were repaired."""
    runs = []
    for seed, final in enumerate(finals):
        run = experiment.add({"rate": rate, "seed": seed})
        guard = judge(decide()) if seed in repaired else judge()
        machine = 100.0 if seed in repaired else 1.0 + seed
        experiment.finish(run, final, curve=(-900.0, final), train=final, machine=machine, guard=guard)
        runs.append(run)
    return runs


@pytest.fixture
def flattered(experiment: Any) -> Any:
    """Two arms, of which 0.1 is better only through a run that was repaired."""
    add_arm(experiment, 0.1, (-300.0, -301.0, 900.0), repaired=(2,))
    add_arm(experiment, 0.2, (-200.0, -201.0, -202.0))
    return experiment


def read_table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "report" / name).open() as file:
        return list(csv.DictReader(file))


def test_the_ranking_flips_with_the_flag(flattered: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(flattered.folder)]) == 0
    assert "Best: rate=0.2," in capsys.readouterr().out
    first, second = read_table(flattered.folder, "returns.csv")
    assert first["compared"] == "not ranked: 3 of 3 finished, 1 repaired and left out"
    assert (float(first["iqm"]), float(first["training_mean"])) == (-300.5, -300.5)
    assert second["compared"] == "best of the 1 ranked"
    assert main([str(flattered.folder), "--include-repaired"]) == 0
    assert "Best: rate=0.1," in capsys.readouterr().out
    first, second = read_table(flattered.folder, "returns.csv")
    assert (first["compared"], float(first["iqm"])) == ("best", pytest.approx(299 / 3))
    assert second["compared"] == "not distinguishable from the best"


def test_the_top_says_how_many_are_left_out_of_which_arms_and_how_they_come_in(flattered: Any) -> None:
    text = write_report(flattered.folder).text
    assert text.startswith("6 of 6 runs finished. 1 of them was repaired and left out. Best: rate=0.2")
    assert (
        "warning: 1 of 6 runs was repaired by the training-health guard and is left out of every statistic: "
        "rate=0.1 (1 of 3). --include-repaired brings it in.\n" in text
    )
    text = write_report(flattered.folder, include_repaired=True).text
    assert text.startswith("6 of 6 runs finished. Best: rate=0.1")
    assert (
        "warning: 1 of 6 runs was repaired by the training-health guard and is in every statistic, as asked for "
        "(--include-repaired): rate=0.1 (1 of 3).\n" in text
    )


def test_the_arms_of_repaired_runs_are_named_and_many_are_counted(experiment: Any) -> None:
    for number in range(8):
        add_arm(experiment, number / 10, (-1.0, -2.0), repaired=(0, 1) if number == 0 else (1,))
    (warning,) = [line for line in compose_report(load_runs(experiment.folder)).warnings if "include-repaired" in line]
    assert warning.startswith("9 of 16 runs were repaired by the training-health guard and are left out of every")
    assert ": rate=0.0 (2 of 2); rate=0.1 (1 of 2);" in warning
    assert "rate=0.5 (1 of 2); 2 more. --include-repaired brings them in." in warning


def test_a_repaired_run_is_in_no_number_and_no_curve_but_in_the_list_of_runs(flattered: Any) -> None:
    write_report(flattered.folder)
    repaired = load_runs(flattered.folder).runs["id"][2]
    for name, column in (("returns.csv", "finished_runs"), ("memory.csv", "finished_runs"), ("time.csv", "cpu_s")):
        assert repaired not in read_table(flattered.folder, name)[0][column]
    assert read_table(flattered.folder, "returns.csv")[0]["left_out_runs"] == repaired
    assert read_table(flattered.folder, "returns.csv")[0]["finished"] == "3"
    assert float(read_table(flattered.folder, "time.csv")[0]["wall_s"]) == pytest.approx(1.5 * 60.1)
    data = load_runs(flattered.folder)
    assert repaired not in collect_points(data)
    assert all(repaired not in picture.runs for picture in compose_report(data).pictures)
    arm = compare_arms(data)[0].results[0].arm
    curve = align_curve(arm, collect_points(data))
    assert curve is not None
    assert curve.returns.tolist() == [[-900.0, -300.0], [-900.0, -301.0]]
    texts = [cell.text for cell in tabulate_runs(data).rows[2]]
    assert texts[1:3] == ["DONE (repaired)", "900.0"]
    row = read_table(flattered.folder, "runs.csv")[2]
    assert (row["state"], row["repaired"], row["counted"]) == ("DONE", "True", "False")
    assert "0.1   3 of 3, 1 left out" in write_report(flattered.folder).text


def test_with_the_flag_a_repaired_run_is_in_every_number_and_still_marked(flattered: Any) -> None:
    write_report(flattered.folder, include_repaired=True)
    data = load_runs(flattered.folder, include_repaired=True)
    repaired = data.runs["id"][2]
    assert repaired in read_table(flattered.folder, "returns.csv")[0]["finished_runs"]
    assert "left_out_runs" not in read_table(flattered.folder, "returns.csv")[0]
    assert repaired in collect_points(data)
    assert [cell.text for cell in tabulate_runs(data).rows[2]][1] == "DONE (repaired)"


def test_an_arm_all_of_whose_runs_are_repaired_is_not_ranked_however_good(experiment: Any) -> None:
    add_arm(experiment, 0.1, (-1.0, -2.0), repaired=(0, 1))
    add_arm(experiment, 0.2, (-200.0, -201.0))
    text = write_report(experiment.folder).text
    assert "Best: rate=0.2, IQM of the final evaluation returns -200.5" in text
    first, second = read_table(experiment.folder, "returns.csv")
    assert (first["iqm"], first["seeds"], first["finished_runs"]) == ("", "", "")
    assert first["compared"] == "not ranked: 2 of 2 finished, 2 repaired and left out"
    assert second["compared"] == "best of the 1 ranked"
    assert [row["settings"] for row in read_table(experiment.folder, "memory.csv")] == ["rate=0.2"]


def test_where_every_run_is_repaired_there_are_no_returns(experiment: Any) -> None:
    add_arm(experiment, 0.1, (-1.0, -2.0), repaired=(0, 1))
    paths = write_report(experiment.folder)
    answer = "2 of 2 runs finished. 2 of them were repaired and left out. There are no returns to report."
    assert paths.text.startswith(answer)
    assert paths.figures == ()


def test_a_repaired_run_hides_no_axis_without_effect(experiment: Any) -> None:
    for tau in (0.1, 0.2):
        for seed in range(2):
            is_repaired = (tau, seed) == (0.2, 1)
            guard, final = (judge(decide()), -900.0) if is_repaired else (judge(), -100.0 - seed)
            run = experiment.add({"tau": tau, "seed": seed})
            experiment.finish(run, curve=(final,), guard=guard, state_hash=f"{final}")
    said = "tau had no effect: its runs are identical for the same seed."
    assert said in compose_report(load_runs(experiment.folder)).warnings
    assert said not in compose_report(load_runs(experiment.folder, include_repaired=True)).warnings


# The table of decisions


def find_guard(folder: Path) -> list[Section]:
    return [section for section in compose_report(load_runs(folder)).sections if section.title == "Guard"]


def test_decisions_of_a_finished_run_have_a_row_for_each_kind(experiment: Any) -> None:
    run = experiment.add({"seed": 1}, label="seed=1")
    decisions = [
        decide("roll_back", step=3000, value="inf", limit=None, updates=None),
        decide("skip", step=2000),
        decide("roll_back", step=1500, value=200.0),
        decide("skip", step=2500, value=1e9),
        decide("skip", step=2500, metric="train/actor_loss"),
    ]
    experiment.finish(run, guard=judge(*decisions))
    append_event(experiment.folder / "events.jsonl", "guard", run=run.id, **decide("warn", step=1))
    write_report(experiment.folder)
    names = ("label", "mode", "verdict", "metric", "value", "limit", "first_step", "first_updates", "count", "action")
    start = ["seed=1", "repair", "critic-error"]
    assert [[row[name] for name in names] for row in read_table(experiment.folder, "guard.csv")] == [
        [*start, "train/critic_loss", "200.0", "100.0", "1500", "200", "2", "roll_back"],
        [*start, "train/critic_loss", "4500.0", "100.0", "2000", "200", "2", "skip"],
        [*start, "train/actor_loss", "4500.0", "100.0", "2500", "200", "1", "skip"],
    ]
    (section,) = find_guard(experiment.folder)
    texts = [cell.text for cell in section.tables[0].rows[0]]
    assert texts == ["seed=1", "critic-error", "train/critic_loss", "200", "100", "1,500", "2", "roll_back", run.id]


def test_decisions_of_a_run_without_a_summary_come_from_the_events_and_repeated_lines_count_once(
    experiment: Any,
) -> None:
    run = experiment.add({"seed": 1})
    experiment.fail(run, "health")
    events = experiment.folder / "events.jsonl"
    for second, step in enumerate((5, 5, 7, 5)):
        line = {"time": f"2026-01-02T03:04:{second:02d}.000+00:00", "event": "guard", "run": run.id}
        with events.open("a") as file:
            file.write(json.dumps(line | decide("stop", step=step, value="nan", limit=None)) + "\n")
    append_event(events, "guard", run="f" * 16, **decide("stop"))
    append_event(events, "started", run=run.id)
    write_report(experiment.folder)
    (row,) = read_table(experiment.folder, "guard.csv")
    assert (row["id"], row["value"], row["limit"], row["first_step"], row["count"]) == (run.id, "nan", "", "5", "2")
    data = load_runs(experiment.folder)
    assert data.warnings == ()
    assert build_ladder(data).rungs[0].guard_events == 2


def test_lines_of_before_the_limits_are_read(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.start(run)
    line = {"verdict": "non-finite", "metric": "loss", "value": "inf", "step": 5, "action": "warn"}
    append_event(experiment.folder / "events.jsonl", "guard", run=run.id, **line)
    data = load_runs(experiment.folder)
    assert data.warnings == ()
    texts = [cell.text for cell in tabulate_guard(data).rows[0]]
    assert texts[1:8] == ["non-finite", "loss", "inf", "–", "5", "1", "warn"]  # noqa: RUF001


def test_the_page_shows_fifty_rows_and_counts_the_others(experiment: Any) -> None:
    for seed in range(3):
        run = experiment.add({"seed": seed})
        experiment.finish(run, guard=judge(*(decide("warn", metric=f"m{n}") for n in range(20)), repaired=False))
    table = tabulate_guard(load_runs(experiment.folder))
    assert len(table.rows) == MAX_ROWS == 50
    assert "The first 50 of 60 rows are shown." in table.notes
    assert len(table.frame) == 60


@pytest.mark.parametrize(
    "guard",
    [{"verdict": "healthy", "events": 0}, {"verdict": "non-finite", "events": 2}, judge(mode="warn", repaired=False)],
)
def test_where_no_decision_is_told_nothing_is_added(experiment: Any, guard: dict[str, Any]) -> None:
    experiment.finish(experiment.add({"seed": 1}), guard=guard)
    paths = write_report(experiment.folder)
    assert find_guard(experiment.folder) == []
    assert "guard.csv" not in {path.name for path in paths.tables}
    columns = read_table(experiment.folder, "runs.csv")[0]
    assert not {"repaired", "counted"} & set(columns)
    assert "left_out_runs" not in read_table(experiment.folder, "returns.csv")[0]
    assert "repaired" not in paths.markdown.read_text()


def test_a_run_that_was_only_warned_of_counts(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}), guard=judge(decide("warn"), repaired=False, mode="warn"))
    data = load_runs(experiment.folder)
    assert data.runs["counted"].tolist() == [True]
    (section,) = find_guard(experiment.folder)
    assert section.tables[0].notes == ("Value and limit are those of the first of its kind.",)


# Files that nobody should have written


HOSTILE = [
    (3, "summary.json: guard is 3, not an object; the run is taken for repaired", True),
    ([], "summary.json: guard is [], not an object; the run is taken for repaired", True),
    ({"mode": "pray"}, 'guard.mode is "pray", not one of warn, stop, repair; taken for unknown', False),
    ({"mode": {"a": []}}, 'guard.mode is {"a": []}, not one of warn, stop, repair; taken for unknown', False),
    ({"verdict": 7}, "guard.verdict is 7, not a text; left out", False),
    ({"events": "inf"}, 'guard.events is "inf", not a count', False),
    ({"events": -1}, "guard.events is -1, not a count", False),
    ({"events": 10**400}, "guard.events is 1000", False),
    ({"repaired": "no"}, 'guard.repaired is "no", neither true nor false; the run is taken for repaired', True),
    ({"repaired": None}, "guard.repaired is null, neither true nor false; the run is taken for repaired", True),
    ({"decisions": {"a": 1}}, 'guard.decisions is {"a": 1}, not a list; left out', False),
    ({"decisions": [decide(), 3, decide(step="x")]}, "2 unreadable guard decision(s), left out: 2, 3", False),
]
"""The `guard` of a summary, what is said of it, and whether the run is taken for repaired."""


@pytest.mark.parametrize(("guard", "problem", "repaired"), HOSTILE)
def test_a_hostile_guard_is_named(experiment: Any, guard: object, problem: str, repaired: bool) -> None:
    run = experiment.add({"batch_size": 64, "seed": 1})
    experiment.finish(run, guard=guard)
    data = load_runs(experiment.folder)
    (warning,) = data.warnings
    assert warning.startswith(f"run {run.id}: summary.json")
    assert problem in warning
    assert data.runs["repaired"].tolist() == [repaired]
    assert len(tabulate_guard(data).rows) <= 1
    assert build_ladder(data).rungs[0].guard_events == 0


def test_hostile_guards_break_no_report(experiment: Any) -> None:
    for seed, (guard, _, _) in enumerate(HOSTILE):
        experiment.finish(experiment.add({"batch_size": 64, "seed": seed}), guard=guard)
    texts = write_report(experiment.folder).text, write_ladder_report(experiment.folder, measure_peak=False).text
    for _, problem, _ in HOSTILE:
        assert all(problem in text for text in texts)


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": ""},
        {"verdict": ["x"]},
        {"metric": None},
        {"action": 3},
        {"value": None},
        {"value": "large"},
        {"value": True},
        {"value": 10**400},
        {"limit": "none"},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"updates": "many"},
    ],
)
def test_a_decision_with_a_wrong_field_is_left_out_and_named(experiment: Any, wrong: dict[str, Any]) -> None:
    done, failed = experiment.add({"seed": 1}), experiment.add({"seed": 2})
    experiment.finish(done, guard=judge(decide(), decide() | wrong))
    experiment.fail(failed, "health")
    events = experiment.folder / "events.jsonl"
    for line in (decide(), decide() | wrong):
        append_event(events, "guard", run=failed.id, **line)
    data = load_runs(experiment.folder)
    assert data.warnings == (
        f"run {done.id}: summary.json has 1 unreadable guard decision(s), left out: 2",
        f"run {failed.id}: events.jsonl has 1 unreadable guard line(s), left out: 2",
    )
    assert tabulate_guard(data).frame["count"].tolist() == [1, 1]


def test_hostile_events_are_named_and_break_nothing(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.fail(run, "health")
    lines = [
        {"event": "guard", "run": run.id},
        {"event": "guard"},
        {"event": "guard", "run": ["x"], **decide()},
        ["guard"],
        {"event": "guard", "run": run.id, **decide("a|b <b> \ud800")},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    torn = '{"event": "guard", "run": "' + run.id
    (experiment.folder / "events.jsonl").write_text(text + '{"event": "guard", "run": ' + "[" * 3000 + "\n" + torn)
    paths = write_report(experiment.folder)
    assert f"warning: run {run.id}: events.jsonl has 1 unreadable guard line(s), left out: 1\n" in paths.text
    assert "warning: events.jsonl has 2 guard line(s), without a run: 2, 3\n" in paths.text
    assert [row["action"] for row in read_table(experiment.folder, "guard.csv")] == ["a|b <b> ?"]
    assert "<b>" not in paths.html.read_text()


# The ladder


def add_rung(experiment: Any, batch: int, finals: Sequence[float], repaired: Sequence[int] = ()) -> list[Run]:
    """Add finished runs of one batch size; those seeds that are named were repaired, and took very long."""
    runs = []
    for seed, final in enumerate(finals):
        run = experiment.add({"algorithm_name": "ddpg", "batch_size": batch, "seed": seed})
        guard = judge(decide(), decide(step=1300)) if seed in repaired else judge()
        seconds = 900.0 if seed in repaired else 60.0 + seed
        experiment.finish(
            run,
            final,
            curve=(-1000.0, -500.0, final),
            machine=seconds / 7.0,
            guard=guard,
            time={"wall_s": seconds, "cpu_s": seconds},
        )
        runs.append(run)
    return runs


def test_a_ladder_leaves_repaired_runs_out_and_counts_them_as_not_healthy(experiment: Any) -> None:
    runs = add_rung(experiment, 64, (-500.0, -501.0, 0.0), repaired=(2,))
    add_rung(experiment, 256, (-400.0, -401.0, -402.0))
    paths = write_ladder_report(experiment.folder, measure_peak=False)
    row, other = read_table(experiment.folder, "batch_size.csv")
    assert (row["finished"], row["guard_events"], other["guard_events"]) == ("3", "2", "0")
    assert float(row["healthy_share"]) == pytest.approx(2 / 3)
    assert (float(row["iqm"]), float(row["wall_s"]), row["not_reached"]) == (-500.5, 60.5, "2")
    assert row["finished_runs"].split() == [run.id for run in runs[:2]]
    assert row["left_out_runs"] == runs[2].id
    assert (row["compared"], other["compared"]) == (
        "not ranked: 3 of 3 finished, 1 repaired and left out",
        "best of the 1 ranked",
    )
    assert paths.text.startswith("No recommendation: 1 of 2 rungs finished, and it takes two.")
    assert "is left out of every statistic: batch_size=64 (1 of 3). --include-repaired brings it in." in paths.text
    ladder = build_ladder(load_runs(experiment.folder))
    assert ladder.thresholds == {(): pytest.approx(-1000 + 0.9 * 599)}


def test_the_ladders_ranking_flips_with_the_flag_and_a_repaired_rung_is_still_not_recommended(
    experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rung(experiment, 64, (-500.0, -501.0, 900.0), repaired=(2,))
    add_rung(experiment, 256, (-400.0, -401.0, -402.0))
    assert report_ladder([str(experiment.folder), "--no-peak", "--include-repaired"]) == 0
    assert (
        "is in every statistic, as asked for (--include-repaired): batch_size=64 (1 of 3)." in capsys.readouterr().out
    )
    row, other = read_table(experiment.folder, "batch_size.csv")
    assert (row["compared"], other["compared"]) == ("best", "not distinguishable from the best")
    assert float(row["healthy_share"]) == pytest.approx(2 / 3)
    advice = recommend(build_ladder(load_runs(experiment.folder, include_repaired=True)))
    assert advice.rung is not None
    assert advice.rung.batch == 256
    assert advice.text.endswith("Left out: batch_size=64 (2 of 3 runs healthy).")


def test_a_decision_about_a_number_that_was_not_finite_is_a_divergence_whatever_was_logged(experiment: Any) -> None:
    run = experiment.add({"algorithm_name": "ddpg", "batch_size": 4096, "seed": 0})
    experiment.finish(run, guard=judge(decide(), decide("skip", verdict="non-finite", value="nan")))
    failed = experiment.add({"algorithm_name": "ddpg", "batch_size": 4096, "seed": 1})
    experiment.fail(failed, "health")
    environment = experiment.add({"algorithm_name": "ddpg", "batch_size": 4096, "seed": 2})
    experiment.finish(environment, guard=judge(decide("discard", verdict="environment", value="nan")))
    line = decide("stop", verdict="non-finite", value="nan")
    append_event(experiment.folder / "events.jsonl", "guard", run=failed.id, **line)
    runs = build_ladder(load_runs(experiment.folder)).rungs[0].runs
    assert [run.not_finite for run in runs] == ["the guard says non-finite", "the guard says non-finite", ""]


def test_where_a_repaired_run_ended_says_nothing_of_its_settings(experiment: Any) -> None:
    add_rung(experiment, 4096, (-100.0, -100.0, -5000.0), repaired=(2,))
    evidence = {}
    for include in (False, True):
        ladder = build_ladder(load_runs(experiment.folder, include))
        (judgement, *_) = judge_claims(ladder, recommend(ladder))
        evidence[include] = (judgement.verdict, judgement.evidence)
    assert evidence[False] == ("not decided", "batch_size=4096: 3 of 3 finished, 1 repaired and left out")
    assert evidence[True][0] == "confirmed"
    assert "evaluations from -500 to -5000" in evidence[True][1]


def test_a_run_that_was_repaired_back_to_health_is_not_healthy(experiment: Any) -> None:
    run = experiment.add({"algorithm_name": "ddpg", "batch_size": 64, "seed": 0})
    experiment.finish(run, guard=judge() | {"repaired": True})
    assert build_ladder(load_runs(experiment.folder)).rungs[0].healthy == 0
