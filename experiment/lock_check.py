"""Whether a folder can lock files: what keeps runs apart rests on it, so it is tried before anything starts."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from experiment.locks import acquire_lock, is_locked

REFUSALS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
REPAIR = "choose a folder on a local disk by --log-root DIR, or on NFSv4"


class LocklessFolderError(OSError):
    """Locks don't work in a folder. Its text has what failed and what to do."""

    def __init__(self, folder: Path, fault: str, number: int = errno.ENOLCK) -> None:
        super().__init__(number, f"runs can't be kept apart in this folder: {fault}; {REPAIR}", str(folder))


def check_locks(
    folder: Path,
    acquire: Callable[[Path], int | None] = acquire_lock,
    is_held: Callable[[Path], bool] = is_locked,
) -> None:
    """Try in a folder what runs need of locks: one holder at a time, seen by others, inherited, gone with the last.

    Two open file descriptions in this process stand for two processes: these locks belong to descriptions, so the file
    system is asked the same in both cases. What a child inherits is a second descriptor of one description, as `dup`
    makes it, and the kernel closes it when the child dies. So no process has to be started.

    Args:
        folder: must be there.
        acquire: takes a lock, as `acquire_lock` does.
        is_held: looks at a lock, as `is_locked` does.

    Raises:
        LocklessFolderError: the folder can't lock.
        OSError: the folder can't be written.
    """
    path = folder / f".lock_check.{secrets.token_hex(4)}.tmp"
    descriptors: list[int] = []
    try:
        fault = _find_fault(path, acquire, is_held, descriptors)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise LocklessFolderError(folder, f"locking a file gives {error.strerror!r}", error.errno) from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        path.unlink(missing_ok=True)
    if fault is not None:
        raise LocklessFolderError(folder, fault)


def _find_fault(
    path: Path, acquire: Callable[[Path], int | None], is_held: Callable[[Path], bool], descriptors: list[int]
) -> str | None:
    """Say what is wrong with the lock of a new file, None for nothing; `descriptors` has what is still open then."""
    first = acquire(path)
    if first is None:
        return "the lock of a new file is already taken"
    descriptors.append(first)
    second = acquire(path)
    if second is not None:
        descriptors.append(second)
        return "a lock is given to two at a time"
    if not is_held(path):
        return "a lock that is held is not seen"
    descriptors.append(os.dup(first))
    os.close(descriptors.pop(0))
    if not is_held(path):
        return "a lock is lost when one of its two holders ends"
    os.close(descriptors.pop())
    if is_held(path):
        return "a lock stays when its last holder has ended"
    return None
