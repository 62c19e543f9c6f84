"""Runs that begin from others, as a spec names them: found, refused with their place, and found again."""

from __future__ import annotations

import hashlib
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from experiment.checks import check_reruns
from experiment.engines.local import choose_threads
from experiment.files import dump_settings, write_json
from experiment.garbage import collect_garbage
from experiment.lineage import Lineage
from experiment.locks import acquire_lock
from experiment.parents import Parent, read_settings
from experiment.plan import Plan, find_folders, plan_runs, write_plan
from experiment.problems import SpecError
from experiment.reproduce import Subject
from experiment.run import Run
from experiment.runners import enter
from experiment.spec import load_spec
from experiment.stored import seal_manifest
from experiment.sweep import describe_spec
from experiment.views import list_lines
from experiment.why import print_why
from train import build_config

HEAD = "constants: {algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 20000"
LOGS = Path("logs")
START = {"code_version": "a", "command": [], "started": "2026-01-01T00:00:00", "host": "here", "device": "cpu"}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(text: str, *only: str) -> Plan:
    Path("x.yaml").write_text(text)
    return plan_runs(load_spec(Path("x.yaml")), LOGS, build_config, only)


def begin_from(parent: str, key: str = "init_from", more: str = "") -> Plan:
    return plan(f"{HEAD}, {key}: {parent}{more}}}\n")


def refuse(parent: str, key: str = "init_from", more: str = "") -> str:
    with pytest.raises(SpecError) as refused:
        begin_from(parent, key, more)
    return str(refused.value)


def save(run: Run, step: int, rows: int = 3, dropped: bool = False) -> None:
    """Write a checkpoint as the trainer does; its replay data are `rows` transitions, or were dropped."""
    segments = [] if dropped else [{"file": "a.rows", "sha256": hashlib.sha256(b"rows").hexdigest()}]
    (run.checkpoints_dir / "replay").mkdir(parents=True, exist_ok=True)
    (run.checkpoints_dir / "replay/a.rows").write_bytes(b"rows")
    path = run.checkpoints_dir / f"step_{step:08d}.pt"
    path.write_bytes(b"state")
    logs = {"buffer": {"total": rows, "segments": segments}} if rows else {}
    digest = hashlib.sha256(b"state").hexdigest()
    manifest = {"format": 1, "step": step, "sha256": digest, "replay": logs, "replay_dropped": dropped}
    write_json(path.with_suffix(".json"), {**manifest, "seal": seal_manifest(manifest)})


def make(experiment: str = "x", done: bool = True, rows: int = 3, dropped: bool = False, **settings: Any) -> Run:
    """A run that was trained, 10,000 steps long unless told."""
    base = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "max_timesteps": 10_000}
    config = build_config(base | settings)
    run = Run.create_path(LOGS / experiment, "old", config.run_id())
    run.attempt_dir(1).mkdir(parents=True)
    run.config_path.write_text(dump_settings(config.resolved(), "x"))
    write_json(run.attempt_dir(1) / "start.json", {"threads": 3} | START)
    if done:
        write_json(run.exit_path, {"ok": True, "returncode": 0, "reason": "ok", "attempt": 1})
    save(run, config.max_timesteps if done else 500, rows, dropped)
    return run


def test_an_id_its_beginning_and_the_folder_name_the_same_parent() -> None:
    parent = make()
    plans = [begin_from(f"'{name}'") for name in (parent.id, parent.id[:6], str(parent.folder), f"{parent.folder}/")]
    plans.append(begin_from(f"'{parent.folder.absolute()}'"))
    assert len({made.ids[0] for made in plans}) == 1
    planned = plans[1].check_again(plans[1].ids[0])
    assert planned.resolved()["init_from"] == parent.id
    assert plans[0].ids != plan(HEAD + "}\n").ids
    assert begin_from(parent.id, "init_weights_from").ids != plans[0].ids


def test_a_parent_of_another_experiment_is_the_same_run_wherever_its_folder_is() -> None:
    parent = make("other")
    here = begin_from(f"'{parent.folder}'")
    assert here.check_again(here.ids[0]).resolved()["init_from"] == str(parent.folder)
    refused = refuse(f"'{parent.id[:6]}'")
    assert f"no run in logs/x has an id that begins with '{parent.id[:6]}'" in refused
    assert f"another experiment's run is named by its folder: {parent.folder}" in refused
    shutil.move(LOGS / "other", LOGS / "moved")
    moved = begin_from(f"'{LOGS / 'moved' / parent.folder.name}'")
    assert moved.ids == here.ids


