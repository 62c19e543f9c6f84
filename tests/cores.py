"""How many cores a sweep in a test may use."""

import os


def take_two_cores() -> None:
    """Have a thread for each of two runs at a time, on whatever machine: those with several can't be forked."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
