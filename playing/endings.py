"""How a command of `play.py` ends: its exit codes, and the errors that some of them stand for."""

from __future__ import annotations

from envs.episodes import EpisodeError
from experiment.problems import SettingsError, SpecError
from training.measures import MeasureError

OK, ERROR, USAGE, DEVICE, INTERRUPTED = 0, 1, 2, 3, 130


class DeviceMissingError(ValueError):
    """A device that was asked for and isn't there."""


class RunError(ValueError):
    """A run that can't be taken up, or a training that didn't come to its end."""


class ExportError(RuntimeError):
    """A file that doesn't act as its policy does."""


class ShareError(RuntimeError):
    """An evaluation that a process of ours couldn't do; `code` is the exit code that goes with it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def find_code(error: Exception, command: str) -> int | None:
    """Give the exit code of a command that an error ends; None for what only a mistake of ours can raise.

    Args:
        error: what ended it; its text says what to do.
        command: that was given.
    """
    if isinstance(error, ShareError):
        return error.code
    if isinstance(error, DeviceMissingError):
        return DEVICE
    if isinstance(error, SpecError | SettingsError):
        return USAGE
    if isinstance(error, EpisodeError):
        return USAGE if command == "info" else ERROR
    if isinstance(error, RunError):
        return USAGE if command == "samples" else ERROR
    return ERROR if isinstance(error, MeasureError | ExportError) else None
