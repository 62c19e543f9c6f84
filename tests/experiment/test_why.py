import json
import os
import platform
from pathlib import Path

import pytest

from experiment.files import append_event, write_json
from experiment.locks import acquire_lock, list_holders
from experiment.provenance import hash_code
from experiment.run import Run
from experiment.runners import enter
from experiment.why import print_why
from tests.experiment.test_garbage import write_checkpoint

RUN_ID = "0123456789abcdef"
COMMAND = "python run_experiment.py -e spec.yaml -g cpu"
LATER = "2999-01-01T00:00:00.000+00:00"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A planned run of a launched experiment, and the folder that it was launched from."""
    monkeypatch.chdir(tmp_path)
    experiment = Path("logs/spec")
    experiment.mkdir(parents=True)
    Path("work.py").write_text("0")
    (experiment / "spec.yaml").write_text("meta_data: {script_path: work.py}\nvariables: {seed: [1]}\n")
    row = {"id": RUN_ID, "label": "seed=1", "settings": {"max_timesteps": 20000}}
    (experiment / "plan.jsonl").write_text(json.dumps(row) + "\n")
    run = Run.create_path(experiment, "seed=1", RUN_ID)
    append_event(run.events_path, "launched", command=COMMAND)
    return run


def begin(run: Run, attempt: int, launched: bool = True, code_version: str | None = None) -> None:
    run.attempt_dir(attempt).mkdir(parents=True)
    start = {
        "host": platform.node(),
        "device": "cpu",
        "code_version": hash_code([Path.cwd()]) if code_version is None else code_version,
        "command": ["python", "train.py", "--seed", "1"],
        "started": "2026-01-01T00:00:00.000+00:00",
    }
    write_json(run.attempt_dir(attempt) / "start.json", start)
    if launched:
        append_event(run.events_path, "started", run.id, attempt=attempt)


def end(run: Run, attempt: int, returncode: int, reason: str, wall_s: float = 12.2) -> None:
    ending = {"ok": reason == "ok", "returncode": returncode, "reason": reason, "attempt": attempt, "wall_s": wall_s}
    write_json(run.attempt_dir(attempt) / "exit.json", ending)


def read_why(run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    print_why(run)
    return capsys.readouterr().out


def test_a_failed_run_is_explained_by_its_last_attempt_and_the_end_of_its_console(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run, 1)
    end(run, 1, 1, "error", 3)
    begin(run, 2)
    end(run, 2, 86, "oom")
    run.console_path(2).write_text("Resumed from step 4\nRuntimeError: no memory\n")
    run.metrics_path.write_text('{"step": 5000, "env_step": 5000, "eval/mean_reward": -7.0}\n')
    text = read_why(run, capsys)
    assert "FAILED: its last attempt (2) ended with 86 after 12 s: out of memory. It has failed 2 times." in text
    assert (
        "Nothing has changed since, so the same command leaves it as it is; this runs it again, from the start" in text
    )
    assert f"\n  {COMMAND} --rerun {RUN_ID}\n" in text
    assert "1 error (1) after 3 s; 2 oom (86) after 12 s" in text
    assert "step 5,000/20,000, - steps/s, return -7.0" in text
    assert text.endswith("  | Resumed from step 4\n  | RuntimeError: no memory\n")


def test_a_failed_run_whose_code_has_changed_needs_no_rerun(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    end(run, 1, 1, "error")
    run.console_path(1).write_text("ValueError: boom\n")
    Path("work.py").write_text("1")
    text = read_why(run, capsys)
    assert "ended with 1 after 12 s: ValueError: boom." in text
    assert "The code has changed since: the same command tries it again" in text
    assert f"\n  {COMMAND}\n" in text


@pytest.mark.parametrize(
    ("returncode", "reason", "said"),
    [
        (-9, "signal", "ended by SIGKILL. It was killed from outside: the same command tries it again"),
        (3, "error", "it wrote nothing. Its device was gone, which says nothing against it: the same command"),
    ],
)
def test_what_the_same_command_goes_on_with_is_told_so(
    run: Run, capsys: pytest.CaptureFixture[str], returncode: int, reason: str, said: str
) -> None:
    begin(run, 1)
    end(run, 1, returncode, reason)
    assert said in read_why(run, capsys)


def test_where_the_script_is_not_here_nothing_is_claimed_about_its_code(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run, 1)
    end(run, 1, 1, "error")
    Path("work.py").unlink()
    text = read_why(run, capsys)
    assert "Whether the code has changed since can't be told from this folder; this runs it again:" in text
    assert "--rerun" in text


def test_a_lost_run_goes_on_from_its_newest_whole_checkpoint(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    write_checkpoint(run.checkpoints_dir, "step_00012000", ["a.rows"])
    write_checkpoint(run.checkpoints_dir, "step_00013000", ["b.rows"])
    (run.checkpoints_dir / "replay/b.rows").write_bytes(b"half")
    text = read_why(run, capsys)
    assert "LOST: attempt 1 has no exit.json and nobody holds its lock: its supervisor was killed" in text
    assert "The same command resumes it from step 12,000 (newest valid checkpoint):" in text
    assert f"\n  {COMMAND}\n" in text
    assert "1 without an ending" in text
    (run.checkpoints_dir / "step_00012000.pt").write_bytes(b"half")
    assert "resumes it from none of its checkpoints, which are broken" in read_why(run, capsys)


def test_a_run_whose_results_were_put_aside_is_told_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    end(run, 1, 0, "ok")
    text = read_why(run, capsys)
    assert "LOST: attempt 1 was done, and its results were put aside for a new one that nobody has started." in text


def test_a_stopped_run_says_who_asked(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    end(run, 1, 75, "requeue")
    assert "Its runner did not live to say why." in read_why(run, capsys)
    append_event(run.events_path, "left", exit_code=130)
    text = read_why(run, capsys)
    assert "STOPPED: its last attempt (1) was asked to stop, wrote a checkpoint and ended after 12 s." in text
    assert "with 130, because of Ctrl-C." in text
    append_event(run.events_path, "stop requested")
    assert "`run_experiment.py stop` asked for it at" in read_why(run, capsys)
    end(run, 1, -9, "requeue")
    assert "did not end in time by itself and was ended with -9" in read_why(run, capsys)


def test_a_running_run_says_who_runs_it_and_how_far_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    assert list_holders(run.lock_path) == [os.getpid()]
    text = read_why(run, capsys)
    assert f"RUNNING: pid {os.getpid()} on {platform.node()}, device cpu, since 2026-01-01" in text
    assert "It has written no metrics yet." in text
    run.metrics_path.write_text('{"step": 1}\n{"step": 2}\n')
    assert 's old: {"step": 2}\n' in read_why(run, capsys)
    end(run, 1, 1, "error")
    assert "somebody holds its lock and has not started an attempt yet" in read_why(run, capsys)
    os.close(lock)
    assert list_holders(run.lock_path) == []


def test_a_done_run_says_what_it_came_to(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    end(run, 1, 0, "ok")
    write_json(run.exit_path, {"ok": True})
    write_json(run.summary_path, {"final_eval": {"mean": -160.12}})
    text = read_why(run, capsys)
    assert "UTC, after 1 attempt. Its last policy's mean return is -160.1." in text
    assert f"\n  {COMMAND} --rerun {RUN_ID}\n" in text


def test_a_pending_run_says_what_it_waits_for(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "never said why it left: it was killed," in read_why(run, capsys)
    append_event(run.events_path, "left", exit_code=4)
    text = read_why(run, capsys)
    assert "PENDING: never started. Its runner left at" in text
    assert "with 4, because its first runs all failed alike; this starts it:" in text
    row = {"id": "f" * 16, "label": "seed=2", "settings": {}}
    with (run.experiment_dir / "plan.jsonl").open("a") as plan:
        plan.write(json.dumps(row) + "\n")
    other = Run.create_path(run.experiment_dir, "seed=2", "f" * 16)
    begin(other, 1)
    lock = acquire_lock(other.lock_path)
    assert lock is not None
    assert "1 run of its experiment is going on: it waits for its turn." in read_why(run, capsys)
    os.close(lock)


def test_a_run_that_no_plan_has_is_told_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.experiment_dir / "plan.jsonl").write_text("")
    text = read_why(run, capsys)
    assert "No plan has it any more, so no launch would start it." in text
    assert "any more; kept" in text


def test_a_run_that_was_started_alone_goes_on_by_its_own_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1, launched=False)
    text = read_why(run, capsys)
    assert "its process was killed, or the machine went down." in text
    assert "\n  python train.py --seed 1\n" in text
    end(run, 1, 2, "config")
    text = read_why(run, capsys)
    assert "its settings were refused. The same command tries it again" in text
    assert "the terminal it was started from" in text


def test_a_pending_run_names_the_runner_that_is_at_work(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    presence = enter(run.experiment_dir, COMMAND, "v1", run.experiment_dir / "plan.jsonl", None)
    text = read_why(run, capsys)
    assert (
        f"never started. At work in its folder: pid {os.getpid()} on {platform.node()}. It waits for its turn" in text
    )
    presence.leave()
    assert "At work" not in read_why(run, capsys)


def test_a_run_out_of_memory_is_said_to_have_been_alone_if_it_was(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run, 1)
    end(run, 1, -9, "oom")
    assert "ended with -9 after 12 s: out of memory." in read_why(run, capsys)
    assert "alone" not in read_why(run, capsys)
    begin(run, 2, launched=False)
    append_event(run.events_path, "started", run.id, attempt=2, placed="alone")
    end(run, 2, 86, "oom")
    shown = read_why(run, capsys)
    assert "out of memory. It had run out of memory beside others before, and then did so alone." in shown
    assert "--rerun" in shown
