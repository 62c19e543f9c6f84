import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.locks import acquire_lock
from experiment.run import MAX_LABEL, Run, State, claim_run, find_runs, safe_label

RUN_ID = "0123456789abcdef"


def make_run(folder: Path, attempts: list[dict[str, object] | None]) -> Run:
    run = Run.create_path(folder, "seed=1", RUN_ID)
    for number, ending in enumerate(attempts, 1):
        run.attempt_dir(number).mkdir(parents=True)
        if ending is not None:
            (run.attempt_dir(number) / "exit.json").write_text(json.dumps(ending))
    return run


def ending(reason: str, returncode: int = 1) -> dict[str, object]:
    return {"ok": returncode == 0, "returncode": returncode, "reason": reason, "attempt": 1}


def test_a_run_without_attempts_is_pending(tmp_path: Path) -> None:
    assert make_run(tmp_path, []).status().state is State.PENDING


def test_an_attempt_that_left_no_word_is_lost(tmp_path: Path) -> None:
    assert make_run(tmp_path, [ending("error"), None]).status().state is State.LOST


def test_the_last_attempt_tells(tmp_path: Path) -> None:
    assert make_run(tmp_path, [None, ending("oom", 86)]).status().reason == "oom"
    assert make_run(tmp_path / "b", [ending("error"), ending("requeue", 75)]).status().state is State.STOPPED


def test_success_without_the_runs_own_word_is_lost_and_goes_on(tmp_path: Path) -> None:
    assert make_run(tmp_path, [ending("ok", 0)]).status().state is State.LOST


def test_a_held_lock_means_running_whatever_the_files_say(tmp_path: Path) -> None:
    run = make_run(tmp_path, [ending("error")])
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    assert run.status().state is State.RUNNING
    os.close(lock)
    assert run.status().state is State.FAILED


def test_the_runs_exit_file_means_done(tmp_path: Path) -> None:
    run = make_run(tmp_path, [ending("error"), ending("ok", 0)])
    run.exit_path.write_text("{}")
    assert run.status().state is State.DONE


def test_an_archived_run_can_start_again_and_nothing_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path, [ending("ok", 0)])
    run.checkpoints_dir.mkdir()
    (run.checkpoints_dir / "step_00000001.pt").write_bytes(b"1")
    run.metrics_path.write_text("{}\n")
    run.exit_path.write_text("{}")
    run.archive(1)
    assert not run.checkpoints_dir.exists()
    assert not run.exit_path.exists()
    assert (run.attempt_dir(1) / "archive/checkpoints/step_00000001.pt").read_bytes() == b"1"
    assert (run.attempt_dir(1) / "archive/metrics.jsonl").read_text() == "{}\n"


def test_runs_are_found_by_their_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path, [None])
    (tmp_path / "report").mkdir()
    (tmp_path / "code").mkdir()
    assert [found.id for found in find_runs(tmp_path)] == [RUN_ID]
    assert Run.open(run.folder).label == "seed=1"
    with pytest.raises(ValueError, match="not a run folder"):
        Run.open(tmp_path / "report")


def test_a_run_is_found_by_its_id_whatever_its_label(tmp_path: Path) -> None:
    first, lock = claim_run(Run.create_path(tmp_path, "seed=1", RUN_ID))
    assert lock is not None
    again, none = claim_run(Run.create_path(tmp_path, "seed=1,lr=2", RUN_ID))
    assert none is None
    assert again.folder == first.folder
    assert again.label == "seed=1,lr=2"
    os.close(lock)
    assert len(list(find_runs(tmp_path))) == 1


@pytest.mark.parametrize("moves", range(7))
def test_a_move_that_was_killed_halfway_is_completed_by_whoever_claims_the_run(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, [ending("ok", 0)])
    run.checkpoints_dir.mkdir()
    run.inside_dir.mkdir()
    files = (run.exit_path, run.summary_path, run.metrics_path, run.samples_path, run.trace_path)
    for path in (*files, run.checkpoints_dir / "step_00000001.pt"):
        path.write_text(path.name)
    replace = Path.replace
    left = [moves]

    def killed(self: Path, target: Path) -> Path:
        if "archive" in target.parts:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        if moves < 6:
            with pytest.raises(KeyboardInterrupt):
                run.archive(1)
            assert run.status().state is State.LOST
        else:
            run.archive(1)
    _, lock = claim_run(run)
    assert lock is not None
    os.close(lock)
    kept = {path.name for path in (run.attempt_dir(1) / "archive").iterdir()}
    assert kept == {"exit.json", "summary.json", "metrics.jsonl", "samples.png", "inside", "checkpoints"}
    assert {path.name for path in run.folder.iterdir()} == {"attempts", "lock"}
    assert run.status().state is State.LOST


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_label_makes_a_folder_name_inside_the_experiment(label: str) -> None:
    name = safe_label(label)
    assert 0 < len(name) <= MAX_LABEL
    assert name == Path(name).name
    assert not name.startswith((".", "-"))
    assert Run.open(Path(f"{name}__{RUN_ID}")).id == RUN_ID
