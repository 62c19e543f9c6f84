"""Runs that are forked: as separate as processes of their own, and started all the same where forking can't be."""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from experiment.devices import CPU, Device, Gpu
from experiment.engines.fork_server import find_obstacle
from experiment.engines.local import Limits, LocalEngine, Work, make_environment
from experiment.engines.warm import (
    MAX_DEATHS,
    Forked,
    ForkServer,
    Needs,
    StartUnknownError,
    WarmLauncher,
    explain_difference,
    make_server_environment,
)
from experiment.launch import launch_runs
from experiment.locks import acquire_lock, is_locked
from experiment.outcomes import Request, SweepResult
from experiment.run import Run, State
from experiment.supervise import Job
from tests.experiment.test_launch import RecordingView, make_runs, read_events, states

# A training script in small: what it does is the text in its config.
SCRIPT = """
import json, os, sys
sys.path.insert(0, %(root)r)
PRELOADED = []
def main(words):
    exec(open(words[1]).read(), {"PRELOADED": PRELOADED})
    return 0
def preload():
    %(preload)s
    PRELOADED.append(os.getpid())
if __name__ == "__main__":
    if sys.argv[1] == "--fork-server":
        from experiment.engines.fork_server import Parts, serve
        from experiment.engines.standby import Play
        asked = json.loads(sys.argv[2])
        sys.exit(serve(asked["socket"], Parts(preload, Play(main, lambda: %(rehearse)s), asked["pairs"])))
    sys.exit(main(sys.argv[1:]))
"""
ROOT = str(Path(__file__).parents[2])


def write_script(folder: Path, preload: str = "pass", rehearse: str = "None") -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT % {"root": ROOT, "preload": preload, "rehearse": rehearse})
    return path


def launch(
    runs: Sequence[Run],
    script: Path,
    code: str | Callable[[Run], str],
    *,
    jobs: int = 2,
    devices: Sequence[Device] = (CPU,),
    threads: int = 1,
    view: RecordingView | None = None,
    find_version: Callable[[], str] = lambda: "v1",
    retries: int = 0,
) -> tuple[SweepResult, RecordingView]:
    view = view or RecordingView()

    def make_work(run: Run, device: Device) -> Work:
        text = code if isinstance(code, str) else code(run)
        return Work(text, (sys.executable, str(script), "-e", str(run.config_path)), False)

    folder = runs[0].experiment_dir
    folder.mkdir(exist_ok=True)
    request = Request(
        work=make_work,
        jobs=jobs,
        retries=retries,
        rerun=(),
        code_version="v1",
        stop_path=folder / "stop.json",
        stop_seen=None,
        rerun_command=lambda run: f"rerun {run.id}",
    )
    warm = WarmLauncher(Needs(str(script), (), ()), find_version())
    engine = LocalEngine(Limits(threads=threads, orphan_grace_s=0.2), find_version, warm)
    return launch_runs(runs, engine, devices, request, view), view


def read_log(run: Run, attempt: int = 1) -> str:
    return run.console_path(attempt).read_text()


def count_warm(runs: Sequence[Run]) -> int:
    return sum(bool(event["warm"]) for event in read_events(runs) if event["event"] == "started")


def test_forked_runs_have_what_processes_of_their_own_have(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 3)
    code = """
import json, os, sys
names = os.listdir("/proc/self/fd")
print(json.dumps({
    "pid": os.getpid(), "session": os.getsid(0), "parent_session": os.getsid(os.getppid()), "argv": sys.argv,
    "environment": dict(os.environ), "server": PRELOADED[0],
    "open": [os.readlink("/proc/self/fd/" + name) for name in names if os.path.exists("/proc/self/fd/" + name)],
}))
"""
    result, _ = launch(runs, write_script(tmp_path), code)
    assert states(result) == [State.DONE] * 3
    assert count_warm(runs) == 3
    seen = [json.loads(read_log(run)) for run in runs]
    assert len({row["pid"] for row in seen} | {row["server"] for row in seen}) == 4
    for run, row in zip(runs, seen, strict=True):
        assert row["session"] == row["pid"] != row["parent_session"]
        assert row["argv"] == [str(tmp_path / "script.py"), "-e", str(run.config_path)]
        lock = row["environment"].pop("GRIDPILOT_LOCK_FD")
        assert row["environment"] == make_environment(run, 1, Work("", (), False), CPU, 1)
        assert int(lock) > 2
        paths = [path for path in row["open"] if not path.startswith("/proc")]
        # The log is stdout and stderr, and the socket is for telling the runner how it ended.
        there = ["/dev/null", str(run.console_path(1)), str(run.console_path(1)), str(run.lock_path)]
        assert sorted(path for path in paths if not path.startswith("socket:")) == sorted(there)
        assert len(paths) == len(there) + 1


