"""Which checkpoint of a run is meant, and which policy is half as good as its best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiment.run import Run
from training.checkpoint import CheckpointStore
from training.manifest import CheckpointError
from training.restore import find_halfway, read_checkpoint


def make_run(folder: Path, means: dict[int, float | str], kept: list[int]) -> Run:
    run = Run(folder / "run__0123456789abcdef", "0123456789abcdef", "run")
    run.folder.mkdir()
    rows = [{"step": step, "eval/mean_reward": mean} for step, mean in means.items()]
    rows.insert(1, {"step": 10})  # type: ignore[dict-item]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = CheckpointStore(run.checkpoints_dir, len(kept), lambda line: None)
    for step in kept:
        store.save(step, {"step": torch.tensor(step)}, {})
    return run


def test_the_policy_nearest_to_half_way_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, {10: 5.0, 20: 100.0, 30: 62.0, 40: 210.0, 50: "nan"}, [10, 20, 30, 40, 50])
    assert find_halfway(run, floor=10.0) == ("step_00000020", pytest.approx(0.45))


def test_only_kept_policies_are_asked_and_the_best_one_needs_not_be(tmp_path: Path) -> None:
    run = make_run(tmp_path, {10: 5.0, 20: 100.0, 30: 62.0, 40: 210.0}, [10, 30])
    assert find_halfway(run, floor=10.0) == ("step_00000030", pytest.approx(0.26))


@pytest.mark.parametrize(("means", "kept"), [({10: -5.0}, [10]), ({10: 50.0}, [20]), ({}, [20])])
def test_a_run_that_learned_or_kept_nothing_has_none(
    tmp_path: Path, means: dict[int, float | str], kept: list[int]
) -> None:
    with pytest.raises(CheckpointError, match="no evaluated policy was kept, or none is better than random actions"):
        find_halfway(make_run(tmp_path, means, kept), floor=0.0)


def test_checkpoints_are_found_by_age_by_name_and_by_rank(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {}, [20, 100]).checkpoints_dir
    assert read_checkpoint(folder, "newest").step == 100
    assert read_checkpoint(folder, "step_00000020").step == 20
    assert read_checkpoint(folder, "step_00000020.pt").step == 20
    with pytest.raises(CheckpointError, match=r"no best policy was kept .* has: step_00000020, step_00000100"):
        read_checkpoint(folder, "best")
    CheckpointStore(folder, 2, lambda line: None).save_best(20, {"step": torch.tensor(20)}, {})
    assert read_checkpoint(folder, "best").path.name == "best_00000020.pt"


@pytest.mark.parametrize("which", ["step_00000030", "latest", "../step_00000020", ""])
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, which: str) -> None:
    folder = make_run(tmp_path, {}, [20]).checkpoints_dir
    with pytest.raises(CheckpointError, match=r"neither newest, best nor one of those there; .* has: step_00000020"):
        read_checkpoint(folder, which)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint was ever finished; train the run first"):
        read_checkpoint(tmp_path / "checkpoints", "newest")
