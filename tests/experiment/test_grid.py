"""The grid: products, exclusions, labels, places."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiment.grid import count_combinations, expand_grid, locate, make_label
from experiment.loader import Mark
from experiment.problems import SpecError
from experiment.spec import ExperimentSpec, load_spec


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str) -> ExperimentSpec:
    Path("x.yaml").write_text(text)
    return load_spec(Path("x.yaml"))


def labels_of(text: str) -> list[str]:
    spec = load(text)
    return [make_label(spec, combination) for combination in expand_grid(spec)]


VALUES = st.one_of(st.integers(-5, 5), st.booleans(), st.text("abc", max_size=2), st.none())
AXES = st.dictionaries(
    st.sampled_from(["a", "b", "c.d"]), st.lists(VALUES, min_size=1, max_size=3, unique_by=repr), max_size=3
)
CONSTANTS = st.dictionaries(st.sampled_from(["a", "k", "m"]), VALUES, min_size=1, max_size=3)
CASES = st.lists(
    st.dictionaries(st.sampled_from(["p", "q", "k"]), VALUES, min_size=1, max_size=2),
    max_size=3,
    unique_by=lambda case: repr(sorted(case.items())),  # the order of keys makes no other case
)


def is_same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def expand_naively(
    constants: dict[str, Any], axes: dict[str, list[Any]], cases: list[dict[str, Any]], exclude: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What a reader of the documentation would write."""
    rows = []
    for values in itertools.product(*axes.values()):
        for case in cases or [{}]:
            row = constants | dict(zip(axes, values, strict=True)) | case
            if not any(all(key in row and is_same(row[key], entry[key]) for key in entry) for entry in exclude):
                rows.append(row)
    return rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONSTANTS, AXES, CASES, st.data())
def test_the_grid_is_the_nested_loop_that_one_would_write(
    constants: dict[str, Any], axes: dict[str, list[Any]], cases: list[dict[str, Any]], data: st.DataObject
) -> None:
    everything = expand_naively(constants, axes, cases, [])
    exclude = []
    if data.draw(st.booleans()):
        victim = data.draw(st.sampled_from(everything))
        keys = data.draw(st.lists(st.sampled_from(sorted(victim)), min_size=1, max_size=2, unique=True))
        exclude = [{key: victim[key] for key in keys}]
    wanted = expand_naively(constants, axes, cases, exclude)
    text = yaml.safe_dump(
        {"constants": constants, "variables": axes, "cases": cases or None, "exclude": exclude}, sort_keys=False
    )
    if not wanted:
        with pytest.raises(SpecError, match=r"exclude leaves none of the \d+ combinations"):
            load(text)
        return
    spec = load(text)
    combinations = list(expand_grid(spec))
    assert [repr(sorted(c.settings.items())) for c in combinations] == [repr(sorted(row.items())) for row in wanted]
    assert count_combinations(spec) == len(wanted)
    assert len({combination.choice for combination in combinations}) == len(wanted)


def test_the_last_variable_varies_fastest_and_cases_faster_still() -> None:
    assert labels_of("variables: {a: [1, 2], b: [3, 4]}\ncases: [{c: 5}, {d: 6}]\n") == [
        "a=1,b=3,c=5",
        "a=1,b=3,d=6",
        "a=1,b=4,c=5",
        "a=1,b=4,d=6",
        "a=2,b=3,c=5",
        "a=2,b=3,d=6",
        "a=2,b=4,c=5",
        "a=2,b=4,d=6",
    ]


SAMPLED = """\
meta_data: {samples: 3}
variables:
  a: [1, 2]
  lr: {log_uniform: [1e-5, 1e-2]}
  seed: [0, 1]
  layers: {int_uniform: [1, 9]}
"""


def test_random_variables_are_one_axis_at_the_place_of_the_first() -> None:
    spec = load(SAMPLED + "cases: [{c: 5}, {c: 6}]\n")
    assert spec.axis_lengths() == [2, 3, 2, 2]
    points = list(zip(spec.variables["lr"], spec.variables["layers"], strict=True))
    assert len(set(points)) == 3
    wanted = itertools.product([1, 2], points, [0, 1], [5, 6])
    found = [
        tuple(combination.settings[key] for key in ["a", "lr", "seed", "layers", "c"])
        for combination in expand_grid(spec)
    ]
    assert found == [(a, lr, seed, layers, c) for a, (lr, layers), seed, c in wanted]
    assert count_combinations(spec) == 24


def test_labels_have_the_drawn_values() -> None:
    spec = load("meta_data: {samples: 2}\nvariables: {learning_rate: {log_uniform: [1e-5, 1e-2]}, seed: [7]}\n")
    assert [make_label(spec, combination) for combination in expand_grid(spec)] == [
        "learning_rate=0.002222,seed=7",
        "learning_rate=0.0001763,seed=7",
    ]


def test_an_exclude_of_drawn_values_goes_by_point() -> None:
    spec = load(SAMPLED)
    (lr, *_), (_, layers, _) = spec.variables["lr"], spec.variables["layers"]
    left = load(SAMPLED + f"exclude: [{{lr: {lr!r}, a: 1}}]\n")
    assert count_combinations(left) == 10
    with pytest.raises(SpecError, match="no combination has these values of lr and layers; remove the entry"):
        load(SAMPLED + f"exclude: [{{lr: {lr!r}, layers: {layers}}}]\n")


