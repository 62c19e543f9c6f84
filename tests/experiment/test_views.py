import json
import os
from pathlib import Path

import pytest

from experiment.locks import acquire_lock
from experiment.run import Run, State
from experiment.views import ViewError, find_run, list_lines, print_logs, print_status, request_stop

IDS = [f"{index:016x}" for index in range(3)]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Three planned runs, done, failed and not begun, and one that the plan has left behind."""
    rows = [{"id": run_id, "label": f"seed={index}", "settings": {}} for index, run_id in enumerate(IDS)]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    for run_id, reason, label in ((IDS[0], "ok", "seed=0"), (IDS[1], "error", "seed=1"), ("f" * 16, "ok", "old=1")):
        run = Run.create_path(tmp_path, label, run_id)
        run.attempt_dir(1).mkdir(parents=True)
        ending = {"ok": reason == "ok", "returncode": int(reason != "ok"), "reason": reason, "attempt": 1}
        (run.attempt_dir(1) / "exit.json").write_text(json.dumps(ending))
        run.console_path(1).write_text("one\nValueError: boom\n")
        if reason == "ok":
            run.exit_path.write_text(json.dumps(ending))
    return tmp_path


def test_each_run_is_listed_once_and_what_the_plan_left_behind_comes_last(experiment: Path) -> None:
    lines = list(list_lines(experiment))
    assert [(line.status.state, line.planned) for line in lines] == [
        (State.DONE, True),
        (State.FAILED, True),
        (State.PENDING, True),
        (State.DONE, False),
    ]


def test_status_is_told_for_people_and_for_programs(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_status(experiment, as_json=False)
    text = capsys.readouterr().out
    assert "1 DONE, 1 FAILED, 1 PENDING" in text
    assert "ValueError: boom" in text
    print_status(experiment, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["status"], row["reason"]) for row in rows[:2]] == [("DONE", None), ("FAILED", "error")]


def test_a_run_is_found_by_the_beginning_of_its_id(experiment: Path) -> None:
    assert find_run("fff", [experiment]).label == "old=1"
    with pytest.raises(ViewError, match="begins 3 ids"):
        find_run("0000", [experiment])
    assert find_run(IDS[2], [experiment]).label == "seed=2"
    with pytest.raises(ViewError, match="no run has the id 'abc'"):
        find_run("abc", [experiment])
    with pytest.raises(ViewError, match="no run has the id ''"):
        find_run("", [experiment])
    with pytest.raises(ViewError, match="in several experiments"):
        find_run("fff", [experiment, experiment])


def test_logs_are_those_of_the_last_attempt(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_logs(find_run(IDS[1], [experiment]))
    assert capsys.readouterr().out.endswith("one\nValueError: boom\n")
    with pytest.raises(ViewError, match="never started"):
        print_logs(Run.create_path(experiment, "seed=2", IDS[2]))


def test_a_long_log_is_cut_and_says_so(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = find_run(IDS[1], [experiment])
    run.console_path(1).write_text("\n".join(map(str, range(1000))))
    print_logs(run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["... 800 lines before these", "800"]


def test_a_stop_tells_how_many_did_not_hear_it(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = acquire_lock(find_run(IDS[1], [experiment]).lock_path)
    assert lock is not None
    assert request_stop(experiment, patience_s=0.2) == 1
    os.close(lock)
    assert request_stop(experiment, patience_s=0.2) == 0
    assert json.loads((experiment / "stop.json").read_text())["request"]
    assert "1 running" in capsys.readouterr().out


def test_a_plan_that_is_cut_short_is_named_with_its_line(experiment: Path) -> None:
    (experiment / "plan.jsonl").write_text('{"id": "x", "lab')
    with pytest.raises(ViewError, match=r"plan\.jsonl:1: this line is cut short"):
        list(list_lines(experiment))
