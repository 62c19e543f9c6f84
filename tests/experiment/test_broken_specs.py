"""Broken specs, each said with its place and its repair, and no folder made.

In each spec the sign « stands just before the place that the problem has to name; it is taken out before the spec is read.
"""

# ruff: noqa: E501 (the table below is read by its rows)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiment.identity import CheckedConfig
from experiment.plan import plan_runs
from experiment.problems import Fault, SettingsError, SpecError, suggest
from experiment.spec import load_spec
from rl.ddpg_config import DDPGConfig

HEAD = "constants: {algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 3000}\n"
SAMPLED = "meta_data: {samples: 8}\n" + HEAD

BROKEN = [
    # Sections
    ("misspelt section", "constants: {algorithm_name: ddpg}\n«varaibles: {seed: [1]}\n", "unknown section 'varaibles'; did you mean 'variables'?"),
    ("another tool's section", HEAD + "«grid: {seed: [1]}\n", "unknown section 'grid'; did you mean 'variables'?"),
    ("setting at the top", HEAD + "«seed: 3\n", "unknown section 'seed'; a setting of the runs belongs in constants, or as a list in variables"),
    ("exp_name at the top", HEAD + "«exp_name: x\n", "exp_name belongs in meta_data, not at the top"),
    ("section inside a section", "constants:\n  algorithm_name: ddpg\n  «variables: {seed: [1]}\n", "variables is a section of its own; write it at the left margin"),
    ("constants as a list", "constants: «[algorithm_name, ddpg]\n", "constants must be a mapping, 'key: value' on each line, got ['algorithm_name', 'ddpg']"),
    ("spec as a list", "«- a\n- b\n", "a spec is a mapping of the sections meta_data, constants, variables, cases, exclude; got ['a', 'b']"),
    ("only meta_data", "«meta_data: {exp_name: x}\n", "nothing to run: there are no constants and no variables"),
    # meta_data
    ("misspelt meta key", "meta_data: {«num_worker: 2}\n" + HEAD, "unknown key 'num_worker' in meta_data; did you mean 'num_workers'?"),
    ("setting in meta_data", "meta_data: {«seed: 2}\n" + HEAD, "unknown key 'seed' in meta_data; a setting of the runs belongs in constants or variables"),
    ("env_name in meta_data", "meta_data: {«env_name: x}\n" + HEAD, "unknown key 'env_name' in meta_data; a setting of the runs belongs in"),
    ("path in exp_name", "meta_data: {exp_name: «../elsewhere}\n" + HEAD, "exp_name '../elsewhere' must name one folder, without a path; did you mean 'elsewhere'?"),
    ("dots as exp_name", "meta_data: {exp_name: «..}\n" + HEAD, "exp_name '..' must begin with a letter, digit or _"),
    ("hidden exp_name", "meta_data: {exp_name: «.x}\n" + HEAD, "exp_name '.x' must begin with a letter, digit or _ and hold only these and . - = + , @; did you mean 'x'?"),
    ("option as exp_name", "meta_data: {exp_name: «-rf}\n" + HEAD, "exp_name '-rf' must begin with a letter, digit or _"),
    ("blank in exp_name", "meta_data: {exp_name: «my sweep}\n" + HEAD, "exp_name 'my sweep' must begin with a letter, digit or _ and hold only these and . - = + , @; did you mean 'my-sweep'?"),
    ("long exp_name", "meta_data: {exp_name: «" + "x" * 101 + "}\n" + HEAD, "is longer than 100 bytes"),
    ("number as exp_name", "meta_data: {exp_name: «12}\n" + HEAD, "exp_name must be text, got 12; put it in quotes"),
    ("missing script", "meta_data: {script_path: «tain.py}\n" + HEAD, "; did you mean 'train.py'?"),
    ("no workers", "meta_data: {num_workers: «0}\n" + HEAD, "num_workers must be a whole number >= 1, got 0"),
    ("workers as a truth value", "meta_data: {num_workers: «true}\n" + HEAD, "num_workers must be a whole number >= 1, got true"),
    ("on_finish as a number", "meta_data: {on_finish: «7}\n" + HEAD, "on_finish must be a command, as text or a list, got 7"),
    ("on_finish without a value", "meta_data: {on_finish: «null}\n" + HEAD, "on_finish must be a command, as text or a list, got null"),
    ("on_finish with an open quote", "meta_data: {on_finish: «\"mail 'me\"}\n" + HEAD, "on_finish can't be split into words (No closing quotation); give them as a list"),
    ("a number in on_finish", "meta_data: {on_finish: [sleep, «3]}\n" + HEAD, "on_finish: 3 is no text; put it in quotes"),
    ("an empty on_finish", "meta_data: {on_finish: «[]}\n" + HEAD, "on_finish names no program; give a command, or remove the key"),
    ("a blank on_finish", "meta_data: {on_finish: «' '}\n" + HEAD, "on_finish names no program"),
    ("using_gpus", "meta_data: {«using_gpus: [0, 1]}\n" + HEAD, "using_gpus is not read; give the devices when you start: -g 0,1"),
    ("module by its file", "meta_data: {imports: [«envs/mine.py]}\n" + HEAD, "imports: 'envs/mine.py' is not a module's name; write package.module"),
    ("imports as text", "meta_data: {imports: «mine}\n" + HEAD, "imports must be a list of module names, got 'mine'"),
    ("job_name with an unknown key", "meta_data: {job_name: «'r_{sede}'}\n" + HEAD + "variables: {seed: [1]}\n", "job_name asks for {sede}, which is no setting of this spec; did you mean 'seed'?"),
    ("job_name with a lonely brace", "meta_data: {job_name: «'r_{seed'}\n" + HEAD + "variables: {seed: [1]}\n", "job_name has a brace without its partner"),
    ("job_name with a format", "meta_data: {job_name: «'{seed:03d}'}\n" + HEAD + "variables: {seed: [1]}\n", "; only plain {key} fields are known"),
    ("missing base", "meta_data: {extends: «bse.yaml}\n" + HEAD, "the base spec 'bse.yaml' is not there; did you mean 'base.yaml'?"),
    ("base of itself", "meta_data: {extends: «sweep.yaml}\n" + HEAD, "extends goes in a circle: sweep.yaml -> sweep.yaml"),
    # Keys in the wrong place
    ("exp_name in constants", "constants: {algorithm_name: ddpg, «exp_name: x}\n", "exp_name belongs in meta_data"),
    ("num_workers in variables", HEAD + "variables: {«num_workers: [1, 2]}\n", "num_workers belongs in meta_data"),
    ("key in variables and cases", HEAD + "variables: {tau: [0.1]}\ncases: [{seed: 1, «tau: 0.2}]\n", "tau is in variables too (sweep.yaml:2); a key has one axis, take it out of one of the two"),
    ("key as a whole and by parts", HEAD + "variables: {env_kwargs: [{g: 1}]}\ncases: [{env_kwargs: {«g: 2}}]\n", "'env_kwargs.g' is a part of 'env_kwargs', which is given as a whole (sweep.yaml:2); use one way"),
    # Keys
    ("duplicate key", "constants:\n  algorithm_name: ddpg\n  tau: 0.1\n  «tau: 0.2\n", "duplicate key 'tau' (first on line 3)"),
    ("duplicate by nesting and dots", "constants:\n  env_kwargs: {g: 1}\n  «env_kwargs.g: 2\n", "duplicate key 'env_kwargs.g' (first on line 2): nesting and dots are the same thing"),
    ("duplicate section", HEAD + "«constants: {tau: 0.1}\n", "duplicate key 'constants' (first on line 1)"),
    ("empty part in a key", "constants: {algorithm_name: ddpg, «env..g: 1}\n", "the key 'env..g' has an empty part; dots stand between names"),
    ("number as a key", HEAD + "variables: {«1: [2]}\n", "the key 1 is not text; put it in quotes if it is meant"),
    # Axes
    ("scalar axis", HEAD + "variables: {seed: «100}\n", "seed must be a list of the values to sweep, got 100; write seed: [100], or move it to constants"),
    ("string axis", HEAD + "variables: {noise_type: «ou}\n", "noise_type must be a list of the values to sweep, got 'ou'; write noise_type: ['ou'], or move it to constants"),
    ("axis without a value", HEAD + "variables:\n  seed:«\n", "seed must be a list of the values to sweep, got null"),
    ("empty axis", HEAD + "variables: {seed: «[]}\n", "seed is an empty list, so there would be no run; give at least one value"),
    ("value twice in an axis", HEAD + "variables: {seed: [1, 2, «1]}\n", "seed has the value 1 twice (first at 2:20)"),
    ("infinite value", HEAD + "variables: {max_grad_norm: [1.0, «.inf]}\n", "every number must be finite, got .inf"),
    ("cases as a mapping", HEAD + "cases: «{tau: 0.1}\n", "cases must be a list of mappings, '- {key: value}' on each line, got {tau: 0.1}"),
    ("empty cases", HEAD + "cases: «[]\n", "cases is an empty list, so there would be no run"),
    ("empty case", HEAD + "cases: [{tau: 0.1}, «{}]\n", "each entry of cases is a mapping with at least one key, got {}"),
    ("case twice", HEAD + "cases:\n  - {tau: 0.1}\n  - «{tau: 0.1}\n", "this case is the same as the one on line 3"),
    ("too many combinations", HEAD + "«variables:\n" + "".join(f"  k{i}: {list(range(11))}\n" for i in range(6)), "the grid has 1,771,561 combinations"),
    # Random variables
    ("misspelt distribution", SAMPLED + "variables: {tau: {«unifrom: [0.1, 0.2]}}\n", "tau: unknown distribution 'unifrom'; did you mean 'uniform'? (a setting of that name is written with a dot, tau.unifrom)"),
    ("another tool's distribution", SAMPLED + "variables: {batch_size: {«randint: [8, 64]}}\n", "batch_size: unknown distribution 'randint'; did you mean 'int_uniform'?"),
    ("missing distribution", SAMPLED + "variables: {tau: {«normal: [0, 1]}}\n", "tau: unknown distribution 'normal'; there are log_uniform, uniform, int_uniform, choice (a setting"),
    ("bounds out of order", SAMPLED + "variables: {tau: {uniform: «[0.2, 0.1]}}\n", "tau: the low bound of uniform must be below the high one, got [0.2, 0.1]; write [0.1, 0.2]"),
    ("equal bounds", SAMPLED + "variables: {batch_size: {int_uniform: «[8, 8]}}\n", "batch_size: the low bound of int_uniform must be below the high one, got [8, 8]; a constant has one value"),
    ("log_uniform from 0", SAMPLED + "variables: {learning_rate: {log_uniform: [«0, 1e-2]}}\n", "learning_rate: a bound of log_uniform must be > 0, got 0"),
    ("negative bound of log_uniform", SAMPLED + "variables: {learning_rate.log_uniform: [«-1e-5, 1e-2]}\n", "learning_rate: a bound of log_uniform must be > 0, got -1e-05"),
    ("one bound", SAMPLED + "variables: {tau: {uniform: «[0.1]}}\n", "tau: uniform takes two numbers, [low, high], got [0.1]"),
    ("three bounds", SAMPLED + "variables: {tau: {uniform: «[0.1, 0.2, 0.3]}}\n", "tau: uniform takes two numbers, [low, high], got [0.1, 0.2, 0.3]"),
    ("a number for bounds", SAMPLED + "variables: {tau: {uniform: «0.1}}\n", "tau: uniform takes two numbers, [low, high], got 0.1"),
    ("a mapping for bounds", SAMPLED + "variables: {tau: {uniform: «{low: 0.1, high: 0.2}}}\n", "tau: uniform takes two numbers, [low, high], got {low: 0.1, high: 0.2}"),
    ("text as a bound", SAMPLED + "variables: {tau: {uniform: [0.1, «'0.2']}}\n", "tau: a bound of uniform must be a number, got '0.2'"),
    ("truth value as a bound", SAMPLED + "variables: {tau: {uniform: [«false, 1]}}\n", "tau: a bound of uniform must be a number, got false"),
    ("infinite bound", SAMPLED + "variables: {tau: {uniform: [0.1, «.inf]}}\n", "tau: every number must be finite, got .inf"),
    ("bound beyond floats", SAMPLED + "variables: {tau: {uniform: [0.1, «1" + "0" * 309 + "]}}\n", "tau: a bound of uniform is too large for a float: 1000"),
    ("broken bound of int_uniform", SAMPLED + "variables: {batch_size: {int_uniform: [1, «8.5]}}\n", "batch_size: a bound of int_uniform must be a whole number, got 8.5"),
    ("huge bound of int_uniform", SAMPLED + "variables: {seed: {int_uniform: [0, «9007199254740993]}}\n", "seed: a bound of int_uniform must lie within 2**53, got 9007199254740993"),
    ("empty choice", SAMPLED + "variables: {noise_type: {choice: «[]}}\n", "noise_type: choice takes the values to choose from, [a, b], got []"),
    ("text as a choice", SAMPLED + "variables: {noise_type: {choice: «ou}}\n", "noise_type: choice takes the values to choose from, [a, b], got 'ou'"),
    ("value twice in a choice", SAMPLED + "variables: {noise_type: {choice: [ou, gaussian, «ou]}}\n", "noise_type has the value 'ou' twice (first at 3:35)"),
    ("infinite choice", SAMPLED + "variables: {max_grad_norm: {choice: [1.0, «.inf]}}\n", "every number must be finite, got .inf"),
    ("two distributions", SAMPLED + "variables:\n  «tau:\n    uniform: [0.1, 0.2]\n    choice: [0.1]\n", "tau is given twice (first on line 4); it has one list, or one distribution"),
    ("list and distribution", SAMPLED + "variables:\n  tau: [0.1]\n  «tau.uniform: [0.1, 0.2]\n", "tau is given twice (first on line 4); it has one list, or one distribution"),
    ("distribution and part", SAMPLED + "variables: {env_kwargs: {choice: [1, 2]}, «env_kwargs.g: [9.8]}\n", "'env_kwargs.g' is a part of 'env_kwargs', which is given as a whole"),
    ("random variable in cases too", SAMPLED + "variables: {tau: {uniform: [0.1, 0.2]}}\ncases: [{«tau: 0.1}]\n", "tau is in variables too (sweep.yaml:3)"),
    ("random variable without samples", HEAD + "variables:\n  seed: [1, 2]\n  «tau: {uniform: [0.1, 0.2]}\n", "tau is random; say in meta_data how many points to draw, for example samples: 20"),
    ("samples without a random variable", "meta_data: {«samples: 3}\n" + HEAD + "variables: {seed: [1, 2]}\n", "samples is given and no variable is random; write one under variables, such as learning_rate: {log_uniform: [1e-5, 1e-2]}"),
    ("samples_seed without a random variable", "meta_data: {«samples_seed: 3}\n" + HEAD, "samples_seed is given and no variable is random"),
    ("no samples", "meta_data: {samples: «0}\n" + HEAD + "variables: {tau: {uniform: [0.1, 0.2]}}\n", "samples must be a whole number >= 1, got 0"),
    ("samples as a truth value", "meta_data: {samples: «true}\n" + HEAD + "variables: {tau: {uniform: [0.1, 0.2]}}\n", "samples must be a whole number >= 1, got true"),
    ("samples as a float", "meta_data: {samples: «2.0}\n" + HEAD + "variables: {tau: {uniform: [0.1, 0.2]}}\n", "samples must be a whole number >= 1, got 2.0"),
    ("too many samples", "meta_data: {samples: «1_000_000_000}\n" + HEAD + "variables: {tau: {uniform: [0.1, 0.2]}}\n", "samples must be <= 1,000,000, the most combinations of a grid, got 1000000000"),
    ("negative samples_seed", "meta_data: {samples: 1, samples_seed: «-1}\n" + HEAD + "variables: {tau: {uniform: [0.1, 0.2]}}\n", "samples_seed must be a whole number >= 0, got -1"),
    ("samples in constants", "constants: {algorithm_name: ddpg, «samples: 3}\n", "samples belongs in meta_data"),
    ("samples at the top", HEAD + "«samples: 3\n", "samples belongs in meta_data, not at the top"),
    ("too many samples of too many seeds", "meta_data: {samples: 1001}\n" + HEAD + f"«variables: {{tau: {{uniform: [0.1, 0.2]}}, seed: {list(range(1000))}, batch_size: {{int_uniform: [1, 9]}}}}\n", "the grid has 1,001,000 combinations (1001 x 1000)"),
    ("drawn value out of range", SAMPLED + "variables:\n  seed: [1, 2]\n  learning_rate: {uniform: «[-2, -1]}\n", "learning_rate must be > 0, got -"),
    ("choice out of range", SAMPLED + "variables: {learning_rate: {choice: [«-1.0, 1.0]}}\n", "learning_rate must be > 0, got -1.0 ("),
    ("misspelt random variable", SAMPLED + "variables: {«learning_rat: {log_uniform: [1e-5, 1e-2]}}\n", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
    ("exclude of a value that can't be drawn", SAMPLED + "variables: {batch_size: {int_uniform: [8, 9]}}\nexclude: [{batch_size: «10}]\n", "batch_size is never 10; its values are "),
    ("exclude of no choice", SAMPLED + "variables: {noise_type: {choice: [ou, gaussian]}}\nexclude: [{noise_type: «uo}]\n", "noise_type is never 'uo'; its values are "),
    ("exclude of a value that wasn't drawn", SAMPLED + "variables: {tau: {uniform: [0.1, 0.2]}}\nexclude: [{tau: «0.3}]\n", "tau is never 0.3; its values are 0."),
    # exclude
    ("misspelt key in exclude", HEAD + "variables: {seed: [1, 2]}\nexclude: [{«sed: 1}]\n", "exclude asks for 'sed', which no combination sets; did you mean 'seed'?"),
    ("value of exclude that nothing has", HEAD + "variables: {seed: [1, 2]}\nexclude: [{seed: «3}]\n", "seed is never 3; its values are 1, 2"),
    ("list in exclude", HEAD + "variables: {seed: [1, 2]}\nexclude: [{seed: «[1, 2]}]\n", "seed is never the list [1, 2]; write one entry for each value"),
    ("text in exclude", HEAD + "variables: {noise_type: [ou, gaussian]}\nexclude: [{noise_type: «gausian}]\n", "noise_type is never 'gausian'; its values are 'ou', 'gaussian'; did you mean 'gaussian'?"),
    ("exclude across cases", HEAD + "cases: [{seed: 1, tau: 0.1}, {seed: 2, tau: 0.2}]\nexclude: [{seed: «1, tau: 0.2}]\n", "no combination has these values of seed and tau; remove the entry"),
    ("exclude that leaves nothing", HEAD + "variables: {seed: [1, 2]}\n«exclude: [{seed: 1}, {seed: 2}]\n", "exclude leaves none of the 2 combinations"),
    ("exclude as a mapping", HEAD + "variables: {seed: [1, 2]}\nexclude: «{seed: 1}\n", "exclude must be a list of mappings"),
    # YAML
    ("tab", "constants:\n  algorithm_name: ddpg\n«\ttau: 0.1\n", "a tab is used for indentation; YAML takes spaces only"),
    ("python tag", HEAD + "variables: {seed: «!!python/object/apply:os.system [id]}\n", "the tag !!python/object/apply:os.system is not allowed"),
    ("recursive alias", HEAD + "variables: {seed: &s [1, «*s]}\n", "the alias *s stands inside what it names, so it would never end"),
    ("alias bomb", "a: &a [0,0,0,0,0,0,0,0,0]\n" + "".join(f"{n}: &{n} [*{m},*{m},*{m},*{m},*{m},*{m},*{m},*{m}]\n" for m, n in zip("abcd", "bcde", strict=True)) + "f: [*e, «*e, *e]\n", "makes the aliases unfold to more than 100000 values"),
    ("deep nesting", "constants: " + "{a: " * 49 + "«{a: 1}" + "}" * 49, "nested more than 50 deep; nothing in a spec needs that"),
    ("list not closed", HEAD + "variables:\n  seed: «[1, 2\n  tau: [0.1]\n", "this list is not closed: ',' or ']' is missing before line 4"),
    ("key without a colon", "constants:\n  «algorithm_name ddpg\n  tau: 0.1\n", "a key without ': ' after it; write 'key: value'"),
    ("empty file", "«\n", "the file is empty"),
    ("two documents", HEAD + "«---\n" + HEAD, "a second document begins here; a spec is one document"),
    # Settings
    ("unknown trainer", "constants: {algorithm_name: «dpg}\n", "there is no trainer 'dpg'; did you mean 'ddpg'?"),
    ("misspelt key in constants", "constants: {algorithm_name: ddpg, env_name: P, «bacth_size: 8}\n", "unknown key 'bacth_size'; did you mean 'batch_size'?"),
    ("misspelt key in variables", HEAD + "variables: {seed: [1, 2], «learning_rat: [1e-3, 1e-4]}\n", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
    ("misspelt key in cases", HEAD + "cases: [{seed: 1}, {seed: 2, «tua: 0.1}]\n", "unknown key 'tua'; did you mean 'tau'? (1 of 2 runs)"),
    ("misspelt group", HEAD + "variables: {seed: [1, 2]}\ncases: [{«env_kwarg: {g: 9.8}}]\n", "unknown key 'env_kwarg'; did you mean 'env_kwargs'?"),
    ("another library's key", HEAD + "variables: {«gamma: [0.9]}\n", "unknown key 'gamma'; did you mean 'discount'?"),
    ("missing key", "«constants: {algorithm_name: ddpg}\n", "the key 'env_name' is missing"),
    ("missing key without constants", "«variables: {algorithm_name: [ddpg]}\n", "the key 'env_name' is missing"),
    ("value out of range", HEAD + "variables:\n  seed: [1, 2]\n  learning_rate: [1e-4, «-1e-3, 1e-3]\n", "learning_rate must be > 0, got -0.001 (2 of 6 runs)"),
    ("text that looks like a number", HEAD + "variables: {learning_rate: [«1e-4x, 1e-3]}\n", "learning_rate must be a number, got the text '1e-4x' (1 of 2 runs)"),
    ("truth value as a seed", HEAD + "variables: {seed: [«true]}\n", "seed must be a whole number, got true"),
    ("negative seed in a case", HEAD + "cases:\n  - seed: 1\n  - seed: «-1\n", "seed must be >= 0, got -1 (1 of 2 runs)"),
    ("word that is no choice", HEAD + "variables: {noise_type: [«white]}\n", "noise_type must be one of 'gaussian' or 'ou', got the text 'white'"),
    ("nothing would be trained", HEAD + "variables: {learning_starts: [10, «3000]}\n", "learning_starts (3000) >= max_timesteps (3000): nothing would be trained (1 of 2 runs)"),
    ("default against a setting", "constants: {algorithm_name: ddpg, env_name: P, max_timesteps: «500}\n", "learning_starts (1000) >= max_timesteps (500): nothing would be trained"),
    ("no batch would be full", "constants:\n  algorithm_name: ddpg\n  env_name: P\n  batch_size: «64\n  buffer_size: 32\n", "batch_size (64) > buffer_size (32): no batch would ever be full"),
    ("nothing would be evaluated", HEAD + "variables: {eval_freq: [«5000]}\n", "eval_freq (5000) > max_timesteps (3000): nothing would be evaluated"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(HEAD)


def build_config(values: Mapping[str, Any]) -> CheckedConfig:
    name = values.get("algorithm_name")
    if name != "ddpg":
        message = f"there is no trainer {name!r}{suggest(str(name), ['ddpg'])}"
        raise SettingsError([Fault(("algorithm_name",), message)])
    return DDPGConfig.from_settings(values)


def find_problems(text: str) -> list[str]:
    Path("sweep.yaml").write_text(text)
    before = sorted(Path().rglob("*"))
    with pytest.raises(SpecError) as caught:
        plan_runs(load_spec(Path("sweep.yaml")), Path("logs"), build_config)
    assert sorted(Path().rglob("*")) == before
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("text", "message"), [pytest.param(*case[1:], id=case[0]) for case in BROKEN])
def test_a_broken_spec_is_said_with_its_place_and_its_repair(text: str, message: str) -> None:
    before, _, after = text.partition("«")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    (problem,) = find_problems(before + after)
    assert problem.startswith(f"sweep.yaml:{line}:{column}: ")
    assert message in problem


def test_a_spec_over_1_mb_is_refused() -> None:
    text = HEAD + "variables: {seed: [" + "1, " * 340_000 + "1]}\n"
    assert find_problems(text) == ["sweep.yaml: larger than 1 MB; a spec holds settings, not data"]


def test_a_circle_over_several_specs_is_said_where_it_closes() -> None:
    Path("base.yaml").write_text("meta_data:\n  extends: ./sweep.yaml\n" + HEAD)
    assert find_problems("meta_data: {extends: base.yaml}\n" + HEAD) == [
        "base.yaml:2:12: extends goes in a circle: sweep.yaml -> base.yaml -> sweep.yaml"
    ]


def test_a_problem_of_a_base_is_said_with_the_base_s_place() -> None:
    Path("base.yaml").write_text("constants:\n  algorithm_name: ddpg\n  env_name: P\n  tau: 2\n")
    assert find_problems("meta_data: {extends: base.yaml}\nvariables: {seed: [1, 2]}\n") == [
        "base.yaml:4:8: tau must be <= 1, got 2"
    ]


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = "exlude: []\nvariables: {seed: 1, tau: []}\nmeta_data: {num_workers: x, seed: 1}\nconstants: {exp_name: x}\n"
    assert [problem.split(": ")[0] for problem in find_problems(text)] == [
        "sweep.yaml:1:1",
        "sweep.yaml:2:19",
        "sweep.yaml:2:27",
        "sweep.yaml:3:26",
        "sweep.yaml:3:29",
        "sweep.yaml:4:13",
    ]


def test_all_faults_of_all_combinations_come_at_once() -> None:
    text = HEAD + "variables:\n  learning_rate: [-1.0, 0]\n  batch: [1]\n  seed: [1, x]\n"
    assert find_problems(text) == [
        "sweep.yaml:3:19: learning_rate must be > 0, got -1.0 (2 of 4 runs)",
        "sweep.yaml:3:25: learning_rate must be > 0, got 0 (2 of 4 runs)",
        "sweep.yaml:4:3: unknown key 'batch'; did you mean 'batch_size'?",
        "sweep.yaml:5:13: seed must be a whole number, got the text 'x' (2 of 4 runs)",
    ]


def test_a_long_list_of_faults_is_cut() -> None:
    problems = find_problems(HEAD + f"variables: {{tau: {[-number for number in range(1, 71)]}}}\n")
    assert len(problems) == 51
    assert problems[-1] == "and 20 more"


def test_a_typo_inside_an_override_points_at_the_override() -> None:
    Path("sweep.yaml").write_text(HEAD)
    with pytest.raises(SpecError) as caught:
        plan_runs(load_spec(Path("sweep.yaml"), ["lr=1e-3", "tau=7"]), Path("logs"), build_config)
    assert str(caught.value) == (
        "-o lr=1e-3: unknown key 'lr'; did you mean 'learning_rate'?\n-o tau=7: tau must be <= 1, got 7"
    )


RICH = """\
meta_data: {exp_name: rich, num_workers: 2, imports: [a.b], job_name: 'r_{seed}'}
constants: &c
  algorithm_name: ddpg
  env_name: Pendulum-v1
  env_kwargs: {g: 9.8, h: {i: [1, 2]}}
variables:
  seed: [1, 2, 3]
  learning_rate: [1e-4, 3e-4]
  hidden_dims: [[64], [64, 64]]
cases:
  - {batch_size: 64, tau: 0.1}
  - batch_size: 128
    noise_type: ou
exclude:
  - {seed: 1, tau: 0.1}
"""


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_slip_of_the_pen_leads_to_anything_but_a_plan_or_problems(data: st.DataObject) -> None:
    text = RICH
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        end = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.text(" \n\t:-[]{},.&*!'0a\0é", max_size=4)) + text[end:]
    Path("sweep.yaml").write_text(text)
    try:
        runs = plan_runs(load_spec(Path("sweep.yaml")), Path("logs"), build_config).runs
    except SpecError as error:
        placed = [problem.file == "sweep.yaml" for problem in error.problems if "more" not in problem.message]
    else:
        placed = [run.folder.parent.parent == Path("logs") for run in runs]
    assert all(placed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_slip_of_the_pen_in_a_random_variable_leads_to_anything_else_either(data: st.DataObject) -> None:
    text = "variables: {a: {log_uniform: [1e-5, 1e-2]}, b.c: {uniform: [0, 1]}, n: {int_uniform: [1, 4]}, "
    text += "act: {choice: [x, y, [1]]}, seed: [1, 2]}\nexclude: [{n: 1}]\n"
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        end = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.text(" \n:-[]{},.&*!'0a\0é", max_size=4)) + text[end:]
    Path("sweep.yaml").write_text(text)
    overrides = data.draw(st.sampled_from([["samples=3"], [], ["samples=2", "n={uniform: [0, 1]}"]]))
    places = {"sweep.yaml", *(f"-o {override}" for override in overrides)}
    try:
        placed = [length > 0 for length in load_spec(Path("sweep.yaml"), overrides).axis_lengths()]
    except SpecError as error:
        placed = [problem.file in places for problem in error.problems]
    assert all(placed)


@pytest.mark.parametrize("path", ['"a\\0b"', "x" * 5000, '""', "."])
@pytest.mark.parametrize("key", ["script_path", "extends"])
def test_a_path_that_is_none_is_refused(key: str, path: str) -> None:
    (problem,) = find_problems(f"meta_data: {{{key}: {path}}}\n" + HEAD)
    assert problem.startswith(f"sweep.yaml:1:{len(key) + 15}: ")


def test_the_table_has_the_kinds_that_it_should() -> None:
    assert len({case[0] for case in BROKEN}) == len(BROKEN) >= 45
