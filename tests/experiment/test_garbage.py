import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiment.files import find_temporaries, name_target, read_events, write_json
from experiment.garbage import LOOSE_AGE_S, collect_garbage, find_garbage, show_size
from experiment.locks import acquire_lock
from experiment.run import Run
from experiment.stored import list_stored, seal_manifest

NOW = 1e9
RUN_ID = "0123456789abcdef"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "pendulum"
    folder.mkdir()
    write_plan(folder, {})
    return folder


@pytest.fixture
def run(experiment: Path) -> Run:
    """A finished run with nothing in it."""
    run = Run.create_path(experiment, "seed=1", RUN_ID)
    run.attempt_dir(1).mkdir(parents=True)
    write_json(run.attempt_dir(1) / "exit.json", {"ok": True, "returncode": 0, "reason": "ok", "attempt": 1})
    write_json(run.exit_path, {"ok": True, "returncode": 0, "reason": "ok", "attempt": 1})
    return run


def write_plan(experiment: Path, settings: dict[str, object]) -> None:
    row = {"id": RUN_ID, "label": "seed=1", "settings": settings}
    (experiment / "plan.jsonl").write_text(json.dumps(row) + "\n")


def write_checkpoint(folder: Path, name: str, segments: Sequence[str] = (), dropped: bool = False) -> None:
    """Write a checkpoint as the trainer does, its replay segments beside it."""
    (folder / "replay").mkdir(parents=True, exist_ok=True)
    content = name.encode()
    (folder / f"{name}.pt").write_bytes(content)
    for segment in segments:
        (folder / "replay" / segment).write_bytes(segment.encode())
    rows = [{"file": segment, "sha256": hashlib.sha256(segment.encode()).hexdigest()} for segment in segments]
    manifest = {
        "format": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "replay": {"buffer": {"segments": rows}},
        "replay_dropped": dropped,
    }
    write_json(folder / f"{name}.json", {**manifest, "seal": seal_manifest(manifest)})


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def list_garbage(run: Run, keeps_older: bool = False, now: float = NOW) -> set[str]:
    return {str(garbage.path.relative_to(run.folder)) for garbage in find_garbage(run, keeps_older, now).files}


def test_of_a_finished_run_the_newest_and_the_best_policy_stay(run: Run) -> None:
    for name in ("step_00000001", "step_00000002", "step_00000003", "best_00000001", "best_00000002"):
        write_checkpoint(run.checkpoints_dir, name, dropped=True)
    old = ("step_00000001", "step_00000002", "best_00000001")
    assert list_garbage(run) == {f"checkpoints/{name}{end}" for name in old for end in (".pt", ".json")}


def test_an_older_checkpoint_stays_where_the_newest_one_is_not_whole(run: Run) -> None:
    for name in ("step_00000001", "step_00000002", "step_00000003"):
        write_checkpoint(run.checkpoints_dir, name)
    (run.checkpoints_dir / "step_00000003.pt").write_bytes(b"changed")
    assert list_garbage(run) == {"checkpoints/step_00000001.pt", "checkpoints/step_00000001.json"}
    (run.checkpoints_dir / "step_00000002.json").write_text("{}")
    (run.checkpoints_dir / "step_00000001.pt").unlink()
    assert list_garbage(run) == set()


def test_a_checkpoint_that_lacks_replay_data_is_not_whole(run: Run) -> None:
    write_checkpoint(run.checkpoints_dir, "step_00000001", ["a.rows"])
    write_checkpoint(run.checkpoints_dir, "step_00000002", ["a.rows", "b.rows"])
    (run.checkpoints_dir / "replay/b.rows").unlink()
    assert list_garbage(run) == set()


def test_checkpoints_and_replay_data_that_were_asked_for_stay(run: Run) -> None:
    write_checkpoint(run.checkpoints_dir, "step_00000001", ["a.rows"])
    write_checkpoint(run.checkpoints_dir, "step_00000002", ["b.rows"])
    (run.checkpoints_dir / "replay/lost.rows").write_bytes(b"rows")
    assert list_garbage(run, keeps_older=True) == {"checkpoints/replay/lost.rows"}
    old = {"checkpoints/step_00000001.pt", "checkpoints/step_00000001.json"}
    assert list_garbage(run) == {"checkpoints/replay/lost.rows", "checkpoints/replay/a.rows"} | old


