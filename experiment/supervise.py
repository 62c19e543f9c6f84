"""The small process that owns one run: it holds the run's lock, starts the training, and leaves nothing behind.

Started as `python -IS supervise.py <job as JSON>`, with the standard library alone, so that it costs milliseconds and
few megabytes; or forked by a fork server (`engines/fork_server.py`), and then the training is forked too. It ends with
its runner, however that dies: the runner holds the other end of the control socket, and the kernel closes that end.
Through the socket the runner can also ask: `T` to checkpoint and stop, `K` to die at once.

Whatever the training starts is found again: the supervisor is the "subreaper" of all its descendants, so even a process
that has detached itself becomes its child when its own parent ends, and is killed before the run counts as over.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

REASONS = {0: "ok", 2: "config", 75: "requeue", 86: "oom", 87: "health"}
CANNOT_START = 127
ENDED_WELL = b"E"
ROOT = Path("/")
MAX_POLL_MS = 2**31 - 1
"""The longest that poll can wait, 24.8 days; a longer deadline is looked at again then."""


@dataclass(frozen=True)
class Job:
    """What to run, and on whose behalf.

    Attributes:
        lock_fd: the run's lock, inherited and held until the end; the training process inherits it in turn.
        control_fd: where the runner's wishes come from; end of file means that the runner is gone.
        run_dir: the run's folder.
        attempt: the number of this attempt, whose folder is there already.
        command: program and arguments of the training.
        timeout_s: wall time after which the training is asked to checkpoint and stop; None for never.
        grace_s: how long a training that was asked to stop may take before it is killed.
        orphan_grace_s: the same when the runner is gone.
    """

    lock_fd: int
    control_fd: int
    run_dir: str
    attempt: int
    command: list[str]
    timeout_s: float | None
    grace_s: float
    orphan_grace_s: float


class Supervisor:
    """Runs one job to its end. `asked` is the first reason for which the training was told to stop.

    `start` starts the training of a job as our child, and gives its pid.
    """

    def __init__(self, job: Job, start: Callable[[Job], int]) -> None:
        self.job = job
        self.start = start
        self.asked: str | None = None
        self.kill_at: float | None = None
        self.timeout_at = None if job.timeout_s is None else time.monotonic() + job.timeout_s
        self.pid = 0

    def run(self) -> None:
        """Start the training, wait for it, clear up after it, write how it ended."""
        started, kills = time.monotonic(), count_memory_kills()
        wakeup = self._catch_signals()
        self.pid = self.start(self.job)
        # Not before the start: the disk takes its time.
        make_start_durable(Path(self.job.run_dir), self.job.attempt)
        status, usage = self._wait_for_end(wakeup)
        kill_descendants()
        returncode = os.waitstatus_to_exitcode(status)
        if returncode == 0:
            tell_runner(self.job.control_fd)
        write_ending(
            Path(self.job.run_dir),
            self.job.attempt,
            returncode,
            find_reason(returncode, self.asked, out_of_memory=has_risen(kills, count_memory_kills())),
            {
                "wall_s": round(time.monotonic() - started, 3),
                "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
                "peak_rss_bytes": usage.ru_maxrss * 1024,
            },
        )

    def _catch_signals(self) -> int:
        """Turn signals into bytes to be read, so that one poll sees everything. Gives the end to read from."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for heard in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(heard, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        return reader

    def _wait_for_end(self, wakeup: int) -> tuple[int, resource.struct_rusage]:
        child = os.pidfd_open(self.pid)
        poll = select.poll()
        for descriptor in (child, self.job.control_fd, wakeup):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(self._milliseconds_left())}
            if child in ready:
                _, status, usage = os.wait4(self.pid, 0)
                return status, usage
            if wakeup in ready:
                if signal.SIGTERM in os.read(wakeup, 64):
                    self._ask("stop", self.job.grace_s)
                reap_adopted(self.pid)
            if self.job.control_fd in ready and not self._hear_runner():
                poll.unregister(self.job.control_fd)
            self._check_deadlines()

    def _hear_runner(self) -> bool:
        """Do what the runner asks; False when it is gone."""
        wishes = os.read(self.job.control_fd, 64)
        if not wishes:
            self._ask("orphan", self.job.orphan_grace_s)
            return False
        if b"K" in wishes:
            self._ask("kill", 0.0)
        else:
            self._ask("stop", self.job.grace_s)
        return True

    def _ask(self, why: str, grace_s: float) -> None:
        """Tell the training to checkpoint and stop, and set the time at which it will be killed (never a later one)."""
        kill_at = time.monotonic() + grace_s
        if self.asked is None:
            self.asked = why
            os.kill(self.pid, signal.SIGTERM)
        self.kill_at = kill_at if self.kill_at is None else min(self.kill_at, kill_at)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self.timeout_at is not None and now >= self.timeout_at:
            self.timeout_at = None
            self._ask("timeout", self.job.grace_s)
        if self.kill_at is not None and now >= self.kill_at:
            os.kill(self.pid, signal.SIGKILL)
            self.kill_at = None if self.kill_at is None else now + 1.0

    def _milliseconds_left(self) -> int | None:
        deadlines = [deadline for deadline in (self.timeout_at, self.kill_at) if deadline is not None]
        if not deadlines:
            return None
        return min(MAX_POLL_MS, max(0, int((min(deadlines) - time.monotonic()) * 1000) + 1))


