"""`why` and `gc` as a user types them."""

import json
import shutil
from pathlib import Path

from tests.commands.test_run_experiment import DDPG, ROOT, run, write_work


def test_why_explains_a_failure_and_its_command_runs_it_again(tmp_path: Path) -> None:
    write_work(tmp_path, "import sys\nif 'index: 1' in open(sys.argv[2]).read(): raise ValueError('boom')\n")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", expect=1)
    rows = [json.loads(line) for line in run(tmp_path, "status", "-e", "spec.yaml", "--json").stdout.splitlines()]
    (failed,) = [row["id"] for row in rows if row["status"] == "FAILED"]
    text = run(tmp_path, "why", failed[:8]).stdout
    assert "FAILED: its last attempt (1) ended with 1 after" in text
    assert ": ValueError: boom. Nothing has changed since" in text
    assert "  | ValueError: boom\n" in text
    (again,) = [line.strip() for line in text.splitlines() if "--rerun" in line]
    run(tmp_path, *again.split()[2:], "--plain", expect=1)
    assert "It has failed 2 times." in run(tmp_path, "why", failed).stdout


def test_why_and_gc_refuse_what_they_can_not_read(tmp_path: Path) -> None:
    write_work(tmp_path, "0", "index: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    rows = [json.loads(line) for line in run(tmp_path, "-e", "spec.yaml", "-n", "--json").stdout.splitlines()]
    # Of seventeen ids two begin alike.
    firsts = [row["id"][0] for row in rows]
    shared = next(first for first in firsts if firsts.count(first) > 1)
    assert f"{shared!r} begins {firsts.count(shared)} ids: " in run(tmp_path, "why", shared, expect=2).stderr
    assert "no run has the id 'zzzz'" in run(tmp_path, "why", "zzzz", expect=2).stderr
    assert "why: give a run's id" in run(tmp_path, "why", expect=2).stderr
    assert "why doesn't read --yes" in run(tmp_path, "why", shared, "--yes", expect=2).stderr
    assert "gc: give the experiment by -e" in run(tmp_path, "gc", shared, expect=2).stderr
    assert "--yes goes with gc" in run(tmp_path, "-e", "spec.yaml", "--yes", expect=2).stderr


def test_gc_frees_what_nothing_needs_and_the_policy_acts_as_before(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "spec.yaml").write_text(
        DDPG.replace("batch_size: 8", "batch_size: 8, save_freq: 10, keep_replay: true")
    )
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", "--no-report")
    (folder,) = tmp_path.glob("logs/spec/ddpg__*")
    shutil.copy(folder / "config.yaml", folder / ".config.yaml.0123abcd.tmp")
    before = {path for path in folder.rglob("*") if path.is_file()}
    listing = run(tmp_path, "gc").stdout
    assert "3 files, " in listing
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    assert "deleted 3 files, " in run(tmp_path, "gc", "-e", "logs/spec", "--yes").stdout
    gone = before - {path for path in folder.rglob("*") if path.is_file()}
    names = {"step_00000030.pt", "step_00000030.json", ".config.yaml.0123abcd.tmp"}
    assert {path.name for path in gone} == names
    assert "nothing may go" in run(tmp_path, "gc", "-e", "spec.yaml").stdout
    # Imported here: the tests above need no torch.
    from experiment.stored import KNOWN_FORMAT
    from training.checkpoint import load_newest
    from training.manifest import FORMAT

    assert KNOWN_FORMAT == FORMAT
    said: list[str] = []
    checkpoint = load_newest(folder / "checkpoints", report=said.append)
    assert checkpoint is not None
    assert (checkpoint.step, said) == (40, [])
