"""Stored code is put together again as it was, and leaves nothing behind."""

import subprocess
from pathlib import Path

import pytest

from experiment.provenance import CodeHasher, hash_code, record_provenance
from experiment.rebuild import RebuildError, list_changed_files, rebuild_code


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@e")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose project, with changes of all kinds, is a folder in it."""
    project = tmp_path / "repository/project"
    project.mkdir(parents=True)
    for name in ("kept.py", "edited.py", "deleted.py", "moved.py"):
        (project / name).write_text(f"NAME = '{name}'\n" * 5)
    (project / "table.bin").write_bytes(bytes(range(256)))
    (tmp_path / "repository/beside.py").write_text("1\n")
    git(tmp_path / "repository", "init", "-q")
    git(tmp_path / "repository", "add", "-A")
    git(tmp_path / "repository", "commit", "-qm", "Begin")
    (project / "edited.py").write_text("NAME = 'another'")
    (project / "deleted.py").unlink()
    (project / "table.bin").write_bytes(bytes(range(255, -1, -1)))
    git(project, "mv", "moved.py", "there.py")
    (project / "inner").mkdir()
    (project / "inner/new.py").write_text("NAME = 'né'\n")
    return tmp_path / "repository"


def record(repository: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.chdir(repository / "project")
    logs = repository.parent / "logs"
    version = record_provenance(logs, CodeHasher([Path.cwd()]), [])
    return logs / "code" / version, version


def test_code_comes_back_whatever_was_not_committed_and_however_git_is_set(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.context=0", "diff.relative=true"):
        git(repository, "config", *setting.split("="))
    hook = repository / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    stored, version = record(repository, monkeypatch)
    before = git(repository, "status", "--porcelain")
    (repository / "project/edited.py").write_text("NAME = 'changed since'\n")
    with rebuild_code(stored, version, tmp_path / "code") as root:
        assert root == tmp_path / "code/project"
        assert hash_code([root]) == version
        assert (root / "inner/new.py").read_text() == "NAME = 'né'\n"
        assert (root / "table.bin").read_bytes()[0] == 255
        assert list_changed_files(root, Path.cwd()) == ["edited.py has changed"]
    assert not (tmp_path / "code").exists()
    assert not (tmp_path / "hooked").exists()
    assert not (repository / ".git/worktrees").exists()
    assert git(repository, "status", "--porcelain") == before


def test_a_worktree_goes_also_where_what_it_is_for_fails(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, version = record(repository, monkeypatch)
    with pytest.raises(ZeroDivisionError), rebuild_code(stored, version, tmp_path / "code"):
        raise ZeroDivisionError
    assert not (repository / ".git/worktrees").exists()
    (stored / "diff").write_text("no difference at all\n")
    with pytest.raises(RebuildError, match="No valid patches"), rebuild_code(stored, version, tmp_path / "code"):
        pass
    assert not (repository / ".git/worktrees").exists()
    assert not (tmp_path / "code").exists()


def test_sources_that_git_ignores_are_missed_and_said_to_be(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".gitignore").write_text("generated.py\n")
    (repository / "project/generated.py").write_text("1\n")
    stored, version = record(repository, monkeypatch)
    with (
        pytest.raises(RebuildError, match="sources that git ignores"),
        rebuild_code(stored, version, tmp_path / "code"),
    ):
        pass


def test_what_is_missing_is_named(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, version = record(repository, monkeypatch)
    (stored / "diff").unlink()
    with pytest.raises(RebuildError, match="diff is missing"), rebuild_code(stored, version, tmp_path / "code"):
        pass
    (stored / "commit").write_text("not a git checkout, or nothing committed\n")
    with pytest.raises(RebuildError, match="not a git checkout"), rebuild_code(stored, version, tmp_path / "code"):
        pass
    (stored / "commit").unlink()
    with pytest.raises(RebuildError, match="no file `commit`"), rebuild_code(stored, version, tmp_path / "code"):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    (stored / "commit").write_text("1234")
    with pytest.raises(RebuildError, match="there is no git here"), rebuild_code(stored, version, tmp_path / "code"):
        pass


def test_many_changed_files_are_counted(tmp_path: Path) -> None:
    for folder in ("then", "now"):
        (tmp_path / folder).mkdir()
    for number in range(10):
        (tmp_path / f"then/{number}.py").write_text("1")
    lines = list_changed_files(tmp_path / "then", tmp_path / "now")
    assert lines[0] == "0.py was there then and is not now"
    assert lines[8:] == ["and 2 more files"]