def start_training(job: Job) -> int:
    """Start the command of a job. Gives its pid."""
    os.set_inheritable(job.control_fd, False)
    os.set_inheritable(job.lock_fd, True)
    log = open_log(job)
    pid = fork_training()
    if pid:
        os.close(log)
        return pid
    try:
        use_log(log)
        os.environ["GRIDPILOT_LOCK_FD"] = str(job.lock_fd)
        os.execvp(job.command[0], job.command)
    except OSError as error:
        os.write(2, f"{job.command[0]} can't be started: {error}\n".encode())
    finally:
        os._exit(CANNOT_START)


def fork_training() -> int:
    """Fork the process that becomes the training, in a session of its own. Gives its pid to us, and 0 to it.

    It dies with this process (PDEATHSIG), so that killing the supervisor never leaves a run that trains unwatched; and
    whatever it leaves behind comes to us.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A SIGTERM that came before the training has its own handlers would be heard by ours and forgotten by exec.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return pid
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(CANNOT_START)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return 0


def open_log(job: Job) -> int:
    """Open the log of an attempt, whose folder is there."""
    path = Path(job.run_dir) / "attempts" / f"{job.attempt:03d}" / "console.log"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def use_log(log: int) -> None:
    """Have everything that this process and its children print go into a log, and let them read nothing."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(log, 1)
    os.dup2(log, 2)


def tell_runner(control: int) -> None:
    """Say that the training has ended well: the next one may start while that is written down."""
    # Where the runner is gone nobody hears it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        os.write(control, ENDED_WELL)


def reap_adopted(training: int) -> None:
    """Reap the descendants that have come to be our children and ended; not the training, which is waited for apart."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or ended.si_pid == training:
            return
        os.waitpid(ended.si_pid, 0)


def kill_descendants() -> None:
    """Kill every process that the training left, also detached ones, and return when none is left.

    Only own children are killed: they can't be confused with others, since their pids are ours until we reap them.
    Their children then become ours, and the next round finds them.
    """
    while has_children():
        for pid in list_children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)


def has_children() -> bool:
    """Tell whether this process has any child, alive or not yet reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def list_children(parent: int) -> list[int]:
    """Give the pids of a process's children that are alive or not yet reaped."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if read_parent(pid) == parent]


def read_parent(pid: int, proc: Path = ROOT / "proc") -> int | None:
    """Give the pid of a process's parent; None where the process has ended."""
    try:
        return int((proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):  # it ends while it is looked at
        return None


def find_reason(returncode: int, asked: str | None, *, out_of_memory: bool = False) -> str:
    """Say why an attempt ended, in the words of `exit.json`.

    A training that ended in any other way than of its own after it was asked to stop is one to go on with. One that was
    killed although nobody asked, while the kernel killed for memory, was the one.
    """
    if returncode in REASONS:
        return REASONS[returncode]
    if asked == "timeout":
        return "timeout"
    if asked is not None:
        return "requeue"
    if returncode == -signal.SIGKILL and out_of_memory:
        return "oom"
    return "signal" if returncode < 0 else "error"


def count_memory_kills(root: Path = ROOT) -> dict[str, int]:
    """Give how many processes the kernel has killed for memory so far, by the file that says so.

    Our control groups count their own; only without any, those of the whole machine say something.

    Args:
        root: where `proc` and `sys` are.
    """
    counts = {str(file): count for file in list_group_events(root) if (count := read_kills(file)) is not None}
    machine = root / "proc/vmstat"
    return counts or {str(machine): read_kills(machine) or 0}


def list_group_events(root: Path) -> list[Path]:
    """Give the files in which our control groups count, of versions 1 and 2.

    Where a container shows another path than its own, its own group is the mount's top.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        own = top / path.lstrip("/") / name
        files.append(own if own.exists() else top / name)
    return files


def read_kills(file: Path) -> int | None:
    """Give the kernel's count in a file; None where there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def has_risen(before: dict[str, int], after: dict[str, int]) -> bool:
    """Tell whether any count is higher than it was."""
    return any(count > before.get(name, count) for name, count in after.items())


def make_start_durable(run_dir: Path, attempt: int) -> None:
    """Make what the runner has written for this attempt last through a loss of power, which it has left to us."""
    folder = run_dir / "attempts" / f"{attempt:03d}"
    for path in (run_dir / "config.yaml", folder / "start.json", run_dir, folder.parent, folder):
        sync(path)


def sync(path: Path) -> None:
    """Have the disk hold a file as it is, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_ending(run_dir: Path, attempt: int, returncode: int, reason: str, usage: dict[str, float]) -> None:
    """Write the attempt's `exit.json`, and on success the run's first: that one alone makes the run DONE."""
    ending = {"ok": returncode == 0, "returncode": returncode, "reason": reason, "attempt": attempt}
    if returncode == 0:
        write_whole(run_dir / "exit.json", ending)
    write_whole(run_dir / "attempts" / f"{attempt:03d}" / "exit.json", ending | usage)


def write_whole(path: Path, value: dict[str, object]) -> None:
    """Write one JSON object so that a reader sees all of it or nothing, also after a loss of power."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("x") as file:
        json.dump(value, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def see_through(supervisor: Supervisor) -> int:
    """Run a job to its end; 1 when its folder can't be written any more."""
    try:
        supervisor.run()
    except OSError as error:
        where = error.filename or supervisor.job.run_dir
        sys.stderr.write(f"{where}: {error.strerror}; how the run ended is not written down\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(see_through(Supervisor(Job(**json.loads(sys.argv[1])), start_training)))