def test_a_parent_that_can_not_be_is_refused_where_it_stands() -> None:
    make(seed=1), make(seed=2)
    assert refuse("'0123456789abcdef'").startswith("x.yaml:1:")
    assert "init_from: there is no run 0123456789abcdef in logs/x" in refuse("'0123456789abcdef'")
    assert "'best' is no run's id, no beginning of one, and no run's folder" in refuse("best")
    assert "init_from must be text, got 123; put a run's id in quotes" in refuse("123")
    assert "logs/x/best is not a run folder" in refuse("logs/x/best")
    others = [make(seed=seed) for seed in range(3, 20)]
    firsts = [run.id[0] for run in others]
    shared = next(first for first in firsts if firsts.count(first) > 1)
    assert f"'{shared}' begins " in refuse(f"'{shared}'")


def test_a_parent_has_to_be_of_the_same_trainer_and_at_rest_with_a_checkpoint() -> None:
    other = make(algorithm_name="td3")
    for key in ("init_from", "init_weights_from"):
        assert f"{key}: run {other.id} (old) was trained by td3, and this one is by ddpg" in refuse(other.id, key)
    stopped = make(done=False)
    (note,) = begin_from(stopped.id).notes
    assert note == f"1 run goes on with all the state of another that is LOST, from step 500: {stopped.id}"
    lock = acquire_lock(stopped.lock_path)
    assert lock is not None
    assert "is going on; let it finish, or stop it first" in refuse(stopped.id)
    shutil.rmtree(stopped.checkpoints_dir)
    stopped.lock_path.unlink()
    assert "is LOST and has no checkpoint that can be begun from" in refuse(stopped.id, "init_weights_from")


def test_going_on_is_refused_under_settings_that_train_otherwise() -> None:
    parent = make()
    assert begin_from(parent.id, more=", num_eval: 3, num_final_eval: 7, eval_freq: 0, log_freq: 5, device: cpu")
    text = refuse(parent.id, more=", learning_rate: 0.1, tau: 0.5")
    assert "can't be gone on with under other settings: learning_rate is 0.1 here and 0.001 there, tau is 0.5" in text
    assert "init_weights_from begins with its networks alone" in text
    assert begin_from(parent.id, "init_weights_from", more=", learning_rate: 0.1, tau: 0.5")
    with pytest.raises(SpecError, match="has max_timesteps 10,000, and this one 10,000: raise it"):
        plan(HEAD.replace("20000", "10000") + f", init_from: {parent.id}}}\n")
    timed = make(schedule="fixed_wall", wall_budget_s=9.0)
    assert "wall_budget_s ends this run by time" in refuse(timed.id, more=", schedule: fixed_wall, wall_budget_s: 9.0")


def test_going_on_is_refused_where_replay_data_are_gone_and_nowhere_else() -> None:
    lost, never = make(dropped=True), make(seed=1, dropped=True, rows=0)
    text = refuse(lost.id)
    assert "its replay data were dropped when it was done; keep_replay: true would have kept them" in text
    (note,) = begin_from(lost.id, "init_weights_from").notes
    assert note == f"1 run begins with the networks of another, alone, from step 10,000: {lost.id}"
    assert begin_from(never.id, more=", seed: 1").runs


def test_going_on_from_a_run_that_began_with_weights_leaves_them_out() -> None:
    first = make("other")
    second = make(init_weights_from=str(first.folder))
    made = begin_from(second.id, more=f", init_weights_from: {first.folder}")
    assert made.ids == begin_from(second.id).ids
    assert "init_weights_from is switched off in all 1 runs (init_from goes on with all of another run's state)" in (
        " ".join(made.notes)
    )


EXTEND = "meta_data: {extend: true}\n" + HEAD + "}\nvariables: {seed: [0, 1, 2]}\n"


def find_parents(made: Plan) -> list[str | None]:
    return [made.check_again(run.id).resolved()["init_from"] for run in made.runs]