def test_how_a_forked_run_ends_is_what_its_code_says(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 5)
    codes = {
        runs[0].id: "import sys; sys.exit(75)",
        runs[1].id: "raise ValueError('boom')",
        runs[2].id: "raise SystemExit('a text')",
        runs[3].id: "import atexit, threading\natexit.register(print, 'last')\n"
        "threading.Thread(target=print, args=['first']).start()",
        runs[4].id: "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    }
    result, _ = launch(runs, write_script(tmp_path), lambda run: codes[run.id])
    assert states(result) == [State.STOPPED, State.FAILED, State.FAILED, State.DONE, State.FAILED]
    endings = [run.read_exit(1) for run in runs]
    assert [ending and ending["returncode"] for ending in endings] == [75, 1, 1, 0, -signal.SIGSEGV]
    assert read_log(runs[1]).endswith("ValueError: boom\n")
    assert read_log(runs[2]) == "a text\n"
    assert read_log(runs[3]).split() == ["first", "last"]
    assert count_warm(runs) == 5


def test_a_forked_run_hears_of_a_broken_pipe_as_any_python_does(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 1)
    code = """
import os
reader, writer = os.pipe()
os.close(reader)
try:
    os.write(writer, b"x")
except BrokenPipeError:
    print("nobody reads")
"""
    result, _ = launch(runs, write_script(tmp_path), code)
    assert states(result) == [State.DONE]
    assert read_log(runs[0]) == "nobody reads\n"
    assert count_warm(runs) == 1


def test_a_forked_run_ends_although_a_pool_of_threads_still_waits_for_work(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 1)
    code = """
import builtins, signal
from concurrent.futures import ThreadPoolExecutor
signal.alarm(30)
builtins.POOL = ThreadPoolExecutor(1)
print(builtins.POOL.submit(int, "3").result())
"""
    result, _ = launch(runs, write_script(tmp_path), code)
    assert states(result) == [State.DONE]
    assert read_log(runs[0]) == "3\n"
    assert count_warm(runs) == 1


def test_a_rehearsal_that_fails_costs_no_run(tmp_path: Path) -> None:
    server = ForkServer(Needs(str(write_script(tmp_path, rehearse="1 / 0")), (), ()))
    try:
        assert server.wait_until_ready() is None
        wait_for_children(server.pid)
        run = fork_one(server, tmp_path)
        assert read_log(run) == "started\n"
        assert run.is_done()
    finally:
        server.close()


@pytest.mark.parametrize(
    ("preload", "reason"),
    [
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "threads (1)"),
        ("raise ImportError('no such thing')", "ImportError: no such thing"),
        ("os._exit(7)", "ended with 7"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_where_forking_is_not_safe_runs_are_processes_of_their_own(tmp_path: Path, preload: str, reason: str) -> None:
    runs = make_runs(tmp_path / "exp", 3)
    result, view = launch(runs, write_script(tmp_path, preload), "print('hi')")
    assert states(result) == [State.DONE] * 3
    assert count_warm(runs) == 0
    assert [line for line in view.lines if "not forked" in line and line.endswith(reason)] == [
        line for line in view.lines if "not forked" in line
    ]
    assert sum("not forked" in line for line in view.lines) == 1


def test_runs_with_several_threads_or_on_a_gpu_are_processes_of_their_own(tmp_path: Path) -> None:
    script = write_script(tmp_path)
    runs = make_runs(tmp_path / "threads", 2)
    _, view = launch(runs, script, "0", threads=2)
    assert count_warm(runs) == 0
    assert any("several threads" in line for line in view.lines)
    runs = make_runs(tmp_path / "gpu", 2)
    _, view = launch(runs, script, "0", devices=[Device(Gpu(0, 0, "GPU-0", "A", 1))])
    assert count_warm(runs) == 0
    assert any("GPU" in line for line in view.lines if "not forked" in line)


def test_only_what_a_run_sets_itself_may_differ_from_the_server() -> None:
    there = make_server_environment()
    assert explain_difference(there | {"GRIDPILOT_RUN_DIR": "/x", "GRIDPILOT_ATTEMPT": "2"}, there) is None
    assert explain_difference(there | {"LD_PRELOAD": "/x.so"}, there) == "it is started with another LD_PRELOAD"
    assert "threads" in str(explain_difference(there | {"OMP_NUM_THREADS": "4"}, there))


def test_code_that_was_edited_is_imported_anew(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 4)
    script = write_script(tmp_path, "PRELOADED.append('old')")
    versions = ["v1"]
    os.mkfifo(tmp_path / "fifo")

    def edit(line: str) -> None:
        if line.startswith("done") and versions == ["v1"]:
            write_script(tmp_path, "PRELOADED.append('new')")
            versions.append("v2")
            os.close(os.open(tmp_path / "fifo", os.O_WRONLY))

    view = RecordingView(edit)
    # The second is on its way when the first is told to be done, and ends when the code has been edited.
    wait = f"open({str(tmp_path / 'fifo')!r}).read()"
    code = lambda run: "print(PRELOADED[0])\n" + (wait if run == runs[1] else "")  # noqa: E731
    launch(runs, script, code, jobs=1, view=view, find_version=lambda: versions[-1])
    logs = [read_log(run).strip() for run in runs]
    assert logs == ["old", "old", "new", "new"]
    for run, log in zip(runs, logs, strict=True):
        assert run.read_start(1)["code_version"] == {"old": "v1", "new": "v2"}[log]
    assert count_warm(runs) == 4


def test_edited_code_is_imported_beforehand_only_where_runs_are_forked_at_all(tmp_path: Path) -> None:
    warm = WarmLauncher(Needs(str(write_script(tmp_path)), (), ()), "v1")
    warm.renew("v2")
    assert warm.server_pid is None
    assert warm.code_version == "v2"


def test_code_that_could_not_be_imported_and_was_repaired_is_forked(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 2)
    script = write_script(tmp_path, "1 / 0")
    versions = ["v1"]

    def repair(line: str) -> None:
        if line.startswith("started") and versions == ["v1"]:
            write_script(tmp_path)
            versions.append("v2")

    result, _ = launch(runs, script, "0", jobs=1, view=RecordingView(repair), find_version=lambda: versions[-1])
    assert states(result) == [State.DONE] * 2
    assert [event["warm"] for event in read_events(runs) if event["event"] == "started"] == [False, True]


def test_code_that_was_edited_while_it_was_imported_is_imported_once_more(tmp_path: Path) -> None:
    warm = WarmLauncher(Needs(str(write_script(tmp_path)), (), ()), "v1")
    try:
        warm.begin()
        first = warm.server_pid
        assert warm.make_ready(lambda: "v2") is None
        assert warm.code_version == "v2"
        assert warm.server_pid not in (None, first)
    finally:
        warm.close()


def find_server(run: Run) -> int:
    """Give the fork server's pid, which the run has written into its log."""
    return int(read_log(run).split()[0])


def test_a_killed_server_is_replaced_and_harms_no_run(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 6)
    wait = f"import os; open({str(tmp_path / 'fifo')!r}).read()"
    os.mkfifo(tmp_path / "fifo")
    killed: list[int] = []

    def kill(line: str) -> None:
        if line.startswith("done") and not killed:
            killed.append(find_server(runs[1]))
            os.kill(killed[0], signal.SIGKILL)
            (tmp_path / "killed").touch()
            os.close(os.open(tmp_path / "fifo", os.O_WRONLY))

    # The third may begin before the end of the second is told; the others begin after it.
    stay = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'killed')!r}): time.sleep(0.01)"
    ends = {runs[0].id: wait, runs[2].id: stay}
    code = lambda run: "print(PRELOADED[0], flush=True)\n" + ends.get(run.id, "")  # noqa: E731
    result, _ = launch(runs, write_script(tmp_path), code, view=RecordingView(kill))
    assert states(result) == [State.DONE] * 6
    attempts = [run.last_attempt() for run in runs]
    # A run that was asked for as the server died may have been lost with the question; those that ran were not.
    assert attempts[:2] == [1, 1]
    assert sum(attempts) <= 7
    assert find_server(runs[0]) == killed[0] != find_server(runs[5])
    assert count_warm(runs) == 6


