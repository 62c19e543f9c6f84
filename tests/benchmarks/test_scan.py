"""The benchmark of the scan runs, compares like with like, and tells a goal that is missed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import scan
from benchmarks.scan import Case, count_bytes, scan_naively
from rl.scan.backends import ScanBackendError, choose_backend
from rl.scan.selective import selective_scan

TINY = Case("tiny", 2, 32, 9, 3)


@pytest.fixture(autouse=True)
def _two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        choose_backend("c", "cpu", torch.float32)
    except ScanBackendError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(scan, "CASES", (TINY,))


def test_the_naive_loop_scans_too() -> None:
    arguments = TINY.draw(torch.device("cpu"))
    torch.testing.assert_close(scan_naively(*arguments), selective_scan(*arguments))


def test_all_ways_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert scan.main(["--repetitions", "1", "--times", "1", "--only", "tiny"]) in (0, 1)
    row = capsys.readouterr().out.splitlines()[-1]
    name, *cells = row.strip("| ").split(" | ")
    assert name == "tiny: 2 x 32 x 9 x 3"
    assert len(cells) == 8
    assert all(float(cell.split()[0]) >= 0 for cell in cells)


@pytest.mark.parametrize(("goal", "code"), [(1e-9, 0), (1e9, 1)])
def test_a_missed_goal_is_said_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], goal: float, code: int
) -> None:
    case = Case("tiny", 2, 32, 9, 3, torch_goal=goal, counted=False)
    monkeypatch.setattr(scan, "CASES", (case,))
    assert scan.main(["--repetitions", "1", "--times", "1"]) == code
    assert ("MISSED" in capsys.readouterr().out) == bool(code)


def test_a_case_that_is_not_there_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scan.main(["--only", "stage 9"])
    assert "'stage 9' names none of: tiny: 2 x 32 x 9 x 3" in capsys.readouterr().err


def test_what_has_to_be_moved_is_counted() -> None:
    """Forward reads u, delta, B and C and writes y; backward reads them and the slope again and writes gradients."""
    one, shared = 2 * 32 * 9, 2 * 4 * 3 * 9
    assert count_bytes(TINY) == 4 * ((2 + 1) * one + 2 * shared + (2 + 1 + 2) * one + (2 + 2) * shared)