def test_extend_goes_on_from_the_longest_shorter_run_and_the_others_begin_anew() -> None:
    short, longer = make(seed=0, max_timesteps=5000), make(seed=0)
    make(seed=0, max_timesteps=30_000), make(seed=1, done=False), make(seed=2, tau=0.5)
    made = plan(EXTEND)
    assert find_parents(made) == [longer.id, None, None]
    assert made.notes == (f"1 run goes on with all the state of another, from step 10,000: {longer.id}",)
    write_plan(LOGS / "x/plan.jsonl", load_spec(Path("x.yaml")), made)
    lines = {line.run.id: line.parent for line in list_lines(LOGS / "x")}
    assert [lines[run.id] for run in made.runs] == [longer.id, None, None]
    assert short.id not in find_parents(made)


def test_an_extension_is_found_again_whatever_becomes_of_its_parent(capsys: pytest.CaptureFixture[str]) -> None:
    parent = make(seed=0)
    first = plan(EXTEND)
    make(seed=0, max_timesteps=15_000)
    assert find_parents(first)[0] == parent.id, "a launch stays with what it has found"
    child = make(seed=0, done=False, max_timesteps=20_000, init_from=parent.id)
    assert child.id == first.runs[0].id
    assert plan(EXTEND).runs[0].id == child.id
    shutil.rmtree(parent.folder)
    again = plan(EXTEND)
    assert again.runs[0].folder == child.folder
    gone = f"1 run began from another and goes on from its own checkpoints: {parent.id}, which is gone"
    assert again.notes == (gone,)
    shutil.rmtree(child.checkpoints_dir)
    with pytest.raises(SpecError) as refused:
        plan(EXTEND)
    assert f"there is no run {parent.id} in logs/x; without {child.folder} it could begin otherwise" in str(
        refused.value
    )
    write_plan(LOGS / "x/plan.jsonl", load_spec(Path("x.yaml")), again)
    print_why(child)
    text = capsys.readouterr().out
    assert f"from nothing: it has no checkpoint, and run {parent.id}, which it begins from, is gone" in text
    assert f"run {parent.id}, not yet begun, with all its state" in text


def test_a_finished_run_whose_parent_is_gone_is_not_put_away_to_begin_once_more() -> None:
    parent = make(seed=0, max_timesteps=10_000)
    child = make(seed=0, max_timesteps=20_000, init_from=parent.id)
    again, spec = plan(EXTEND), load_spec(Path("x.yaml"))
    assert again.runs[0].id == child.id

    def check(rerun: set[str]) -> None:
        check_reruns(spec, again, rerun, Lineage(LOGS / "x", find_folders(LOGS / "x"), build_config))

    check({child.id})
    shutil.rmtree(parent.folder)
    check(set())
    with pytest.raises(SpecError) as refused:
        check({child.id})
    assert f"there is no run {parent.id} in logs/x; what is in {child.folder} stays as it is" in str(refused.value)


def test_an_extension_is_extended_in_turn() -> None:
    first = make(seed=0)
    second = make(seed=0, max_timesteps=15_000, init_from=first.id)
    assert find_parents(plan(EXTEND))[0] == second.id


def test_a_run_from_scratch_that_is_there_stays_one() -> None:
    make(seed=0)
    straight = make(seed=0, done=False, max_timesteps=20_000)
    made = plan(EXTEND)
    assert made.runs[0].folder == straight.folder
    assert find_parents(made)[0] is None


def test_extend_never_begins_anew_because_replay_data_are_gone() -> None:
    make(seed=0, dropped=True)
    with pytest.raises(SpecError, match=r"extend: run .* replay data were dropped .* alone, or take extend out"):
        plan(EXTEND)
    kept = make(seed=0, max_timesteps=5000)
    assert find_parents(plan(EXTEND))[0] == kept.id


def test_without_extend_nothing_changes_and_a_note_says_what_could_be_had() -> None:
    spec = EXTEND.partition("\n")[2]
    straight = plan(spec)
    make(seed=0), make(seed=1)
    noted = plan(spec)
    assert noted.ids == straight.ids
    assert noted.notes == (
        "2 of these runs are there with max_timesteps 10000; meta_data.extend: true goes on from them",
    )
    assert plan(spec, "seed=2").notes == ()
    make(seed=2, dropped=True)
    assert any("can't go on from them: their replay data are gone (keep_replay" in note for note in plan(spec).notes)
    for seed in range(3):
        make(seed=seed, max_timesteps=20_000)
    assert plan(spec).notes == ()


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ("extend: base.yaml", "extend must be true or false, got 'base.yaml'; a base spec is named by extends"),
        ("extends: true", "extends must be the path of a spec, got true; extend goes on from shorter runs"),
        ("{extend: true, script_path: work.py}", "extend goes on from runs of train.py; work.py is not ours"),
    ],
)
def test_extend_and_extends_are_not_taken_for_each_other(meta: str, said: str) -> None:
    Path("work.py").write_text("")
    with pytest.raises(SpecError) as refused:
        plan(f"meta_data: {meta if meta[0] == '{' else '{' + meta + '}'}\n{HEAD}}}\n")
    assert said in str(refused.value)


