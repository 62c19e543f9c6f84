from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import load_runs
from analysis.arms import compare_arms
from analysis.figures import (
    Curve,
    Picture,
    align_curve,
    collect_points,
    compute_band,
    draw_figures,
    find_acting,
    name_steps,
)
from analysis.statistics import stratified_bootstrap_interval


def draw(folder: Path) -> tuple[list[Picture], list[str]]:
    data = load_runs(folder)
    return draw_figures(data, compare_arms(data))


def chunk_names(png: bytes) -> list[bytes]:
    names, position = [], 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        names.append(png[position + 4 : position + 8])
        position += 12 + length
    return names


def test_figures_are_png_and_the_same_bytes_each_time(finished_sweep: Path) -> None:
    first, second = draw(finished_sweep)[0], draw(finished_sweep)[0]
    assert [picture.name for picture in first] == ["learning_curves", "final_returns"]
    assert [picture.png for picture in first] == [picture.png for picture in second]
    for picture in first:
        assert picture.png.startswith(b"\x89PNG\r\n\x1a\n")
        assert not {b"tEXt", b"tIME", b"iTXt"} & set(chunk_names(picture.png))
        assert len(picture.runs) == 9


def test_a_users_own_style_changes_nothing_and_is_left_alone(finished_sweep: Path) -> None:
    import matplotlib as mpl

    plain = draw(finished_sweep)[0]
    with mpl.rc_context({"font.size": 30.0, "axes.facecolor": "red"}):
        assert [picture.png for picture in draw(finished_sweep)[0]] == [picture.png for picture in plain]
        assert mpl.rcParams["font.size"] == 30.0


def test_the_curve_of_runs_that_never_act_is_by_training_step(experiment: Any) -> None:
    acting, offline = experiment.add({"seed": 1}), experiment.add({"seed": 2})
    experiment.finish(acting, curve=[-3.0, -2.0])
    experiment.finish(offline, curve=[-5.0, -4.0, -3.0], acts=False)
    data = load_runs(experiment.folder)
    points = collect_points(data)
    assert points == {acting.id: {1000: -3.0, 2000: -2.0}, offline.id: {1000: -5.0, 2000: -4.0, 3000: -3.0}}
    assert find_acting(data) == {acting.id}
    names = [name_steps({acting.id}, ids) for ids in ({acting.id}, {offline.id}, {acting.id, offline.id})]
    assert names[:2] == ["Environment steps", "Training steps"]
    assert names[2] == "Environment steps, or training steps where none were taken"


def test_a_curve_has_only_steps_that_all_finished_runs_have(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}), curve=[-3.0, -2.0, -1.0])
    experiment.finish(experiment.add({"seed": 2}), curve=[-5.0, "nan", -3.0, -2.0])
    unfinished = experiment.add({"seed": 3})
    experiment.start(unfinished)
    experiment.write_metrics(unfinished, [9e9])
    data = load_runs(experiment.folder)
    curve = align_curve(compare_arms(data)[0].results[0].arm, collect_points(data))
    assert curve is not None
    assert curve.steps.tolist() == [1000, 3000]
    assert curve.returns.tolist() == [[-3.0, -1.0], [-5.0, -3.0]]
    low, high = compute_band(curve)
    assert (low.tolist(), high.tolist()) == ([-5.0, -3.0], [-3.0, -1.0])


def test_the_band_of_a_curve_is_drawn_from_two_thousand_resamples() -> None:
    returns = np.random.default_rng(3).normal(size=(9, 1))
    curve = Curve(np.array([1000]), returns, ("",) * 9)
    low, high = compute_band(curve)
    expected = stratified_bootstrap_interval([returns[:, 0]], resamples=2_000)
    assert (low[0], high[0]) == (expected.low, expected.high)


def test_figures_of_arms_over_different_other_settings_say_so(experiment: Any) -> None:
    for rate, size in ((0.1, 64), (0.2, 64), (0.2, 256)):
        experiment.finish(experiment.add({"rate": rate, "size": size, "seed": 1}))
    experiment.fail(experiment.add({"rate": 0.3, "size": 512, "seed": 1}))
    notes = {picture.name: " ".join(picture.notes) for picture in draw(experiment.folder)[0]}
    told = {name for name, note in notes.items() if "Not a comparison" in note}
    assert told == {name for name in notes if "_by_" in name}
    assert len(told) == 4


def test_evaluations_that_are_not_finite_are_named(experiment: Any) -> None:
    run = experiment.add({"seed": 2})
    experiment.finish(run, curve=[-5.0, "nan", "inf", -2.0])
    assert draw(experiment.folder)[1] == [
        f"seed=2 ({run.id}): 2 evaluations are not finite and are left out of the curves."
    ]


def test_a_single_run_has_a_curve_without_a_band(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}))
    data = load_runs(experiment.folder)
    curve = align_curve(compare_arms(data)[0].results[0].arm, collect_points(data))
    assert curve is not None
    assert np.isnan(compute_band(curve)).all()
    assert len(draw(experiment.folder)[0]) == 2


def test_without_evaluations_the_missing_curve_is_explained(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}), curve=[])
    pictures, left_out = draw(experiment.folder)
    assert [picture.name for picture in pictures] == ["final_returns"]
    assert left_out == ["Learning curves: no finished run has rows of eval/mean_reward."]


def test_each_environment_has_figures_of_its_own(experiment: Any) -> None:
    for env in ("Pendulum-v1", "Ant-v5"):
        experiment.finish(experiment.add({"env_name": env}))
    names = [picture.name for picture in draw(experiment.folder)[0]]
    assert names == [
        "learning_curves_Pendulum-v1",
        "final_returns_Pendulum-v1",
        "learning_curves_Ant-v5",
        "final_returns_Ant-v5",
    ]


@pytest.mark.parametrize("value", ["$x^{", "a_b\\frac", "漢字", "<b>", "x" * 300])
def test_odd_values_can_be_drawn(experiment: Any, value: str) -> None:
    experiment.finish(experiment.add({"name": value}, label="odd"))
    experiment.add({"name": "other"}, label="other")
    assert len(draw(experiment.folder)[0]) == 2


def test_single_runs_of_an_arm_that_has_many_are_not_drawn(
    finished_sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = draw(finished_sweep)[0][0].png
    monkeypatch.setattr("analysis.figures.MAX_LINES", 3)
    assert draw(finished_sweep)[0][0].png == plain
    monkeypatch.setattr("analysis.figures.MAX_LINES", 2)
    assert draw(finished_sweep)[0][0].png != plain
