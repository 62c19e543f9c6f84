import os
import subprocess
import sys
from pathlib import Path

from experiment.locks import acquire_lock, is_locked


def test_a_lock_is_had_once(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    assert acquire_lock(tmp_path / "lock") is None
    os.close(lock)
    again = acquire_lock(tmp_path / "lock")
    assert again is not None
    os.close(again)


def test_asking_whether_a_lock_is_held_does_not_take_it(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "lock")
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    assert is_locked(tmp_path / "lock")
    os.close(lock)
    assert not is_locked(tmp_path / "lock")


def test_a_child_that_inherits_a_lock_holds_it_after_its_parent_let_go(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    child = subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    assert is_locked(tmp_path / "lock")
    child.communicate(b"\n")
    assert not is_locked(tmp_path / "lock")


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    child = subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    child.kill()
    child.communicate()
    assert not is_locked(tmp_path / "lock")
