"""Plans: ids, folders, notes, filters, speed; and the documentation's examples."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiment.plan import Plan, check_combinations, plan_runs, write_plan
from experiment.problems import SpecError
from experiment.run import find_runs
from experiment.spec import load_spec
from rl.ddpg_config import DDPGConfig

ROOT = Path(__file__).parents[2]
HEAD = "constants: {algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 3000}\n"
GRID = HEAD + "variables: {seed: [100, 200], learning_rate: [1e-4, 3e-4, 1e-3]}\n"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(text: str, *only: str, overrides: tuple[str, ...] = ()) -> Plan:
    Path("x.yaml").write_text(text)
    return plan_runs(load_spec(Path("x.yaml"), overrides), Path("logs"), DDPGConfig.from_settings, only)


def id_of(given: Mapping[str, Any]) -> str:
    return DDPGConfig.from_settings({"algorithm_name": "ddpg", "env_name": "Pendulum-v1"} | dict(given)).run_id()


GOLDEN: list[tuple[dict[str, Any], str]] = [
    ({}, "30131bc5a62bc5a0"),
    ({"seed": 100, "learning_rate": 1e-4}, "6b9e9a6dc143c0c1"),
    ({"seed": 100, "learning_rate": 1e-4, "max_timesteps": 10_000, "hidden_dims": [64, 64]}, "e7fb3d26743807ca"),
    ({"env_name": "Ant-v5", "noise_type": "ou", "ou_theta": 0.2, "noise_std": 0.2}, "791ebf9147bb3ace"),
    ({"env_kwargs": {"g": 9.81}, "imports": ["my.envs"], "guard": "stop", "eval_freq": 0}, "8a50561d2aa27ae1"),
]


@pytest.mark.parametrize(("given", "run_id"), GOLDEN)
def test_golden_ids_hold(given: dict[str, Any], run_id: str) -> None:
    assert id_of(given) == run_id


IDENTITY = {
    "seed": st.integers(0, 5),
    "learning_rate": st.sampled_from([1e-4, 3e-4, 1e-3, 1.0]),
    "tau": st.sampled_from([0.005, 0.5, 1.0]),
    "batch_size": st.sampled_from([32, 64, 256]),
    "hidden_dims": st.lists(st.sampled_from([32, 64]), min_size=1, max_size=2),
    "noise_std": st.sampled_from([0.1, 0.2]),
    "env_kwargs.g": st.sampled_from([9.0, 10.0]),
}
SETTINGS = st.fixed_dictionaries({}, optional=IDENTITY)


@settings(deadline=None)
@given(SETTINGS, SETTINGS)
def test_settings_share_an_id_exactly_when_they_mean_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {
        "seed": 0,
        "learning_rate": 1e-3,
        "tau": 0.005,
        "batch_size": 256,
        "hidden_dims": [256, 256],
        "noise_std": 0.1,
        "env_kwargs.g": None,
    }
    assert (id_of(one) == id_of(other)) == (defaults | one == defaults | other)


@settings(deadline=None)
@given(SETTINGS, st.randoms(use_true_random=False))
def test_order_and_nesting_don_t_change_an_id(given: dict[str, Any], random: Any) -> None:
    items = [(key, value) for key, value in given.items() if key != "env_kwargs.g"]
    if "env_kwargs.g" in given:
        items.append(("env_kwargs", {"g": given["env_kwargs.g"]}))
    random.shuffle(items)
    assert id_of(dict(items)) == id_of(given)


def test_numbers_are_told_apart_by_the_field_and_not_by_how_they_are_written() -> None:
    assert id_of({"learning_rate": 1}) == id_of({"learning_rate": 1.0})
    assert id_of({"max_timesteps": 1e5}) == id_of({"max_timesteps": 100_000}) == id_of({})


def test_keys_that_can_t_change_results_don_t_change_an_id() -> None:
    same = {"device": "cpu", "log_freq": 7, "save_freq": 9, "keep_last": 5, "continue_training": False}
    assert id_of({"seed": 3} | same) == id_of({"seed": 3})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True),
    st.lists(st.sampled_from([1e-4, 3e-4, 1e-3, 2e-3]), min_size=1, max_size=3, unique=True),
)
def test_a_longer_list_keeps_all_runs_that_were_there(seeds: list[int], rates: list[float]) -> None:
    def runs_of(chosen: list[int]) -> set[tuple[str, Path]]:
        made = plan(HEAD + f"variables: {{seed: {chosen}, learning_rate: {rates}}}\n")
        return {(run.id, run.folder) for run in made.runs}

    fewer, more = runs_of(seeds[:-1]), runs_of(seeds)
    assert fewer < more
    assert len(more) == len(seeds) * len(rates)
    assert len({folder for _, folder in more}) == len(more)


def test_a_plan_has_a_run_for_each_combination_in_order() -> None:
    made = plan(GRID)
    assert made.combinations == 6
    assert [run.label for run in made.runs][:4] == [
        "seed=100,learning_rate=0.0001",
        "seed=100,learning_rate=0.0003",
        "seed=100,learning_rate=0.001",
        "seed=200,learning_rate=0.0001",
    ]
    assert made.runs[0].folder == Path("logs/x") / f"seed=100,learning_rate=0.0001__{made.runs[0].id}"
    assert made.ids == [run.id for run in made.runs]
    assert not Path("logs").exists()


def test_a_run_can_be_checked_again_for_its_config() -> None:
    made = plan("meta_data: {imports: [my.envs]}\n" + GRID)
    planned = made.check_again(made.runs[4].id)
    assert planned.id == made.runs[4].id
    resolved = planned.resolved()
    assert (resolved["seed"], resolved["learning_rate"], resolved["discount"]) == (200, 3e-4, 0.99)
    assert resolved["imports"] == ["my.envs"]


def test_a_job_name_that_omits_a_swept_key_can_t_make_runs_share_a_folder() -> None:
    made = plan("meta_data: {job_name: 'all/{algorithm_name}'}\n" + GRID)
    assert len({run.folder for run in made.runs}) == 6
    assert made.runs[0].folder == Path("logs/x") / f"all-ddpg__{made.runs[0].id}"


def test_a_run_s_folder_is_found_by_its_id_whatever_its_label_was() -> None:
    first = plan(GRID).runs[0]
    old = first.folder.with_name(f"another-label__{first.id}")
    old.mkdir(parents=True)
    again = plan(GRID).runs[0]
    assert (again.folder, again.label) == (old, first.label)
    assert [run.folder for run in find_runs(Path("logs/x"))] == [old]


def test_of_two_folders_with_one_id_the_finished_one_is_taken() -> None:
    first = plan(GRID).runs[0]
    for label in "abc":
        first.folder.with_name(f"{label}__{first.id}").mkdir(parents=True)
    finished = first.folder.with_name(f"b__{first.id}")
    (finished / "exit.json").write_text("{}")
    assert plan(GRID).runs[0].folder == finished


def test_combinations_that_mean_the_same_share_a_run_and_that_is_said() -> None:
    made = plan(HEAD + "variables: {noise_type: [ou, gaussian], ou_theta: [0.1, 0.2, 0.3]}\n")
    assert (made.combinations, len(made.runs), len(made.ids)) == (6, 4, 6)
    assert made.ids[3] == made.ids[4] == made.ids[5]
    assert made.notes == (
        "ou_theta is switched off in 3 of 6 runs (there is no Ornstein-Uhlenbeck noise without noise_type: ou and "
        "noise_std > 0), and left out of their ids",
        "6 combinations make 4 runs, for some mean the same: 'noise_type=gaussian,ou_theta=0.2' means the same as "
        "'noise_type=gaussian,ou_theta=0.1'",
    )


def test_notes_begin_with_those_of_the_spec() -> None:
    made = plan("constants: {algorithm_name: ddpg, env_name: P, seed: 1}\nvariables: {seed: [2]}\n")
    assert made.notes == ("seed: the constant 1 (x.yaml:1) gives way to the variable (x.yaml:2)",)


class TestOnly:
    """`--only key=value`."""

    def test_runs_have_to_match_all_and_the_grid_stays_whole(self) -> None:
        made = plan(GRID, "seed=200", "learning_rate=0.0003")
        assert [run.label for run in made.runs] == ["seed=200,learning_rate=0.0003"]
        assert (made.combinations, len(made.ids)) == (6, 6)

    def test_constants_can_be_asked_for_too(self) -> None:
        assert len(plan(GRID, "env_name=Pendulum-v1", "seed=100.0").runs) == 3

    def test_the_others_are_checked_all_the_same(self) -> None:
        with pytest.raises(SpecError, match=r"x\.yaml:2:25: seed must be >= 0, got -1 \(1 of 2 runs\)"):
            plan(HEAD + "variables: {seed: [100, -1]}\n", "seed=100")

    @pytest.mark.parametrize(
        ("only", "problem"),
        [
            (["sead=1"], "--only sead=1: the spec doesn't set 'sead'; did you mean 'seed'?"),
            (["xyz=1"], "--only xyz=1: the spec doesn't set 'xyz'; its keys are algorithm_name, env_name,"),
            (["seed=300"], "--only seed=300: seed is never 300; its values are 100, 200"),
            (["seed='100'"], "--only seed='100': seed is never '100'; its values are 100, 200"),
            (["seed"], "--only seed: --only takes key=value, for example --only seed=VALUE"),
            (["seed=100", "seed=200"], "--only seed=200: seed is given twice (also as --only seed=100)"),
        ],
    )
    def test_what_matches_nothing_is_refused(self, only: list[str], problem: str) -> None:
        with pytest.raises(SpecError, match=f"^{re.escape(problem)}"):
            plan(GRID, *only)

    def test_values_that_only_excluded_combinations_have_are_refused(self) -> None:
        text = GRID + "exclude: [{seed: 100, learning_rate: 1e-3}]\n"
        with pytest.raises(SpecError, match=r"--only seed=100 and --only learning_rate=0\.001: no combination has all"):
            plan(text, "seed=100", "learning_rate=0.001")


class TestRandomVariables:
    """Points that are drawn."""

    TEXT = (
        HEAD + "variables: {seed: [0, 1], learning_rate: {log_uniform: [1e-5, 1e-2]}, tau: {uniform: [0.001, 0.1]}}\n"
    )

    def plan(self, samples: int, text: str = TEXT, *only: str) -> Plan:
        return plan(f"meta_data: {{samples: {samples}}}\n{text}", *only)

    def test_a_plan_is_of_seeds_by_points(self) -> None:
        made = self.plan(3)
        assert made.notes == ("3 points drawn of learning_rate, tau (samples_seed 0)",)
        assert [run.label for run in made.runs] == [
            f"seed={seed},learning_rate={point}"
            for seed in (0, 1)
            for point in ("0.002222,tau=0.09763", "0.0001763,tau=0.07417", "0.004868,tau=0.02685")
        ]

    def test_more_samples_add_runs_and_keep_those_that_are_there(self) -> None:
        few, more = self.plan(20), self.plan(50)
        assert (len(few.runs), len(more.runs)) == (40, 100)
        assert {(run.id, run.folder) for run in few.runs} < {(run.id, run.folder) for run in more.runs}

    def test_one_more_random_variable_leaves_the_others_as_they_were(self) -> None:
        def points(made: Plan) -> list[tuple[float, float]]:
            settings = [made.check_again(run.id).settings for run in made.runs]
            return list(dict.fromkeys((row["learning_rate"], row["tau"]) for row in settings))

        more = self.TEXT.replace("seed:", "discount: {uniform: [0.9, 1]}, seed:")
        assert points(self.plan(5)) == points(self.plan(5, more))

    def test_only_asks_for_a_drawn_value(self) -> None:
        assert [run.label for run in self.plan(3, self.TEXT, "tau=0.07417", "seed=1").runs] == [
            "seed=1,learning_rate=0.0001763,tau=0.07417"
        ]
        with pytest.raises(SpecError, match=r"--only tau=0\.5: tau is never 0\.5; its values are 0\.09763, 0\.07417"):
            self.plan(3, self.TEXT, "tau=0.5")
        with pytest.raises(SpecError, match="no combination has all of these"):
            self.plan(3, self.TEXT, "tau=0.07417", "learning_rate=0.002222")

    def test_points_that_are_alike_share_a_run(self) -> None:
        made = self.plan(20, HEAD + "variables: {batch_size: {int_uniform: [8, 11]}}\n")
        assert (made.combinations, len(made.runs)) == (20, 4)
        assert made.notes[1].startswith("20 combinations make 4 runs, for some mean the same")

    def test_drawn_values_out_of_range_are_one_problem_with_their_number(self) -> None:
        text = HEAD + "variables: {seed: [0, 1], tau: {uniform: [-1, 3]}}\n"
        with pytest.raises(SpecError) as caught:
            self.plan(40, text)
        low, high = sorted(str(problem) for problem in caught.value.problems)
        pattern = r"x\.yaml:3:42: tau must be {}, got {}\d\.\d+ \((\d+) of 80 runs\)"
        matches = [re.fullmatch(pattern.format("<= 1", ""), low), re.fullmatch(pattern.format("> 0", "-?"), high)]
        assert all(match and 8 < int(match[1]) < 60 for match in matches)


class TestOtherScripts:
    """A `script_path` that isn't ours."""

    def test_its_settings_are_unchecked_and_all_count(self) -> None:
        Path("mine.py").touch()
        text = "meta_data: {script_path: mine.py}\nconstants: {a: {b: 1}}\nvariables: {c: [1, 2], d.e: [x]}\n"
        made = plan(text)
        assert made.notes == ("mine.py is not ours: its settings are passed on unchecked",)
        assert [run.id for run in made.runs] == ["f507a14e6f86905d", "4abf0d5f1979a6ff"]
        assert made.check_again(made.runs[1].id).resolved() == {"a": {"b": 1}, "c": 2, "d": {"e": "x"}}

    def test_ids_don_t_depend_on_dots_or_the_way_to_the_script(self) -> None:
        Path("mine.py").touch()
        one = plan("meta_data: {script_path: mine.py}\nconstants: {a: {b: 1, c: 2}}\n").ids
        other = plan("meta_data: {script_path: ./mine.py}\nvariables: {a: [{c: 2, b: 1}]}\n").ids
        assert one == other


