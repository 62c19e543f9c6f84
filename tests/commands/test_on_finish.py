"""`on_finish` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TELL = "on_finish: [sh, -c, 'echo $GRIDPILOT_EXIT_CODE $GRIDPILOT_DONE $GRIDPILOT_FAILED $GRIDPILOT_LEFT >> told']"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def write(folder: Path, on_finish: str, code: str) -> None:
    (folder / "work.py").write_text("import sys; config = open(sys.argv[2]).read()\n" + code)
    (folder / "spec.yaml").write_text(
        f"meta_data: {{script_path: work.py, {on_finish}}}\nvariables: {{index: [0, 1]}}\n"
    )


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [
        ("", 0, "0 2 0 0"),
        ("if 'index: 1' in config: sys.exit(1)", 1, "1 1 1 0"),
        ("if 'index: 1' in config: sys.exit(75)", 75, "75 1 0 1"),
    ],
)
def test_it_is_told_what_became_of_the_launch(tmp_path: Path, code: str, exit_code: int, told: str) -> None:
    write(tmp_path, TELL, code)
    answer = run(tmp_path, "-g", "cpu", "--plain")
    assert answer.returncode == exit_code, answer.stdout + answer.stderr
    assert (tmp_path / "told").read_text() == told + "\n"


def test_its_failure_is_one_line_and_changes_no_exit_code(tmp_path: Path) -> None:
    write(tmp_path, "on_finish: no-such-program --now", "")
    answer = run(tmp_path, "-g", "cpu", "--plain")
    assert answer.returncode == 0
    assert "note: on_finish: there is no program 'no-such-program' here now" in answer.stdout
    assert answer.stderr.startswith("on_finish: no-such-program --now can't be started: ")
    assert len(answer.stderr.splitlines()) == 1
    events = [json.loads(line) for line in (tmp_path / "logs/spec/events.jsonl").read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["returncode"]) == ("on_finish", None)


@pytest.mark.parametrize("words", [["-n"], ["-g", "x"], ["--rerun", "ffff", "-g", "cpu"]])
def test_without_a_launch_it_is_not_run(tmp_path: Path, words: list[str]) -> None:
    write(tmp_path, TELL, "")
    run(tmp_path, *words)
    assert not (tmp_path / "told").exists()