def test_an_exclude_may_be_a_rule_for_points_that_were_not_drawn() -> None:
    text = "meta_data: {samples: 1}\nvariables: {layers: {int_uniform: [1, 4]}, act: {choice: [relu, tanh]}, "
    text += "seed: [0, 1]}\nexclude: [{layers: 1.0, act: tanh}, {layers: 2}, {act: tanh, seed: 1}]\n"
    assert labels_of(text) == ["layers=4,act=relu,seed=0", "layers=4,act=relu,seed=1"]


def test_a_drawn_value_is_located_at_its_bounds_and_a_choice_at_its_item() -> None:
    text = "meta_data: {samples: 8}\nvariables:\n  net: {tau: {uniform: [0, 1]}}\n  act: {choice: [relu, tanh]}\n"
    spec = load(text)
    for combination in expand_grid(spec):
        assert locate(spec, combination, "net.tau") == Mark("x.yaml", 3, 24)
        assert locate(spec, combination, "net.tau", "key") == Mark("x.yaml", 3, 9)
        assert locate(spec, combination, "net", "key") == Mark("x.yaml", 3, 3)
        column = 18 if combination.settings["act"] == "relu" else 24
        assert locate(spec, combination, "act") == Mark("x.yaml", 4, column)


def test_an_exclude_goes_by_value_over_all_of_its_keys() -> None:
    text = "constants: {f: 1}\nvariables: {a: [1, true, 2], b: [x, y]}\nexclude: [{a: 1.0, b: x, f: 1}, {b: y}]\n"
    assert labels_of(text) == ["a=true,b=x", "a=2,b=x"]


def test_an_exclude_sees_the_constant_behind_a_case() -> None:
    text = "constants: {tau: 0.1}\ncases: [{n: 1}, {n: 2, tau: 0.2}, {n: 3}]\nexclude: [{tau: 0.1, n: 3}]\n"
    assert labels_of(text) == ["n=1", "n=2,tau=0.2"]


def test_labels_write_values_so_that_people_and_folders_can_take_them() -> None:
    text = "variables: {lr: [1e-4, 1e-05, 3.0], dims: [[64, 64], []], on: [true], env: [A/b], x: [null], m: [{g: 1}]}\n"
    assert labels_of(text)[0] == "lr=0.0001,dims=64-64,on=true,env=A/b,x=null,m=g-1"
    assert labels_of(text)[3] == "lr=1e-05,dims=,on=true,env=A/b,x=null,m=g-1"


def test_without_swept_keys_a_label_is_the_algorithm_s_name() -> None:
    assert labels_of("constants: {algorithm_name: ddpg}\n") == ["ddpg"]
    assert labels_of("constants: {a: 1}\n") == ["run"]


def test_a_job_name_is_the_label_s_template() -> None:
    text = "meta_data: {job_name: 'H{net.h}/run_{seed}_{lr}'}\nconstants: {net: {h: 8}}\n"
    text += "variables: {seed: [1, 2]}\ncases: [{lr: 1e-3}, {other: 1}]\n"
    assert labels_of(text) == ["H8/run_1_0.001", "H8/run_1_unset", "H8/run_2_0.001", "H8/run_2_unset"]


def test_every_value_can_be_located() -> None:
    spec = load(
        "meta_data: {imports: [my.envs]}\n"
        "constants: {lr: 1, net: {h: 8, kw: {}}}\n"
        "variables:\n"
        "  seed: [10, 20]\n"
        "cases:\n"
        "  - {lr: 3}\n"
        "  - {tau: 4}\n"
    )
    first, second, third, _ = expand_grid(spec)
    assert locate(spec, first, "seed") == Mark("x.yaml", 4, 10)
    assert locate(spec, third, "seed") == Mark("x.yaml", 4, 14)
    assert locate(spec, third, "seed", "key") == Mark("x.yaml", 4, 3)
    assert locate(spec, first, "lr") == Mark("x.yaml", 6, 10)
    assert locate(spec, second, "lr") == Mark("x.yaml", 2, 17)
    assert locate(spec, second, "tau", "key") == Mark("x.yaml", 7, 6)
    assert locate(spec, first, "net.h") == Mark("x.yaml", 2, 29)
    assert locate(spec, first, "net") == Mark("x.yaml", 2, 20)
    assert locate(spec, first, "net.kw.inner") == Mark("x.yaml", 2, 36)
    assert locate(spec, first, "imports") == Mark("x.yaml", 1, 22)
    assert locate(spec, first, "tau") is None
    assert first.settings["imports"] == ["my.envs"]


def test_expanding_is_lazy() -> None:
    values = ", ".join(str(number) for number in range(100))
    spec = load(f"variables: {{a: [{values}], b: [{values}], c: [{values}]}}\n")
    combinations = expand_grid(spec)
    assert next(combinations).settings == {"a": 0, "b": 0, "c": 0}
    assert count_combinations(spec) == 1_000_000
