"""Runs that begin from others: with all their state, to the bit like one that was so long all the time; from nothing
else; and killed at any moment of it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.files import dump_settings, write_json
from experiment.locks import acquire_lock
from experiment.parents import find_needed, has_begun
from experiment.problems import SettingsError
from experiment.run import Run
from tests.training.test_loop import CountingTrainer, Killed, Life, make_config, read_best, read_result, read_rows
from training import inheritance as inheritance_module
from training import session as session_module
from training.checkpoint import CheckpointStore, load_newest
from training.loop import Outcome
from training.resources import hash_state
from training.weights import WeightsError

PARENT = "0123456789abcdef"
CHILD = "fedcba9876543210"


class WeighedTrainer(CountingTrainer):
    """Can begin with the weights of another."""

    def take_weights(self, state: dict[str, Any]) -> None:
        if state["weights"].shape != self.weights.shape:
            raise WeightsError("actor is of other sizes there")
        self.weights.copy_(state["weights"])


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the disk: only exceptions are simulated."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_run(folder: Path, run_id: str = PARENT) -> Run:
    run = Run.create_path(folder, "x", run_id)
    run.folder.mkdir(parents=True)
    return run


def train_parent(folder: Path, **settings: Any) -> Run:
    """A run of 12 steps that is DONE."""
    run = make_run(folder)
    config = make_config(**{"max_timesteps": 12, "keep_replay": True, **settings})
    run.config_path.write_text(dump_settings(config.resolved(), "x"))
    assert Life(run, config, WeighedTrainer()).fit() is Outcome.FINISHED
    write_json(run.exit_path, {"ok": True, "returncode": 0, "reason": "ok", "attempt": 1})
    return run


def extend(folder: Path, **settings: Any) -> Life:
    """The first attempt at a run of 25 steps that goes on from the other one."""
    run = Run.create_path(folder, "x", CHILD)
    run.folder.mkdir(exist_ok=True)
    return Life(run, make_config(**{"init_from": PARENT, **settings}), WeighedTrainer())


def read_all(run: Run) -> dict[str, Any]:
    """Everything of a run but from whom it began."""
    result = read_result(run)
    del result["summary"]["parent"]
    return result


def hash_folder(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_that_goes_on_from_a_shorter_one_ends_in_the_bits_of_a_straight_one(tmp_path: Path) -> None:
    straight = make_run(tmp_path / "straight", CHILD)
    Life(straight, make_config()).fit()
    parent = train_parent(tmp_path / "exp")
    before = hash_folder(parent.folder)
    life = extend(tmp_path / "exp")
    assert life.fit() is Outcome.FINISHED
    assert read_all(life.run) == read_all(straight)
    assert [row["step"] for row in read_rows(life.run)] == [row["step"] for row in read_rows(straight)]
    assert life.said[0] == f"Goes on from run {PARENT} (x) with all its state: max_timesteps was 12 and is 25"
    assert hash_folder(parent.folder) == before
    began = json.loads(life.run.parent_path.read_bytes())
    assert (began["id"], began["step"], began["takes"]) == (PARENT, 12, "everything")
    assert json.loads(life.run.summary_path.read_bytes())["parent"] == began


def list_moments() -> list[tuple[Any, str]]:
    inside = [(inheritance_module, name) for name in ("write_atomically", "write_json", "divide_rows", "_copy_view")]
    return [
        *inside,
        (CountingTrainer, "load_state_dict"),
        (session_module, "write_global_generators"),
        (CheckpointStore, "save"),
        (CheckpointStore, "_rotate"),
    ]


@pytest.mark.parametrize("guard", ["warn", "repair"])
def test_killed_at_any_moment_of_its_beginning_it_ends_in_the_same_bits(tmp_path: Path, guard: str) -> None:
    train_parent(tmp_path / "exp", guard=guard)
    shutil.copytree(tmp_path / "exp", tmp_path / "unharmed")
    unharmed = extend(tmp_path / "unharmed", guard=guard)
    unharmed.fit()
    expected = read_all(unharmed.run)
    # Twelve calls with a moment before and after each, up to the first steps of its own.
    for moment in range(24):
        folder = tmp_path / f"exp{moment}"
        shutil.copytree(tmp_path / "exp", folder)
        first = extend(folder, guard=guard)
        counter = itertools.count()

        def wrap(real: Callable[..., Any], counter: Any = counter, moment: int = moment) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(counter) == moment:
                    raise Killed
                result = real(*args, **kwargs)
                if next(counter) == moment:
                    raise Killed
                return result

            return call

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in list_moments():
                patch.setattr(owner, name, wrap(getattr(owner, name)))
            with pytest.raises(Killed):
                first.fit()
        begun = has_begun(first.run)
        again = Life(first.run, first.config, WeighedTrainer(), number=2)
        assert again.fit() is Outcome.FINISHED
        assert read_all(first.run) == expected, moment
        assert any(line.startswith("Goes on from") for line in again.said) == (not begun), again.said


def test_once_it_has_a_checkpoint_it_needs_its_parent_no_more(tmp_path: Path) -> None:
    straight = make_run(tmp_path / "straight", CHILD)
    Life(straight, make_config()).fit()
    parent = train_parent(tmp_path / "exp")
    life = extend(tmp_path / "exp")
    life.run.config_path.write_text(dump_settings(life.config.resolved(), "x"))
    assert find_needed(tmp_path / "exp") == {PARENT: [CHILD]}
    assert life.fit(lambda: life.trainer.steps == 14) is Outcome.STOPPED
    assert find_needed(tmp_path / "exp") == {}
    shutil.rmtree(parent.folder)
    again = Life(life.run, life.config, WeighedTrainer(), number=2)
    assert again.fit() is Outcome.FINISHED
    assert "Resumed from step 14" in again.said
    assert read_all(life.run) == read_all(straight)


def test_a_run_that_starts_anew_begins_from_its_parent_again(tmp_path: Path) -> None:
    train_parent(tmp_path / "exp")
    life = extend(tmp_path / "exp")
    life.fit()
    expected = read_all(life.run)
    life.run.attempt_dir(1).mkdir(parents=True)
    life.run.archive(1)
    assert (life.run.archive_dir(1) / "parent.json").exists()
    again = Life(life.run, make_config(init_from=PARENT, continue_training=False), WeighedTrainer(), number=2)
    assert again.fit() is Outcome.FINISHED
    assert read_all(life.run) == expected


def test_an_unfinished_parent_is_gone_on_from_where_it_is(tmp_path: Path) -> None:
    straight, parent = make_run(tmp_path / "straight", CHILD), make_run(tmp_path / "exp")
    Life(straight, make_config()).fit()
    config = make_config(max_timesteps=20)
    parent.config_path.write_text(dump_settings(config.resolved(), "x"))
    stopped = Life(parent, config, WeighedTrainer())
    assert stopped.fit(lambda: stopped.trainer.steps == 9) is Outcome.STOPPED
    parent.metrics_path.write_bytes(parent.metrics_path.read_bytes() + b'{"step": 10, "env_step": 10}\n')
    life = extend(tmp_path / "exp")
    assert life.fit() is Outcome.FINISHED
    assert read_all(life.run) == read_all(straight)


def test_a_parent_that_is_going_on_is_waited_for_by_nobody(tmp_path: Path) -> None:
    parent = train_parent(tmp_path / "exp")
    parent.exit_path.unlink()
    lock = acquire_lock(parent.lock_path)
    assert lock is not None
    with pytest.raises(SettingsError, match=f"init_from: run {PARENT} .* is going on; let it finish, or stop it first"):
        extend(tmp_path / "exp").fit()


def test_without_replay_data_nothing_is_gone_on_with(tmp_path: Path) -> None:
    train_parent(tmp_path / "exp", keep_replay=False)
    life = extend(tmp_path / "exp")
    with pytest.raises(SettingsError, match=r"keep_replay: true would have kept them; init_weights_from begins with"):
        life.fit()
    assert not life.run.checkpoints_dir.exists()
    weights = extend(tmp_path / "exp", init_from=None, init_weights_from=PARENT)
    assert weights.fit() is Outcome.FINISHED


def test_a_curve_that_is_not_what_the_parent_s_checkpoint_saw_is_refused_by_its_name(tmp_path: Path) -> None:
    parent = train_parent(tmp_path / "exp")
    parent.metrics_path.write_bytes(b"{}\n")
    with pytest.raises(SettingsError, match=rf"init_from: .*{PARENT}/metrics.jsonl isn't what the checkpoint saw"):
        extend(tmp_path / "exp").fit()


@pytest.mark.parametrize("num_eval", [2, 3])
def test_the_best_policy_stays_the_best_only_where_it_is_judged_alike(tmp_path: Path, num_eval: int) -> None:
    parent = train_parent(tmp_path / "exp")
    path = next(parent.checkpoints_dir.glob("best_*.pt"))
    life = extend(tmp_path / "exp", num_eval=num_eval, eval_freq=0)
    assert life.fit() is Outcome.FINISHED
    assert read_best(life.run) == (read_best(parent) if num_eval == 2 else None)
    assert (life.run.checkpoints_dir / path.name).exists() == (num_eval == 2)


def test_a_repaired_run_goes_back_no_further_than_to_where_it_began(tmp_path: Path) -> None:
    """What was before that is in its parent's folder, which is not its own to go back in."""
    parent = train_parent(tmp_path / "exp", guard="repair")
    theirs = load_newest(parent.checkpoints_dir)
    assert theirs is not None
    life = extend(tmp_path / "exp", guard="repair")
    assert life.fit(lambda: True) is Outcome.STOPPED
    newest = load_newest(life.run.checkpoints_dir)
    assert newest is not None
    assert theirs.state["session"]["guard"]["healthy_step"] == 0
    assert newest.state["session"]["guard"]["healthy_step"] == 12