def test_what_a_kill_left_and_what_was_set_aside_goes_when_the_run_is_done(run: Run) -> None:
    write_checkpoint(run.checkpoints_dir, "step_00000002")
    for name in ("step_00000001.pt", "step_00000001.pt.invalid", "step_00000001.json.2.invalid"):
        (run.checkpoints_dir / name).write_bytes(b"x")
    there = {"step_00000001.pt", "step_00000001.pt.invalid", "step_00000001.json.2.invalid"}
    assert list_garbage(run, keeps_older=True) == {f"checkpoints/{name}" for name in there}


def test_files_of_a_script_that_is_not_ours_are_never_taken_for_leftovers(run: Run) -> None:
    (run.checkpoints_dir / "replay").mkdir(parents=True)
    names = ("step_00000001.pt", "step_00000002.pt", "step_00000002.json", "a.invalid", "replay/a.rows")
    for name in names:
        (run.checkpoints_dir / name).write_bytes(b"{}")
    assert list_garbage(run) == set()


def test_no_replay_data_go_where_a_manifest_can_not_be_read(run: Run) -> None:
    write_checkpoint(run.checkpoints_dir, "step_00000001", ["a.rows"])
    write_checkpoint(run.checkpoints_dir, "step_00000002", ["b.rows"])
    (run.checkpoints_dir / "step_00000002.json").write_text('{"seal": "of another time"}')
    (run.checkpoints_dir / "replay/lost.rows").write_bytes(b"rows")
    assert list_garbage(run) == set()


def test_of_an_unfinished_run_only_temporary_files_go(run: Run) -> None:
    run.exit_path.unlink()
    for name in ("step_00000001", "step_00000002"):
        write_checkpoint(run.checkpoints_dir, name, [f"{name}.rows"])
    write_checkpoint(run.archive_dir(1) / "checkpoints", "step_00000009", ["a.rows"])
    mark = ".01234567.tmp"
    left = {
        f".exit.json{mark}",
        f"..archiving.json{mark}",
        f"checkpoints/.step_00000003.pt{mark}",
        f"checkpoints/replay/.b.rows{mark}",
        f"attempts/001/.exit.json{mark}",
    }
    for name in (*left, f"notes{mark}", ".hidden", ".exit.json.tmp"):
        (run.folder / name).write_bytes(b"half")
    assert list_garbage(run) == left


def test_pictures_in_progress_go_only_when_nobody_has_written_for_a_day(run: Run) -> None:
    run.inside_dir.mkdir()
    paths = [run.folder / ".samples.png.01234567.tmp", run.inside_dir / ".trace.npz.01234567.tmp"]
    for path in paths:
        path.write_bytes(b"half")
        os.utime(path, (NOW, NOW))
    assert list_garbage(run, now=NOW + LOOSE_AGE_S) == set()
    gone = {".samples.png.01234567.tmp", "inside/.trace.npz.01234567.tmp"}
    assert list_garbage(run, now=NOW + LOOSE_AGE_S + 1) == gone
    assert find_temporaries(run.inside_dir) == [paths[1]]
    assert name_target(paths[1]) == "trace.npz"