def test_a_killed_supervisor_leaves_nothing_and_its_run_goes_on(tmp_path: Path) -> None:
    # The training starts a process that has detached itself and ignores SIGTERM, then has its supervisor killed.
    code = f"""
import os, signal, time
if os.environ["GRIDPILOT_ATTEMPT"] == "1":
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open({str(tmp_path / "left")!r}, "w").write(str(os.getpid()))
            os.write(writer, b"x")
            signal.pause()
        os._exit(0)
    os.read(reader, 1)
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()
"""
    for number, script in enumerate((write_script(tmp_path), tmp_path / "script.py")):
        runs = make_runs(tmp_path / f"exp{number}", 2)
        result, _ = launch(runs, script, code, jobs=1, threads=1 + number)
        assert states(result) == [State.DONE] * 2
        assert [run.last_attempt() for run in runs] == [2, 2]
        assert count_warm(runs) == (0 if number else 4)
        assert not Path("/proc", (tmp_path / "left").read_text(), "exe").exists()


@pytest.mark.parametrize(("kills", "warm"), [(2, 2), (99, 0)])
def test_servers_that_are_killed_while_they_import_are_replaced_some_times(
    tmp_path: Path, kills: int, warm: int
) -> None:
    log = f"log = os.open({str(tmp_path / 'log')!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT); os.write(log, b'x')"
    script = write_script(tmp_path, f"{log}; os.fstat(log).st_size > {kills} or os.kill(os.getpid(), 9)")
    runs = make_runs(tmp_path / "exp", 2)
    result, view = launch(runs, script, "0", jobs=1)
    assert states(result) == [State.DONE] * 2
    assert count_warm(runs) == warm
    assert any("killed 5 times in a row" in line for line in view.lines) == (not warm)


