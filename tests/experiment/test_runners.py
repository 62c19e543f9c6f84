"""Who is at work in an experiment's folder, by files whose locks the kernel keeps."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiment.lock_check import LocklessFolderError
from experiment.runners import (
    FOLDER,
    Presence,
    describe_others,
    enter,
    list_runners,
    read_plans,
    refuse_unseen,
    say_runners,
)
from experiment.views import list_lines, read_plan

ROOT = Path(__file__).parents[2]
HOST = os.uname().nodename


def write_plan(folder: Path, *numbers: int) -> Path:
    path = folder / "plan.jsonl"
    rows = [{"id": f"{number:016x}", "label": f"index={number}", "settings": {"index": number}} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def enter_with(folder: Path, *numbers: int, version: str = "v1", log: Path | None = None) -> Presence:
    return enter(folder, "run it", version, write_plan(folder, *numbers), log)


def test_a_runner_is_known_from_when_it_enters_until_it_leaves(tmp_path: Path) -> None:
    presence = enter_with(tmp_path, 1, log=tmp_path / "runner.log")
    (runner,) = list_runners(tmp_path)
    assert runner == presence.runner
    assert (runner.pid, runner.host, runner.command) == (os.getpid(), HOST, "run it")
    assert say_runners([runner]) == [
        f"runner pid {os.getpid()} on {HOST} since {runner.started}: {tmp_path}/runner.log"
    ]
    presence.leave()
    assert list_runners(tmp_path) == []
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_nobody_is_at_work_where_nobody_ever_was(tmp_path: Path) -> None:
    assert list_runners(tmp_path / "nowhere") == []
    assert list(read_plans(tmp_path / "nowhere")) == []


def test_a_runner_that_is_killed_is_not_at_work_and_the_next_one_clears_it_away(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from experiment.runners import enter\n"
        "folder = Path(sys.argv[1]); enter(folder, 'run it', 'v1', folder / 'plan.jsonl', None)\n"
        "print('in', flush=True); input()"
    )
    write_plan(tmp_path, 1)
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"in\n"
    assert [runner.pid for runner in list_runners(tmp_path)] == [killed.pid]
    killed.kill()
    killed.communicate()
    assert list_runners(tmp_path) == []
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    presence = enter_with(tmp_path, 1)
    assert list((tmp_path / FOLDER).iterdir()) == [presence.path]
    presence.leave()


def test_what_a_runner_at_work_has_planned_is_planned(tmp_path: Path) -> None:
    first = enter_with(tmp_path, 1, 2)
    second = enter_with(tmp_path, 2, 3)
    assert [row["label"] for row in read_plan(tmp_path)] == ["index=2", "index=3", "index=1"]
    assert [row["label"] for row in read_plan(tmp_path, f"{1:016x}")] == ["index=1"]
    assert all(line.planned for line in list_lines(tmp_path))
    first.leave()
    assert [row["label"] for row in read_plan(tmp_path)] == ["index=2", "index=3"]
    second.leave()


@pytest.mark.parametrize(
    ("numbers", "version", "difference"),
    [
        ([1, 2], "v1", ""),
        ([2, 1], "v1", ""),
        ([1, 2, 3], "v1", ": 1 of the 3 here are not in its"),
        ([1], "v1", ": 1 of its 2 runs are not in this spec"),
        (
            [5],
            "v2",
            ": 2 of its 2 runs are not in this spec, 1 of the 1 here are not in its, "
            "it began with other code (v1, here v2)",
        ),
    ],
)
def test_another_runner_is_told_of_in_one_line_with_what_differs(
    tmp_path: Path, numbers: list[int], version: str, difference: str
) -> None:
    other = enter_with(tmp_path, 1, 2)
    own = enter_with(tmp_path, *numbers, version=version)
    (line,) = describe_others(tmp_path, own, [f"{number:016x}" for number in numbers])
    assert line == f"another runner (pid {os.getpid()} on {HOST}) works in {tmp_path}; runs are shared{difference}"
    other.leave()
    assert describe_others(tmp_path, own, []) == []
    own.leave()


def test_a_runner_of_newer_code_that_says_more_of_itself_is_understood(tmp_path: Path) -> None:
    presence = enter_with(tmp_path, 1)
    first, *rows = presence.path.read_text().splitlines()
    presence.path.write_text("\n".join([json.dumps(json.loads(first) | {"mood": "good"}), *rows]) + "\n")
    assert list_runners(tmp_path) == [presence.runner]
    presence.leave()


def test_a_file_that_power_was_lost_over_keeps_nobody_away(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    left = tmp_path / FOLDER / "0123456789abcdef.jsonl"
    left.touch()
    refuse_unseen(tmp_path)
    enter_with(tmp_path, 1).leave()
    assert not left.exists()


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """The file of a runner of another machine whose lock doesn't reach here."""
    presence = enter_with(tmp_path, 1)
    text = presence.path.read_text().replace(json.dumps(HOST), '"elsewhere"')
    presence.leave()
    presence.path.write_text(text)
    return presence.path


def test_a_runner_at_work_whose_lock_is_not_seen_makes_the_folder_one_that_can_not_lock(
    tmp_path: Path, unseen: Path
) -> None:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            os.utime(unseen)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(LocklessFolderError, match=r"at work \(pid \d+ on elsewhere\) is not seen on") as caught:
            refuse_unseen(tmp_path)
    finally:
        stop.set()
        beating.join()
    assert caught.value.filename == str(tmp_path)


def test_a_runner_of_another_machine_that_was_killed_just_now_is_waited_for_a_while(
    tmp_path: Path, unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.runners.BEATS_WITHIN_S", 0.6)
    started = time.monotonic()
    refuse_unseen(tmp_path)
    assert time.monotonic() - started >= 0.6
    assert list(tmp_path.glob(".clock*")) == []


def test_what_nobody_has_touched_for_long_is_not_waited_for(tmp_path: Path, unseen: Path) -> None:
    os.utime(unseen, (time.time() - 120, time.time() - 120))
    started = time.monotonic()
    refuse_unseen(tmp_path)
    assert time.monotonic() - started < 2
    presence = enter_with(tmp_path, 1)
    refuse_unseen(tmp_path)  # our own is seen
    presence.leave()


def test_a_beat_touches_the_file_also_where_nothing_else_changes(tmp_path: Path) -> None:
    presence = enter_with(tmp_path, 1)
    os.utime(presence.path, (0, 0))
    presence.beat()
    assert presence.path.stat().st_mtime > 0
    presence.leave()