def test_plan_jsonl_has_a_line_for_each_combination_whatever_only_says() -> None:
    text = (
        HEAD
        + "variables: {noise_type: [ou, gaussian], ou_theta: [0.1, 0.2]}\nexclude: [{ou_theta: 0.1, noise_type: ou}]\n"
    )
    made = plan(text, "noise_type=ou")
    path = Path("plan.jsonl")
    write_plan(path, load_spec(Path("x.yaml")), made)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(made.runs) == 1
    assert [row["id"] for row in rows] == made.ids
    assert rows[0] == {
        "id": made.runs[0].id,
        "label": "noise_type=ou,ou_theta=0.2",
        "settings": {
            "algorithm_name": "ddpg",
            "env_name": "Pendulum-v1",
            "max_timesteps": 3000,
            "noise_type": "ou",
            "ou_theta": 0.2,
        },
    }


def test_the_published_rates_arrive_as_floats() -> None:
    Path("x.yaml").write_text(GRID)
    rates = [
        p.settings["learning_rate"] for p in check_combinations(load_spec(Path("x.yaml")), DDPGConfig.from_settings)
    ]
    assert rates == [0.0001, 0.0003, 0.001] * 2


def large(values: int) -> str:
    listed = list(range(values))
    rates = [0.001 + number / 1000 for number in range(10)]
    return HEAD + f"variables: {{seed: {listed}, tau: {[0.1 + n / 100 for n in range(10)]}, learning_rate: {rates}}}\n"


