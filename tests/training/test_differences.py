"""Where two states differ is told leaf by leaf, down to a bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checkpoint import CheckpointStore
from training.differences import list_state_differences, main
from training.rowlog import RowLog

STATE: dict[str, Any] = {
    "net": {"weight": torch.zeros(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "rng": np.arange(4, dtype=np.uint32),
    "count": 3,
    "rate": 0.5,
    "rows": RowLog(np.zeros((4, 2), np.float32), 3),
}


def differ(change: dict[str, Any]) -> list[tuple[str, str]]:
    return [(found.path, found.text) for found in list_state_differences(STATE, STATE | change)]


def test_equal_states_have_no_differences() -> None:
    same = {"net": {name: value.clone() for name, value in STATE["net"].items()}, "rng": STATE["rng"].copy()}
    assert differ(same) == []


def test_a_tensor_is_said_to_differ_by_its_first_number() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 0] = 0.25
    half = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert differ({"net": {"weight": weight, "half": half}}) == [
        ("net/half", "1 of 2 numbers, the first [1]: 1.0 and 2.0"),
        ("net/weight", "1 of 6 numbers, the first [1, 0]: 0.0 and 0.25"),
    ]


def test_a_single_bit_and_a_type_make_a_difference() -> None:
    minus = torch.zeros(2, 3)
    minus[0, 0] = -0.0
    assert differ({"net": STATE["net"] | {"weight": minus}}) == [
        ("net/weight", "1 of 6 numbers, the first [0, 0]: 0.0 and -0.0")
    ]
    assert differ({"rng": np.arange(4)}) == [("rng", "uint32 (4,) and int64 (4,)")]
    assert differ({"rng": torch.from_numpy(np.arange(4, dtype=np.uint32))}) == [
        ("rng", "uint32 (4,), kept in another type")
    ]
    assert differ({"count": 4, "rate": float("nan")}) == [("count", "3 and 4"), ("rate", "0.5 and nan")]


def test_rows_and_missing_leaves_are_told() -> None:
    rows = np.zeros((4, 2), np.float32)
    rows[2, 1] = 7
    assert differ({"rows": RowLog(rows, 3)}) == [("rows", "of 3 rows, 1 of 8 numbers, the first [2, 1]: 0.0 and 7.0")]
    assert differ({"rows": RowLog(rows, 5)}) == [("rows", "3 rows and 5 rows were ever added")]
    assert differ({"more": 1, "rate": {}}) == [("rate", "0.5 and {}"), ("more", "only in the second")]
    assert [found.text for found in list_state_differences({"a": 1}, {})] == ["only in the first", "only in the second"]


def save(folder: Path, step: int, count: int, *, drop: bool = False) -> Path:
    rows = np.full((4, 2), count, np.float32)
    state = {
        "trainer": {"count": count, "rows": RowLog(rows, 3)},
        "generators": {"seed": 1},
        "session": {"wall": count},
    }
    store = CheckpointStore(folder, 2, print)
    store.save(step, state, {})
    if drop:
        store.drop_replay()
    return folder


@pytest.mark.parametrize("drop", [False, True])
def test_the_last_checkpoints_of_two_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drop: bool
) -> None:
    """Replay data are left out where one of the two has dropped them."""
    folders = save(tmp_path / "1", 20, 1), save(tmp_path / "2", 20, 2, drop=drop)
    assert main([str(folder) for folder in folders]) == 0
    about, *found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert about == {"steps": [20, 20], "leaves": 3, "with_replay": not drop}
    assert [leaf["path"] for leaf in found] == ["trainer/count"] + ([] if drop else ["trainer/rows"])


def test_a_run_without_a_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "1", 20, 1)
    assert main([str(tmp_path / "1"), str(tmp_path / "2")]) == 1
    assert f"{tmp_path / '2'}: no checkpoint was ever finished" in capsys.readouterr().err
