"""One evaluation shared between processes: the same numbers for every number of them.

Seeds go out in blocks of a fixed size, each evaluated for itself on one thread, so that nothing depends on who took it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from experiment.engines.environment import THREAD_VARIABLES
from playing.endings import ERROR, ShareError

if TYPE_CHECKING:
    from training.protocol import Evaluation

BLOCK = 16
"""Episodes in a block: as many as the diffusion agents run side by side, one after the other for all others."""
ANSWER = '{"answer"'
"""Begins each line that is meant for us, whatever libraries print in between."""
PLAY = Path(__file__).resolve().parents[1] / "play.py"


@dataclass(frozen=True)
class Request:
    """Who is to act, and where: a run at a checkpoint, or an untrained policy. As plain JSON.

    Attributes:
        run: the folder of a run; None for an untrained policy.
        checkpoint, device: of the run's policy.
        policy: `random` or `scripted:<name>`; None for a run.
        env: the environment of an untrained policy; None for the one that it brings.
        env_kwargs: its arguments, or what is changed about those in which a run is evaluated.
        imports: modules that register environments.
    """

    run: str | None
    checkpoint: str
    device: str
    policy: str | None
    env: str | None
    env_kwargs: Mapping[str, Any]
    imports: Sequence[str]


@dataclass(frozen=True)
class Actor:
    """Who acted, and where, as plain JSON.

    Attributes:
        name: for people.
        facts: as in the header of recorded episodes.
        env_name, env_kwargs: where.
        references: mean returns that scores count from and to, `random` and `expert`; None where there are none.
    """

    name: str
    facts: Mapping[str, Any]
    env_name: str
    env_kwargs: Mapping[str, Any]
    references: Mapping[str, float] | None


class Sharer:
    """A process that evaluates blocks of seeds, closed at the end of a `with`."""

    def __init__(self, request: Request) -> None:
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
        self._process = subprocess.Popen(
            [sys.executable, str(PLAY), "share"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._request = request

    def __enter__(self) -> Sharer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self) -> Actor:
        """Have it open who is to act.

        Raises:
            ShareError: that can't be opened, and why; or the process ended.
        """
        return Actor(**self._ask(asdict(self._request)))

    def evaluate(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Give an `Evaluation`'s parts, as lists.

        Raises:
            ShareError: the evaluation failed, and why; or the process ended.
        """
        return self._ask({"seeds": list(seeds)})

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            line = next(line for line in stdout if line.startswith(ANSWER))
        except (StopIteration, BrokenPipeError):
            message = f"a process that evaluates ended on the way, with exit code {self._process.wait()}"
            raise ShareError(message, ERROR) from None
        answer: dict[str, Any] = json.loads(line)["answer"]
        if "failed" in answer:
            raise ShareError(answer["failed"], answer["code"])
        return answer


def share_evaluation(request: Request, seeds: Sequence[int], workers: int) -> tuple[Actor, Evaluation]:
    """Evaluate in so many processes, and give who acted and what came of it, one episode per seed in their order.

    Raises:
        ShareError: it can't be done, and why.
        MeasureError: the environment reports a measure in some episodes only.
    """
    blocks = [seeds[first : first + BLOCK] for first in range(0, len(seeds), BLOCK)]
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(blocks)):
        waiting.put(number)
    done: dict[int, dict[str, Any]] = {}

    def work(sharer: Sharer) -> Actor:
        actor = sharer.open()
        while True:
            try:
                number = waiting.get_nowait()
            except Empty:
                return actor
            done[number] = sharer.evaluate(blocks[number])

    count = min(workers, len(blocks))
    # Processes go first when something fails: threads that wait for an answer end with them.
    with ThreadPoolExecutor(count) as pool, ExitStack() as stack:
        sharers = [stack.enter_context(Sharer(request)) for _ in range(count)]
        futures = [pool.submit(work, sharer) for sharer in sharers]
        actors = [future.result() for future in as_completed(futures)]
    return actors[0], _join([done[number] for number in range(len(blocks))])


def _join(parts: Sequence[Mapping[str, Any]]) -> Evaluation:
    """Give one evaluation made of several.

    Raises:
        MeasureError: some have a measure that others lack.
    """
    from training.evaluation import FinishedEpisode, gather_evaluation

    seeds: list[int] = []
    episodes: list[FinishedEpisode] = []
    for part in parts:
        seeds += part["seeds"]
        for number, (episode_return, length) in enumerate(zip(part["returns"], part["lengths"], strict=True)):
            measures = {name: values[number] for name, values in part["measures"].items()}
            episodes.append(FinishedEpisode(episode_return, length, measures))
    return gather_evaluation(seeds, episodes)
