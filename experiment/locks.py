"""Locks that the kernel keeps honest: held while a process lives, gone when it dies, never stale.

Linux "open file description" locks: they belong to the open file, so a child that inherits the descriptor holds the
lock too, and one can ask whether a lock is held without taking it (which `flock` can't: asking would make the asker a
rival of whoever claims the run at that moment).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

_FLOCK = "hhqqi4x"  # struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid


def acquire_lock(path: Path) -> int | None:
    """Take the lock of a file, made if it isn't there, and give its descriptor; None where somebody holds it.

    The descriptor is not inherited unless passed on explicitly. Closing its last copy releases the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return descriptor


def wait_for_lock(path: Path) -> int:
    """Take the lock of a file, however long somebody else holds it, and give its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return descriptor


def list_holders(path: Path) -> list[int]:
    """Give the pids of the processes of this machine that have a lock's file open, as far as we may see them."""
    wanted = str(path.resolve())
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(pid for pid in pids if wanted in _list_open_files(pid))


def _list_open_files(pid: int) -> list[str]:
    """Give what a process has open; nothing where it has ended or is somebody else's."""
    folder = Path(f"/proc/{pid}/fd")
    names = []
    try:
        for descriptor in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed since
                names.append(os.readlink(folder / descriptor))  # noqa: PTH115  a text: it needn't be a path
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return []
    return names


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds the lock of a file, without taking it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    finally:
        os.close(descriptor)
    return bool(answer[0] != fcntl.F_UNLCK)
