"""A project whose runs say that they have begun, and end when the test lets them."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from experiment.runners import list_runners

ROOT = Path(__file__).parents[2]
RUNNER = str(ROOT / "run_experiment.py")
TIMEOUT_S = 60

# Asked to stop, a run ends as one that wrote a checkpoint. It waits for that and for the gate at once: a handler that
# raises could come between two steps and be too late for a wait that has not begun.
SCRIPT = """
import os, select, signal, sys
asked, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, lambda *_: None)
name = os.path.basename(os.environ["GRIDPILOT_RUN_DIR"]).split("__")[0]
with open("ready", "w") as ready:
    ready.write(name + "\\n")
gate = os.open("gate", os.O_RDONLY | os.O_NONBLOCK)
if asked in select.select([asked, gate], [], [])[0]:
    sys.exit(75)
with open("truth.log", "a") as truth:
    truth.write(name + "\\n")
"""


class Project:
    """A spec with a foreign script. `start` starts runners; what a test leaves is ended by `close`."""

    def __init__(self, folder: Path, script: str = SCRIPT) -> None:
        self.folder = folder
        (folder / "work.py").write_text(script)
        for name in ("ready", "gate"):
            os.mkfifo(folder / name)
        # Open at both ends, so that nobody who opens one waits for us.
        self._ready = os.open(folder / "ready", os.O_RDWR)
        self._gate: int | None = None
        self._said = b""
        self._runners: list[subprocess.Popen[str]] = []

    def write_spec(self, values: list[int], meta: str = "", constants: str = "{}", name: str = "spec.yaml") -> None:
        (self.folder / name).write_text(
            f"meta_data: {{exp_name: spec, script_path: work.py{meta}}}\nconstants: {constants}\n"
            f"variables: {{index: {values}}}\n"
        )

    def start(
        self, *words: str, spec: str = "spec.yaml", terminal: int | None = None, machine: str | None = None
    ) -> subprocess.Popen[str]:
        """Start a runner, on a pseudo-terminal of its own where the end of one is given, else into a pipe.

        With a machine's name it has that, and processes of its own, as far as namespaces can make one.
        """

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        command = [sys.executable, RUNNER, "-e", spec, "-g", "cpu", "-j", "1", *words]
        if machine is not None:
            apart = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command = [*apart, "sh", "-c", 'hostname "$0" && exec "$@"', machine, *command]
        if terminal is None:
            runner = subprocess.Popen(
                command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        else:
            streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
            runner = subprocess.Popen(command, cwd=self.folder, text=True, preexec_fn=take_terminal, **streams)
        self._runners.append(runner)
        return runner

    def wait_until_begun(self, *names: str) -> None:
        """Return once runs with these labels have begun, each at least once since this was last asked."""
        wanted = list(names)
        while wanted:
            *lines, self._said = self._said.split(b"\n")
            for line in lines:
                if line.decode() in wanted:
                    wanted.remove(line.decode())
            if wanted:
                assert select.select([self._ready], [], [], TIMEOUT_S)[0], f"not begun: {wanted}"
                self._said += os.read(self._ready, 65536)

    def open_gate(self) -> None:
        """Let runs end, those in progress and all that follow."""
        self._gate = os.open(self.folder / "gate", os.O_RDWR)
        os.write(self._gate, b"open")

    def ended(self) -> list[str]:
        """Give the labels of the runs that have ended by themselves, in order of the alphabet."""
        path = self.folder / "truth.log"
        return sorted(path.read_text().split()) if path.exists() else []

    def ask(self, *words: str, expect: int = 0) -> str:
        """Give what a command prints, on either stream."""
        answer = subprocess.run(
            [sys.executable, RUNNER, *words], cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert answer.returncode == expect, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    def events(self, name: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / "logs/spec/events.jsonl").read_text().splitlines()]
        return [row for row in rows if row["event"] == name]

    def close(self) -> None:
        for detached in list_runners(self.folder / "logs/spec"):
            os.kill(detached.pid, signal.SIGKILL)
        for runner in self._runners:
            runner.kill()
            runner.communicate()
        for descriptor in (self._ready, self._gate):
            if descriptor is not None:
                os.close(descriptor)


def wait_until_ended(pid: int) -> None:
    """Return once a process that needn't be our child has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], TIMEOUT_S)[0], f"{pid} has not ended"
    finally:
        os.close(process)
