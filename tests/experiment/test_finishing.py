"""The command that a spec names for the end of a launch."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from experiment.finishing import describe_result, note_missing, run_on_finish
from experiment.outcomes import RunOutcome, SweepResult
from experiment.run import Run, State


def read_event(folder: Path) -> dict[str, object]:
    (line,) = (folder / "events.jsonl").read_text().splitlines()
    event: dict[str, object] = json.loads(line)
    return event


def test_the_command_learns_what_became_of_the_launch(tmp_path: Path) -> None:
    run = Run.create_path(tmp_path, "seed=1", "0123456789abcdef")
    outcomes = [RunOutcome(run, state) for state in (State.DONE, State.DONE, State.FAILED, State.STOPPED)]
    variables = describe_result(tmp_path, SweepResult(outcomes, 143), 7)
    code = "import json, os; open('told.json', 'w').write(json.dumps(dict(os.environ)))"
    run_on_finish([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {code}"], variables, tmp_path)
    told = json.loads((tmp_path / "told.json").read_text())
    assert {name: value for name, value in told.items() if name.startswith("GRIDPILOT_")} == {
        "GRIDPILOT_EXIT_CODE": "143",
        "GRIDPILOT_EXP_DIR": str(tmp_path),
        "GRIDPILOT_EXP_NAME": tmp_path.name,
        "GRIDPILOT_DONE": "2",
        "GRIDPILOT_FAILED": "1",
        "GRIDPILOT_LEFT": "4",
    }
    assert told["PATH"] == os.environ["PATH"]
    assert (read_event(tmp_path)["event"], read_event(tmp_path)["returncode"]) == ("on_finish", 0)


@pytest.mark.parametrize(
    ("command", "returncode", "fault"),
    [
        ([sys.executable, "-c", "raise SystemExit(3)"], 3, "ended with 3"),
        (["no-such-program", "x"], None, "can't be started: [Errno 2] No such file or directory: 'no-such-program'"),
        (["/"], None, "can't be started: [Errno 13] Permission denied: '/'"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_event(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str], returncode: int | None, fault: str
) -> None:
    run_on_finish(command, {}, tmp_path)
    assert capfd.readouterr().err.splitlines() == [f"on_finish: {read_event(tmp_path)['command']} {fault}"]
    assert (read_event(tmp_path)["returncode"], read_event(tmp_path)["fault"]) == (returncode, fault)


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # Its child holds the pipe open: it ends only when both are gone.
    code = f"import os, signal; os.open({str(fifo)!r}, os.O_WRONLY); os.fork(); signal.pause()"
    started = time.monotonic()
    run_on_finish([sys.executable, "-c", code], {}, tmp_path, limit_s=1.0)
    assert time.monotonic() - started < 20
    assert capfd.readouterr().err.endswith("was killed: its time, 1 s, was up\n")
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_program_that_is_not_there_is_told_before_the_runs_have_taken_days() -> None:
    assert note_missing([]) == []
    assert note_missing(["sh", "-c", "true"]) == []
    assert note_missing(["no-such-program"]) == [
        "on_finish: there is no program 'no-such-program' here now; it is looked for again at the end"
    ]
