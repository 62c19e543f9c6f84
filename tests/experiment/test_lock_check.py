"""Folders that can't lock, as far as they can be had without such a file system: by locks that behave so."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiment.lock_check import REFUSALS, LocklessFolderError, check_locks
from experiment.locks import acquire_lock, is_locked

ROOT = Path(__file__).parents[2]

# What a file system without locks answers, for every process that Python starts with this module on its path.
LOCKLESS = """
import errno, fcntl, os
real = fcntl.fcntl
def refuse(file, command, *more):
    if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW, fcntl.F_OFD_GETLK):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    return real(file, command, *more)
fcntl.fcntl = refuse
"""


def open_unlocked(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def refuse(number: int) -> Callable[[Path], int | None]:
    def acquire(path: Path) -> int | None:
        path.touch()
        raise OSError(number, os.strerror(number))

    return acquire


def forget_at_first_close() -> tuple[Callable[[Path], int | None], Callable[[Path], bool]]:
    """Locks as POSIX had them first: gone as soon as any descriptor of their file is closed."""
    held: list[int] = []

    def acquire(path: Path) -> int | None:
        if held:
            return None
        held.append(open_unlocked(path))
        return held[0]

    def is_held(path: Path) -> bool:
        try:
            os.fstat(held[0])
        except OSError:
            return False
        return True

    return acquire, is_held


def test_a_folder_of_this_machine_can_lock_and_keeps_nothing_of_the_test(tmp_path: Path) -> None:
    open_before = os.listdir("/proc/self/fd")
    check_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


@pytest.mark.parametrize("number", REFUSALS)
def test_a_file_system_that_refuses_locks_is_named_with_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(LocklessFolderError, match="by --log-root DIR, or on NFSv4") as caught:
        check_locks(tmp_path, refuse(number))
    assert caught.value.filename == str(tmp_path)
    assert os.strerror(number) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_any_other_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Read-only file system") as caught:
        check_locks(tmp_path, refuse(errno.EROFS))
    assert not isinstance(caught.value, LocklessFolderError)


@pytest.mark.parametrize(
    ("acquire", "is_held", "fault"),
    [
        (open_unlocked, is_locked, "a lock is given to two at a time"),
        (lambda path: None, is_locked, "the lock of a new file is already taken"),
        (acquire_lock, lambda path: False, "a lock that is held is not seen"),
        (acquire_lock, lambda path: True, "a lock stays when its last holder has ended"),
        (*forget_at_first_close(), "a lock is lost when one of its two holders ends"),
    ],
)
def test_locks_that_do_not_hold_are_found(
    tmp_path: Path, acquire: Callable[[Path], int | None], is_held: Callable[[Path], bool], fault: str
) -> None:
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(LocklessFolderError, match=fault):
        check_locks(tmp_path, acquire, is_held)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_two_processes_find_what_two_descriptions_in_one_find(tmp_path: Path) -> None:
    """What the check takes for granted: it starts no process, since these locks don't know of processes."""
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    code = (
        "import sys; from pathlib import Path; from experiment.locks import acquire_lock, is_locked\n"
        "path = Path(sys.argv[1]); print(acquire_lock(path), is_locked(path))"
    )

    def ask() -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "lock")], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()

    assert ask() == ["None", "True"]
    copy = os.dup(lock)
    os.close(lock)
    assert ask() == ["None", "True"]
    os.close(copy)
    assert ask()[0] != "None"


def run_lockless(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "lockless").mkdir(exist_ok=True)
    (folder / "lockless/sitecustomize.py").write_text(LOCKLESS)
    environment = os.environ | {"PYTHONPATH": str(folder / "lockless")}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("words", [[], ["--detach"]])
def test_a_launch_in_a_folder_that_can_not_lock_starts_nothing_and_says_so_in_one_line(
    tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "work.py").write_text("open('truth.log', 'a').write('RUN')")
    (tmp_path / "spec.yaml").write_text("meta_data: {script_path: work.py}\nvariables: {index: [0, 1]}\n")
    answer = run_lockless(tmp_path, str(ROOT / "run_experiment.py"), "-e", "spec.yaml", "-g", "cpu", *words)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("logs/spec: runs can't be kept apart in this folder: locking a file gives 'No locks")
    assert line.endswith("choose a folder on a local disk by --log-root DIR, or on NFSv4")
    assert answer.stdout == ""
    assert not (tmp_path / "truth.log").exists()
    assert list((tmp_path / "logs/spec").iterdir()) == []


def test_train_py_alone_in_a_folder_that_can_not_lock_says_the_same_line(tmp_path: Path) -> None:
    settings = "--algorithm_name ddpg --env_name Pendulum-v1 --max_timesteps 30 --learning_starts 9 --batch_size 8"
    answer = run_lockless(tmp_path, str(ROOT / "train.py"), *settings.split())
    assert answer.returncode == 2, answer.stdout + answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("logs/ddpg_Pendulum-v1: runs can't be kept apart in this folder: ")
