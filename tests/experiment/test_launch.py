"""The event loop with real processes that do next to nothing."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from experiment.devices import CPU, Device, Gpu
from experiment.engines.local import Handle, Limits, LocalEngine, Work
from experiment.launch import launch_runs
from experiment.locks import acquire_lock
from experiment.outcomes import Request, RunOutcome, SweepResult, find_checkpoint_step, read_stop_request
from experiment.progress import Tally
from experiment.run import Run, State

TWO_GPUS = [Device(Gpu(index, index, f"GPU-{index}", "A", 1)) for index in range(2)]

POLITE = "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); open(%r, 'w').close(); signal.pause()"


@pytest.fixture(autouse=True)
def _hear_interrupts() -> Iterator[None]:
    """Ctrl-C is heard as on a terminal, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class RecordingView:
    """Keeps what the runner says, and can react to it."""

    def __init__(self, react: Callable[[str], None] = lambda _: None) -> None:
        self.lines: list[str] = []
        self.react = react

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.react(text)

    def update(self, handles: Sequence[Handle], tally: Tally) -> None:
        self.lines.append(str(tally))

    def close(self) -> None:
        self.lines.append("closed")


def make_runs(folder: Path, count: int) -> list[Run]:
    return [Run.create_path(folder, f"seed={index}", f"{index:016x}") for index in range(count)]


def launch(
    runs: Sequence[Run],
    code: str | Callable[[Run], str],
    *,
    jobs: int = 2,
    devices: Sequence[Device] = (CPU,),
    view: RecordingView | None = None,
    retries: int = 0,
    rerun: Sequence[str] = (),
    code_version: str = "v1",
    is_foreign: bool = False,
) -> tuple[SweepResult, RecordingView]:
    view = view or RecordingView()
    write = code if callable(code) else lambda _: code

    def make_work(run: Run, device: Device) -> Work:
        return Work("seed: 1\n", (sys.executable, "-IS", "-c", write(run)), is_foreign)

    request = Request(
        work=make_work,
        jobs=jobs,
        retries=retries,
        rerun=rerun,
        code_version=code_version,
        stop_path=runs[0].experiment_dir / "stop.json",
        stop_seen=read_stop_request(runs[0].experiment_dir / "stop.json"),
        rerun_command=lambda run: f"rerun {run.id}",
    )
    runs[0].experiment_dir.mkdir(parents=True, exist_ok=True)
    return launch_runs(runs, LocalEngine(Limits(threads=1), lambda: code_version), devices, request, view), view


def states(result: SweepResult) -> list[State]:
    return [outcome.state for outcome in result.outcomes]


def read_events(runs: Sequence[Run]) -> list[dict[str, object]]:
    return [json.loads(line) for line in runs[0].events_path.read_text().splitlines()]


def test_every_run_is_done_once_and_not_again(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 5)
    result, _ = launch(runs, "print('hi')")
    assert result.exit_code == 0
    assert states(result) == [State.DONE] * 5
    again, view = launch(runs, "raise SystemExit(9)")
    assert again.exit_code == 0
    assert all(not outcome.fresh for outcome in again.outcomes)
    assert not any("started" in line for line in view.lines)
    assert [event["event"] for event in read_events(runs)].count("started") == 5


