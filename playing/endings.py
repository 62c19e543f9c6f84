"""How a command of `play.py` ends: its exit codes, and the errors that some of them stand for."""

from __future__ import annotations

OK, ERROR, USAGE, DEVICE, INTERRUPTED = 0, 1, 2, 3, 130


class DeviceMissingError(ValueError):
    """A device that was asked for and isn't there."""


class RunError(ValueError):
    """A run that can't be taken up, or a training that didn't come to its end."""
