"""An evaluation shared between processes: the same blocks for every number of them, and one failure ends it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Self

import pytest

from playing import sharing
from playing.endings import ShareError
from playing.sharing import BLOCK, Actor, Request, share_evaluation
from training.measures import MeasureError

REQUEST = Request(None, "newest", "cpu", "random", "Some-v0", {}, [])
FIRST = 7
"""The first seed of a block that others overtake where there are others."""
ACTOR = Actor("random", {"kind": "random"}, "Some-v0", {}, None)


class FakeSharer:
    """Takes the place of a process; what it gives follows from the block."""

    made: list[FakeSharer]
    closed: int
    fails_at: int | None
    overtaken: threading.Event
    silent_from: int

    def __init__(self, request: Request) -> None:
        assert request is REQUEST
        self.blocks: list[list[int]] = []
        FakeSharer.made.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        FakeSharer.closed += 1

    def open(self) -> Actor:
        return ACTOR

    def evaluate(self, seeds: Sequence[int]) -> dict[str, Any]:
        self.blocks.append(list(seeds))
        if len(FakeSharer.made) > 1 and seeds[0] == FIRST:
            assert FakeSharer.overtaken.wait(60)
        FakeSharer.overtaken.set()
        if FakeSharer.fails_at in seeds:
            raise ShareError("the simulator is gone", 3)
        measures = {"distance": [seed / 2 for seed in seeds]} if seeds[0] < FakeSharer.silent_from else {}
        returns = [float(seed + 1000 * seeds[0]) for seed in seeds]
        return {"seeds": list(seeds), "returns": returns, "lengths": [9] * len(seeds), "measures": measures}


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSharer.overtaken = threading.Event()
    FakeSharer.made, FakeSharer.closed, FakeSharer.fails_at, FakeSharer.silent_from = [], 0, None, 10**9
    monkeypatch.setattr(sharing, "Sharer", FakeSharer)


def test_numbers_follow_from_the_seeds_and_not_from_who_evaluates() -> None:
    seeds = range(FIRST, FIRST + 5 * BLOCK + 3)
    results = {}
    for workers in (1, 2, 4, 50):
        FakeSharer.made.clear()
        FakeSharer.overtaken.clear()
        results[workers] = share_evaluation(REQUEST, seeds, workers)
    actor, evaluation = results[1]
    assert all(result == results[1] for result in results.values())
    assert actor is ACTOR
    assert evaluation.seeds == tuple(seeds)
    assert evaluation.measures == {"distance": tuple(seed / 2 for seed in seeds)}
    assert evaluation.returns[BLOCK + 1] == FIRST + BLOCK + 1 + 1000 * (FIRST + BLOCK)


def test_no_more_processes_are_started_than_there_are_blocks() -> None:
    share_evaluation(REQUEST, range(BLOCK + 1), 8)
    assert len(FakeSharer.made) == 2
    assert sorted(len(block) for sharer in FakeSharer.made for block in sharer.blocks) == [1, BLOCK]
    assert FakeSharer.closed == 2


def test_a_failure_is_told_once_and_every_process_is_closed() -> None:
    FakeSharer.fails_at = 2 * BLOCK
    with pytest.raises(ShareError, match="the simulator is gone") as error:
        share_evaluation(REQUEST, range(4 * BLOCK), 3)
    assert error.value.code == 3
    assert FakeSharer.closed == 3


def test_a_measure_that_only_some_blocks_have_is_refused() -> None:
    FakeSharer.silent_from = BLOCK
    with pytest.raises(MeasureError, match=rf"'distance'\] is missing in the last step of {BLOCK} of {2 * BLOCK} epi"):
        share_evaluation(REQUEST, range(2 * BLOCK), 2)