def test_a_failing_run_does_not_stop_the_others_and_is_told_at_once(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    result, view = launch(runs, lambda run: "raise ValueError('boom')" if run == runs[0] else "0", jobs=1)
    assert result.exit_code == 1
    assert states(result) == [State.FAILED, State.DONE, State.DONE, State.DONE]
    told = view.lines.index("FAILED  seed=0 (error): ValueError: boom")
    assert told < view.lines.index("done    seed=1")
    assert any(str(runs[0].console_path(1)) in line for line in view.lines)
    assert any("rerun 0000000000000000" in line for line in view.lines)


def test_a_run_that_failed_before_is_left_unless_asked_for_or_the_code_changed(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    launch(runs, "raise SystemExit(1)")
    left, _ = launch(runs, "0")
    assert (left.exit_code, states(left), left.outcomes[0].fresh) == (1, [State.FAILED], False)
    changed, _ = launch(runs, "raise SystemExit(1)", code_version="v2")
    assert changed.outcomes[0].fresh
    asked, _ = launch(runs, "0", rerun=[runs[0].id], code_version="v2")
    assert asked.exit_code == 0
    assert runs[0].last_attempt() == 3


def test_a_retry_is_given_to_what_fails_and_not_to_refused_settings(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    result, _ = launch(runs, lambda run: f"raise SystemExit({1 if run == runs[0] else 2})", retries=2)
    assert result.exit_code == 1
    assert [run.last_attempt() for run in runs] == [3, 1]
    assert [outcome.ending.reason for outcome in result.outcomes if outcome.ending] == ["error", "config"]


def test_a_done_run_that_is_asked_for_runs_again_and_keeps_the_old_files(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    write = "import os; open(os.environ['GRIDPILOT_RUN_DIR'] + '/metrics.jsonl', 'x').write('{}\\n')"
    launch(runs, write)
    result, _ = launch(runs, write, rerun=[runs[0].id])
    assert result.exit_code == 0
    assert (runs[0].attempt_dir(1) / "archive/metrics.jsonl").exists()
    assert runs[0].metrics_path.exists()


def test_a_run_that_runs_again_and_loses_its_supervisor_once_it_is_done_is_done(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    launch(runs, "0")
    # As the supervisor does it at the end of a training, which it then doesn't live to write down for the attempt.
    code = (
        "import os, signal; folder = os.environ['GRIDPILOT_RUN_DIR']\n"
        "if os.environ['GRIDPILOT_ATTEMPT'] == '2': open(folder + '/exit.json', 'x').write('{}')\n"
        "os.kill(os.getppid(), signal.SIGKILL); signal.pause()"
    )
    result, _ = launch(runs, code, rerun=[runs[0].id])
    assert states(result) == [State.DONE]
    assert runs[0].last_attempt() == 2


def test_five_first_runs_failing_alike_stop_a_larger_sweep(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 8)
    result, _ = launch(runs, "raise ValueError('same')", jobs=1)
    assert result.exit_code == 4
    assert states(result) == [State.FAILED] * 5
    assert [run.status().state for run in runs[5:]] == [State.PENDING] * 3


def test_with_retries_a_hopeless_sweep_is_stopped_before_all_have_been_tried(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 12)
    result, _ = launch(runs, "raise ValueError('same')", jobs=2, retries=2)
    assert result.exit_code == 4
    tried = [run.last_attempt() for run in runs]
    assert tried[:4] == [3] * 4
    assert sum(tried) <= 18
    assert tried[6:] == [0] * 6


def test_once_something_has_worked_retries_wait_for_their_turn(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    fails = "import os, sys; sys.exit(os.environ['GRIDPILOT_ATTEMPT'] == '1')"
    launch(runs, lambda run: fails if run == runs[1] else "0", jobs=1, retries=1)
    order = [str(event["run"])[-1] for event in read_events(runs) if event["event"] == "started"]
    assert order == ["0", "1", "2", "3", "1"]


def test_a_sweep_with_nothing_left_is_not_called_stopped(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 6)
    launch(runs[:1], "0")
    result, view = launch(runs, "raise ValueError('same')", jobs=1)
    assert result.exit_code == 1
    assert not any("failed alike" in line for line in view.lines)


def test_a_device_on_which_all_fail_is_named_when_there_are_others(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 9)
    broken = (
        "import os, signal\nif os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-0': raise ValueError('same')\nsignal.pause()"
    )
    result, view = launch(runs, broken, devices=TWO_GPUS, jobs=2)
    assert result.exit_code == 4
    told = "The first 5 runs all failed alike (ValueError: same), all on device 0: leave it out by -g if it is broken"
    assert any(line.startswith(told) for line in view.lines)
    assert states(result).count(State.STOPPED) == 1


def test_a_run_that_wants_to_go_on_later_leaves_work(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    result, _ = launch(runs, lambda run: "raise SystemExit(75)" if run == runs[0] else "0")
    assert result.exit_code == 75
    assert runs[0].status().state is State.STOPPED
    resumed, _ = launch(runs, "0")
    assert resumed.exit_code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_lets_runs_checkpoint_and_starts_no_more(tmp_path: Path, number: int, code: int) -> None:
    runs = make_runs(tmp_path, 4)
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    polite = POLITE % str(fifo)

    def interrupt(text: str) -> None:
        if text.startswith("started"):
            fifo.read_bytes()
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT)
    result, view = launch(runs, polite, jobs=1, view=RecordingView(interrupt))
    assert result.exit_code == code
    assert [run.status().state for run in runs] == [State.STOPPED, *[State.PENDING] * 3]
    assert any(line.startswith("stopped seed=0 at step 0") for line in view.lines)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_kills_what_does_not_listen(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    deaf = f"import signal; signal.signal(15, signal.SIG_IGN); open({str(fifo)!r}, 'w').close(); signal.pause()"

    def interrupt(text: str) -> None:
        if text.startswith("started"):
            fifo.read_bytes()
            os.kill(os.getpid(), signal.SIGINT)
        if text.startswith("Stopping"):
            os.kill(os.getpid(), signal.SIGINT)

    result, _ = launch(runs, deaf, view=RecordingView(interrupt))
    assert result.exit_code == 130
    assert runs[0].status().state is State.STOPPED


def test_a_stop_request_of_another_process_is_heard(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 3)

    def ask(text: str) -> None:
        if text.startswith("started"):
            (tmp_path / "stop.json").write_text("now")

    polite = "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); signal.pause()"
    result, _ = launch(runs, polite, jobs=1, view=RecordingView(ask))
    assert result.exit_code == 75
    assert [run.status().state for run in runs][1:] == [State.PENDING] * 2


def test_an_old_stop_request_is_not_heard_again(tmp_path: Path) -> None:
    (tmp_path / "stop.json").write_text("long ago")
    result, _ = launch(make_runs(tmp_path, 2), "0")
    assert result.exit_code == 0


def test_a_vanished_device_is_retired_and_its_run_moves_on(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    gone = "import os, sys; sys.exit(3 if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-0' else 0)"
    result, view = launch(runs, gone, devices=TWO_GPUS, jobs=2)
    assert result.exit_code == 0
    assert states(result) == [State.DONE] * 4
    assert sum("device 0 is gone" in line for line in view.lines) == 1


def test_without_any_device_left_the_sweep_says_so(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    result, _ = launch(runs, "raise SystemExit(3)", devices=TWO_GPUS, jobs=2)
    assert result.exit_code == 3


def test_an_unused_device_takes_over_from_one_that_is_gone(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    gone = "import os, sys; sys.exit(3 if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-0' else 0)"
    result, _ = launch(runs, gone, devices=TWO_GPUS, jobs=1)
    assert result.exit_code == 0


def test_exit_code_three_of_a_foreign_script_is_a_failure_like_any_other(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    result, _ = launch(runs, "raise SystemExit(3)", devices=TWO_GPUS, is_foreign=True)
    assert result.exit_code == 1
    assert states(result) == [State.FAILED] * 2


def test_a_run_whose_device_was_gone_goes_on_when_it_is_back(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    assert launch(runs, "raise SystemExit(3)", devices=TWO_GPUS[:1])[0].exit_code == 3
    assert launch(runs, "0", devices=TWO_GPUS[:1])[0].exit_code == 0


def test_a_finished_run_is_never_run_again_whatever_was_seen_before(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)

    def finish_elsewhere(text: str) -> None:
        if text.startswith("started seed=0"):
            runs[1].attempt_dir(1).mkdir(parents=True)
            runs[1].exit_path.write_text(json.dumps({"ok": True, "returncode": 0, "reason": "ok", "attempt": 1}))

    result, _ = launch(runs, "0", jobs=1, view=RecordingView(finish_elsewhere), rerun=[runs[1].id])
    assert result.exit_code == 0
    assert runs[1].last_attempt() == 1


def test_what_failed_elsewhere_and_is_done_by_now_is_done(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    runs[0].attempt_dir(1).mkdir(parents=True)
    lock = acquire_lock(runs[0].lock_path)
    assert lock is not None
    ending = {"ok": False, "returncode": 1, "reason": "error", "attempt": 1}

    def fail_and_succeed_elsewhere(text: str) -> None:
        if text.startswith("started seed=1"):
            (runs[0].attempt_dir(1) / "exit.json").write_text(json.dumps(ending))
            os.close(lock)
        if text.startswith("failed  seed=0  (by another runner)"):
            runs[0].exit_path.write_text(json.dumps(ending | {"ok": True, "returncode": 0, "reason": "ok"}))

    result, _ = launch(runs, "0", view=RecordingView(fail_and_succeed_elsewhere))
    assert states(result) == [State.DONE] * 2
    assert result.exit_code == 0


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = RecordingView(
            lambda text: os.kill(os.getpid(), signal.SIGHUP) if text.startswith("started") else None
        )
        result, _ = launch(runs, "0", view=hang_up)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.exit_code == 0


def test_a_first_signal_after_a_stop_request_does_not_kill(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    polite = POLITE % str(fifo)

    def stop(text: str) -> None:
        if text.startswith("started"):
            fifo.read_bytes()
            (tmp_path / "stop.json").write_text("now")
        if text.startswith("Asked to stop"):
            os.kill(os.getpid(), signal.SIGINT)

    result, _ = launch(runs, polite, view=RecordingView(stop))
    ending = runs[0].read_exit(1)
    assert result.exit_code == 75
    assert ending is not None
    assert ending["returncode"] == 75


def test_a_run_that_another_runner_holds_is_waited_for_and_not_doubled(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    runs[0].attempt_dir(1).mkdir(parents=True)
    lock = acquire_lock(runs[0].lock_path)
    assert lock is not None

    def finish_elsewhere(text: str) -> None:
        if text.startswith("done    seed=1"):
            runs[0].exit_path.write_text(json.dumps({"ok": True, "returncode": 0, "reason": "ok", "attempt": 1}))
            os.close(lock)

    result, view = launch(runs, "0", view=RecordingView(finish_elsewhere))
    assert result.exit_code == 0
    assert any("by another runner" in line for line in view.lines)
    assert runs[0].last_attempt() == 1


def test_what_another_runner_left_unfinished_is_taken_over(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    runs[0].attempt_dir(1).mkdir(parents=True)
    lock = acquire_lock(runs[0].lock_path)
    assert lock is not None

    def die_elsewhere(text: str) -> None:
        if text.startswith("done    seed=1"):
            os.close(lock)

    result, _ = launch(runs, "0", view=RecordingView(die_elsewhere))
    assert result.exit_code == 0
    assert runs[0].last_attempt() == 2


def test_a_run_folder_that_can_not_be_written_stops_the_sweep_in_one_line(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    runs[1].folder.write_text("a file where a folder belongs")
    result, view = launch(runs, "0", jobs=1)
    assert result.exit_code == 1
    assert states(result) == [State.DONE]
    assert sum("can't be written" in line for line in view.lines) == 1


def test_the_newest_checkpoint_tells_where_a_run_stopped(tmp_path: Path) -> None:
    run = make_runs(tmp_path, 1)[0]
    assert find_checkpoint_step(run) == 0
    run.checkpoints_dir.mkdir(parents=True)
    for step in (100, 1740):
        (run.checkpoints_dir / f"step_{step:08d}.pt").touch()
    assert find_checkpoint_step(run) == 1740


def test_a_run_killed_from_outside_goes_on_and_harms_no_other(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    kill_once = (
        "import os\nmark = os.environ['GRIDPILOT_RUN_DIR'] + '/killed'\n"
        "if not os.path.exists(mark): open(mark, 'w').close(); os.kill(os.getpid(), 9)"
    )
    result, _ = launch(runs, lambda run: kill_once if run == runs[0] else "0")
    assert result.exit_code == 0
    assert [run.last_attempt() for run in runs] == [2, 1]


def test_a_run_that_is_always_killed_fails_in_the_end(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    result, _ = launch(runs, "import os; os.kill(os.getpid(), 9)")
    assert result.exit_code == 1
    assert (runs[0].last_attempt(), runs[0].status().reason) == (3, "signal")


def test_threads_of_a_resumed_run_are_those_of_its_first_attempt(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1)
    launch(runs, "raise SystemExit(75)")
    start = runs[0].attempt_dir(1) / "start.json"
    start.write_text(json.dumps(json.loads(start.read_text()) | {"threads": 7}))
    launch(runs, "import os; assert os.environ['OMP_NUM_THREADS'] == '7'")
    assert runs[0].status().state is State.DONE


def test_outcomes_follow_the_order_of_the_plan(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 6)
    result, _ = launch(runs, "0", jobs=3)
    outcomes: Sequence[RunOutcome] = result.outcomes
    assert [outcome.run.id for outcome in outcomes] == [run.id for run in runs]
