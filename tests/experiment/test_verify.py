"""Which moments a run can be killed at, and what a difference after it means."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from experiment.killing import Kill, find_training, kill_training, read_last_step
from experiment.locks import acquire_lock
from experiment.run import Run
from experiment.verify import NotCheckableError, choose_cadence, explain_step

SETTINGS = {"max_timesteps": 1000, "save_freq": None, "log_freq": None, "wall_budget_s": None}


def test_frequencies_that_leave_moments_to_be_killed_at_are_left_alone() -> None:
    assert choose_cadence(SETTINGS) == ({}, [])
    assert choose_cadence(SETTINGS | {"save_freq": 500, "log_freq": 250}) == ({}, [])


@pytest.mark.parametrize("save_freq", [0, 1, 501, 1000, 5000])
def test_a_save_freq_without_a_moment_is_replaced_and_said(save_freq: int) -> None:
    changes, notes = choose_cadence(SETTINGS | {"save_freq": save_freq})
    assert changes == {"save_freq": 100}
    assert "it is 100 for this check" in notes[0]


@pytest.mark.parametrize("log_freq", [0, 51, 100])
def test_a_log_freq_with_too_few_rows_is_replaced_and_said(log_freq: int) -> None:
    changes, notes = choose_cadence(SETTINGS | {"log_freq": log_freq})
    assert changes == {"log_freq": 25}
    assert "it is 25 for this check" in notes[0]


def test_runs_that_end_by_time_or_at_once_can_not_be_checked() -> None:
    with pytest.raises(NotCheckableError, match="-o wall_budget_s=null"):
        choose_cadence(SETTINGS | {"wall_budget_s": 5.0})
    with pytest.raises(NotCheckableError, match=r"max_timesteps \(7\)"):
        choose_cadence(SETTINGS | {"max_timesteps": 7})


def test_a_difference_is_laid_to_the_resume_before_it_or_to_none() -> None:
    kills = [Kill(250, 200), Kill(650, 600)]
    assert "does something follow the clock" in explain_step(200, kills)
    assert "last resumed from step 200" in explain_step(210, kills)
    assert "last resumed from step 200" in explain_step(600, kills)
    assert "last resumed from step 600" in explain_step(601, kills)


def test_the_process_that_trains_is_the_one_that_shares_the_lock_with_its_parent(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    assert find_training(tmp_path / "lock") is None
    train = "import sys; print('training', flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {train!r}], close_fds=False)"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[lock]) as supervisor:
        os.close(lock)
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"training\n"
        found = find_training(tmp_path / "lock")
        assert found not in (None, supervisor.pid, os.getpid())
        supervisor.communicate()
    assert find_training(tmp_path / "lock") is None


def test_without_a_training_nobody_is_killed(tmp_path: Path) -> None:
    over = threading.Event()
    over.set()
    assert kill_training(Run(tmp_path, "0" * 16, "one"), [1.0, 2.0], over) == []


def test_a_row_that_is_being_written_does_not_count_yet(tmp_path: Path) -> None:
    run = Run(tmp_path, "0" * 16, "one")
    assert read_last_step(run) == 0
    run.metrics_path.write_text('{"step": 10}\n{"step": 20}\n{"ste')
    assert read_last_step(run) == 20
