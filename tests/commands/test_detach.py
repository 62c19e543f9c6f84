"""A terminal that is closed, with and without `--detach`."""

import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.gated import RUNNER, TIMEOUT_S, Project, wait_until_ended


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


@pytest.fixture
def terminal() -> Iterator[list[int]]:
    """The two ends of a pseudo-terminal: ours, and that of the program in it. Whoever closes one takes it out."""
    ends = list(pty.openpty())
    yield ends
    for end in ends:
        os.close(end)


def detach(project: Project, *words: str) -> tuple[int, list[str]]:
    """Start a runner in the background; give its pid and what the command printed."""
    lines = project.ask("-e", "spec.yaml", "-g", "cpu", "-j", "1", "--detach", *words).splitlines()
    (line,) = [line for line in lines if line.startswith("the runner goes on in the background: pid ")]
    return int(line.split()[8]), lines


@pytest.mark.parametrize("words", [[], ["--plain"]])
def test_a_closed_terminal_lets_runs_checkpoint_and_the_runner_ends_with_129(
    project: Project, terminal: list[int], words: list[str]
) -> None:
    project.write_spec([0, 1], meta=", on_finish: [sh, -c, 'echo $GRIDPILOT_EXIT_CODE $GRIDPILOT_LEFT > finished']")
    runner = project.start(*words, terminal=terminal.pop())
    project.wait_until_begun("index=0")
    os.close(terminal.pop())
    assert runner.wait(TIMEOUT_S) == 129
    assert [event["exit_code"] for event in project.events("left")] == [129]
    assert "1 STOPPED, 1 PENDING" in project.ask("status", "-e", "spec.yaml")
    assert (project.folder / "finished").read_text() == "129 2\n"


def test_with_detach_a_closed_terminal_changes_nothing(project: Project, terminal: list[int]) -> None:
    project.write_spec([0, 1])
    command = project.start("--detach", terminal=terminal.pop())
    assert command.wait(TIMEOUT_S) == 0
    project.wait_until_begun("index=0")
    shown = os.read(terminal[0], 65536).decode().splitlines()
    assert [line.split(":")[0] for line in shown] == [
        "the runner goes on in the background",
        "its lines",
        "how far it is",
    ]
    os.close(terminal.pop())
    pid = int(shown[0].split()[8])
    os.kill(pid, signal.SIGHUP)
    assert os.getsid(pid) == pid
    project.open_gate()
    wait_until_ended(pid)
    assert project.ended() == ["index=0", "index=1"]
    assert [(event["exit_code"], event["pid"]) for event in project.events("left")] == [(0, pid)]


def test_a_runner_in_the_background_is_seen_stopped_and_its_exit_code_found(project: Project) -> None:
    project.write_spec([0, 1])
    pid, lines = detach(project)
    assert lines[1] == "its lines: logs/spec/runner.log"
    assert f"{RUNNER} status -e logs/spec" in lines[2]
    assert f"{RUNNER} stop -e logs/spec" in lines[2]
    project.wait_until_begun("index=0")
    assert f"\nrunner pid {pid} on " in project.ask("status", "-e", "spec.yaml")
    assert ": logs/spec/runner.log\n" in project.ask("status", "-e", "spec.yaml")
    project.ask("stop", "-e", "spec.yaml")
    wait_until_ended(pid)
    left = project.ask("status", "-e", "spec.yaml")
    assert left.splitlines()[-1].startswith("no runner is at work; one left at ")
    assert left.endswith(" with exit code 75\n")


def test_each_launch_has_a_heading_in_the_log(project: Project) -> None:
    project.write_spec([0, 1])
    project.open_gate()
    pids = []
    for more in ([], ["-o", "index=[2]"]):
        pid, _ = detach(project, *more)
        wait_until_ended(pid)
        pids.append(pid)
    log = (project.folder / "logs/spec/runner.log").read_text().splitlines()
    headings = [line for line in log if line.startswith("=== ")]
    assert [f" pid {pid} on " in heading for pid, heading in zip(pids, headings, strict=True)] == [True, True]
    assert headings[1].endswith("-o 'index=[2]'")
    assert log[-1] == "1 done"
    assert "done    index=1" in log