def test_of_an_earlier_life_the_policies_stay_and_say_that_their_replay_data_are_gone(
    run: Run, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = run.archive_dir(1) / "checkpoints"
    write_checkpoint(old, "step_00000001", ["a.rows"])
    write_checkpoint(old, "step_00000002", ["a.rows", "b.rows"])
    write_checkpoint(old, "best_00000001", dropped=True)
    collect_garbage([experiment], delete=True)
    assert list_files(old) == {
        f"{name}{end}" for name in ("step_00000002", "best_00000001") for end in (".pt", ".json")
    }
    (kept,) = list_stored(old, "step")
    assert kept.is_whole()
    assert kept.manifest is not None
    assert kept.manifest["replay_dropped"] is True
    assert "from which nothing goes on" in capsys.readouterr().out
    collect_garbage([experiment], delete=True)
    assert "nothing may go" in capsys.readouterr().out


def test_without_yes_nothing_changes_and_with_it_exactly_what_was_listed_goes(
    run: Run, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("step_00000001", "step_00000002"):
        write_checkpoint(run.checkpoints_dir, name, [f"{name}.rows"])
    before = list_files(experiment)
    collect_garbage([experiment], delete=False)
    listing = capsys.readouterr().out
    assert list_files(experiment) == before
    assert "may go; --yes deletes them" in listing
    assert "checkpoints/step_00000001.pt: an older checkpoint; step_00000002 is whole" in listing
    collect_garbage([experiment], delete=True)
    after = list_files(experiment)
    assert listing.splitlines()[:-1] == capsys.readouterr().out.splitlines()[:-1]
    gone = {str(Path(run.folder.name) / "checkpoints" / name) for name in ("step_00000001.pt", "step_00000001.json")}
    gone.add(str(Path(run.folder.name) / "checkpoints/replay/step_00000001.rows"))
    assert before - after == gone
    assert after - before == {"events.jsonl", f"{run.folder.name}/lock"}
    (event,) = read_events(run.events_path)
    assert (event["event"], event["files"]) == ("cleaned", 3)


def test_settings_that_say_how_many_to_keep_are_obeyed(
    run: Run, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(experiment, {"keep_last": 20})
    for name in ("step_00000001", "step_00000002"):
        write_checkpoint(run.checkpoints_dir, name)
    collect_garbage([experiment], delete=True)
    assert "nothing may go" in capsys.readouterr().out
    assert len(list_stored(run.checkpoints_dir, "step")) == 2


def test_a_run_that_somebody_has_is_left_alone(run: Run, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step_00000001", "step_00000002"):
        write_checkpoint(run.checkpoints_dir, name)
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    collect_garbage([experiment], delete=True)
    run.exit_path.unlink()
    collect_garbage([experiment], delete=False)
    os.close(lock)
    assert capsys.readouterr().out.count("left alone: somebody runs it") == 2
    assert len(list_stored(run.checkpoints_dir, "step")) == 2


def test_a_run_that_no_plan_has_is_named_and_never_touched(
    run: Run, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("step_00000001", "step_00000002"):
        write_checkpoint(run.checkpoints_dir, name)
    (experiment / "plan.jsonl").write_text("")
    before = list_files(experiment)
    collect_garbage([experiment], delete=True)
    assert f"{RUN_ID}  left as it is, for you to decide: not in the plan any more" in capsys.readouterr().out
    assert list_files(experiment) == before


@pytest.mark.parametrize("deletions", range(9))
def test_killed_anywhere_the_policies_are_whole_and_the_next_one_finishes(
    run: Run, experiment: Path, deletions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived = run.archive_dir(1) / "checkpoints"
    for folder in (run.checkpoints_dir, archived):
        for number in (1, 2):
            write_checkpoint(folder, f"step_{number:08d}", [f"{number}.rows"])
    unlink, left = Path.unlink, [deletions]

    def killed(self: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        try:
            collect_garbage([experiment], delete=True)
        except KeyboardInterrupt:
            assert deletions < 7
    assert list_stored(run.checkpoints_dir, "step")[0].is_whole()
    assert list_stored(archived, "step")[0].is_whole()
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    os.close(lock)
    collect_garbage([experiment], delete=True)
    assert list_garbage(run) == set()
    assert list_files(run.checkpoints_dir) == {"step_00000002.pt", "step_00000002.json", "replay/2.rows"}
    assert list_files(archived) == {"step_00000002.pt", "step_00000002.json"}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (1.2e6, "1.2 MB"),
        (4e9, "4.0 GB"),
        (2e15, "2,000.0 TB"),
    ],
)
def test_sizes_are_written_for_people(size: float, text: str) -> None:
    assert show_size(size) == text