def test_ten_thousand_combinations_are_planned_in_under_three_seconds() -> None:
    started = time.process_time()
    made = plan(large(100))
    spent = time.process_time() - started
    assert len({run.folder for run in made.runs}) == 10_000
    assert spent < 3.0


def test_a_hundred_thousand_combinations_stream_in_flat_memory() -> None:
    Path("x.yaml").write_text(large(1000))
    code = """
import resource
from pathlib import Path
from experiment.plan import check_combinations
from experiment.spec import load_spec
from rl.ddpg_config import DDPGConfig
spec = load_spec(Path("x.yaml"))
count = 0
for planned in check_combinations(spec, DDPGConfig.from_settings):
    count += 1
    if count == 1_000:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    count, grown_kib = (int(word) for word in done.stdout.split())
    assert count == 100_000
    assert grown_kib < 10_000


def find_examples() -> dict[str, str]:
    """The specs in docs/spec.md by name; each begins with a comment that says it."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "spec.md").read_text(), re.DOTALL)
    return dict(re.findall(r"^# (\w+\.yaml)\n(.*?)(?=^# \w+\.yaml\n|\Z)", "".join(blocks), re.DOTALL | re.MULTILINE))


def test_the_examples_of_the_documentation_are_planned() -> None:
    examples = find_examples()
    for name, text in examples.items():
        Path(name).write_text(text)
    runs = {
        name: len(plan_runs(load_spec(Path(name)), Path("logs"), DDPGConfig.from_settings).runs) for name in examples
    }
    assert runs == {
        "first.yaml": 9,
        "lists_and_nesting.yaml": 4,
        "cases.yaml": 4,
        "named.yaml": 6,
        "base.yaml": 6,
        "small.yaml": 6,
        "random.yaml": 40,
        "longer.yaml": 3,
    }