@pytest.mark.parametrize(
    ("words", "spec", "code", "message"),
    [
        (
            [],
            "meta_data: {script_path: trian.py}\nvariables: {seed: [1]}\n",
            2,
            "spec.yaml:1:26: the script 'trian.py'",
        ),
        (["-g", "x"], None, 2, "-g x"),
        (["--rerun", "ffff"], None, 2, "--rerun ffff: the spec has no run with this id"),
        (["--log-root", "work.py"], None, 2, "work.py"),
        (["-n"], None, 2, "--detach goes with a launch"),
    ],
)
def test_what_is_wrong_is_told_before_the_command_returns(
    project: Project, words: list[str], spec: str | None, code: int, message: str
) -> None:
    project.write_spec([0])
    if spec is not None:
        (project.folder / "spec.yaml").write_text(spec)
    said = project.ask("-e", "spec.yaml", "-g", "cpu", "--detach", *words, expect=code)
    assert message in said
    assert "in the background" not in said
    assert not (project.folder / "logs").exists()


def test_a_spec_with_an_environment_that_is_not_there_is_told_before_the_command_returns(project: Project) -> None:
    (project.folder / "train.py").symlink_to(Path(RUNNER).parent / "train.py")
    settings = "algorithm_name: ddpg, env_name: Pendulm-v1, max_timesteps: 40, learning_starts: 10, batch_size: 8"
    (project.folder / "spec.yaml").write_text(f"constants: {{{settings}}}\n")
    said = project.ask("-e", "spec.yaml", "-g", "cpu", "--detach", expect=2)
    assert "did you mean 'Pendulum-v1'?" in said
    assert not (project.folder / "logs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_command_that_is_ended_before_it_returns_leaves_nothing_behind(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(project.folder))
    (project.folder / "train.py").symlink_to(Path(RUNNER).parent / "train.py")
    (project.folder / "slow.py").write_text(
        "import os\nopen('pid', 'w').write(str(os.getppid()))\nopen('ready', 'w').write('checking\\n')\n"
        "open('gate').read(1)\n"
    )
    settings = "algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 40, learning_starts: 10, batch_size: 8"
    (project.folder / "spec.yaml").write_text(
        f"meta_data: {{imports: [slow], exp_name: spec}}\nconstants: {{{settings}}}\n"
    )
    command = project.start("--detach", "--no-report")
    project.wait_until_begun("checking")
    command.send_signal(number)
    if number == signal.SIGTERM:
        assert command.wait(TIMEOUT_S) == code
        project.open_gate()
    said, _ = command.communicate(timeout=TIMEOUT_S)
    assert command.returncode == code
    wait_until_ended(int((project.folder / "pid").read_text()))
    assert said == "Stopped before anything was started.\n"
    assert not list(project.folder.glob("logs/spec/*__*"))


def test_nothing_in_the_background_holds_the_terminal_or_a_pipe_of_the_command(project: Project) -> None:
    """Whoever reads what the command prints sees its end while runs go on, forked ones too: `ssh host ...` returns."""
    (project.folder / "train.py").symlink_to(Path(RUNNER).parent / "train.py")
    settings = "algorithm_name: ddpg, env_name: Pendulum-v1, learning_starts: 10, batch_size: 8, hidden_dims: [16, 16]"
    (project.folder / "spec.yaml").write_text(
        f"constants: {{{settings}, max_timesteps: 10_000_000}}\nvariables: {{seed: [1, 2]}}\n"
    )
    pid, _ = detach(project, "-j", "2", "--no-report")
    project.ask("stop", "-e", "spec.yaml")
    wait_until_ended(pid)
    assert [event["exit_code"] for event in project.events("left")] == [75]
