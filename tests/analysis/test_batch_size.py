"""Ladders whose winner is known beforehand: planted folders, no training."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from analysis.batch_size import main, write_ladder_report
from analysis.ladder_advice import Advice, recommend
from analysis.ladder_claims import CLAIMED, judge_claims
from analysis.ladder_flops import Shape, count_update_flops, find_shape
from analysis.ladder_peak import GemmPeak, find_peak, measure_gemm
from analysis.ladder_rungs import Ladder, build_ladder
from analysis.ladder_tables import tabulate_claimed, tabulate_costs, tabulate_returns
from analysis.load import load_runs
from experiment.files import append_event
from experiment.provenance import describe_machine
from experiment.run import Run

GOOD = (-150.0, -146.0, -142.0)
ALSO_GOOD = (-151.0, -147.0, -141.0)
BAD = (-620.0, -600.0, -610.0)
HEALTHY = {"verdict": "healthy", "events": 0}
SICK = {"verdict": "non-finite", "events": 2}


def add_rung(
    experiment: Any,
    batch: int,
    finals: Sequence[float | str],
    wall: float = 60.0,
    guards: Sequence[dict[str, Any]] = (HEALTHY,) * 9,
    curve: Sequence[float | str] = (-1000.0, -500.0),
    **more: Any,
) -> list[Run]:
    """Add finished runs of one batch size, seeds counting from 0, each a second slower than the one before."""
    runs = []
    for seed, final in enumerate(finals):
        run = plan_run(experiment, batch, seed, **more)
        seconds = wall + seed
        experiment.finish(
            run,
            final,
            curve=(*curve, final),
            machine=seconds / 7.0,
            guard=guards[seed],
            time={"wall_s": seconds, "cpu_s": seconds},
            throughput={"env_steps_per_s": 2000 / seconds, "updates_per_s": 1900 / seconds},
        )
        runs.append(run)
    return runs


def plan_run(experiment: Any, batch: int, seed: int, **more: Any) -> Run:
    """Add a run that was never started."""
    settings = {"algorithm_name": "ddpg", "hidden_dims": [64, 64], "batch_size": batch} | more | {"seed": seed}
    run: Run = experiment.add(settings)
    return run


def load_ladder(experiment: Any, threshold: float | None = None) -> Ladder:
    return build_ladder(load_runs(experiment.folder), threshold)


def advise(experiment: Any) -> Advice:
    return recommend(load_ladder(experiment))


def find_winner(experiment: Any) -> int | None:
    rung = advise(experiment).rung
    return None if rung is None else rung.batch


def judge(experiment: Any) -> dict[str, tuple[str, str]]:
    """Give verdict and evidence by the first three words of a claim."""
    ladder = load_ladder(experiment)
    judgements = judge_claims(ladder, recommend(ladder))
    return {" ".join(row.claim.split()[:3]): (row.verdict, row.evidence) for row in judgements}


# Which batch is recommended


def test_a_clear_winner_is_recommended_though_it_is_slower(experiment: Any) -> None:
    add_rung(experiment, 64, BAD, wall=20.0)
    add_rung(experiment, 256, GOOD, wall=60.0)
    add_rung(experiment, 1024, BAD, wall=10.0)
    advice = advise(experiment)
    assert advice.rung
    assert advice.rung.batch == 256
    assert advice.text.startswith("Recommended: batch_size=256. Its IQM -146.0 [-150.0, -142.0] is the best")
    assert "batch_size=64 is below the best" in advice.text


def test_of_equals_in_return_and_time_the_smallest_wins_whatever_their_order(experiment: Any) -> None:
    for batch, finals in ((1024, GOOD), (64, GOOD), (256, GOOD)):
        add_rung(experiment, batch, finals)
    assert find_winner(experiment) == 64


def test_a_smaller_batch_wins_over_the_best_where_their_intervals_overlap(experiment: Any) -> None:
    add_rung(experiment, 64, ALSO_GOOD)
    add_rung(experiment, 256, GOOD)
    advice = advise(experiment)
    assert advice.rung
    assert advice.rung.batch == 64
    assert "is not told apart from the best, -146.0 [-150.0, -142.0] of batch_size=256" in advice.text


def test_intervals_that_touch_overlap_and_a_gap_does_not(experiment: Any) -> None:
    add_rung(experiment, 64, (-160.0, -155.0, -150.0))
    add_rung(experiment, 256, GOOD)
    assert find_winner(experiment) == 64
    add_rung(experiment, 32, (-160.0, -155.0, -150.001))
    assert find_winner(experiment) == 64


def test_a_large_batch_wins_where_it_is_as_good_and_faster(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD, wall=90.0)
    add_rung(experiment, 256, GOOD, wall=60.0)
    add_rung(experiment, 4096, ALSO_GOOD, wall=20.0)
    advice = advise(experiment)
    assert advice.rung
    assert advice.rung.batch == 4096
    assert "batch_size=64 (91.0 s) and batch_size=256 (61.0 s) are as good but slower" in advice.text


def test_a_fast_batch_that_is_worse_beats_nobody(experiment: Any) -> None:
    add_rung(experiment, 256, GOOD, wall=60.0)
    add_rung(experiment, 4096, BAD, wall=5.0)
    assert find_winner(experiment) == 256


def test_times_whose_intervals_overlap_are_not_told_apart(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD, wall=61.5)
    add_rung(experiment, 256, GOOD, wall=60.0)
    assert find_winner(experiment) == 64
    add_rung(experiment, 512, GOOD, wall=59.0)
    assert find_winner(experiment) == 256, "512 takes 59 to 61 s, 64 takes 61.5 s and more"


def test_a_rung_with_a_run_that_the_guard_marked_is_not_recommended(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD, guards=(HEALTHY, SICK, HEALTHY), wall=10.0)
    add_rung(experiment, 256, (-160.0, -158.0, -159.0))
    add_rung(experiment, 1024, BAD)
    advice = advise(experiment)
    assert advice.rung
    assert advice.rung.batch == 256
    assert advice.text.endswith("Left out: batch_size=64 (2 of 3 runs healthy).")


def test_unfinished_rungs_are_left_out_whatever_their_finished_runs_reached(experiment: Any) -> None:
    add_rung(experiment, 64, BAD)
    add_rung(experiment, 256, GOOD)
    add_rung(experiment, 1024, (-10.0, -11.0), wall=1.0)
    experiment.fail(plan_run(experiment, 1024, 2), "oom")
    plan_run(experiment, 2048, 0)
    advice = advise(experiment)
    assert advice.rung
    assert advice.rung.batch == 256
    left_out = "batch_size=1024 (2 of 3 finished, 1 FAILED (oom)); batch_size=2048 (0 of 1 finished, 1 PENDING)"
    assert advice.text.endswith(f"Left out: {left_out}.")


def test_a_rung_without_a_summary_is_left_out(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD)
    lost = add_rung(experiment, 128, GOOD, wall=1.0)
    add_rung(experiment, 256, GOOD)
    lost[1].summary_path.unlink()
    advice = advise(experiment)
    assert advice.rung
    assert advice.rung.batch == 64
    assert f"batch_size=128 (no summary.json in run {lost[1].id})" in advice.text


def test_a_rung_whose_return_is_not_a_number_is_left_out(experiment: Any) -> None:
    add_rung(experiment, 128, ("nan", -1.0, -1.0), wall=1.0)
    add_rung(experiment, 64, GOOD)
    add_rung(experiment, 256, GOOD)
    assert find_winner(experiment) == 64


def test_one_rung_gives_a_table_and_no_recommendation(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD)
    advice = advise(experiment)
    assert advice.rung is None
    assert advice.text == "No recommendation: there is one rung only. Sweep batch_size to compare several."


def test_one_finished_rung_of_several_gives_no_recommendation(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD)
    plan_run(experiment, 256, 0)
    advice = advise(experiment)
    assert advice.rung is None
    assert "1 of 2 rungs finished" in advice.text
    assert "batch_size=256: 0 of 1 finished, 1 PENDING" in advice.text


def test_rungs_of_different_environments_give_no_recommendation(experiment: Any) -> None:
    for env in ("Pendulum-v1", "Hopper-v5"):
        for batch in (64, 256):
            add_rung(experiment, batch, GOOD, env_name=env)
    advice = advise(experiment)
    assert advice.rung is None
    assert "the rungs differ in env_name" in advice.text


def test_rungs_over_different_other_settings_give_no_recommendation(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD, tau=0.005)
    add_rung(experiment, 64, BAD, tau=0.5)
    add_rung(experiment, 256, GOOD, tau=0.005)
    advice = advise(experiment)
    assert advice.rung is None
    assert "average over different values of tau" in advice.text


def test_single_runs_give_no_recommendation(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD[:1])
    add_rung(experiment, 256, BAD[:1])
    advice = advise(experiment)
    assert advice.rung is None
    assert "single runs have no interval" in advice.text


def test_no_rung_is_recommended_where_each_has_a_marked_run(experiment: Any) -> None:
    for batch in (64, 256):
        add_rung(experiment, batch, GOOD, guards=(SICK, HEALTHY, HEALTHY))
    assert "in every finished rung the training-health guard marked a run" in advise(experiment).text


# Rungs


def test_schedule_and_rule_make_rungs_and_columns_only_where_settings_have_them(experiment: Any) -> None:
    for batch in (64, 256):
        for rule in ("fixed", "sqrt"):
            add_rung(experiment, batch, GOOD if rule == "sqrt" else BAD, schedule="fixed_updates", lr_rule=rule)
    ladder = load_ladder(experiment)
    assert ladder.keys == ("batch_size", "schedule", "lr_rule")
    assert [rung.values for rung in ladder.rungs] == [
        ("64", "fixed_updates", "fixed"),
        ("64", "fixed_updates", "sqrt"),
        ("256", "fixed_updates", "fixed"),
        ("256", "fixed_updates", "sqrt"),
    ]
    rung = recommend(ladder).rung
    assert rung
    assert rung.values == ("64", "fixed_updates", "sqrt")
    sides = {ladder.name_side(side) for side in ladder.sides}
    assert sides == {"lr_rule=fixed", "lr_rule=sqrt"}
    assert [row.side for row in judge_claims(ladder, recommend(ladder))].count("lr_rule=sqrt") == 6


def test_under_a_fixed_time_wall_times_decide_nothing(experiment: Any) -> None:
    """A faster batch takes more steps in the same time, comes by more evaluations, and so takes longer in all."""
    for batch, wall in ((64, 90.0), (128, 80.0), (4096, 60.0)):
        add_rung(experiment, batch, GOOD, wall=wall, schedule="fixed_wall", wall_budget_s=50, lr_rule="fixed")
    ladder = load_ladder(experiment)
    advice = recommend(ladder)
    assert advice.rung is ladder.rungs[0]
    assert "and its schedule gave every batch the same time." in advice.text
    verdicts = {" ".join(row.claim.split()[:3]): (row.verdict, row.evidence) for row in judge_claims(ladder, advice)}
    assert verdicts["Larger batches train"] == ("not decided", "the schedule gave every batch the same time")
    assert verdicts["Below 128 training"] == ("not decided", "batch_size=64: given the same time, as stable")


def test_rungs_of_a_fixed_time_and_others_do_not_race(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD, wall=90.0, schedule="fixed_wall")
    add_rung(experiment, 128, GOOD, wall=60.0, schedule="fixed_updates")
    add_rung(experiment, 256, GOOD, wall=30.0, schedule="fixed_updates")
    assert find_winner(experiment) == 64


@pytest.mark.parametrize("swept", [True, False])
def test_numbers_of_each_schedule_stand_beside_its_name(experiment: Any, swept: bool) -> None:
    """By run: 6,400 updates of 64 or 100 of 4096 in 2,000 steps, at 50 updates a second."""
    sides = [("fixed_samples", "sqrt"), ("fixed_updates", "fixed")] if swept else [("fixed_samples", "sqrt")]
    for schedule, rule in sides:
        for batch in (64, 4096):
            updates = 409_600 // batch if schedule == "fixed_samples" else 1_900
            for seed, final in enumerate(GOOD):
                run = plan_run(experiment, batch, seed, schedule=schedule, lr_rule=rule)
                speed = {"env_steps_per_s": 9.0, "updates_per_s": 50.0}
                experiment.finish(run, final, updates=updates, throughput=speed)
    write_ladder_report(experiment.folder, measure_peak=False)
    rows = read_csv(experiment.folder)
    names = ("batch_size", "schedule", "lr_rule", "updates", "samples_per_s", "replay_ratio")
    found = [tuple(row[name] for name in names) for row in rows]
    samples = [
        ("64", "fixed_samples", "sqrt", "6400.0", "3200.0", "204.8"),
        ("4096", "fixed_samples", "sqrt", "100.0", "204800.0", "204.8"),
    ]
    updates_fixed = [
        ("64", "fixed_updates", "fixed", "1900.0", "3200.0", "60.8"),
        ("4096", "fixed_updates", "fixed", "1900.0", "204800.0", "3891.2"),
    ]
    assert sorted(found) == sorted(samples + updates_fixed if swept else samples)
    ladder = load_ladder(experiment)
    costs = tabulate_costs(ladder, recommend(ladder), GemmPeak(None, ""))
    assert costs.columns[:6] == ("batch_size", "schedule", "lr_rule", "Updates", "Samples per step", "Samples/s")
    name = ladder.name(ladder.rungs[0])
    assert name == ("batch_size=64, schedule=fixed_samples, lr_rule=sqrt" if swept else "batch_size=64")


def test_a_schedule_left_to_its_default_has_its_column_too(experiment: Any) -> None:
    for batch in (64, 256):
        for run in add_rung(experiment, batch, GOOD):
            text = f"algorithm_name: ddpg\nbatch_size: {batch}\nschedule: fixed_updates\nlr_rule: fixed\n"
            run.config_path.write_text(text)
    ladder = load_ladder(experiment)
    assert [rung.values for rung in ladder.rungs] == [
        ("64", "fixed_updates", "fixed"),
        ("256", "fixed_updates", "fixed"),
    ]
    assert recommend(ladder).rung is ladder.rungs[0]


def test_a_batch_left_to_its_default_is_that_of_the_runs_config(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD)
    for seed, final in enumerate(GOOD):
        run = experiment.add({"algorithm_name": "ddpg", "seed": seed})
        experiment.finish(run, final)
        run.config_path.write_text("algorithm_name: ddpg\nbatch_size: 256\n")
    pending = experiment.add({"algorithm_name": "ddpg", "seed": 9})
    ladder = load_ladder(experiment)
    assert [rung.batch for rung in ladder.rungs] == [64, 256]
    assert pending.id in {run.id for run in ladder.rungs[1].runs}


def test_settings_that_vary_with_the_batch_are_named(experiment: Any) -> None:
    spec = "cases:\n- {batch_size: 64, tau: 0.005}\n- {batch_size: 256, tau: 0.003}\n"
    add_rung(experiment, 64, GOOD, tau=0.005)
    add_rung(experiment, 256, GOOD, tau=0.003)
    (experiment.folder / "spec.yaml").write_text(spec)
    ladder = load_ladder(experiment)
    assert ladder.keys == ("batch_size", "tau")
    advice = recommend(ladder)
    assert "Rungs differ in more than the batch: tau varies with it." in tabulate_returns(ladder, advice).notes
    assert advice.rung is ladder.rungs[0]


def test_other_swept_settings_are_pooled_and_resampled_apart(experiment: Any) -> None:
    for batch in (64, 256):
        add_rung(experiment, batch, (-100.0, -100.0), tau=0.005)
        add_rung(experiment, batch, (-300.0, -300.0), tau=0.1)
    ladder = load_ladder(experiment)
    assert ladder.pooled == ("tau",)
    for rung in ladder.rungs:
        assert (rung.result.iqm, rung.result.interval.low, rung.result.interval.high) == (-200.0, -200.0, -200.0)


# Numbers


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "report" / "batch_size.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_numbers_that_were_planted(experiment: Any) -> None:
    runs = add_rung(experiment, 64, GOOD, wall=50.0, guards=(HEALTHY, SICK, HEALTHY))
    add_rung(experiment, 256, BAD)
    write_ladder_report(experiment.folder, measure_peak=False)
    row, other = read_csv(experiment.folder)
    assert (row["batch_size"], row["planned"], row["finished"], row["updates"]) == ("64", "3", "3", "1900.0")
    assert float(row["samples_per_s"]) == pytest.approx(64 * 1900 / 51)
    assert float(row["replay_ratio"]) == pytest.approx(64 * 1900 / 2000)
    assert (float(row["iqm"]), float(row["iqm_low_95"]), float(row["iqm_high_95"])) == (-146.0, -150.0, -142.0)
    assert (float(row["wall_s"]), float(row["wall_low_95"]), float(row["wall_high_95"])) == (51.0, 50.0, 52.0)
    assert row["guard_events"] == "2"
    assert float(row["healthy_share"]) == pytest.approx(2 / 3)
    flops = count_update_flops(
        {"algorithm_name": "ddpg", "hidden_dims": [64, 64], "batch_size": 64}, {"actor": 4609, "critic": 4673}
    )
    assert flops
    assert float(row["gflop_per_s"]) == pytest.approx(flops * 1900 / 51 / 1e9)
    assert (row["gpu_bytes"], row["noise_scale"], row["gemm_peak_share"]) == ("", "", "")
    assert row["finished_runs"].split() == [run.id for run in runs]
    assert (row["compared"], other["compared"]) == ("best", "below the best")


def test_noise_scale_and_what_a_gpu_did_are_shown_where_runs_have_them(experiment: Any) -> None:
    for run in add_rung(experiment, 64, GOOD):
        more = {"wall_time": 1.0, "time/gpu_utilisation": 41.0}
        lines = [{"step": 1, "env_step": 1, "train/noise_scale": x} | more for x in (900.0, 1100.0, "nan")]
        run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = json.loads(run.summary_path.read_text())
        run.summary_path.write_text(json.dumps(summary | {"memory": {"peak_gpu_bytes": 3 * 2**20}}))
    ladder = load_ladder(experiment)
    cells = [cell.text for cell in tabulate_costs(ladder, recommend(ladder), GemmPeak(None, "")).rows[0]]
    assert "1000" in cells
    assert "3.0" in cells
    assert "41 %" in cells
    claim = judge_claims(ladder, recommend(ladder))[-1]
    assert (claim.verdict, claim.evidence[:27]) == ("not decided", "41 % at batch_size=64; it is"[:27])


def test_the_default_threshold_is_nine_tenths_from_the_worst_start_to_the_best_end(experiment: Any) -> None:
    add_rung(experiment, 64, (-200.0, -200.0), curve=(-1000.0, -300.0))
    add_rung(experiment, 256, (-500.0, -500.0), curve=(-1200.0, -800.0))
    ladder = load_ladder(experiment)
    assert ladder.thresholds == {(): pytest.approx(-300.0)}
    first, second = ladder.rungs
    assert [point and point.env_step for point in first.find_crossings(-300.0)] == [2000, 2000]
    assert second.find_crossings(-300.0) == [None, None]


def test_time_to_threshold_is_a_median_in_which_missing_it_is_never(experiment: Any) -> None:
    add_rung(experiment, 64, (-100.0, -100.0, -400.0), curve=(-1000.0, -150.0))
    add_rung(experiment, 256, (-100.0, -400.0, -400.0), wall=6.0, curve=(-1000.0, -500.0))
    write_ladder_report(experiment.folder, threshold=-150.0, measure_peak=False)
    row, other = read_csv(experiment.folder)
    assert (row["steps_to_threshold"], row["reached"], row["not_reached"]) == ("2000.0", "3", "0")
    assert float(row["s_to_threshold"]) == pytest.approx(3.5 * 2 * 61 / 7)
    assert (other["steps_to_threshold"], other["s_to_threshold"], other["not_reached"]) == ("inf", "inf", "2")
    ladder = load_ladder(experiment, -150.0)
    texts = [cell.text for cell in tabulate_returns(ladder, Advice(None, "")).rows[1]]
    assert texts[3:6] == ["not reached", "not reached", "2 of 3"]


def test_unfinished_runs_set_no_threshold_and_reach_none(experiment: Any) -> None:
    add_rung(experiment, 64, (-200.0, -200.0), curve=(-1000.0, -300.0))
    add_rung(experiment, 128, (-10.0,), curve=(-900.0, -300.0))
    plan_run(experiment, 128, 1)
    run = plan_run(experiment, 256, 0)
    experiment.start(run)
    experiment.write_metrics(run, (-9000.0, 5.0))
    ladder = load_ladder(experiment)
    assert ladder.thresholds == {(): pytest.approx(-280.0)}
    assert ladder.rungs[2].find_crossings(-280.0) == []


def test_guard_events_of_a_run_without_summary_are_its_different_lines(experiment: Any) -> None:
    run = plan_run(experiment, 64, 0)
    experiment.fail(run, "health")
    events = experiment.folder / "events.jsonl"
    for step in (5, 5, 7):
        append_event(events, "guard", run=run.id, verdict="non-finite", metric="train/critic_loss", step=step)
    append_event(events, "started", run=run.id)
    assert load_ladder(experiment).rungs[0].guard_events == 2


# Arithmetic of an update


def multiply_adds(sizes: Sequence[int]) -> list[int]:
    return [before * after for before, after in pairwise(sizes)]


@pytest.mark.parametrize(
    ("hidden", "batch", "mflop"), [([256, 256], 256, 359), ([256, 256], 1024, 1436), ([400, 300], 256, 650)]
)
def test_an_update_of_ddpg_needs_the_products_that_were_counted_by_hand(
    hidden: list[int], batch: int, mflop: int
) -> None:
    actor = multiply_adds((17, *hidden, 6))
    critic = multiply_adds((23, *hidden, 1))
    forward = 2 * sum(actor) + 3 * sum(critic)
    critic_backward = sum(critic) + sum(critic[1:])
    through_critic = 6 * hidden[0] + sum(critic[1:])
    actor_backward = sum(actor) + sum(actor[1:])
    settings = {"algorithm_name": "ddpg", "hidden_dims": hidden, "batch_size": batch}
    counts = {"actor": sum(actor) + sum(hidden) + 6, "critic": sum(critic) + sum(hidden) + 1}
    flops = count_update_flops(settings, counts)
    assert flops == 2 * batch * (forward + critic_backward + through_critic + actor_backward)
    assert round(flops / 1e6) == mflop


def test_td3_has_two_critics_and_a_rare_actor(experiment: Any) -> None:
    hidden, batch = [256, 256], 256
    actor, critic = multiply_adds((17, *hidden, 6)), multiply_adds((23, *hidden, 1))
    each = sum(critic) + sum(hidden) + 1
    counts = {"actor": sum(actor) + sum(hidden) + 6, "critic_1": each, "critic_2": each}
    settings = {"algorithm_name": "td3", "hidden_dims": hidden, "batch_size": batch, "policy_delay": 2}
    per_update = sum(actor) + 2 * (2 * sum(critic) + sum(critic) + sum(critic[1:]))
    per_actor = sum(actor) + sum(critic) + 6 * 256 + sum(critic[1:]) + sum(actor) + sum(actor[1:])
    assert count_update_flops(settings, counts) == 2 * batch * (per_update + per_actor / 2)
    assert count_update_flops(settings | {"policy_delay": None}, counts) is None


def test_sac_climbs_both_critics_with_an_actor_of_mean_and_deviation() -> None:
    hidden, batch = [256, 256], 256
    actor, critic = multiply_adds((17, *hidden, 12)), multiply_adds((23, *hidden, 1))
    counts = {"actor": sum(actor) + 512 + 12, "critics": 2 * (sum(critic) + 512 + 1), "temperature": 1}
    settings = {"algorithm_name": "sac", "hidden_dims": hidden, "batch_size": batch}
    assert find_shape(settings, counts) == Shape(17, 6, (256, 256), 2 * 1)
    per_update = sum(actor) + 2 * (2 * sum(critic) + sum(critic) + sum(critic[1:]))
    per_actor = sum(actor) + 2 * (sum(critic) + 6 * 256 + sum(critic[1:])) + sum(actor) + sum(actor[1:])
    assert count_update_flops(settings, counts) == 2 * batch * (per_update + per_actor)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"algorithm_name": "tdmpc2", "hidden_dims": [64, 64], "batch_size": 64}, {"actor": 4609, "critic": 4673}),
        ({"algorithm_name": "ddpg", "batch_size": 64}, {"actor": 4609, "critic": 4673}),
        ({"algorithm_name": "ddpg", "hidden_dims": [64, 64], "batch_size": 64}, {"actor": 4609, "critic": 4674}),
        ({"algorithm_name": "ddpg", "hidden_dims": [64, 64], "batch_size": 64}, {"actor": 4545, "critic": 4353}),
        ({"algorithm_name": "ddpg", "hidden_dims": [65, 64], "batch_size": 64}, {"actor": 5000, "critic": 5000}),
        ({"algorithm_name": "td3", "hidden_dims": [64, 64], "batch_size": 64}, {"actor": 4609, "critic": 4673}),
    ],
)
def test_networks_of_another_shape_have_no_count(settings: dict[str, Any], counts: dict[str, int]) -> None:
    assert count_update_flops(settings, counts) is None


def test_a_peak_is_left_out_where_runs_were_made_elsewhere_or_nobody_wants_it() -> None:
    here = describe_machine(())
    for elsewhere in ({}, here | {"host": "other"}, here | {"cpu": "other"}):
        peak = find_peak(elsewhere)
        assert peak.gflop_per_s is None
        assert "left out, because the runs'" in peak.note
    assert find_peak(here, is_wanted=False) == GemmPeak(None, "GEMM peak: not measured, as asked for (--no-peak).")


def test_the_peak_of_this_machine_is_measured() -> None:
    peak = find_peak(describe_machine(()))
    assert peak.gflop_per_s
    assert peak.gflop_per_s > 0.1
    assert "measured now on this machine" in peak.note


def test_a_product_is_timed_at_two_operations_for_each_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 0.002, 0.5, 0.501, 2.0])
    monkeypatch.setattr("analysis.ladder_peak.time.perf_counter", lambda: next(ticks))
    assert measure_gemm(size=100, seconds=1.0) == pytest.approx(2e6 / 0.001 / 1e9)


def test_the_share_of_the_peak_is_of_as_many_threads_as_the_run_had(experiment: Any) -> None:
    runs = add_rung(experiment, 64, GOOD)
    peak = GemmPeak(0.1, "")
    shares = []
    for threads, device in ((1, "cpu"), (2, "cpu"), (1, "cuda:0")):
        for run in runs:
            summary = json.loads(run.summary_path.read_text()) | {"threads": threads, "device": device}
            run.summary_path.write_text(json.dumps(summary))
        frame = tabulate_costs(load_ladder(experiment), Advice(None, ""), peak).frame
        shares.append(frame["gemm_peak_share"][0])
    assert shares[0] == pytest.approx(frame["gflop_per_s"][0] / 0.1)
    assert shares[1] == pytest.approx(shares[0] / 2)
    assert shares[2] is None


# The guide's claims


def test_the_guides_table_stands_beside_and_is_marked_as_claimed(experiment: Any) -> None:
    add_rung(experiment, 256, GOOD)
    add_rung(experiment, 4096, BAD)
    table = tabulate_claimed(load_ladder(experiment))
    assert [row[0].text for row in table.rows] == ["128", "256", "512", "1024", "2048", "4096"]
    assert [claim.minutes for claim in CLAIMED] == [40, 32, 25, 20, 15, 12]
    assert all(column.startswith(("Claimed: ", "Measured here: ")) for column in table.columns[1:])
    texts = [cell.text for cell in table.rows[1]]
    assert texts == ["256", "68 %", "32 min", "5 of 5", "recommended", "61.0 s [60.0 s, 62.0 s]", "3 of 3", "-146.0"]
    assert [cell.text for cell in table.rows[0]][5:] == ["–", "–", "–"]  # noqa: RUF001


def test_that_4096_diverges_is_refuted_by_finished_runs_that_did_not(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD)
    assert judge(experiment)["Batches of 4096"] == ("not decided", "no rung of 4096")
    add_rung(experiment, 4096, ALSO_GOOD)
    verdict, evidence = judge(experiment)["Batches of 4096"]
    assert verdict == "refuted"
    assert evidence.startswith("none of 3 runs of 4096 became non-finite or fell from what it was")


def test_that_4096_diverges_is_confirmed_by_one_run_that_falls(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD)
    runs = add_rung(experiment, 4096, (-150.0, -1900.0, -150.0))
    verdict, evidence = judge(experiment)["Batches of 4096"]
    assert verdict == "confirmed"
    assert "1 of 3 runs of 4096 diverged" in evidence
    assert f"({runs[1].id}): evaluations from -500 to -1900" in evidence
    assert "of the smaller batches, 0 of 3 runs did" in evidence


def test_a_run_that_learnt_nothing_and_scatters_did_not_diverge(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD, curve=(-1150.0,))
    add_rung(experiment, 4096, (-1248.0, -1190.0, -1240.0), curve=(-1129.0,))
    assert judge(experiment)["Batches of 4096"][0] == "refuted"


def test_a_run_that_had_learnt_and_lost_it_diverged(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD, curve=(-1000.0,))
    runs = add_rung(experiment, 4096, (-150.0, -800.0, -150.0), curve=(-1000.0, -160.0))
    verdict, evidence = judge(experiment)["Batches of 4096"]
    assert verdict == "confirmed"
    assert f"({runs[1].id}): evaluations from -160 to -800" in evidence


def test_a_run_that_wobbles_around_what_it_had_learnt_did_not_diverge(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD, curve=(-1000.0,))
    add_rung(experiment, 4096, (-152.0, -152.0, -152.0), curve=(-150.0,))
    assert judge(experiment)["Batches of 4096"][0] == "refuted"


def test_that_4096_diverges_is_confirmed_by_an_unfinished_run_that_became_non_finite(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD)
    add_rung(experiment, 1024, GOOD)
    run = plan_run(experiment, 4096, 0)
    experiment.fail(run, "health")
    experiment.write_metrics(run, (-1000.0, "nan"))
    claims = judge(experiment)
    assert claims["Batches of 4096"][0] == "confirmed"
    assert "eval/mean_reward was not finite at step 2,000" in claims["Batches of 4096"][1]
    assert claims["The larger the"][0] == "confirmed"


def test_an_unfinished_rung_that_shows_nothing_decides_nothing(experiment: Any) -> None:
    add_rung(experiment, 512, GOOD)
    add_rung(experiment, 4096, GOOD[:2])
    plan_run(experiment, 4096, 2)
    claims = judge(experiment)
    assert claims["Batches of 4096"] == ("not decided", "batch_size=4096: 2 of 3 finished, 1 PENDING")
    assert claims["The larger the"][0] == "not decided"


def test_that_stability_falls_is_refuted_where_all_batches_are_as_sound(experiment: Any) -> None:
    for batch in (512, 1024, 4096):
        add_rung(experiment, batch, GOOD)
    assert judge(experiment)["The larger the"][0] == "refuted"


@pytest.mark.parametrize(
    ("walls", "verdict"),
    [
        ((100.0, 30.0), "confirmed"),
        ((100.0, 90.0), "confirmed in part"),
        ((60.0, 100.0), "refuted"),
        ((60.0, 59.0), "not decided"),
    ],
)
def test_the_claimed_times_are_judged_by_wall_times(experiment: Any, walls: tuple[float, float], verdict: str) -> None:
    for batch, wall in zip((128, 4096), walls, strict=True):
        add_rung(experiment, batch, GOOD, wall=wall)
    assert judge(experiment)["Larger batches train"][0] == verdict


@pytest.mark.parametrize(
    ("wall", "guard", "verdict"),
    [
        (90.0, SICK, "confirmed"),
        (90.0, HEALTHY, "confirmed in part"),
        (30.0, SICK, "confirmed in part"),
        (30.0, HEALTHY, "refuted"),
        (61.0, HEALTHY, "not decided"),
    ],
)
def test_small_batches_are_judged_by_time_and_health(
    experiment: Any, wall: float, guard: dict[str, Any], verdict: str
) -> None:
    add_rung(experiment, 64, GOOD, wall=wall, guards=(guard,) * 3)
    add_rung(experiment, 256, GOOD, wall=60.0)
    assert judge(experiment)["Below 128 training"][0] == verdict


def test_the_claimed_best_balance_is_judged_by_the_recommendation(experiment: Any) -> None:
    add_rung(experiment, 256, BAD)
    add_rung(experiment, 512, GOOD)
    add_rung(experiment, 1024, ALSO_GOOD)
    claims = judge(experiment)
    assert claims["512 is the"] == ("confirmed", "these runs recommend batch_size=512")
    assert claims["1024 is the"][0] == "not decided", "it isn't told apart from 512"
    add_rung(experiment, 128, GOOD, wall=10.0)
    assert judge(experiment)["1024 is the"] == ("refuted", "these runs recommend batch_size=128")


# Files and the command


def test_the_command_prints_the_tables_and_writes_three_files(
    experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rung(experiment, 64, BAD)
    add_rung(experiment, 256, GOOD)
    assert main([str(experiment.folder), "--no-peak", "--threshold", "-300"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Recommended: batch_size=256.")
    assert "warning: Fewer than 5 seeds" in out
    assert "Threshold: -300.0." in out
    assert "Claimed: training time" in out
    report = experiment.folder / "report"
    assert {path.name for path in report.iterdir()} == {".lock", "batch_size.csv", "batch_size.md", "batch_size.png"}
    text = (report / "batch_size.md").read_text()
    assert "![Return against wall time, and what the batch size changes](batch_size.png)" in text
    for title in ("Returns and health by rung", "Cost by rung", "As claimed by the guide", "What these runs confirm"):
        assert f"## {title}" in text
    assert [row["recommended"] for row in read_csv(experiment.folder)] == ["False", "True"]


def test_every_row_of_the_markdown_has_as_many_cells_as_its_head(experiment: Any) -> None:
    add_rung(experiment, 64, BAD, note="a|b")
    add_rung(experiment, 256, GOOD, note="c")
    before = ""
    width = 0
    for line in write_ladder_report(experiment.folder, measure_peak=False).markdown.read_text().splitlines():
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|")
            width = width if before.startswith("|") else cells
            assert cells == width, line
        before = line
    assert width


def test_the_picture_shows_each_ladder_and_is_the_same_for_the_same_runs(experiment: Any) -> None:
    for rule in ("fixed", "sqrt"):
        for batch in (64, 256):
            add_rung(experiment, batch, GOOD, lr_rule=rule)
    paths = write_ladder_report(experiment.folder, measure_peak=False)
    assert paths.picture
    first = paths.picture.read_bytes()
    pixels = matplotlib.image.imread(paths.picture)
    assert pixels.shape[0] > pixels.shape[1], "two ladders, one above the other"
    assert np.ptp(pixels[..., :3]) > 0.5
    assert write_ladder_report(experiment.folder, measure_peak=False).picture == paths.picture
    assert paths.picture.read_bytes() == first


def test_a_ladder_without_finished_runs_has_tables_and_no_picture(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD)
    old = write_ladder_report(experiment.folder, measure_peak=False).picture
    assert old
    for run in experiment.folder.glob("*/exit.json"):
        run.unlink()
    paths = write_ladder_report(experiment.folder, measure_peak=False)
    assert paths.picture is None
    assert not old.exists()
    assert math.isnan(float(read_csv(experiment.folder)[0]["iqm"] or "nan"))


def test_a_folder_that_is_no_experiment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--no-peak"]) == 2
    assert "plan.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("text", ["nan", "inf", "high"])
def test_a_threshold_has_to_be_a_finite_number(experiment: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    add_rung(experiment, 64, GOOD)
    with pytest.raises(SystemExit, match="2"):
        main([str(experiment.folder), "--threshold", text])
    assert f"a return has to be a finite number, got '{text}'" in capsys.readouterr().err


def test_runs_of_different_machines_are_warned_of(experiment: Any) -> None:
    runs = add_rung(experiment, 64, GOOD)
    add_rung(experiment, 256, GOOD)
    path = runs[0].attempt_dir(1) / "start.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "there"}))
    text = write_ladder_report(experiment.folder, measure_peak=False).text
    assert "different hosts (here, there): their wall times hardly compare" in text


def test_rungs_are_compared_by_identity(experiment: Any) -> None:
    add_rung(experiment, 64, GOOD)
    (rung,) = load_ladder(experiment).rungs
    assert rung != replace(rung)
