"""Warm launches: runs forked by a process that has imported what they need, as the runner sees it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiment.devices import CPU
from experiment.engines.environment import THREAD_VARIABLES, make_base_environment
from experiment.engines.standby import MAX_MESSAGE
from experiment.supervise import Job

READY_WITHIN_S = 120.0
"""Longer than importing takes on any disk; the runner hears nothing else meanwhile, where a run waits for it."""
MAX_DEATHS = 5
"""Of fork servers, one after another, that nobody gets around to ask: more are not worth the time."""
OWN_VARIABLES = frozenset({"GRIDPILOT_RUN_DIR", "GRIDPILOT_ATTEMPT"})
"""Those that nothing reads while it is imported: they may differ from run to run."""


class StartUnknownError(OSError):
    """The fork server died while it was asked: whether the run was started, its lock will tell."""


@dataclass(frozen=True)
class Needs:
    """What to import beforehand.

    Attributes:
        script: the training script, which becomes the server.
        trainers: names in its table.
        environments: their ids.
        pairs: of processes to keep waiting for the next runs.
    """

    script: str
    trainers: tuple[str, ...]
    environments: tuple[str, ...]
    pairs: int = 1


@dataclass(frozen=True)
class Forked:
    """The supervisor of a run that was forked: another process's child, or ours once that is gone."""

    pid: int
    pidfd: int


class ForkServer:
    """A fork server of ours. It begins to import when it is made, and nobody waits for that before the first run."""

    def __init__(self, needs: Needs) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wishes = asdict(needs) | {"socket": theirs.fileno()}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, needs.script, "--fork-server", json.dumps(wishes)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=make_server_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.is_ready = False

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def wait_until_ready(self) -> str | None:
        """Wait until everything is imported; give what went wrong, None for nothing.

        Raises:
            BrokenPipeError: somebody has killed it meanwhile, which says nothing about the next one.
        """
        if self.is_ready:
            return None
        if not select.select([self._socket], [], [], READY_WITHIN_S)[0]:
            return f"importing what runs need took over {READY_WITHIN_S:.0f} s"
        answer, _ = self._hear()
        if answer is None:
            code = self._process.wait()
            if code == -signal.SIGKILL:
                raise BrokenPipeError("the fork server was killed while it imported")
            return f"the process that was to import what runs need ended with {code}"
        if "failed" in answer:
            return f"what runs need can't be imported: {answer['failed']}"
        self.is_ready = True
        return None

    def fork(self, job: Job, environment: Mapping[str, str]) -> Forked | str:
        """Have a supervisor and its training forked; text where the server must not fork, which says why.

        Raises:
            BrokenPipeError: the server was gone before it was asked; nothing was started.
            StartUnknownError: it went while it was asked.
            OSError: the request is too long for the socket.
        """
        wishes = {key: value for key, value in asdict(job).items() if key not in ("lock_fd", "control_fd")}
        request = {"job": wishes, "environment": dict(environment)}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [job.lock_fd, job.control_fd])
        answer, descriptors = self._hear()
        if answer is None:
            raise StartUnknownError("the fork server died while a run was being started")
        if "refused" in answer:
            return str(answer["refused"])
        return Forked(answer["pid"], descriptors[0])

    def _hear(self) -> tuple[dict[str, Any] | None, Sequence[int]]:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE, 1)
        except ConnectionResetError:
            return None, []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return (json.loads(message) if message else None), descriptors

    def close(self) -> None:
        """End the server, which has nothing to save. Runs that it has forked go on."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def make_server_environment() -> dict[str, str]:
    """Give the variables that a fork server is started with: those of a run on the CPU with one thread."""
    return make_base_environment(1) | CPU.environment()


class WarmLauncher:
    """Forks runs where that gives what a process of their own would; where not, `start` says why.

    Args:
        needs: what to import beforehand.
        code_version: that of the code now, which is imported when it is first needed, or at `begin`.
    """

    def __init__(self, needs: Needs, code_version: str) -> None:
        self.code_version = code_version
        self._needs = needs
        self._server: ForkServer | None = None
        self._broken: str | None = None
        self._deaths = 0

    @property
    def server_pid(self) -> int | None:
        """The server's process, None where there is none now."""
        return None if self._server is None else self._server.pid

    def begin(self) -> None:
        """Make the server, so that it imports while we do other things."""
        self._server = self._server or ForkServer(self._needs)

    def renew(self, code_version: str) -> None:
        """See to it that this version of the code is imported in what is forked from now on."""
        if code_version != self.code_version:
            is_wanted = self._server is not None
            self.close()
            self.code_version = code_version
            # What could not be imported may have been repaired.
            self._broken, self._deaths = None, 0
            if is_wanted:
                self.begin()

    def explain_refusal(self, environment: Mapping[str, str]) -> str | None:
        """Say why a run with this environment has to be a process of its own; None where it can be forked."""
        return self._broken or explain_difference(environment, make_server_environment())

    def make_ready(self, find_code_version: Callable[[], str]) -> str | None:
        """Wait until the code has been imported as it is now; give why that can't be, None where it has."""
        while self._server is None or not self._server.is_ready:
            if failure := self._wait_for_server():
                return failure
            # Edited while it was imported, it may be in parts old and in parts new: then once more.
            self.renew(find_code_version())
        return None

    def start(self, job: Job, environment: Mapping[str, str]) -> Forked | str:
        """Fork a run that nothing refuses; text that says why where it turns out that it can't be.

        Raises:
            StartUnknownError: the server died on the way. The next run gets another one.
        """
        while (failure := self._wait_for_server()) is None:
            assert self._server is not None
            try:
                forked = self._server.fork(job, environment)
            except BrokenPipeError:
                self._deaths += 1
                self.close()
            except StartUnknownError:
                self._deaths += 1
                self.close()
                raise
            except OSError as error:
                return f"it can't be asked for: {error.strerror}"
            else:
                self._deaths = 0
                return forked
        return failure

    def _wait_for_server(self) -> str | None:
        """Have a server that is ready; give why there can't be one."""
        while self._broken is None and self._deaths < MAX_DEATHS:
            self.begin()
            assert self._server is not None
            try:
                self._broken = self._server.wait_until_ready()
            except BrokenPipeError:
                self._deaths += 1
                self.close()
                continue
            if self._broken is None:
                return None
        self.close()
        self._broken = self._broken or f"the fork server was killed {MAX_DEATHS} times in a row"
        return self._broken

    def close(self) -> None:
        """End the server. Runs that it has forked go on."""
        if self._server is not None:
            self._server.close()
            self._server = None


def explain_difference(wanted: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """Say which variables of a run's environment differ from the server's, since libraries read them when imported."""
    names = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    differing = [name for name in names if name not in OWN_VARIABLES]
    if set(differing) & set(THREAD_VARIABLES):
        return "it gets several threads, which libraries start when they are imported"
    if "CUDA_VISIBLE_DEVICES" in differing:
        return "it runs on a GPU, and forking before CUDA starts hasn't been tried on one yet"
    return f"it is started with another {', '.join(differing)}" if differing else None
