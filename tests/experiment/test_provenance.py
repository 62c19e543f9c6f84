import json
import subprocess
from pathlib import Path

import pytest

from experiment.devices import Gpu
from experiment.provenance import CodeHasher, hash_code, read_machine, record_provenance

GPUS = [Gpu(0, 0, "GPU-0", "A100", 80)]


def make_project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "work.py").write_text("1")
    (folder / "tests").mkdir()
    (folder / "tests/test_work.py").write_text("1")
    return folder


def test_the_version_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    version = hash_code([project])
    for name in ("notes.txt", "tests/test_more.py", ".hidden.py", "logs/x.py", ".venv/x.py", "docs/x.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("2")
    assert hash_code([project]) == version
    (project / "work.py").write_text("2")
    changed = hash_code([project])
    assert changed != version
    (project / "work.py").rename(project / "task.py")
    assert hash_code([project]) not in (version, changed)


def test_a_file_that_goes_while_code_is_looked_at_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project")
    version = hash_code([project])
    passing = project / "passing.py"
    passing.write_text("3")
    hash_file = CodeHasher._hash_file

    def delete_and_hash(hasher: CodeHasher, path: Path) -> bytes:
        passing.unlink(missing_ok=True)
        return hash_file(hasher, path)

    monkeypatch.setattr(CodeHasher, "_hash_file", delete_and_hash)
    assert hash_code([project]) == version


def test_the_commit_its_differences_and_untracked_sources_are_kept(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "work.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "Begin"], check=True)
    (project / "work.py").write_text("2")
    (project / "new.py").write_text("3")
    (project / "notes.txt").write_text("no source")
    version = record_provenance(tmp_path / "logs", CodeHasher([project]), GPUS)
    folder = tmp_path / "logs/code" / version
    assert len((folder / "commit").read_text().strip()) == 40
    assert "+2" in (folder / "diff").read_text()
    assert (folder / "untracked/new.py").read_text() == "3"
    assert not (folder / "untracked/notes.txt").exists()
    environment = json.loads((tmp_path / "logs/env.json").read_text())
    assert environment["gpus"][0]["uuid"] == "GPU-0"
    assert "torch" in environment["packages"]


def test_without_git_the_version_is_recorded_all_the_same(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    version = record_provenance(tmp_path / "logs", CodeHasher([project]), [])
    assert (tmp_path / "logs/code" / version / "commit").exists()
    assert record_provenance(tmp_path / "logs", CodeHasher([project]), []) == version


def test_each_machine_is_described_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, folder = CodeHasher([make_project(tmp_path / "project")]), tmp_path / "logs"
    for host in ("ada", "bob", "ada", "bob"):
        monkeypatch.setattr("platform.node", lambda host=host: host)
        record_provenance(folder, code, [])
    assert sorted(path.name for path in folder.glob("env*")) == ["env.bob.json", "env.json"]
    hosts = [read_machine(folder, host)["host"] for host in ("ada", "bob", "somebody else", None)]
    assert hosts == ["ada", "bob", "ada", "ada"]
    assert read_machine(tmp_path / "nowhere", "ada") == {}