def test_the_spec_that_a_launch_writes_extends_too() -> None:
    make(seed=0)
    made = plan(EXTEND)
    text = describe_spec(load_spec(Path("x.yaml"), ["device=cpu"]), Namespace(overrides=["device=cpu"]))
    written = plan(text)
    assert "  extend: true\n" in text
    assert written.ids == made.ids


def test_a_run_that_goes_on_has_the_threads_of_the_one_before() -> None:
    parent, new = make(seed=0), Run.create_path(LOGS / "x", "new", "0123456789abcdef")
    for key, threads in (("init_from", 3), ("init_weights_from", 1)):
        assert choose_threads(new, 1, Parent(parent, key)) == threads
    assert choose_threads(new, 1) == 1


def test_a_script_of_the_user_s_may_have_a_key_of_the_same_name() -> None:
    Path("work.py").write_text("")
    made = plan("meta_data: {script_path: work.py}\nconstants: {init_from: 7, max_timesteps: 3}\n")
    assert made.check_again(made.ids[0]).resolved() == {"init_from": 7, "max_timesteps": 3}


def test_gc_says_of_a_parent_that_it_is_needed_and_by_whom(capsys: pytest.CaptureFixture[str]) -> None:
    parent, other = make(seed=0), make(seed=7)
    made = plan(EXTEND)
    write_plan(LOGS / "x/plan.jsonl", load_spec(Path("x.yaml")), made)
    collect_garbage([LOGS / "x"], delete=False)
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert f"needed: run {made.runs[0].id} will begin from it; not in the plan any more" in said[parent.id]
    assert "left as it is, for you to decide: not in the plan any more" in said[other.id]
    abroad = plan(f"meta_data: {{exp_name: abroad}}\n{HEAD}, seed: 7, init_from: {other.folder}}}\n")
    (LOGS / "abroad").mkdir()
    write_plan(LOGS / "abroad/plan.jsonl", load_spec(Path("x.yaml")), abroad)
    collect_garbage([LOGS / "x"], delete=False)
    assert f"needed: run {abroad.ids[0]} will begin from it; not in the plan" in capsys.readouterr().out


def test_gc_knows_what_the_runs_of_a_runner_at_work_begin_from(capsys: pytest.CaptureFixture[str]) -> None:
    parent = make(seed=0)
    made = plan(EXTEND)
    write_plan(LOGS / "x/plan.jsonl", load_spec(Path("x.yaml")), made)
    at_work = enter(LOGS / "x", "command", "version", LOGS / "x/plan.jsonl", None)
    later = plan(f"{HEAD}, seed: 5}}\n")
    write_plan(LOGS / "x/plan.jsonl", load_spec(Path("x.yaml")), later)
    needed = f"{parent.id}  needed: run {made.runs[0].id} will begin from it"
    collect_garbage([LOGS / "x"], delete=False)
    assert needed in capsys.readouterr().out
    at_work.leave()
    collect_garbage([LOGS / "x"], delete=False)
    assert needed not in capsys.readouterr().out


def test_a_run_that_could_not_begin_where_it_began_is_not_reproduced() -> None:
    parent = make()
    child = make(max_timesteps=20_000, init_from=parent.id)
    settings = read_settings(child)
    assert settings is not None
    subject = Subject(child, {}, [], settings, Path("train.py"))
    write_json(child.parent_path, {"id": parent.id, "step": 10_000, "sha256": hashlib.sha256(b"state").hexdigest()})
    assert subject.find_other_beginning() is None
    write_json(child.parent_path, {"id": parent.id, "step": 500, "sha256": hashlib.sha256(b"before").hexdigest()})
    other = subject.find_other_beginning()
    assert other is not None
    assert "from which it began at step 500, is by now another: its newest checkpoint is of step 10,000" in other
    shutil.rmtree(parent.folder)
    assert subject.find_other_beginning() == f"there is no run {parent.id} in logs/x"
