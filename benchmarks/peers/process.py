"""A peer's process: it is asked in lines of JSON, and answers in such."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What tells libraries how many threads to use: one, as for us."""


class PeerError(Exception):
    """A peer that ended instead of answering; the message has the end of what it said."""


class PeerProcess:
    """Holds a process that does the same work elsewhere; use it in a `with` statement.

    Args:
        python: of the peer's virtual environment.
        script: reads requests from its standard input, and writes nothing but answers to its standard output.
    """

    def __init__(self, python: Path, script: Path) -> None:
        self._words = (str(python), str(script))
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | dict.fromkeys(THREADS, "1"),
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            PeerError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            raise PeerError(
                f"{' '.join(self._words)} ended with {code}. It said:\n{self._said.read()[-2_000:].strip()}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            try:
                stream.close()
            except BrokenPipeError:
                continue  # what it never read is lost, and may be
