"""Specs: sections, defaults, base specs, overrides, notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment.distributions import Distribution
from experiment.loader import Mark
from experiment.metadata import OUR_TRAINER
from experiment.problems import SpecError
from experiment.spec import ExperimentSpec, load_spec


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "sweep.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(text: str, *overrides: str) -> ExperimentSpec:
    return load_spec(write(text), overrides)


def problems_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(text, *overrides)
    return [str(problem) for problem in caught.value.problems]


BASE = "constants: {algorithm_name: ddpg, tau: 0.1}\nvariables: {seed: [1, 2], learning_rate: [1e-4, 1e-3]}\n"


def test_a_spec_without_meta_data_has_its_defaults() -> None:
    meta = load(BASE).meta
    assert (meta.exp_name, meta.script_path, meta.num_workers, meta.imports) == ("sweep", "train.py", None, ())
    assert meta.runs_trainer


def test_the_sections_are_read_as_they_are_written() -> None:
    spec = load(
        "meta_data: {exp_name: one, num_workers: 3, description: why, imports: [my.envs], job_name: 'r_{seed}'}\n"
        "constants: {a: 1, b: {c: [1, 2], d: {}}}\n"
        "variables: {seed: [1, 2], net.dims: [[64], [64, 64]]}\n"
        "cases: [{x: 1, y: 2}, {x: 3}]\n"
        "exclude: [{seed: 1, x: 3}]\n"
    )
    assert (spec.meta.exp_name, spec.meta.num_workers, spec.meta.description) == ("one", 3, "why")
    assert (spec.meta.imports, spec.meta.job_name) == (("my.envs",), "r_{seed}")
    assert spec.constants == {"a": 1, "b.c": [1, 2], "b.d": {}}
    assert spec.variables == {"seed": [1, 2], "net.dims": [[64], [64, 64]]}
    assert spec.cases == [{"x": 1, "y": 2}, {"x": 3}]
    assert spec.exclude == [{"seed": 1, "x": 3}]
    assert spec.swept_keys == ("seed", "net.dims", "x", "y")


@pytest.mark.parametrize(
    ("written", "command"),
    [
        ("mail -s 'it is done' me", ("mail", "-s", "it is done", "me")),
        ("[notify, a b, '3']", ("notify", "a b", "3")),
        ("echo $HOME; ls", ("echo", "$HOME;", "ls")),
    ],
)
def test_what_is_run_at_the_end_is_split_into_words_and_read_by_no_shell(
    written: str, command: tuple[str, ...]
) -> None:
    assert load(f"meta_data: {{on_finish: {written}}}\n" + BASE).meta.on_finish == command


def test_what_is_run_at_the_end_is_inherited_and_no_part_of_any_run() -> None:
    write("meta_data: {on_finish: notify}\n" + BASE, "base.yaml")
    spec = load("meta_data: {extends: base.yaml}\n")
    assert spec.meta.on_finish == ("notify",)
    assert "on_finish" not in spec.sections.known_keys()


def test_nesting_and_dots_are_the_same_thing() -> None:
    nested = load("constants: {a: {b: {c: 1}}}\nvariables: {p: {q: [1, 2]}}\n")
    dotted = load("constants: {a.b: {c: 1}}\nvariables: {p.q: [1, 2]}\n")
    assert (nested.constants, nested.variables) == (dotted.constants, dotted.variables)


def test_empty_sections_are_allowed() -> None:
    assert load("meta_data:\nconstants: {a: 1}\nvariables:\ncases:\nexclude: []\n").constants == {"a": 1}


def test_a_variable_overrides_its_constant_and_says_so() -> None:
    spec = load("constants:\n  online: false\nvariables:\n  online: [false, true]\n")
    assert spec.notes == ("online: the constant false (sweep.yaml:2) gives way to the variable (sweep.yaml:4)",)


def test_a_case_overrides_its_constant_and_says_so() -> None:
    spec = load("constants:\n  tau: 0.1\ncases:\n  - {tau: 0.2}\n  - {other: 1}\n")
    assert spec.notes == ("tau: the constant 0.1 (sweep.yaml:2) gives way to 1 of the 2 cases (sweep.yaml:4)",)


def test_another_script_has_keys_of_its_own() -> None:
    Path("mine.py").touch()
    spec = load("meta_data: {script_path: ./mine.py}\nconstants: {num_workers: 4, description: x}\n")
    assert spec.meta.script_path == "mine.py"
    assert not spec.meta.runs_trainer
    assert spec.constants == {"num_workers": 4, "description": "x"}


def test_our_trainer_is_known_by_its_place_and_not_by_its_name(project: Path) -> None:
    ours = load("constants: {a: 1}\n").meta
    assert (ours.runs_trainer, ours.script_file) == (True, str(OUR_TRAINER))
    assert load(f"meta_data: {{script_path: {OUR_TRAINER}}}\nconstants: {{a: 1}}\n").meta.runs_trainer
    Path("train.py").touch()
    theirs = load("constants: {a: 1}\n").meta
    assert (theirs.runs_trainer, theirs.script_file) == (False, "train.py")
    assert not load(f"meta_data: {{script_path: {project}/train.py}}\nconstants: {{a: 1}}\n").meta.runs_trainer


def test_a_name_may_be_in_any_script() -> None:
    assert load("meta_data: {exp_name: 扩散-v1.2}\nconstants: {a: 1}\n").meta.exp_name == "扩散-v1.2"


def test_a_file_whose_name_is_no_folder_name_asks_for_exp_name() -> None:
    path = write("constants: {a: 1}\n", "my sweep.yaml")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value) == (
        "my sweep.yaml:1:1: the file's name makes exp_name 'my sweep', which must begin with a letter, digit or _ and "
        "hold only these and . - = + , @; did you mean 'my-sweep'?; give exp_name in meta_data"
    )


class TestExtends:
    """One spec over another."""

    def test_keys_go_over_those_of_the_base_one_by_one(self) -> None:
        write("meta_data: {exp_name: b, num_workers: 2}\n" + BASE, "base.yaml")
        spec = load("meta_data: {extends: base.yaml, num_workers: 4}\nconstants: {tau: 0.2, new: 1}\n")
        assert (spec.meta.exp_name, spec.meta.num_workers) == ("b", 4)
        assert spec.constants == {"algorithm_name": "ddpg", "tau": 0.2, "new": 1}
        assert spec.variables == {"seed": [1, 2], "learning_rate": [1e-4, 1e-3]}
        assert spec.files == (Path("sweep.yaml"), Path("base.yaml"))

    def test_a_constant_over_a_variable_of_the_base_ends_its_axis(self) -> None:
        write(BASE, "base.yaml")
        spec = load("meta_data: {extends: base.yaml}\nconstants: {seed: 7}\n")
        assert spec.constants["seed"] == 7
        assert list(spec.variables) == ["learning_rate"]

    def test_a_variable_over_a_constant_of_the_base_is_no_news(self) -> None:
        write(BASE, "base.yaml")
        spec = load("meta_data: {extends: base.yaml}\nvariables: {tau: [0.1, 0.2], seed: [5]}\n")
        assert spec.variables == {"seed": [5], "learning_rate": [1e-4, 1e-3], "tau": [0.1, 0.2]}
        assert "tau" not in spec.constants
        assert spec.notes == ()

    def test_cases_and_exclude_are_taken_whole(self) -> None:
        write("cases: [{a: 1}, {a: 2}]\nexclude: [{a: 1}]\nvariables: {b: [1, 2]}\n", "base.yaml")
        spec = load("meta_data: {extends: base.yaml}\ncases: [{b: 3}, {b: 4, a: 1}]\nexclude: []\n")
        assert (spec.cases, spec.exclude, spec.variables) == ([{"b": 3}, {"b": 4, "a": 1}], [], {})

    def test_a_key_of_the_base_s_cases_can_be_fixed(self) -> None:
        write("cases: [{a: 1, b: 1}, {a: 2, b: 1}]\n", "base.yaml")
        spec = load("meta_data: {extends: base.yaml}\nconstants: {a: 5}\n")
        assert (spec.constants, spec.cases) == ({"a": 5}, [{"b": 1}])

    def test_an_inherited_exclude_may_match_nothing_any_more(self) -> None:
        write(BASE + "exclude: [{seed: 2}]\n", "base.yaml")
        assert load("meta_data: {extends: base.yaml}\nvariables: {seed: [1]}\n").variables["seed"] == [1]

    def test_chains_start_from_each_file_s_folder_and_marks_keep_their_file(self) -> None:
        write("constants: {a: 1, b: 1, c: 1}\n", "specs/deep/root.yaml")
        write("meta_data: {extends: deep/root.yaml}\nconstants: {b: 2}\n", "specs/middle.yaml")
        spec = load("meta_data: {extends: specs/middle.yaml}\nconstants: {c: 3}\n")
        assert spec.constants == {"a": 1, "b": 2, "c": 3}
        assert [spec.sections.constants[key].at for key in "abc"] == [
            Mark("specs/deep/root.yaml", 1, 16),
            Mark("specs/middle.yaml", 2, 16),
            Mark("sweep.yaml", 2, 16),
        ]

    def test_problems_of_all_files_come_in_their_order(self) -> None:
        write("constants: {a: 1}\nvariables: {b: 2}\n", "base.yaml")
        found = problems_of("meta_data: {extends: base.yaml, num_workers: 0}\nconstnats: {}\n")
        assert found == [
            "sweep.yaml:1:46: num_workers must be a whole number >= 1, got 0",
            "sweep.yaml:2:1: unknown section 'constnats'; did you mean 'constants'?",
            "base.yaml:2:16: b must be a list of the values to sweep, got 2; write b: [2], or move it to constants",
        ]


class TestOverrides:
    """`-o key=value`."""

    def test_a_scalar_over_a_variable_fixes_it(self) -> None:
        spec = load(BASE, "learning_rate=3e-4")
        assert spec.constants["learning_rate"] == 3e-4
        assert list(spec.variables) == ["seed"]

    def test_a_list_over_a_variable_replaces_its_values(self) -> None:
        assert load(BASE, "seed=[7, 8, 9]").variables == {"seed": [7, 8, 9], "learning_rate": [1e-4, 1e-3]}

    def test_a_list_over_a_constant_is_its_value(self) -> None:
        assert load(BASE, "hidden_dims=[64, 64]").constants["hidden_dims"] == [64, 64]

    def test_a_variable_over_a_constant_is_fixed_too(self) -> None:
        spec = load("constants: {a: 1}\nvariables: {a: [2, 3], b: [1]}\n", "a=4")
        assert (spec.constants, spec.variables, spec.notes) == ({"a": 4}, {"b": [1]}, ())

    def test_a_key_of_cases_is_taken_out_of_the_points(self) -> None:
        text = "constants: {c: 0}\ncases: [{a: 1, b: 1}, {a: 2, b: 1}, {a: 2, b: 2}]\n"
        spec = load(text, "a=9")
        assert (spec.constants, spec.cases) == ({"c": 0, "a": 9}, [{"b": 1}, {"b": 2}])
        assert load(text, "a=9", "b=9").cases == []

    def test_nested_values_are_flattened(self) -> None:
        spec = load("constants: {optimizer: {lr: 1, eps: 2}}\n", "optimizer={lr: 3}", "optimizer.beta=4")
        assert spec.constants == {"optimizer.lr": 3, "optimizer.eps": 2, "optimizer.beta": 4}

    def test_an_exclude_may_match_nothing_under_an_override(self) -> None:
        text = BASE + "exclude: [{seed: 2, learning_rate: 1e-3}]\n"
        assert load(text, "seed=1").constants["seed"] == 1

    @pytest.mark.parametrize(
        ("override", "problem"),
        [
            ("seed", "-o seed: -o takes key=value, for example -o seed=VALUE"),
            ("=1", "-o =1: -o takes key=value, for example -o seed=VALUE"),
            ("a..b=1", "-o a..b=1: -o takes key=value, for example -o a..b=VALUE"),
            ("seed=", "-o seed=: no value for seed; write seed=null for none, or seed='\"\"' for empty text"),
            ("seed=[1", "-o seed=[1: the value of seed can't be read: this list is not closed: ',' or ']' is missing"),
            ("seed=[]", "-o seed=[]: seed is an empty list, so there would be no run; give at least one value"),
            ("seed=[1, 1]", "-o seed=[1, 1]: seed has the value 1 twice"),
            ("tau=.inf", "-o tau=.inf: every number must be finite, got .inf"),
            ("exp_name=x", "-o exp_name=x: exp_name belongs in meta_data; -o sets constants and variables"),
            ("meta_data.num_workers=2", "-o meta_data.num_workers=2: num_workers belongs in meta_data; -o sets"),
            ("tau.x=1", "-o tau.x=1: 'tau.x' is a part of 'tau', which is given as a whole (sweep.yaml:1); use one"),
        ],
    )
    def test_what_is_wrong_names_the_override(self, override: str, problem: str) -> None:
        (found,) = problems_of(BASE, override)
        assert found.startswith(problem)

    def test_one_list_for_a_variable_of_lists_needs_its_own_brackets(self) -> None:
        text = "variables: {hidden_dims: [[64], [64, 64]]}\n"
        (found,) = problems_of(text, "hidden_dims=[32, 16]")
        assert found == (
            "-o hidden_dims=[32, 16]: hidden_dims is swept over lists; "
            "write hidden_dims=[[32, 16]] to fix it to [32, 16]"
        )
        assert load(text, "hidden_dims=[[32, 16]]").variables["hidden_dims"] == [[32, 16]]

    def test_a_key_given_twice_is_refused(self) -> None:
        assert problems_of(BASE, "tau=1", "tau=2") == ["-o tau=2: tau is given twice (also as -o tau=1)"]


RANDOM = "meta_data: {samples: 4}\nconstants: {a: 1}\nvariables: {lr: {log_uniform: [1e-5, 1e-2]}, seed: [0, 1]}\n"


class TestRandomVariables:
    """`key: {distribution: ...}` under `variables`."""

    def test_nesting_and_dots_are_the_same_thing(self) -> None:
        nested, dotted = (
            load(RANDOM),
            load(RANDOM.replace("lr: {log_uniform: [1e-5, 1e-2]}", "lr.log_uniform: [1e-5, 1e-2]")),
        )
        assert nested.draws == dotted.draws == {"lr": Distribution("log_uniform", (1e-5, 1e-2))}
        assert nested.variables == dotted.variables
        deep = "meta_data: {samples: 4}\nvariables: {net: {opt.lr: {uniform: [0, 1]}}}\n"
        assert list(load(deep).variables) == ["net.opt.lr"]

    def test_what_is_drawn_is_said(self) -> None:
        text = "meta_data: {samples: 4, samples_seed: 3}\nvariables: {b: {uniform: [0, 1]}, c: {choice: [x]}}\n"
        assert load(text).notes == ("4 points drawn of b, c (samples_seed 3)",)
        assert load(RANDOM, "samples=1").notes == ("1 point drawn of lr (samples_seed 0)",)

    def test_more_samples_keep_the_first_and_other_variables_don_t_matter(self) -> None:
        few = load(RANDOM).variables["lr"]
        more = load(RANDOM, "samples=9", "tau={uniform: [0, 1]}", "seed={int_uniform: [0, 9]}").variables
        assert more["lr"][:4] == few
        assert [len(more[key]) for key in ("lr", "seed", "tau")] == [9, 9, 9]
        assert list(more) == ["lr", "seed", "tau"]
        other = load(RANDOM, "samples_seed=1").variables["lr"]
        assert not set(other) & set(few)

    def test_whole_numbers_may_be_written_as_floats(self) -> None:
        text = "meta_data: {samples: 4}\nvariables: {n: {int_uniform: [1e3, 2e3]}}\n"
        assert load(text).draws["n"] == Distribution("int_uniform", (1000, 2000))

    def test_a_choice_may_be_of_anything(self) -> None:
        text = "meta_data: {samples: 40}\nvariables: {n: {choice: [[64, 64], {g: 1}, null, true, 1]}}\n"
        drawn = load(text).variables["n"]
        assert all(value in drawn for value in ([64, 64], {"g": 1}, None, True, 1))

    def test_a_setting_that_is_named_like_a_distribution_can_be_swept(self) -> None:
        text = "constants: {net.choice: 1, uniform: 2}\nvariables: {choice: [1, 2], opt.choices: [3]}\n"
        spec = load(text, "net.choice=7")
        assert (spec.constants["net.choice"], spec.draws) == (7, {})
        assert spec.variables == {"choice": [1, 2], "opt.choices": [3]}

    def test_an_override_fixes_a_random_variable_or_lists_its_values(self) -> None:
        fixed = load(RANDOM, "lr=0.1")
        assert (fixed.constants, fixed.variables) == ({"a": 1, "lr": 0.1}, {"seed": [0, 1]})
        assert fixed.notes == ("samples (sweep.yaml:1) not used: no variable is random any more",)
        assert load(RANDOM, "lr=[0.1, 0.2]").variables == {"lr": [0.1, 0.2], "seed": [0, 1]}

    def test_an_override_makes_a_key_random_whatever_it_was(self) -> None:
        text = (
            "constants: {c: 0, algorithm_name: ddpg}\nvariables: {seed: [0, 1]}\ncases: [{p: 1, q: 1}, {p: 2, q: 1}]\n"
        )
        spec = load(text, "samples=5", "c={uniform: [0, 1]}", "p.choice=[1, 2]", "seed={int_uniform: [0, 99]}")
        assert spec.axis_lengths() == [5, 1]
        assert (list(spec.variables), spec.constants, spec.cases) == (
            ["seed", "c", "p"],
            {"algorithm_name": "ddpg"},
            [{"q": 1}],
        )
        assert load(RANDOM, "meta_data.samples=2", "lr={uniform: [3, 4]}").draws["lr"].arguments == (3.0, 4.0)

    def test_a_choice_of_lists_keeps_its_brackets_under_an_override(self) -> None:
        text = "meta_data: {samples: 2}\nvariables: {dims: {choice: [[64], [64, 64]]}}\n"
        (found,) = problems_of(text, "dims=[32, 16]")
        assert found == "-o dims=[32, 16]: dims is swept over lists; write dims=[[32, 16]] to fix it to [32, 16]"

    @pytest.mark.parametrize(
        ("override", "problem"),
        [
            ("lr={unifrom: [0, 1]}", "lr: unknown distribution 'unifrom'; did you mean 'uniform'?"),
            ("lr={uniform: [1, 0]}", "lr: the low bound of uniform must be below the high one, got [1, 0]"),
            ("lr={uniform: [0, true]}", "lr: a bound of uniform must be a number, got true"),
            ("lr={uniform: 3}", "lr: uniform takes two numbers, [low, high], got 3"),
            ("lr={choice: [1, 1]}", "lr has the value 1 twice"),
            ("lr={uniform: [0, 1], choice: [1]}", "lr is given twice (also as -o lr={uniform: [0, 1], choice: [1]})"),
            ("samples=0", "samples must be a whole number >= 1, got 0"),
            ("samples=[1, 2]", "samples must be a whole number >= 1, got [1, 2]"),
            ("samples_seed=x", "samples_seed must be a whole number >= 0, got 'x'"),
        ],
    )
    def test_what_is_wrong_with_an_override_names_it(self, override: str, problem: str) -> None:
        (found,) = problems_of(RANDOM, override)
        assert found.startswith(f"-o {override}: {problem}")

    def test_a_value_and_a_distribution_of_one_key_are_refused(self) -> None:
        (found,) = problems_of(RANDOM, "lr=3", "lr={uniform: [0, 1]}")
        assert found == "-o lr={uniform: [0, 1]}: lr is given twice (also as -o lr=3)"

    def test_samples_and_random_variables_need_each_other_under_an_override_too(self) -> None:
        (missing,) = problems_of(BASE, "tau={uniform: [0, 1]}")
        assert missing.startswith("-o tau={uniform: [0, 1]}: tau is random; say in meta_data how many points to draw")
        (useless,) = problems_of(BASE, "samples=3")
        assert useless.startswith("-o samples=3: samples is given and no variable is random")

    def test_a_base_s_random_variables_are_inherited_and_ended(self) -> None:
        write(RANDOM, "base.yaml")
        more = load("meta_data: {extends: base.yaml, samples: 6}\nvariables: {tau: {uniform: [0, 1]}}\n")
        assert (list(more.draws), more.axis_lengths()) == (["lr", "tau"], [6, 2])
        ended = load("meta_data: {extends: base.yaml}\nconstants: {lr: 0.1}\n")
        assert ended.notes == ("samples (base.yaml:1) not used: no variable is random any more",)

    def test_another_script_may_have_a_setting_called_samples(self) -> None:
        Path("mine.py").touch()
        text = "meta_data: {script_path: mine.py}\nconstants: {samples: 4}\n"
        assert load(text, "samples=5").constants == {"samples": 5}


def test_values_count_as_the_same_by_meaning() -> None:
    assert "has the value 1.0 twice (first at 1:20)" in problems_of("variables: {beta: [1, 1.0]}\n")[0]
    assert load("variables: {beta: [1, true, '1', [1]]}\n").variables["beta"] == [1, True, "1", [1]]


def test_a_grid_beyond_reason_is_refused_before_it_is_walked() -> None:
    values = ", ".join(str(number) for number in range(101))
    text = "variables:\n" + "".join(f"  {key}: [{values}]\n" for key in "abcdef")
    assert problems_of(text) == [
        "sweep.yaml:1:1: the grid has 1,061,520,150,601 combinations (101 x 101 x 101 x 101 x 101 x 101); "
        "more than 1,000,000 are refused"
    ]