def test_a_server_that_dies_while_it_is_asked_leaves_the_run_to_its_lock(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, socket, sys\n"
        "runner = socket.socket(fileno=json.loads(sys.argv[2])['socket'])\n"
        "runner.send(b'{\"ready\": true}')\n"
        "runner.recv(100_000)\n"
    )
    server = ForkServer(Needs(str(script), (), ()))
    try:
        assert server.wait_until_ready() is None
        reader, writer = (end.detach() for end in socket.socketpair())
        job = Job(reader, writer, "/nowhere", 1, [], None, 1.0, 1.0)
        with pytest.raises(StartUnknownError):
            server.fork(job, {})
        with pytest.raises(BrokenPipeError):
            server.fork(job, {})
        os.close(reader)
        os.close(writer)
    finally:
        server.close()


def test_where_every_server_dies_when_it_is_asked_runs_are_processes_of_their_own(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "exp", 1)
    script = tmp_path / "script.py"
    script.write_text(
        "import json, signal, socket, sys\n"
        "if sys.argv[1] == '--fork-server':\n"
        "    runner = socket.socket(fileno=json.loads(sys.argv[2])['socket'])\n"
        "    runner.send(b'{\"ready\": true}')\n"
        "    runner.recv(100_000)\n"
    )

    def give_up(line: str) -> None:
        if runs[0].last_attempt() > 2 * MAX_DEATHS:
            os.kill(os.getpid(), signal.SIGTERM)

    result, view = launch(runs, script, "", view=RecordingView(give_up))
    assert states(result) == [State.DONE]
    assert count_warm(runs) == 0
    assert any(f"was killed {MAX_DEATHS} times in a row" in line for line in view.lines)


