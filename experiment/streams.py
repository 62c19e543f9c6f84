"""What happens to what is printed when nobody is there to read it."""

from __future__ import annotations

import contextlib
import os
import sys


def silence_stdout() -> None:
    """Let what is still to be printed go nowhere, because nobody is at the other end any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def warn(text: str) -> None:
    """Say a line on stderr, if the terminal is still there."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
