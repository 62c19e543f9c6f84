"""The supervisor, driven through its pipes as a runner drives it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from experiment import supervise
from experiment.locks import acquire_lock, is_locked
from experiment.run import Run, State

STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(int(os.environ["READY_FD"]), b"x")
    signal.pause()
signal.pause()
"""
POLITE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.write(int(os.environ["READY_FD"]), b"x")
signal.pause()
"""


class Supervised:
    """One supervised process, with a mark in its environment by which all that it starts can be found."""

    def __init__(self, folder: Path, code: str, **limits: float) -> None:
        self.run = Run.create_path(folder, "run", "0123456789abcdef")
        self.run.attempt_dir(1).mkdir(parents=True)
        self.run.config_path.touch()
        self.run.start_path(1).touch()
        self.mark = uuid.uuid4().hex
        lock = acquire_lock(self.run.lock_path)
        assert lock is not None
        reader, self.control = (end.detach() for end in socket.socketpair())
        self.ready, ready_writer = os.pipe()
        os.set_inheritable(ready_writer, True)
        job = supervise.Job(
            lock_fd=lock,
            control_fd=reader,
            run_dir=str(self.run.folder),
            attempt=1,
            command=[sys.executable, "-IS", "-c", code],
            timeout_s=limits.get("timeout_s"),
            grace_s=limits.get("grace_s", 60.0),
            orphan_grace_s=limits.get("orphan_grace_s", 0.2),
        )
        self.process = subprocess.Popen(
            [sys.executable, "-IS", supervise.__file__, json.dumps(asdict(job))],
            env=os.environ | {"GRIDPILOT_TEST_MARK": self.mark, "READY_FD": str(ready_writer)},
            pass_fds=[lock, reader, ready_writer],
            start_new_session=True,
        )
        for descriptor in (lock, reader, ready_writer):
            os.close(descriptor)

    def wait_until_ready(self) -> None:
        assert select.select([self.ready], [], [], 20)[0]

    def list_processes(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    environment = Path("/proc", name, "environ").read_bytes()
                except OSError:
                    continue
                if self.mark.encode() in environment:
                    found.append(int(name))
        return found

    def end(self) -> dict[str, object]:
        assert self.process.wait(20) == 0
        ending = self.run.read_exit(1)
        assert ending is not None
        return ending

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self.list_processes():  # What a test that failed has left.
            os.kill(pid, signal.SIGKILL)
        os.close(self.ready)
        if self.control >= 0:
            os.close(self.control)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Supervised]]:
    """Whatever a test puts here is ended."""
    all_started: list[Supervised] = []
    yield all_started
    for supervised in all_started:
        supervised.close()


@pytest.mark.parametrize(
    ("code", "returncode", "reason"),
    [
        ("print('hello')", 0, "ok"),
        ("raise ValueError('boom')", 1, "error"),
        ("raise SystemExit(2)", 2, "config"),
        ("raise SystemExit(75)", 75, "requeue"),
        ("raise SystemExit(86)", 86, "oom"),
        ("raise SystemExit(87)", 87, "health"),
        ("import os; os.kill(os.getpid(), 11)", -11, "signal"),
    ],
)
def test_an_ending_is_written_as_it_was(
    tmp_path: Path, started: list[Supervised], code: str, returncode: int, reason: str
) -> None:
    supervised = Supervised(tmp_path, code)
    started.append(supervised)
    ending = supervised.end()
    assert {key: ending[key] for key in ("ok", "returncode", "reason", "attempt")} == {
        "ok": returncode == 0,
        "returncode": returncode,
        "reason": reason,
        "attempt": 1,
    }
    assert supervised.run.exit_path.exists() == (returncode == 0)
    assert supervised.run.status().state is not State.RUNNING
    peak = ending["peak_rss_bytes"]
    assert isinstance(peak, int)
    assert peak > 1_000_000


def test_a_command_that_is_not_there_says_so_in_the_log(tmp_path: Path, started: list[Supervised]) -> None:
    run = Run.create_path(tmp_path, "run", "0123456789abcdef")
    run.attempt_dir(1).mkdir(parents=True)
    run.config_path.touch()
    run.start_path(1).touch()
    reader, writer = (end.detach() for end in socket.socketpair())
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    job = supervise.Job(lock, reader, str(run.folder), 1, ["/nowhere/python"], None, 1.0, 1.0)
    arguments = [sys.executable, "-IS", supervise.__file__, json.dumps(asdict(job))]
    subprocess.run(arguments, pass_fds=[lock, reader], check=True, timeout=20)
    for descriptor in (reader, writer, lock):
        os.close(descriptor)
    assert "/nowhere/python can't be started" in run.console_path(1).read_text()
    assert run.status().reason == "error"


def test_the_training_holds_the_lock_even_when_its_supervisor_lets_go(
    tmp_path: Path, started: list[Supervised]
) -> None:
    supervised = Supervised(tmp_path, POLITE)
    started.append(supervised)
    supervised.wait_until_ready()
    assert is_locked(supervised.run.lock_path)
    assert supervised.run.status().state is State.RUNNING


def test_a_training_asked_to_stop_may_checkpoint(tmp_path: Path, started: list[Supervised]) -> None:
    supervised = Supervised(tmp_path, POLITE)
    started.append(supervised)
    supervised.wait_until_ready()
    os.write(supervised.control, b"T")
    assert supervised.end()["reason"] == "requeue"


def test_a_wish_that_comes_before_the_training_has_begun_is_not_forgotten(tmp_path: Path) -> None:
    for number in range(20):
        supervised = Supervised(tmp_path / str(number), "import signal; signal.pause()")
        os.write(supervised.control, b"T")
        assert supervised.process.wait(10) == 0
        supervised.close()


def test_ended_descendants_are_reaped_while_the_training_lives(tmp_path: Path, started: list[Supervised]) -> None:
    code = (
        "import os, signal\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n        os.fork()\n        os._exit(0)\n    os.wait()\n"
        "os.write(int(os.environ['READY_FD']), b'x')\nsignal.pause()\n"
    )
    supervised = Supervised(tmp_path, code)
    started.append(supervised)
    supervised.wait_until_ready()
    deadline = time.monotonic() + 10
    while len(supervise_children(supervised.process.pid)) > 1:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)
    os.write(supervised.control, b"K")
    supervised.end()


def supervise_children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_time_limit_of_a_month_is_one(tmp_path: Path, started: list[Supervised]) -> None:
    supervised = Supervised(tmp_path, "print('hello')", timeout_s=30 * 86400.0)
    started.append(supervised)
    assert supervised.end()["reason"] == "ok"


def test_sigterm_to_the_supervisor_asks_politely_too(tmp_path: Path, started: list[Supervised]) -> None:
    supervised = Supervised(tmp_path, POLITE)
    started.append(supervised)
    supervised.wait_until_ready()
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end()["reason"] == "requeue"


def test_a_kill_leaves_nothing_and_the_run_goes_on_later(tmp_path: Path, started: list[Supervised]) -> None:
    supervised = Supervised(tmp_path, STUBBORN)
    started.append(supervised)
    supervised.wait_until_ready()
    assert len(supervised.list_processes()) == 4
    os.write(supervised.control, b"K")
    ending = supervised.end()
    assert (ending["reason"], ending["returncode"]) == ("requeue", -9)
    assert supervised.list_processes() == []


def test_nothing_outlives_the_runner_not_even_what_ignores_sigterm_and_detached_itself(
    tmp_path: Path, started: list[Supervised]
) -> None:
    supervised = Supervised(tmp_path, STUBBORN)
    started.append(supervised)
    supervised.wait_until_ready()
    os.close(supervised.control)
    supervised.control = -1
    assert supervised.end()["reason"] == "requeue"
    assert supervised.list_processes() == []
    assert not is_locked(supervised.run.lock_path)


def test_a_time_limit_stops_politely_and_kills_after_the_grace(tmp_path: Path, started: list[Supervised]) -> None:
    polite = Supervised(tmp_path / "polite", POLITE, timeout_s=0.5)
    stubborn = Supervised(tmp_path / "stubborn", STUBBORN, timeout_s=0.5, grace_s=0.2)
    started += [polite, stubborn]
    assert polite.end()["reason"] == "requeue"
    assert stubborn.end()["reason"] == "timeout"
    assert stubborn.list_processes() == []


def write_counts(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_control_group_counts_what_was_killed_for_memory_in_it_and_the_machine_only_without_one(
    tmp_path: Path,
) -> None:
    vmstat = {"proc__vmstat": "nr_free_pages 12\noom_kill 7\n"}
    bare = write_counts(tmp_path / "bare", **vmstat)
    assert list(supervise.count_memory_kills(bare).values()) == [7]
    second = write_counts(tmp_path / "v2", **vmstat, proc__self__cgroup="0::/job/step\n")
    write_counts(second, sys__fs__cgroup__job__step__memory_DOT_events="oom 9\noom_kill 2\noom_group_kill 0\n")
    assert list(supervise.count_memory_kills(second).values()) == [2]
    first = write_counts(tmp_path / "v1", **vmstat, proc__self__cgroup="9:name=x:/\n4:cpu,memory:/job\n0::/\n")
    write_counts(first, sys__fs__cgroup__memory__job__memory_DOT_oom_control="under_oom 0\noom_kill 3\n")
    assert list(supervise.count_memory_kills(first).values()) == [3]
    inside = write_counts(tmp_path / "container", **vmstat, proc__self__cgroup="0::/somewhere/else\n")
    write_counts(inside, sys__fs__cgroup__memory_DOT_events="oom_kill 4\n")
    assert list(supervise.count_memory_kills(inside).values()) == [4]
    assert list(supervise.count_memory_kills(tmp_path / "nothing").values()) == [0]


def test_only_a_count_that_was_there_before_can_rise() -> None:
    assert supervise.has_risen({"a": 1, "b": 2}, {"a": 1, "b": 3})
    assert not supervise.has_risen({"a": 1}, {"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("returncode", "asked", "out_of_memory", "reason"),
    [
        (-9, None, True, "oom"),
        (-9, None, False, "signal"),
        (-9, "kill", True, "requeue"),
        (-11, None, True, "signal"),
        (1, None, True, "error"),
        (0, None, True, "ok"),
        (86, None, False, "oom"),
    ],
)
def test_a_kill_that_nobody_asked_for_while_memory_ran_out_is_one_for_memory(
    returncode: int, asked: str | None, out_of_memory: bool, reason: str
) -> None:
    assert supervise.find_reason(returncode, asked, out_of_memory=out_of_memory) == reason


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group for memory of 96 MiB, where the machine lets one be made."""
    version_1 = Path("/sys/fs/cgroup/memory")
    top, limit = (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = top / f"gridpilot_test_{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / limit).write_text(str(96 * 2**20))
        for name in ("memory.swap.max", "memory.swappiness"):
            if (group / name).exists():
                (group / name).write_text("0")
        (group / "cgroup.procs").open("a").close()
    except OSError as error:
        group.rmdir()
        pytest.skip(f"memory can't be limited in a control group here: {error}")
    yield group
    group.rmdir()


def test_a_training_that_the_kernel_kills_for_memory_ended_out_of_memory(tmp_path: Path, small_group: Path) -> None:
    run = Run.create_path(tmp_path, "run", "0123456789abcdef")
    run.attempt_dir(1).mkdir(parents=True)
    run.config_path.touch()
    run.start_path(1).touch()
    reader, writer = (end.detach() for end in socket.socketpair())
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    greedy = "held = [bytearray(b'x' * 2**20) for _ in range(2**10)]"
    job = supervise.Job(lock, reader, str(run.folder), 1, [sys.executable, "-IS", "-c", greedy], None, 1.0, 1.0)
    arguments = [sys.executable, "-IS", supervise.__file__, json.dumps(asdict(job))]
    join = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
    words = [sys.executable, "-IS", "-c", join, str(small_group / "cgroup.procs"), *arguments]
    subprocess.run(words, pass_fds=[lock, reader], check=True, timeout=60)
    for descriptor in (reader, writer, lock):
        os.close(descriptor)
    ending = run.read_exit(1)
    assert ending is not None
    assert (ending["reason"], ending["returncode"]) == ("oom", -9)
    assert run.status().reason == "oom"


def test_a_killed_supervisor_takes_its_training_along(tmp_path: Path, started: list[Supervised]) -> None:
    supervised = Supervised(tmp_path, POLITE)
    started.append(supervised)
    supervised.wait_until_ready()
    training = os.pidfd_open(next(pid for pid in supervised.list_processes() if pid != supervised.process.pid))
    supervised.process.kill()
    assert select.select([training], [], [], 20)[0]
    os.close(training)
    supervised.process.wait()
    assert supervised.run.status().state is State.LOST