def test_a_run_whose_start_is_unknown_is_started_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs(tmp_path / "exp", 2)
    fork, lost = ForkServer.fork, []

    def lose_the_first(server: ForkServer, job: Job, environment: dict[str, str]) -> object:
        if lost:
            return fork(server, job, environment)
        lost.append(job.run_dir)
        forked = fork(server, job, environment)
        assert isinstance(forked, Forked)
        os.close(forked.pidfd)
        raise StartUnknownError("lost on the way")

    monkeypatch.setattr(ForkServer, "fork", lose_the_first)
    wait = "import os, signal, sys\nif os.environ['GRIDPILOT_ATTEMPT'] == '1' and %r in sys.argv[2]: signal.pause()"
    result, _ = launch(runs, write_script(tmp_path), wait % runs[0].id)
    assert states(result) == [State.DONE] * 2
    assert lost == [str(runs[0].folder)]
    # Its supervisor saw that nobody listens to it, ended it, and said so.
    assert (runs[0].read_exit(1) or {})["reason"] == "requeue"
    assert runs[0].last_attempt() == 2


def test_a_killed_pair_in_waiting_is_replaced(tmp_path: Path) -> None:
    server = ForkServer(Needs(str(write_script(tmp_path)), (), ()))
    try:
        assert server.wait_until_ready() is None
        (waiting,) = wait_for_children(server.pid)
        ended = os.pidfd_open(waiting)
        os.kill(waiting, signal.SIGKILL)
        assert select.select([ended], [], [], 30)[0]
        os.close(ended)
        run = fork_one(server, tmp_path)
        assert read_log(run) == "started\n"
        assert run.is_done()
        assert not is_locked(run.lock_path)
    finally:
        server.close()


def fork_one(server: ForkServer, folder: Path) -> Run:
    """Have a run forked that says that it has started, and give it once it is over."""
    run = Run.create_path(folder, "run", "0123456789abcdef")
    run.attempt_dir(1).mkdir(parents=True)
    run.start_path(1).touch()
    run.config_path.write_text("print('started')")
    lock = acquire_lock(run.lock_path)
    assert lock is not None
    reader, writer = (end.detach() for end in socket.socketpair())
    command = [sys.executable, str(folder / "script.py"), "-e", str(run.config_path)]
    forked = server.fork(Job(lock, reader, str(run.folder), 1, command, None, 1.0, 1.0), dict(os.environ))
    assert not isinstance(forked, str)
    os.close(lock)
    os.close(reader)
    assert select.select([forked.pidfd], [], [], 30)[0]
    os.close(forked.pidfd)
    os.close(writer)
    return run


def wait_for_children(pid: int) -> list[int]:
    """Give the children of the server, once there is one."""
    while True:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(name))
        if found:
            return found


def test_a_loaded_gpu_driver_or_a_thread_is_an_obstacle(tmp_path: Path) -> None:
    task, maps = tmp_path / "proc/self/task", tmp_path / "proc/self/maps"
    (task / "1").mkdir(parents=True)
    maps.write_text("7f00-7f01 r-xp 0 00:00 0 /usr/lib/libc.so.6\n")
    assert find_obstacle(tmp_path) is None
    maps.write_text("7f00-7f01 r-xp 0 00:00 0 /usr/lib/libnvidia-ml.so.1\n")
    assert find_obstacle(tmp_path) == "what was imported has loaded libnvidia-ml.so"
    (task / "2").mkdir()
    assert find_obstacle(tmp_path) == "what was imported has started threads (1)"