def test_weights_alone_are_those_of_the_parent_and_everything_else_is_as_in_a_new_run(tmp_path: Path) -> None:
    parent = train_parent(tmp_path / "exp")
    life = extend(tmp_path / "exp", init_from=None, init_weights_from=PARENT)
    assert life.fit(lambda: True) is Outcome.STOPPED
    newest, theirs = load_newest(life.run.checkpoints_dir), load_newest(parent.checkpoints_dir)
    assert newest is not None
    assert theirs is not None
    assert newest.step == 0
    fresh = CountingTrainer()
    fresh.weights.copy_(theirs.state["trainer"]["weights"])
    assert hash_state(newest.state["trainer"]) == hash_state(fresh.state_dict())
    assert torch.count_nonzero(fresh.weights) == 3
    assert not life.run.metrics_path.exists()
    assert life.said[0] == f"Begins with the networks of run {PARENT} (x) at its step 12, alone"
    again = Life(life.run, life.config, WeighedTrainer(), number=2)
    assert again.fit() is Outcome.FINISHED
    assert read_rows(life.run)[0]["step"] == 3


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train_parent(tmp_path / "exp")
    life = extend(tmp_path / "exp", init_from=None, init_weights_from=PARENT)
    life.trainer.weights = torch.zeros(4)
    with pytest.raises(SettingsError, match=f"init_weights_from: the networks of run {PARENT} .x. don't fit: actor is"):
        life.fit()
    life = Life(life.run, life.config, CountingTrainer())
    with pytest.raises(SettingsError, match="this trainer can't begin with the networks of another run"):
        life.fit()
